"""What an action costs, as a share of what the full budget's costs."""

import statistics
import time
from dataclasses import dataclass

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.policies import Array, one_thread, torch_generator
from tdmpc_opt.configs.tuning import TUNING_SEED
from tdmpc_opt.schema import UNNAMED
from tdmpc_opt.tasks.environment import make_env

_TURNS, _ACTIONS = 5, 8
_TURNS_THAT_WARM = 1


@dataclass(frozen=True)
class Cost:
    """Time of one action for one observation on one thread."""

    share: float
    """Of the time that the full budget takes, measured in turns with it."""
    full_ms: float
    """The latter in milliseconds: processor time, so that other programs count little."""


def cost_of(agent: Agent, full: Agent, task: str) -> Cost:
    """Let the agent drive an episode for a while, and the full planner look on in between.

    Args:
        agent: Who is measured.
        full: The same world model with the published budget.
        task: Task name.
    """
    shares, full_ms = [], []
    with one_thread():
        driver, onlooker = _Timed(agent, task), _Timed(full, task)
        env = make_env(task, TUNING_SEED)
        obs, _ = env.reset()
        for turn in range(_TURNS_THAT_WARM + _TURNS):
            own = []
            for _ in range(_ACTIONS):
                action, seconds = driver.act(obs)
                own.append(seconds)
                obs = env.step(action)[0]
            _, seconds = onlooker.act(obs)
            if turn >= _TURNS_THAT_WARM:
                shares.append(statistics.mean(own) / seconds)
                full_ms.append(1000 * seconds)
        env.close()
    return Cost(statistics.median(shares), min(full_ms))


class _Timed:
    """An agent in one episode."""

    def __init__(self, agent: Agent, task: str) -> None:
        self._agent = agent
        self._task = None if agent.tasks.names == (UNNAMED,) else task
        self._generator = torch_generator((0,))

    def act(self, obs: Array) -> tuple[Array, float]:
        """Return the action and the seconds of processor time that it took."""
        start = time.process_time()
        action = self._agent.act(obs, self._task, generator=self._generator)
        return action, time.process_time() - start
