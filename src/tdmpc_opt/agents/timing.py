"""How long episodes take here, estimated from some steps of one task."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tdmpc_opt.agents.rollout import threads
from tdmpc_opt.agents.sources import PolicySource
from tdmpc_opt.progress import expected
from tdmpc_opt.schema import Task, TaskTable
from tdmpc_opt.tasks.environment import make_env

_MEASURED_STEPS = 21
_MEASURED_SECONDS = 2.0


def estimate(
    sources: Sequence[PolicySource], episodes: Mapping[Task, int], workers: int
) -> str:
    """Return what `seconds_of` does as the end of a report; empty where Ray decides."""
    return expected(seconds_of(sources, episodes, workers)) if episodes and workers else ""


def seconds_of(
    sources: Sequence[PolicySource], episodes: Mapping[Task, int], workers: int
) -> float:
    """Return how long episodes take, in seconds, estimated from one step of the first task.

    `sources` act or label in each step; the tasks are shared by `workers` processes.
    """
    seconds = seconds_per_step(sources, next(iter(episodes)))
    steps = sum(each.episode_length * count for each, count in episodes.items())
    return seconds * steps / min(workers, len(episodes))


def seconds_per_step(sources: Sequence[PolicySource], task: Task, episodes: int = 1) -> float:
    """Return the seconds of one step of a task on one thread, and of an action of each source.

    The first source drives. `episodes` that are driven in step divide the time of an action.
    """
    env = make_env(task, 0)
    obs = np.repeat(env.reset()[0][None], episodes, axis=0)
    with threads(1):
        streams = [(number,) for number in range(episodes)]
        acts = [
            source.load(TaskTable((task,)))(task.name, streams, [env] * episodes)
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
            _, _, terminated, truncated, _ = env.step(actions[0][0])
            seconds.append((acted - start) / episodes + time.perf_counter() - acted)
            if terminated or truncated:
                env.reset()
    env.close()
    return sum(seconds[1:]) / (len(seconds) - 1)  # what the first action builds does not count
