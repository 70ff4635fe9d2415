"""The batches of a run: how each update draws them, on its device and in parts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import DataError, NonFiniteError
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.ranks import ALONE, Ranks

_LABELLED = "labelled_"


class Draws:
    """Draws the slices of each update.

    Args:
        config: How many, and how they are drawn.
        datasets: Where they come from, the one that grows last.
        tasks: The model's.
        ranks: Who shares each batch.

    Raises:
        DataError: As `SliceSampler` raises it.
    """

    def __init__(
        self,
        config: TrainConfig,
        datasets: Sequence[EpisodeDataset],
        tasks: TaskTable,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks

        def sampler(batch_size: int, seed: int | tuple[int, int]) -> SliceSampler:
            return SliceSampler(
                datasets,
                tasks,
                horizon=config.horizon,
                batch_size=batch_size,
                seed=seed,
                last_share=config.on_policy_share,
                sampling=config.sampling,
                rank=ranks.rank,
                world_size=ranks.count,
            )

        self.slices = sampler(config.batch_size, config.seed)
        """For the whole objective."""
        more = config.behaviour_batch
        self._labelled = sampler(more, (config.seed, 1)) if more else None

    def sample(self, device: torch.device) -> tuple[Batch, Batch | None]:
        """Draw the slices of an update, and those for the behaviour term alone if there are.

        Raises:
            NonFiniteError: NaN or infinity in those of any rank; the next call draws others.
        """
        labelled, batch, fault = None, None, None
        try:
            if self._labelled is not None:
                labelled = on_device(self._labelled.sample(), device)
            batch = on_device(self.slices.sample(), device)
        except NonFiniteError as error:
            fault = error
        self._ranks.raise_together(fault)
        assert batch is not None, "a rank without a batch has raised"
        return batch, labelled

    def state_dict(self) -> dict[str, str]:
        """Return the random states as text, which any safe format can store."""
        more = {} if self._labelled is None else self._labelled.state_dict()
        return self.slices.state_dict() | {_LABELLED + name: more[name] for name in more}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on drawing where `state_dict` was taken, on the same dataset.

        Raises:
            DataError: A state that `state_dict` did not write.
        """
        self.slices.load_state_dict(state)
        if self._labelled is not None:
            marked = [name for name in state if name.startswith(_LABELLED)]
            if not marked:
                raise DataError("the saved state has no draws for the behaviour term")
            self._labelled.load_state_dict(
                {name.removeprefix(_LABELLED): state[name] for name in marked}
            )


def moved(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; the host does not wait for a GPU's copy."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    return _changed(batch, lambda value, _: moved(value, device))


def slices_of(batch: Batch, chosen: slice | Tensor) -> Batch:
    """Return some slices of a batch."""
    return _changed(batch, lambda value, axis: value[(slice(None),) * axis + (chosen,)])


def _changed(batch: Batch, change: Callable[[Tensor, int], Tensor]) -> Batch:
    """Change what networks see of a batch, given each tensor and its axis of slices."""
    axes = {"obs": 1, "action": 1, "label": 1, "reward": 1, "task": 0}
    if batch.terminated is not None:
        axes["terminated"] = 1
    values = {name: change(getattr(batch, name), axis) for name, axis in axes.items()}
    return replace(batch, **values)
