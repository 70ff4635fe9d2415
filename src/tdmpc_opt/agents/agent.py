"""`Agent`: a world model with a planner, or its policy alone, behind one `act`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.agents.compute import best_device
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs.common import Mode
from tdmpc_opt.contract import (
    OnInvalid,
    check_generators,
    check_on_invalid,
    check_shape,
    numbers,
    task_id,
)
from tdmpc_opt.errors import InputError, NonFiniteError, ObservationError, UnknownTaskError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.planner import ChooseEngine, EagerEngine, Engine, Planner, eager_engine
from tdmpc_opt.planning.presets import find_preset
from tdmpc_opt.runtime.plan_state import Clock, ControlLoop, OneCallAtATime
from tdmpc_opt.schema import PlannerBudget, check_action, check_observation

Generators = torch.Generator | Sequence[torch.Generator] | None
TaskArgument = str | int | np.integer | Sequence[int] | np.ndarray | Tensor | None


class Agent(ControlLoop):
    """Acts for one or many rows at once, in planner or policy mode.

    Threads may share an agent in policy mode: calls leave nothing behind. A planner's plans and
    the last actions that `on_invalid="hold"` repeats go from one call to the next, so a control
    loop that uses one of them needs its own agent. A planner's call during another thread's
    call is refused.

    Args:
        world_model: Model in eval mode; it decides device and number format. A planner
            uses its weights as they are now.
        mode: Act by planning in latent space, or by the policy network alone.
        budget: What one plan may spend, and how many of its actions are executed.
        engine: What computes the planner's iterations.
        clock: Monotonic time in seconds, by which deadlines are kept.

    Raises:
        InputError: An unknown mode, or a model that cannot plan.
    """

    def __init__(
        self,
        world_model: WorldModel,
        *,
        mode: Mode = "planner",
        budget: PlannerBudget | None = None,
        engine: type[Engine] = EagerEngine,
        clock: Clock = time.perf_counter,
    ) -> None:
        if mode not in ("planner", "policy"):
            raise InputError(f"mode must be planner or policy, got {mode!r}")
        if mode == "planner" and not world_model.can_plan:
            raise InputError(
                "this agent has only encoder and policy and cannot plan; use the mode `policy`"
            )
        super().__init__(world_model.tasks, clock)
        self.world_model = world_model
        self.mode = mode
        self.budget = budget or PlannerBudget()
        self._one_call = OneCallAtATime()
        self._planner: Planner | None = None
        if mode == "planner":
            self._planner = Planner(world_model, self.budget, self._timer, engine)

    @property
    def engine(self) -> str | None:
        """Name of what computes plans; None where the policy acts."""
        return self._planner.engine if self._planner else None

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget the plans of all rows, or of these, and the last actions, before an episode.

        Raises:
            BusyError: Another thread plans with this agent at this moment.
        """
        if self._planner:
            with self._one_call:
                self._planner.reset(rows)
        self._fallback.forget()

    @overload
    def act(
        self,
        obs: Tensor,
        task: TaskArgument = None,
        *,
        deterministic: bool = True,
        generator: Generators = None,
        deadline_ms: float | None = None,
        on_invalid: OnInvalid = "error",
    ) -> Tensor: ...

    @overload
    def act(
        self,
        obs: ArrayLike | None,
        task: TaskArgument = None,
        *,
        deterministic: bool = True,
        generator: Generators = None,
        deadline_ms: float | None = None,
        on_invalid: OnInvalid = "error",
    ) -> NDArray[np.float32]: ...

    @torch.inference_mode()
    def act(
        self,
        obs: Tensor | ArrayLike | None,
        task: TaskArgument = None,
        *,
        deterministic: bool = True,
        generator: Generators = None,
        deadline_ms: float | None = None,
        on_invalid: OnInvalid = "error",
    ) -> Tensor | NDArray[np.float32]:
        """Choose actions.

        Args:
            obs: Tensor or array, [obs] or [B, obs], padded or of the task's own width. None
                stands for a missing one.
            task: Task name or id for all rows, or ids [B]. A single-task model needs none.
            deterministic: The policy's mean; for the planner an elite drawn by weight without
                added noise. Else a sample of the policy, or the elite plus the plan's noise.
            generator: Source of all randomness: one for the batch or one for each row; None
                is torch's default generator. One per row makes a row independent of the rest.
            deadline_ms: Milliseconds from now in which the planner should be done: it leaves
                out iterations that would end later, judged by recent ones. The first always
                runs.
            on_invalid: Answer to an invalid observation, and to one on which the network
                overflows: an error; `hold`, the last action of a call with `hold` since the
                reset, else zeros; or `zero`. It is the answer for all rows, and leaves plans
                as they were.

        Returns:
            Actions in [-1, 1], of the kind and leading shape of `obs`: the task's own width, or
            the padded width where ids [B] were given.

        Raises:
            ObservationError: An observation that is missing, no array of numbers, of a wrong
                shape, or has NaN, infinity or numbers above `LARGEST_OBSERVATION`.
            NonFiniteError: The network gave an action that is not finite or not in [-1, 1].
            InputError: Ids of a wrong shape, a deadline that is not positive, another number of
                generators than of rows, or an unknown `on_invalid`.
            UnknownTaskError: A task that is not this agent's.
            BusyError: Another thread plans with this agent at this moment.
        """
        check_on_invalid(on_invalid)
        self._timer.begin(deadline_ms)
        given = obs if isinstance(obs, Tensor) else None
        one = self._one_task(task)
        try:
            action = self._act_on(obs, task if one is None else one, deterministic, generator)
        except (ObservationError, NonFiniteError):
            if on_invalid == "error":
                raise
            shape = obs if given is None else np.empty(given.shape, np.int8)
            fallback = self._fallback.answer(on_invalid, shape, one)
            return _like(given, torch.from_numpy(fallback))
        result = _like(given, action)
        if on_invalid == "hold":
            self._fallback.keep(one, _array(action))
        self._timer.finish()
        return result

    def _act_on(
        self, obs: Any, task: Any, deterministic: bool, generator: Generators
    ) -> Float[Tensor, "*batch action"]:
        """Return the actions for observations, on the model's device."""
        model, config = self.world_model, self.world_model.config
        if not isinstance(obs, Tensor):  # torch takes no read-only or reversed arrays
            found = numbers(obs)
            obs = torch.from_numpy(np.array(found, found.dtype.newbyteorder("=")))
        if obs.is_complex():
            raise ObservationError("the observation contains complex numbers; give real ones")
        given = obs.to(model.bins.device, model.dtype)
        one = task if isinstance(task, int) else None
        check_shape(self.tasks, one, given.shape)
        check_observation(float(given.abs().max()))
        rows = torch.atleast_2d(functional.pad(given, (0, config.obs_dim - given.shape[-1])))
        ids = self._task_ids(task, len(rows))
        generators = _per_row(generator, len(rows))
        if self._planner:
            with self._one_call:
                action = self._planner.act(rows, ids, generators, explore=not deterministic)
                largest = float(action.abs().max())
                if not largest <= 1:  # the next plan would start from this one
                    self._planner.reset()
        else:
            noise = None
            if not deterministic:
                width = config.action_dim
                drawn = [torch.randn(width, generator=source) for source in generators]
                noise = torch.stack(drawn).to(rows)
            action = model.policy(model.encode(rows, ids), ids, noise).action
            largest = float(action.abs().max())
        check_action(largest)
        if one is not None:
            action = action[:, : self.tasks.tasks[one].action_dim]
        return action[0] if given.ndim == 1 else action

    def _one_task(self, task: TaskArgument) -> int | None:
        """Return the id of the task of all rows; None where each row has one."""
        if task is None or isinstance(task, str | int | np.integer):
            return task_id(self.tasks, task)
        return None

    def _task_ids(self, task: Any, rows: int) -> Int[Tensor, " batch"]:
        """Return the id of each row."""
        device = self.world_model.bins.device
        if isinstance(task, int):
            return torch.full((rows,), task, device=device)
        ids = torch.as_tensor(np.array(task) if isinstance(task, np.ndarray) else task)
        if ids.shape != (rows,) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(
                f"task ids must be integers of shape [{rows}], one per row; got "
                f"{ids.dtype} of shape {list(ids.shape)}"
            )
        if rows and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.tasks):
            raise UnknownTaskError(f"task ids must be in 0..{len(self.tasks) - 1}")
        return ids.to(device).long()


def _like(obs: Tensor | None, action: Tensor) -> Tensor | NDArray[np.float32]:
    """Return an action as a tensor like the observation, or as an array where that is none."""
    if obs is None:
        return _array(action)
    return action.to(obs.device, obs.dtype if obs.is_floating_point() else None)


def _array(action: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = action.float().cpu().numpy()
    return array


def _per_row(generator: Generators, rows: int) -> list[torch.Generator | None]:
    if generator is None:
        return [None] * rows
    found = generator if isinstance(generator, Sequence) else [generator] * rows
    check_generators(found, rows, torch.Generator)
    return [*found]


def load_agent(
    path_or_name: str | Path,
    device: str | torch.device = "cpu",
    preset: str | PlannerBudget | None = None,
    mode: Mode = "planner",
    dtype: torch.dtype = torch.float32,
    choose_engine: ChooseEngine = eager_engine,
) -> Agent:
    """Load an agent as `tdmpc_opt.load_agent` does; takes a budget and a choice of engines."""
    checkpoint = read_checkpoint(path_or_name, check_values=False)
    where = best_device(str(device))
    model = build(checkpoint, device=where, dtype=dtype, policy_will_do=True)
    chosen = find_preset(preset, checkpoint.extra)
    mode = chosen.mode if mode == "planner" else mode
    engine = choose_engine(model.config, where, dtype)
    return Agent(model, mode=mode, budget=chosen.budget, engine=engine)
