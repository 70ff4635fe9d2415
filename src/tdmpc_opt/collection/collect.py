"""Rolls policies out into a dataset on disk."""

from dataclasses import dataclass

from tdmpc_opt.configs import COLLECTION_SEED, CollectConfig
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.executor import run_parallel
from tdmpc_opt.policies import NoisyPolicy, PolicySource
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.rollout import one_thread, rollout
from tdmpc_opt.task_table import MT30


@dataclass(frozen=True)
class _TaskWork:
    policy: PolicySource
    task: str
    episodes: int
    noise: float
    seed: int


def collect(config: CollectConfig, progress: Progress | None = None) -> EpisodeDataset:
    """Add episodes of a policy to a dataset, one shard per task.

    The same call again adds nothing twice: shards that are there already are skipped, so an
    interrupted collection goes on where it stopped. Several calls mix several sources.

    Returns:
        The dataset.

    Raises:
        CheckpointError: A policy that cannot be read.
        UnknownTaskError: A task that the policy does not know.
        DataError: A folder that holds something else, or a full disk.
    """
    progress = progress or Silent()
    policy = PolicySource(source=config.policy, mode=config.mode, device=config.device)
    tasks = policy.tasks(config.tasks)
    dataset = EpisodeDataset.open_or_create(config.output)
    names, sources = {}, {}
    for name in tasks.names:
        identity = policy.identity(MT30.subset([name]))
        sources[name] = {
            "policy": identity,
            "mode": config.mode,
            "noise": config.noise,
            "seed": config.seed,
            "episodes": config.episodes,
        }
        names[name] = _shard_name(name, config, identity["sha256"])
    work = [
        _TaskWork(policy, name, config.episodes, config.noise, config.seed)
        for name in tasks.names
        if not dataset.has_shard(names[name])
    ]
    done = len(tasks) - len(work)
    progress.update(done, len(tasks), "")
    for item, episodes in run_parallel(_collect_task, work, config.workers):
        dataset.append_shard(names[item.task], episodes, sources[item.task])
        done += 1
        mean = sum(episode.total_reward for episode in episodes) / len(episodes)
        progress.update(done, len(tasks), f"{item.task} mean return {mean:.0f}")
    return dataset


def _shard_name(task: str, config: CollectConfig, sha: str | None) -> str:
    """Name a shard by all that decides its content."""
    source = sha[:12] if sha else "random"
    return (
        f"{task}-{source}-{config.mode}-noise{config.noise:g}-seed{config.seed}"
        f"-n{config.episodes}"
    )


def _collect_task(work: _TaskWork) -> list[Episode]:
    with one_thread():
        task_id = MT30.index(work.task)
        first = COLLECTION_SEED + work.seed
        seeds = range(first, first + work.episodes)
        streams = [(first, task_id, k) for k in range(work.episodes)]
        policy = NoisyPolicy(work.policy.load(), work.noise)
        return rollout(policy, work.task, seeds, streams)
