"""Planning from step to step: engines, which compute plans, and the planner's state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.mppi import PlanNoise, draw_noise, iterations, prepare, run_rounds
from tdmpc_opt.runtime.plan_state import DeadlineTimer, PlanState, Refine
from tdmpc_opt.schema import ModelConfig, PlannerBudget, check_action

Generators = Sequence[torch.Generator | None]


class Engine(ABC):
    """Computes the rounds of plans for one world model and budget.

    Args:
        model: World model in eval mode, whose weights stay as they are.
        budget: Sizes of the search.
    """

    name: ClassVar[str]
    """Name in result files."""

    def __init__(self, model: WorldModel, budget: PlannerBudget) -> None:
        self.model, self.budget = model, budget

    @abstractmethod
    def begin(
        self,
        obs: Float[Tensor, "batch obs"],
        task: Int[Tensor, " batch"],
        noise: PlanNoise,
    ) -> Refine:
        """Return what runs the rounds of a plan for each of these padded observations."""


ChooseEngine = Callable[[ModelConfig, torch.device, torch.dtype], type[Engine]]
"""Returns the engine for a model of these sizes on this device in this number format."""


class EagerEngine(Engine):
    """Plans with torch's own operators, on any device and in any number format."""

    name = "eager"

    def __init__(self, model: WorldModel, budget: PlannerBudget) -> None:
        super().__init__(model, budget)
        self._networks = FoldedModel(model)

    def begin(
        self,
        obs: Float[Tensor, "batch obs"],
        task: Int[Tensor, " batch"],
        noise: PlanNoise,
    ) -> Refine:
        """Encode the observations and run the policy prior; the rounds refine from there.

        Raises:
            NonFiniteError: The encoder overflows on an observation.
        """
        z = self.model.encode(obs, task)
        if not bool(torch.isfinite(z).all()):  # the search would still end in finite actions
            check_action(float("nan"))
        problem = prepare(self._networks, z, task, noise.prior)

        def run(
            rounds: range, mean: NDArray[Any], std: NDArray[Any]
        ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
            start, spread = (torch.from_numpy(part).to(obs) for part in (mean, std))
            plan = run_rounds(
                self._networks, self.budget, problem, start, spread, noise, rounds
            )
            # numpy has no bfloat16.
            exact = obs.dtype if obs.dtype == torch.float64 else torch.float32
            action, mean, std = (
                part.to("cpu", exact).numpy() for part in (plan.action, plan.mean, plan.std)
            )
            return action, mean, std

        return run


def eager_engine(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> type[Engine]:
    """Choose torch's own operators for every model."""
    return EagerEngine


class Planner:
    """Chooses actions by planning; stores the last plan of each row.

    Args:
        model: World model in eval mode, whose weights stay as they are.
        budget: What one plan may spend, and how many of its actions are executed.
        timer: Measures rounds where there is a deadline.
        engine: Class of the engine that computes the rounds.
    """

    def __init__(
        self,
        model: WorldModel,
        budget: PlannerBudget,
        timer: DeadlineTimer,
        engine: type[Engine] = EagerEngine,
    ) -> None:
        self._model, self._budget = model, budget
        self._rounds = iterations(budget, model.config.action_dim)
        self._engine = engine(model, budget)
        self.engine = engine.name
        """Name of the engine."""
        self.iterations: int | None = None
        """Iterations of the newest plan; None before the first."""
        dtype = np.float64 if model.dtype == torch.float64 else np.float32
        self._state = PlanState(budget, model.config.action_dim, timer, dtype)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the plans of all rows, or of these, before a new episode."""
        self._state.reset(rows)

    def act(
        self,
        obs: Float[Tensor, "batch obs"],
        task: Int[Tensor, " batch"],
        generators: Generators,
        *,
        explore: bool,
    ) -> Float[Tensor, "batch action"]:
        """Choose actions: the first of a new plan, or the next of one that is in use.

        Only the rows that are due are planned for; the generators of the others then draw
        nothing but the noise of exploring, which has the plan's standard deviation.
        """
        due = self._state.due(len(obs))
        noise = obs.new_zeros(len(obs), self._model.config.action_dim)
        if due:
            drawn = draw_noise(self._model, self._budget, [generators[row] for row in due])
            noise[due] = drawn.explore
            run = self._engine.begin(obs[due], task[due], drawn)
            mask = self._model.mask(task[due]).float().cpu().numpy()
            self.iterations = self._state.plan(due, self._rounds, mask, run)
        action, std = (torch.from_numpy(part).to(obs) for part in self._state.next())
        if not explore:
            return action
        for row in set(range(len(obs))) - set(due):
            noise[row] = torch.randn(noise.shape[1], generator=generators[row]).to(noise)
        return (action + std * noise).clamp(-1, 1)
