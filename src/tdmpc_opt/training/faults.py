"""What is done about NaN and infinity in the data, a loss, a gradient or a weight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import NonFiniteError, RunError
from tdmpc_opt.progress import Progress
from tdmpc_opt.training.batches import slices_of
from tdmpc_opt.training.losses import model_losses, td_target
from tdmpc_opt.training.step import Learner

_MOST_UNREAD = 50
"""Updates after which the host waits for a GPU, to learn whether their losses were finite."""


class FaultKeeper:
    """Counts the batches that were skipped, over resumes too.

    Args:
        learner: Has the count, and the networks that find the slice at fault.
        sampler: Has the origin of each slice.
        progress: Warned of each.
    """

    def __init__(self, learner: Learner, sampler: SliceSampler, progress: Progress) -> None:
        self._learner, self._sampler, self._progress = learner, sampler, progress
        self._unread: list[tuple[int, Tensor]] = []

    def skip(self, error: NonFiniteError, batch: Batch | None) -> None:
        """Warn of a batch, or stop the run.

        Args:
            error: What was found.
            batch: Where it was found while training; None if the data itself holds it.

        Raises:
            RunError: More batches than allowed were skipped.
        """
        learner, most = self._learner, self._learner.config.max_skipped
        fault = f"update {learner.update + 1}: {error}"
        if batch is not None:
            require_finite_weights(learner)
            fault += f" {self._blame(batch)}"
        if learner.skipped == most:
            raise RunError(
                f"{fault}; stopped, for {learner.skipped} batches were skipped before; the "
                f"checkpoint in {learner.config.output} is whole: repair the data or lower "
                "--lr, or allow more with --max-skipped"
            ) from error
        learner.skipped += 1
        self._progress.warn(f"{fault}; batch skipped ({learner.skipped} of at most {most})")

    def read_later(self, terms: dict[str, Tensor]) -> None:
        """Take from the terms of the newest update whether its losses were finite.

        Raises:
            RunError: As `read`.
        """
        if "finite" in terms:
            self._unread.append((self._learner.update, terms.pop("finite")))
        if len(self._unread) == _MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Wait for the device, and report the updates that it left out.

        Raises:
            RunError: More batches than allowed were skipped.
        """
        unread, self._unread = self._unread, []
        flags = torch.stack([finite for _, finite in unread]).tolist() if unread else []
        for (number, _), finite in zip(unread, flags, strict=True):
            if not finite:  # of an older batch the sampler does not know the slices any more
                what = f"the loss or a gradient of update {number} was NaN or infinite"
                self.skip(NonFiniteError(what), None)

    def _blame(self, batch: Batch) -> str:
        ranks = self._learner.ranks
        columns = self._find(batch, range(batch.task.numel()))
        found = ranks.gather([self._sampler.origin(column) for column in columns])
        origins = [origin for of_rank in found for origin in of_rank]
        if not origins:
            return "though no slice of the batch is at fault alone"
        more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
        all_at_fault = len(origins) == batch.task.numel() * ranks.count
        every = ", every slice of the batch" if all_at_fault else ""
        return f"by {'; '.join(origins[:3])}{more}{every}"

    def _find(self, batch: Batch, columns: Sequence[int]) -> Sequence[int]:
        """Halve the batch until each slice at fault is alone."""
        if self._is_finite(slices_of(batch, slice(columns[0], columns[-1] + 1))):
            return []
        if len(columns) == 1:
            return columns
        middle = len(columns) // 2
        return [*self._find(batch, columns[:middle]), *self._find(batch, columns[middle:])]

    @torch.no_grad()
    def _is_finite(self, batch: Batch) -> bool:
        config, model = self._learner.config, self._learner.model.eval()
        # Its own noise: finding a fault must not change what the run draws next.
        generator = torch.Generator().manual_seed(config.seed)
        next_z = model.encode(batch.obs[1:], batch.task)
        target = td_target(model, next_z, batch, generator)
        losses, _ = model_losses(model, batch, next_z, target, config.weights)
        return bool(losses.total(config.weights).isfinite())


def require_finite_weights(learner: Learner) -> None:
    """Make sure that no weight is NaN or infinite.

    Raises:
        RunError: One is; no further batch can be learnt from.
    """
    if not all(bool(value.isfinite().all()) for value in learner.model.parameters()):
        raise RunError(
            f"a weight became NaN or infinite before update {learner.update + 1}; the "
            f"checkpoint in {learner.config.output} is from before that: lower --lr"
        )
