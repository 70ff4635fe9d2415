"""Plans with a graph from step to step: warm start, reuse of plans, a deadline."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.deadline import DeadlineTimer
from tdmpc_opt.runtime.onnx_file import PlanSizes, check_output

Array = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]

OUTPUTS = ["action", "new_mean", "new_std"]


class OnnxPlanner:
    """Chooses actions by planning, and remembers the last plan.

    Args:
        session: Runs the graph of a planner.
        sizes: What it searches with.
        width: Padded number of actions.
        timer: Measures rounds where there is a deadline.
    """

    def __init__(
        self, session: Any, sizes: PlanSizes, width: int, timer: DeadlineTimer
    ) -> None:
        self._session, self._sizes, self._width, self._timer = session, sizes, width, timer
        self._sequence: Array | None = None
        self._executed = 0
        self.iterations: int | None = None
        """Rounds of the newest plan; None before the first."""

    def reset(self) -> None:
        """Forget the plan."""
        self._sequence = None

    def act(self, inputs: Inputs, generator: np.random.Generator) -> Array:
        """Return the next action [B, action] of the plan that is in use, or of a new one.

        Args:
            inputs: `obs` [B, width], and `task` [B] where the file has several.
            generator: Source of the noise.
        """
        rows = len(inputs["obs"])
        sequence = self._sequence
        if sequence is None or sequence.shape[1] != rows:
            shape = (self._sizes.horizon, rows, self._width)
            sequence = np.zeros(shape, np.float32)
            self._executed = self._sizes.replan_every
        if self._executed >= self._sizes.replan_every:
            done = self._executed
            previous = np.concatenate([sequence[done:], np.zeros_like(sequence[:done])])
            sequence = self._plan(inputs, previous, generator)
            self._executed = 0
        self._sequence = sequence
        action: Array = sequence[self._executed]
        self._executed += 1
        return action

    def _plan(self, inputs: Inputs, mean: Array, generator: np.random.Generator) -> Array:
        """Return the actions of a new plan, [horizon, B, action].

        Without a deadline the graph loops over the rounds by itself. With one it is called for
        each round, which costs the prior's share of a round again.
        """
        sizes, rows = self._sizes, mean.shape[1]
        std = np.full_like(mean, sizes.max_std)
        prior = self._normal(generator, sizes.horizon, sizes.policy_samples, rows)
        common = inputs | {"prior": prior, "pick": generator.random(rows, np.float32)}
        at_once = 1 if self._timer.limited else sizes.rounds
        done = 0
        action: Array = mean[0]
        while done < sizes.rounds and not (done and self._timer.enough()):
            start = self._timer.start_part()
            noise = self._noise(generator, at_once, rows)
            distribution = {"mean": mean, "std": std}
            action, mean, std = self._session.run(OUTPUTS, common | noise | distribution)
            for values, shape in ((action, (rows, self._width)), (mean, std.shape)):
                check_output(values, shape)
            check_output(std, (sizes.horizon, rows, self._width))
            if self._timer.limited:
                self._timer.end_part(start)
            done += at_once
        self.iterations = done
        return np.concatenate([action[None], mean[1:]])

    def _noise(self, generator: np.random.Generator, rounds: int, rows: int) -> Inputs:
        sizes = self._sizes
        sampled = sizes.samples - sizes.policy_samples
        members = np.tile(np.arange(sizes.num_q), (rounds, 1))
        heads = generator.permuted(members, axis=1)[:, :2]
        return {
            "samples": self._normal(generator, rounds, sizes.horizon, sampled, rows),
            "value": self._normal(generator, rounds, sizes.samples, rows),
            "heads": np.ascontiguousarray(np.broadcast_to(heads, (rounds, 2))),
        }

    def _normal(self, generator: np.random.Generator, *shape: int) -> Array:
        return generator.standard_normal((*shape, self._width), dtype=np.float32)
