"""Rolls policies out into a dataset on disk."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from tdmpc_opt.agents.compute import threads
from tdmpc_opt.agents.executor import run_parallel
from tdmpc_opt.agents.rollout import rollout
from tdmpc_opt.agents.sources import (
    PolicySource,
    RandomSource,
    batchable,
    open_source,
    refuse_unused,
)
from tdmpc_opt.agents.timing import estimate
from tdmpc_opt.configs.common import COLLECTION_SEED, device_of_work
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.data.episodes import Episode, EpisodeDataset
from tdmpc_opt.files import Identity, alone, refuse_overwrite
from tdmpc_opt.machine import choose_processes
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.schema import MT30, Task, TaskTable, seed_number


def collect(config: CollectConfig, progress: Progress | None = None) -> EpisodeDataset:
    """Add episodes of a policy to a dataset, one shard per task, with labels to imitate.

    A label is the policy's own action without the noise, or what another policy would have
    done in the same state; random actions have no label. The same call again adds
    nothing twice: shards that are there already are skipped, so an interrupted collection goes
    on where it stopped. Several calls mix several sources.

    Returns:
        The dataset.

    Raises:
        CheckpointError: A policy that cannot be read.
        UnknownTaskError: A task that the policy or the labeller was not made for.
        InputError: A labeller without actions to imitate, or an environment of the user's
            that no agent here can act in.
        DataError: A folder with other data, or a full disk.
        RunError: Another process collects the same episodes into the folder.

    Source:
        DAgger, arXiv:1011.0686, for labels in states that a student visits; DART,
        arXiv:1703.09327, for an expert's own labels under noise.
    """
    refuse_overwrite(config)
    progress = progress or Silent()
    device = device_of_work(config.device, config.ray)
    policy = open_source(
        config.policy,
        mode=config.chosen_mode,
        names=config.tasks,
        preset=config.preset,
        device=device,
    )
    refuse_unused(policy, config.mode, preset=config.preset)
    tasks = policy.tasks(config.tasks)
    labeller = None
    if config.label is not None:
        labeller = open_source(config.label, names=config.tasks, device=device)
        labeller.require_labels(tasks)
    own = any(task.env for task in tasks.tasks)
    dataset = EpisodeDataset.open_or_create(config.output, tasks if own else MT30)
    sources = {
        name: _source(tasks.subset([name]), config, policy, labeller) for name in tasks.names
    }
    names = {name: _shard_name(name, source) for name, source in sources.items()}
    work = [task for task in tasks.tasks if not dataset.has_shard(names[task.name])]
    done = len(tasks) - len(work)
    workers = choose_processes(config.workers, config.ray)
    drivers = [policy] if labeller is None else [policy, labeller]
    expected = estimate(
        drivers, dict.fromkeys(work, config.episodes), workers.count, batched=True
    )
    progress.update(done, len(tasks), f"processes: {workers}{expected}")
    drive = partial(_drive, config, policy, labeller)
    with ExitStack() as held:
        for task in work:  # another process may collect other shards at the same time
            held.enter_context(alone(dataset.path / names[task.name]))
        for task, episodes in run_parallel(drive, work, workers.count, config.ray):
            dataset.append_shard(names[task.name], episodes, sources[task.name])
            done += 1
            mean = sum(episode.total_reward for episode in episodes) / len(episodes)
            progress.update(done, len(tasks), f"{task.name} mean return {mean:.0f}")
    return dataset


def _source(
    one: TaskTable, config: CollectConfig, policy: PolicySource, labeller: PolicySource | None
) -> dict[str, Any]:
    """Return all that decides the content of one task's shard, as JSON values."""
    record: dict[str, Any] = {
        "policy": policy.identity(one),
        "mode": config.chosen_mode,
        "noise": config.noise,
        "seed": config.seed,
        "episodes": config.episodes,
    }
    if config.preset is not None:
        record["preset"] = config.preset
    if labeller is not None:
        record["label"] = {"policy": labeller.identity(one), "mode": labeller.mode}
    return record


def _shard_name(task: str, source: Mapping[str, Any]) -> str:
    def short(policy: Identity) -> str:
        """Return a part of the policy's hash, or its word."""
        return (policy["sha256"] or str(policy["name"]))[:12]

    how = "-".join([source["mode"], *filter(None, [source.get("preset")])])
    name = (
        f"{task}-{short(source['policy'])}-{how}-noise{source['noise']:g}"
        f"-seed{source['seed']}-n{source['episodes']}"
    )
    if "label" in source:
        label = source["label"]
        name += f"-label-{short(label['policy'])}-{label['mode']}"
    return name


def _drive(
    config: CollectConfig, policy: PolicySource, labeller: PolicySource | None, task: Task
) -> list[Episode]:
    """Return the episodes of one task; without a labeller the policy labels itself."""
    with threads(1):
        first, table = COLLECTION_SEED + config.seed, TaskTable((task,))
        driver = policy.load(table)
        own = None if isinstance(policy, RandomSource) else driver
        return rollout(
            driver,
            task,
            seeds=range(first, first + config.episodes),
            streams=[(first, seed_number(task), k) for k in range(config.episodes)],
            noise=config.noise,
            labeller=labeller.load(table) if labeller else own,
            batched=batchable([policy, labeller] if labeller else [policy], task),
        )
