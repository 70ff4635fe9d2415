"""How long episodes take here, estimated from some steps of one task."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tdmpc_opt.agents.compute import threads
from tdmpc_opt.agents.sources import PolicySource, batchable
from tdmpc_opt.progress import expected
from tdmpc_opt.schema import Task, TaskTable
from tdmpc_opt.tasks.batched_suite import BatchedEpisodes
from tdmpc_opt.tasks.environment import make_env

_MEASURED_STEPS = 21
_MEASURED_SECONDS = 1.0
_MEASURED_ROWS = 64
_LONGEST_STEP = 0.5  # seconds of a step of the batch that is measured


def estimate(
    sources: Sequence[PolicySource],
    episodes: Mapping[Task, int],
    workers: int,
    *,
    batched: bool = False,
) -> str:
    """Return what `seconds_of` does as the end of a report; empty where Ray decides."""
    known = episodes and workers
    return expected(seconds_of(sources, episodes, workers, batched=batched)) if known else ""


def seconds_of(
    sources: Sequence[PolicySource],
    episodes: Mapping[Task, int],
    workers: int,
    *,
    batched: bool = False,
) -> float:
    """Return how long episodes take, in seconds, estimated from some steps of the first task.

    `sources` act or label in each step; the tasks are shared by `workers` processes.
    """
    task, count = next(iter(episodes.items()))
    seconds = seconds_per_step(sources, task, count, batched=batched)
    steps = sum(each.episode_length * number for each, number in episodes.items())
    return seconds * steps / min(workers, len(episodes))


def seconds_per_step(
    sources: Sequence[PolicySource], task: Task, episodes: int, *, batched: bool = False
) -> float:
    """Return the seconds of a step of one of some episodes that are driven in step.

    It counts an action of each source, of which the first drives, and the environment.
    `batched` states that the physics is stepped as `rollout` does with that argument.
    """
    alone = _measured(sources, task, 1, batched=False)
    # Planning takes as long for each row, so that a large batch would delay the first report.
    rows = min(episodes, _MEASURED_ROWS, int(_LONGEST_STEP / alone))
    if rows <= 1:
        return alone
    return _measured(sources, task, rows, batched=batched and batchable(sources, task))


def _measured(
    sources: Sequence[PolicySource], task: Task, rows: int, *, batched: bool
) -> float:
    env = make_env(task, 0)
    together = BatchedEpisodes(task, range(rows)) if batched else None
    obs = together.first if together else np.repeat(env.reset()[0][None], rows, axis=0)
    with threads(1):
        streams = [(number,) for number in range(rows)]
        acts = [
            source.load(TaskTable((task,)))(task.name, streams, [env] * rows)
            for source in sources
        ]
        seconds, begin = list[float](), time.perf_counter()
        most = min(_MEASURED_STEPS, task.episode_length)
        # Several, since other work on this machine may interrupt one.
        while len(seconds) < 2 or (
            len(seconds) < most and time.perf_counter() - begin < _MEASURED_SECONDS
        ):
            start = time.perf_counter()
            actions = [act(obs) for act in acts]
            acted = time.perf_counter()
            if together:
                together.step(actions[0])
                seconds.append((time.perf_counter() - start) / rows)
                continue
            _, _, terminated, truncated, _ = env.step(actions[0][0])
            seconds.append((acted - start) / rows + time.perf_counter() - acted)
            if terminated or truncated:
                env.reset()
    env.close()
    return sum(seconds[1:]) / (len(seconds) - 1)  # what the first action builds does not count
