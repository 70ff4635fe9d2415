"""Plans with a graph from step to step: warm start, reuse of plans, a deadline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.runtime.onnx_file import FilePlan, check_output
from tdmpc_opt.runtime.plan_state import DeadlineTimer, OneCallAtATime, PlanState, Refine

Array = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]

OUTPUTS = ["action", "new_mean", "new_std"]


class OnnxPlanner:
    """Chooses actions by planning, and remembers each row's last plan.

    Rows are planned for one by one, as on a device: all rows of one call to the graph would
    share their draws of the Q ensemble and the rounding of one batch size.

    Args:
        session: Runs the graph of a planner.
        sizes: What it searches with.
        width: Padded number of actions.
        timer: Measures rounds where there is a deadline.
    """

    def __init__(self, session: Any, sizes: FilePlan, width: int, timer: DeadlineTimer) -> None:
        self.sizes = sizes
        self._session, self._width, self._timer = session, width, timer
        self._state = PlanState(sizes, width, timer)
        self._one_call = OneCallAtATime()
        self.iterations: int | None = None
        """Rounds of the newest plan, of several rows the most; None before the first."""

    def reset(self) -> None:
        """Forget the plans.

        Raises:
            BusyError: Another thread's call is not done.
        """
        with self._one_call:
            self._state.reset()

    def act(
        self, inputs: Inputs, dims: int, generators: Sequence["np.random.Generator"]
    ) -> Array:
        """Return the next action [B, action] of the plans that are in use, or of new ones.

        Args:
            inputs: `obs` [B, width], and `task` [B] where the file has several.
            dims: Number of the task's own actions.
            generators: Each row's source of noise.

        Raises:
            BusyError: Another thread's call is not done.
            NonFiniteError: The graph gave NaN or infinity; the plans stay as they were.
        """
        with self._one_call:
            rounds = 0
            for row in (due := self._state.due(len(generators))):
                own = {name: values[row : row + 1] for name, values in inputs.items()}
                mask = (np.arange(self._width) < dims).astype(np.float32)[None]
                refine = self._refine(own, generators[row])
                rounds = max(rounds, self._state.plan([row], self.sizes.rounds, mask, refine))
            self.iterations = rounds if due else self.iterations
            action, _ = self._state.next()
        return action

    def _refine(self, inputs: Inputs, generator: "np.random.Generator") -> Refine:
        """Return what runs rounds of a new plan for one row.

        The graph loops over the rounds that it is asked for. Each further call costs the
        prior's share of a round again.
        """
        sizes = self.sizes
        prior = self._normal(generator, sizes.horizon, sizes.policy_samples, 1)
        common = inputs | {"prior": prior, "pick": generator.random(1, np.float32)}

        def run(rounds: range, mean: Array, std: Array) -> tuple[Array, Array, Array]:
            noise = self._noise(generator, len(rounds))
            found = self._session.run(OUTPUTS, common | noise | {"mean": mean, "std": std})
            for value, like in zip(found, (mean[0], mean, std), strict=True):
                check_output(value, like.shape)
            action, mean, std = found
            return action, mean, std

        return run

    def _noise(self, generator: "np.random.Generator", rounds: int) -> Inputs:
        sizes = self.sizes
        sampled = sizes.samples - sizes.policy_samples
        members = np.tile(np.arange(sizes.num_q), (rounds, 1))
        heads = generator.permuted(members, axis=1)[:, :2]
        return {
            "samples": self._normal(generator, rounds, sizes.horizon, sampled, 1),
            "value": self._normal(generator, rounds, sizes.samples, 1),
            "heads": np.ascontiguousarray(np.broadcast_to(heads, (rounds, 2))),
        }

    def _normal(self, generator: "np.random.Generator", *shape: int) -> Array:
        return generator.standard_normal((*shape, self._width), dtype=np.float32)
