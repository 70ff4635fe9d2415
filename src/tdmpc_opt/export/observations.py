"""Observations that an agent meets, to compare its exported file with torch on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import DataError, InputError
from tdmpc_opt.schema import MT30, TaskTable

Observations = dict[str, NDArray[np.float32]]
"""By task name, [n, obs] of the task's own width."""

_STEPS = 40
_NOISE = 0.5
"""Standard deviation of the noise on the driving policy's actions."""


def observations(agent: Agent, data: Path | None) -> Observations:
    """Return observations of each task of an agent that has any.

    Args:
        agent: In policy mode; it drives the simulator where there is no dataset.
        data: Dataset to take them from; None drives the simulator.

    Raises:
        DataError: A dataset that cannot be read, or holds none of the tasks.
        InputError: Tasks that have no simulator here, and no dataset.
        MissingDependencyError: The simulator is not installed.
    """
    found = dict(_driven(agent) if data is None else _stored(agent.tasks, data))
    if found:
        return found
    if data is None:
        raise InputError(
            "the check needs observations, and there is no simulator of this agent's tasks; "
            "name a dataset with --data"
        )
    raise DataError(f"{data} holds no episode of this agent's tasks; name another dataset")


def _stored(tasks: TaskTable, data: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    dataset = EpisodeDataset.open(data)
    for name in tasks.names:
        episodes = [
            episode.obs
            for shard in dataset.shards
            if shard.task == name
            for episode in dataset.episodes(shard)
        ]
        if episodes and episodes[0].shape[1] == tasks[name].obs_dim:
            rows = np.concatenate(episodes)
            yield name, rows[np.linspace(0, len(rows) - 1, _STEPS).astype(int)]


def _driven(agent: Agent) -> Iterator[tuple[str, NDArray[np.float32]]]:
    from tdmpc_opt.tasks.dmcontrol import make_env

    rng = np.random.default_rng(0)
    for name in agent.tasks.names:
        if name not in MT30.names or MT30[name] != agent.tasks[name]:
            continue
        env = make_env(name, 0)
        rows = [env.reset()[0]]
        while len(rows) < _STEPS:
            action = agent.act(rows[-1], name)
            noisy = action + _NOISE * rng.standard_normal(action.shape)
            rows.append(env.step(np.clip(noisy, -1, 1).astype(np.float32))[0])
        env.close()
        yield name, np.stack(rows)
