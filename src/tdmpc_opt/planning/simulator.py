"""Model-predictive control with the simulator itself as the model.

The search is one round of MPPI (sample sequences, keep the elites, refit the mean) over the
true dynamics; noise is drawn at a few knots and interpolated, so that sequences are smooth. A
learned policy may add its own sequences to the samples, and a learned value may end them (POLO,
arXiv:1811.01848).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.schema import Task

Array = NDArray[np.float64]

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Maps observations [B, obs] to actions [B, action]."""
Value = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Maps observations [B, obs] to discounted returns [B] that follow."""


@runtime_checkable
class Simulator(Protocol):
    """A task whose true dynamics can be stepped from any state."""

    task: Task
    step_seconds: float
    """Simulated time of one action."""

    def step(
        self, states: Array, actions: Array, constants: Array
    ) -> tuple[Array, Array, Array]:
        """Apply sequences of actions [B, steps, action] to states [B, state].

        Returns:
            Last states [B, state], observations [B, steps, obs] and rewards [B, steps].
        """

    def observe_now(self, states: Array, constants: Array) -> NDArray[np.float32]:
        """Return the observations [B, obs] of states [B, state]."""


@dataclass(frozen=True, kw_only=True)
class SimulatorBudget:
    """Budget of one plan in the simulator."""

    samples: int = 64
    """Sequences simulated in each refinement."""
    seconds: float = 1.2
    """Length of a sequence in simulated time."""
    knots: int = 8
    """Points of a sequence at which noise is drawn; between them it is interpolated."""
    elites: int = 8
    """Best sequences that the mean is refitted to."""
    spread: float = 0.6
    """Standard deviation of the noise."""
    policy_samples: int = 8
    """Sequences of the policy among the samples, one of them without noise."""
    policy_noise: float = 0.2
    """Standard deviation of the noise on the others."""


class SimulatorPlanner:
    """Plans for a batch of episodes of one task.

    Args:
        task: Task on batches of states.
        budget: Sizes of the search.
        generators: Source of the noise of each episode.
        policy: Learned policy whose sequences join the samples, if there is one.
        value: Learned value of the last state of a sequence, if there is one.
    """

    def __init__(
        self,
        task: Simulator,
        budget: SimulatorBudget,
        generators: Sequence[np.random.Generator],
        policy: Act | None = None,
        value: Value | None = None,
    ) -> None:
        self._task = task
        self._budget = budget
        self._generators = list(generators)
        self._policy = policy
        self._value = value
        episodes = len(self._generators)
        horizon = max(round(budget.seconds / task.step_seconds), budget.knots)
        self._mean = np.zeros((episodes, horizon, task.task.action_dim))
        points = np.linspace(0, budget.knots - 1, horizon)
        below = np.minimum(points.astype(int), budget.knots - 2)
        above, knots = (points - below)[:, None], np.eye(budget.knots)
        self._interpolate = (1 - above) * knots[below] + above * knots[below + 1]
        """[horizon, knots]"""
        self._discount = task.task.discount ** np.arange(horizon + 1)

    def plan(self, states: Array, constants: Array) -> Array:
        """Return the first action of each episode's plan and keep the rest for the next call.

        From physics states [E, state] and constants [E, constants] to actions [E, action] in
        [-1, 1].
        """
        proposals = self._propose(states, constants)
        drawn = self._draw(self._budget.samples - proposals.shape[1])
        sequences = np.concatenate([proposals, drawn], axis=1)
        self._refit(sequences, self._evaluate(states, constants, sequences))
        action = self._mean[:, 0].copy()
        self._mean[:, :-1] = self._mean[:, 1:]
        return action

    def _propose(self, states: Array, constants: Array) -> Array:
        """Return sequences [E, policy_samples, horizon, action] that the policy drives."""
        count = self._budget.policy_samples
        episodes, horizon, width = self._mean.shape
        if self._policy is None:
            return np.zeros((episodes, 0, horizon, width))
        states, constants = (np.repeat(part, count, axis=0) for part in (states, constants))
        scale = np.full((count, 1), self._budget.policy_noise)
        scale[0] = 0.0
        obs = self._task.observe_now(states, constants)
        actions = np.empty((len(states), horizon, width))
        for step in range(horizon):
            noise = [source.standard_normal((count, width)) for source in self._generators]
            action = self._policy(obs) + (scale * np.array(noise)).reshape(-1, width)
            actions[:, step] = np.clip(action, -1, 1)
            states, after, _ = self._task.step(states, actions[:, step : step + 1], constants)
            obs = after[:, 0].astype(np.float32)
        return actions.reshape(episodes, count, horizon, width)

    def _draw(self, count: int) -> Array:
        """Return the mean and noisy sequences around it, [E, count, horizon, action]."""
        width = self._mean.shape[2]
        shape = (count, self._budget.knots, width)
        noise = np.array([source.standard_normal(shape) for source in self._generators])
        noise[:, 0] = 0.0  # the mean itself
        smooth = np.einsum("hk,enka->enha", self._interpolate, noise)
        return np.clip(self._mean[:, None] + self._budget.spread * smooth, -1, 1)

    def _evaluate(self, states: Array, constants: Array, sequences: Array) -> Array:
        """Return discounted returns [E, samples] of sequences."""
        episodes, samples = sequences.shape[:2]
        _, obs, reward = self._task.step(
            np.repeat(states, samples, axis=0),
            sequences.reshape(-1, *sequences.shape[2:]),
            np.repeat(constants, samples, axis=0),
        )
        values = reward @ self._discount[:-1]
        if self._value is not None:
            values += self._discount[-1] * self._value(obs[:, -1].astype(np.float32))
        return values.reshape(episodes, samples)

    def _refit(self, sequences: Array, values: Array) -> None:
        order = np.argsort(-values, axis=1)[:, : self._budget.elites]
        best = np.take_along_axis(values, order, axis=1)
        elites = np.take_along_axis(sequences, order[:, :, None, None], axis=1)
        # In units of the elites' range, which makes it independent of the scale of rewards.
        scale = np.maximum(best[:, :1] - best[:, -1:], 1e-9)
        weights = np.exp(3.0 * (best - best[:, :1]) / scale)
        weights = (weights / weights.sum(axis=1, keepdims=True))[:, :, None, None]
        self._mean = (weights * elites).sum(axis=1)
