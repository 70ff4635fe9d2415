"""Stopping a plan in time: what an iteration costs, and how often time ran out."""

from collections import deque
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tdmpc_opt.planning.mppi import Engine, Problem, Refined, RoundNoise

Clock = Callable[[], float]
"""Monotonic time in seconds."""


class PlanTimer:
    """Measures iterations and tells when another would end after the deadline.

    Args:
        clock: Monotonic clock.
    """

    def __init__(self, clock: Clock) -> None:
        self.acts = 0
        """Actions that had a deadline."""
        self.misses = 0
        """Those of them that came too late."""
        self._clock = clock
        self._end = float("inf")
        self._costs: deque[float] = deque(maxlen=8)

    def begin(self, deadline_ms: float | None) -> None:
        """Start the time of one action; None sets no limit."""
        self._end = float("inf")
        if deadline_ms is not None:
            self._end = self._clock() + deadline_ms / 1000

    def finish(self) -> None:
        """Count the action, and whether it is late."""
        if self._end < float("inf"):
            self.acts += 1
            self.misses += self._clock() > self._end

    def enough(self) -> bool:
        """Return whether another iteration, at the cost of recent ones, would be late."""
        if self._end == float("inf") or not self._costs:
            return False
        # The second largest: one iteration that compiled, or was interrupted, says nothing.
        expected = sorted(self._costs)[-2:][0]
        return self._clock() + expected > self._end

    def timed(self, engine: Engine) -> Engine:
        """Return the engine with its iterations measured, while there is a deadline."""

        def run(
            problem: Problem,
            mean: Float[Tensor, "horizon batch action"],
            std: Float[Tensor, "horizon batch action"],
            noise: RoundNoise,
        ) -> Refined:
            if self._end == float("inf"):
                return engine(problem, mean, std, noise)
            start = self._clock()
            result = engine(problem, mean, std, noise)
            if mean.device.type != "cpu":  # else only the launch would be measured
                torch.accelerator.synchronize()
            self._costs.append(self._clock() - start)
            return result

        return run
