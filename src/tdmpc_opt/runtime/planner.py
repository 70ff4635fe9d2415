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
        self.sizes = sizes
        self._session, self._width, self._timer = session, width, timer
        self._sequence: Array | None = None
        self._std: Array = np.empty(0, np.float32)
        self._executed = 0
        self.iterations: int | None = None
        """Rounds of the newest plan; None before the first."""

    def reset(self) -> None:
        """Forget the plan."""
        self._sequence = None

    def act(self, inputs: Inputs, dims: int, generator: "np.random.Generator") -> Array:
        """Return the next action [B, action] of the plan that is in use, or of a new one.

        Args:
            inputs: `obs` [B, width], and `task` [B] where the file has several.
            dims: Number of the task's own actions.
            generator: Source of the noise.
        """
        sizes, rows = self.sizes, len(inputs["obs"])
        if self._sequence is None or self._sequence.shape[1] != rows:
            self._sequence = np.zeros((sizes.horizon, rows, self._width), np.float32)
            self._std = np.full_like(self._sequence, np.inf)
            self._executed = sizes.replan_every
        if self._executed >= sizes.replan_every:
            self._sequence, self._std = self._plan(inputs, dims, generator)
            self._executed = 0
        action: Array = self._sequence[self._executed]
        self._executed += 1
        return action

    def _plan(
        self, inputs: Inputs, dims: int, generator: "np.random.Generator"
    ) -> tuple[Array, Array]:
        """Return actions and standard deviations of a new plan, [horizon, B, action].

        The graph loops over the rounds by itself, unless one may be the last by a deadline or
        because the plan has converged. Then it is called for each round, which costs the
        prior's share of a round again.
        """
        sizes, rows = self.sizes, len(inputs["obs"])
        mean, std = self._start()
        prior = self._normal(generator, sizes.horizon, sizes.policy_samples, rows)
        common = inputs | {"prior": prior, "pick": generator.random(rows, np.float32)}
        one_by_one = self._timer.limited or sizes.converged_std > 0
        at_once = 1 if one_by_one else sizes.rounds
        done, wide = 0, np.ones(rows, bool)
        action: Array = mean[0]
        while done < sizes.rounds and wide.any() and not (done and self._timer.enough()):
            start = self._timer.start_part()
            noise = self._noise(generator, at_once, rows)
            found = self._session.run(OUTPUTS, common | noise | {"mean": mean, "std": std})
            for value, like in zip(found, (action, mean, std), strict=True):
                check_output(value, like.shape)
            if self._timer.limited:
                self._timer.end_part(start)
            action, mean, std = (
                np.where(wide[:, None], new, old)
                for new, old in zip(found, (action, mean, std), strict=True)
            )
            wide = std[..., :dims].mean((0, 2)) >= sizes.converged_std
            done += at_once
        self.iterations = done
        first = mean[0] if sizes.mean_action else action
        return np.concatenate([first[None], mean[1:]]), std

    def _start(self) -> tuple[Array, Array]:
        """Return the distribution that a plan starts from, out of the last one."""
        sizes, done = self.sizes, self._executed
        assert self._sequence is not None, "an episode begins with zeros"
        mean = np.zeros_like(self._sequence)
        mean[: len(mean) - done] = np.float32(sizes.warm_mean) * self._sequence[done:]
        std = np.full_like(mean, sizes.max_std)
        if sizes.warm_std:  # infinite where there was no plan: there max_std it is
            last = np.float32(sizes.warm_std) * self._std[done:]
            std[: len(std) - done] = last.clip(sizes.min_std, sizes.max_std)
        return mean, std

    def _noise(self, generator: "np.random.Generator", rounds: int, rows: int) -> Inputs:
        sizes = self.sizes
        sampled = sizes.samples - sizes.policy_samples
        members = np.tile(np.arange(sizes.num_q), (rounds, 1))
        heads = generator.permuted(members, axis=1)[:, :2]
        return {
            "samples": self._normal(generator, rounds, sizes.horizon, sampled, rows),
            "value": self._normal(generator, rounds, sizes.samples, rows),
            "heads": np.ascontiguousarray(np.broadcast_to(heads, (rounds, 2))),
        }

    def _normal(self, generator: "np.random.Generator", *shape: int) -> Array:
        return generator.standard_normal((*shape, self._width), dtype=np.float32)
