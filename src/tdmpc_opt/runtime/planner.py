"""Plans with a graph from step to step: warm start, reuse of plans, a deadline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.deadline import DeadlineTimer
from tdmpc_opt.errors import NonFiniteError
from tdmpc_opt.input_checks import OneCallAtATime
from tdmpc_opt.runtime.onnx_file import PlanSizes, check_output

Array = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]

OUTPUTS = ["action", "new_mean", "new_std"]


@dataclass
class _Plan:
    """One row's plan, [horizon, 1, action]; of the rows' axis the graph is given one."""

    actions: Array
    std: Array
    """Standard deviations; infinite where there was no plan."""
    executed: int
    """Number of its actions that were executed."""


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

    def __init__(
        self, session: Any, sizes: PlanSizes, width: int, timer: DeadlineTimer
    ) -> None:
        self.sizes = sizes
        self._session, self._width, self._timer = session, width, timer
        self._plans: list[_Plan] = []
        self._one_call = OneCallAtATime()
        self.iterations: int | None = None
        """Rounds of the newest plan, of several rows the most; None before the first."""

    def reset(self) -> None:
        """Forget the plans.

        Raises:
            BusyError: Another thread's call is not done.
        """
        with self._one_call:
            self._plans = []

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
            if len(self._plans) != len(generators):
                self._plans = [self._empty() for _ in generators]
            due = [
                row
                for row, plan in enumerate(self._plans)
                if plan.executed >= self.sizes.replan_every
            ]
            rounds = 0
            for row in due:
                own = {name: values[row : row + 1] for name, values in inputs.items()}
                plan, used = self._plan(own, self._plans[row], dims, generators[row])
                self._plans[row], rounds = plan, max(rounds, used)
            self.iterations = rounds if due else self.iterations
            actions = [plan.actions[plan.executed, 0] for plan in self._plans]
            for plan in self._plans:
                plan.executed += 1
        return np.stack(actions)

    def _empty(self) -> _Plan:
        zeros = np.zeros((self.sizes.horizon, 1, self._width), np.float32)
        return _Plan(zeros, np.full_like(zeros, np.inf), self.sizes.replan_every)

    def _plan(
        self, inputs: Inputs, last: _Plan, dims: int, generator: "np.random.Generator"
    ) -> tuple[_Plan, int]:
        """Return a new plan, and how many rounds it took.

        The graph loops over the rounds by itself, unless one may be the last by a deadline or
        because the plan has converged. Then it is called for each round, which costs the
        prior's share of a round again.
        """
        sizes = self.sizes
        mean, std = self._start(last)
        prior = self._normal(generator, sizes.horizon, sizes.policy_samples, 1)
        common = inputs | {"prior": prior, "pick": generator.random(1, np.float32)}
        one_by_one = self._timer.limited or sizes.converged_std > 0
        at_once = 1 if one_by_one else sizes.rounds
        done, wide = 0, True
        action: Array = mean[0]
        while done < sizes.rounds and wide and not (done and self._timer.enough()):
            start = self._timer.start_part()
            noise = self._noise(generator, at_once)
            found = self._session.run(OUTPUTS, common | noise | {"mean": mean, "std": std})
            for value, like in zip(found, (action, mean, std), strict=True):
                check_output(value, like.shape)
                if not np.isfinite(value).all():
                    raise NonFiniteError(
                        "the plan holds NaN or infinity: the network overflows on this "
                        "observation, or its file is damaged; check the sensors and the file"
                    )
            if self._timer.limited:
                self._timer.end_part(start)
            action, mean, std = found
            wide = bool(std[..., :dims].mean() >= sizes.converged_std)
            done += at_once
        first = mean[0] if sizes.mean_action else action
        return _Plan(np.concatenate([first[None], mean[1:]]), std, 0), done

    def _start(self, last: _Plan) -> tuple[Array, Array]:
        """Return the distribution that a plan starts from, out of the last one."""
        sizes, done = self.sizes, last.executed
        mean = np.zeros_like(last.actions)
        mean[: len(mean) - done] = np.float32(sizes.warm_mean) * last.actions[done:]
        std = np.full_like(mean, sizes.max_std)
        if sizes.warm_std:  # infinite where there was no plan: there max_std it is
            scaled = np.float32(sizes.warm_std) * last.std[done:]
            std[: len(std) - done] = scaled.clip(sizes.min_std, sizes.max_std)
        return mean, std

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
