"""Plans for a batch of rows from step to step: warm start, reuse of plans, a deadline."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdmpc_opt.configs import EngineName, EnginePrecision, PlannerBudget
from tdmpc_opt.planning.engines import make_engine
from tdmpc_opt.planning.mppi import draw_noise, prepare, search
from tdmpc_opt.planning.networks import PlannerNetworks
from tdmpc_opt.planning.timing import PlanTimer
from tdmpc_opt.world_model.model import WorldModel

Generators = Sequence[torch.Generator | None]


class Planner:
    """Chooses actions by planning, and remembers each row's last plan.

    Args:
        model: World model in eval mode, whose weights stay as they are.
        budget: What one plan may spend, and how many of its actions are executed.
        timer: Measures iterations where there is a deadline.
        engine: What computes the iterations.
        precision: Number format of their large products.

    Raises:
        InputError: An engine that is unknown or cannot do this precision, device or format.
        MissingDependencyError: A library or compiler that the engine needs is not here.
    """

    def __init__(
        self,
        model: WorldModel,
        budget: PlannerBudget,
        timer: PlanTimer,
        engine: EngineName = "eager",
        precision: EnginePrecision = "fp32",
    ) -> None:
        self._model, self._budget, self._timer = model, budget, timer
        self._networks = PlannerNetworks(model)
        self._engine = timer.timed(make_engine(engine, precision, self._networks, budget))
        self._sequence = self._std = torch.empty(0)
        self._executed: list[int] = []
        self.iterations: int | None = None
        """Iterations of the newest plan; None before the first."""

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the plans of all rows, or of these, before a new episode."""
        if rows is None:
            self._executed = []
        elif self._executed:
            self._sequence[:, list(rows)] = 0.0
            self._std[:, list(rows)] = torch.inf
            for row in rows:
                self._executed[row] = self._budget.replan_every

    def act(
        self,
        z: Float[Tensor, "batch latent"],
        task: Int[Tensor, " batch"],
        generators: Generators,
        *,
        explore: bool,
    ) -> Float[Tensor, "batch action"]:
        """Choose actions: the first of a new plan, or the next of one that is in use.

        Only the rows that are due are planned for; the others' generators then draw no more
        than the noise of exploring.

        Args:
            z: Latents of the rows.
            task: Task ids.
            generators: Each row's source of randomness.
            explore: Add noise of the plan's standard deviation.
        """
        rows = range(len(z))
        if len(self._executed) != len(rows):
            self._start(z)
        due = [row for row in rows if self._executed[row] >= self._budget.replan_every]
        noise = torch.zeros_like(self._sequence[0])
        if due:
            noise[due] = self._plan(z, task, generators, due)
        for row in rows:
            if explore and row not in due:
                noise[row] = torch.randn(noise.shape[1], generator=generators[row]).to(noise)
        chosen = self._executed, list(rows)
        action, std = self._sequence[chosen], self._std[chosen]
        self._executed = [count + 1 for count in self._executed]
        return (action + std * noise).clamp(-1, 1) if explore else action

    def _start(self, z: Float[Tensor, "batch latent"]) -> None:
        shape = (self._budget.horizon, len(z), self._model.config.action_dim)
        self._sequence, self._std = z.new_zeros(shape), z.new_full(shape, torch.inf)
        self._executed = [self._budget.replan_every] * len(z)

    def _plan(
        self,
        z: Float[Tensor, "batch latent"],
        task: Int[Tensor, " batch"],
        generators: Generators,
        due: list[int],
    ) -> Float[Tensor, "due action"]:
        """Plan for these rows and return their noise for exploring."""
        done = self._budget.replan_every - 1  # the plan itself drops one more executed action
        previous = self._sequence[:, due]
        previous = torch.cat([previous[done:], torch.zeros_like(previous[:done])])
        noise = draw_noise(self._model, self._budget, [generators[row] for row in due])
        result = search(
            self._engine,
            prepare(self._networks, z[due], task[due], noise.prior),
            self._budget.warm_mean * previous,
            noise,
            self._start_std(due),
            self._timer.enough,
            self._budget.converged_std,
        )
        first = result.mean[0] if self._budget.mean_action else result.action
        self._sequence[:, due] = torch.cat([first.unsqueeze(0), result.mean[1:]])
        self._std[:, due] = result.std
        self.iterations = result.iterations
        for row in due:
            self._executed[row] = 0
        return noise.explore

    def _start_std(self, due: list[int]) -> float | Float[Tensor, "horizon due action"]:
        budget = self._budget
        if not budget.warm_std:
            return float(budget.max_std)
        done = budget.replan_every
        last = self._std[:, due]
        # Infinite where there was no plan, or where it did not reach: there max_std it is.
        shifted = torch.cat([last[done:], torch.full_like(last[:done], torch.inf)])
        return (budget.warm_std * shifted).clamp(budget.min_std, budget.max_std)
