"""The batches of a run: how each update draws them, and what is done about NaN in them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import DataError, NonFiniteError, RunError
from tdmpc_opt.progress import Progress
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.objective import model_losses, td_target
from tdmpc_opt.training.ranks import ALONE, Ranks
from tdmpc_opt.training.step import Learner


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

    def sample(self) -> tuple[Batch, Batch | None]:
        """Draw the slices of an update, and those for the behaviour term alone if there are.

        Raises:
            NonFiniteError: NaN or infinity in them; the next call draws others.
        """
        more = None if self._labelled is None else self._labelled.sample()
        return self.slices.sample(), more

    def state_dict(self) -> dict[str, str]:
        """Return the random states as text, which any safe format can store."""
        more = {} if self._labelled is None else self._labelled.state_dict()
        return {
            **self.slices.state_dict(),
            **{f"labelled_{name}": text for name, text in more.items()},
        }

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on drawing where `state_dict` was taken, on the same dataset.

        Raises:
            DataError: A state that `state_dict` did not write.
        """
        self.slices.load_state_dict(state)
        if self._labelled is not None:
            prefix = "labelled_"
            more = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if not more:
                raise DataError("the saved state has no draws for the behaviour term")
            self._labelled.load_state_dict(more)


class FaultKeeper:
    """Counts the batches that were skipped, over resumes too.

    Args:
        learner: Has the count, and the networks that find the slice at fault.
        sampler: Has the origin of each slice.
        config: How many may be skipped, and the objective.
        progress: Warned of each.
    """

    def __init__(
        self, learner: Learner, sampler: SliceSampler, config: TrainConfig, progress: Progress
    ) -> None:
        self._learner = learner
        self._sampler = sampler
        self._config = config
        self._progress = progress

    def skip(self, error: NonFiniteError, batch: Batch | None) -> None:
        """Warn of a batch, or stop the run.

        Args:
            error: What was found.
            batch: Where it was found while training; None if the data itself holds it.

        Raises:
            RunError: More batches than allowed were skipped.
        """
        fault = f"update {self._learner.update + 1}: {error}"
        if batch is not None:
            require_finite_weights(self._learner, self._config.output)
            fault += f" {self._blame(batch)}"
        if self._learner.skipped == self._config.max_skipped:
            raise RunError(
                f"{fault}; stopped, for {self._learner.skipped} batches were skipped before; "
                f"the checkpoint in {self._config.output} is whole: repair the data or lower "
                "--lr, or allow more with --max-skipped"
            ) from error
        self._learner.skipped += 1
        self._progress.warn(
            f"{fault}; batch skipped ({self._learner.skipped} of at most "
            f"{self._config.max_skipped})"
        )

    def _blame(self, batch: Batch) -> str:
        ranks = self._learner.ranks
        columns = self._find(batch, range(batch.task.numel()))
        origins = [self._sampler.origin(column) for column in columns]
        origins = [origin for of_rank in ranks.gather(origins) for origin in of_rank]
        if not origins:
            return "though no slice of the batch is at fault alone"
        more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
        all_at_fault = len(origins) == batch.task.numel() * ranks.count
        every = ", every slice of the batch" if all_at_fault else ""
        return f"by {'; '.join(origins[:3])}{more}{every}"

    def _find(self, batch: Batch, columns: range) -> list[int]:
        """Halve the batch until each slice at fault is alone."""
        if self._is_finite(_part(batch, columns)):
            return []
        if len(columns) == 1:
            return [columns[0]]
        middle = len(columns) // 2
        return self._find(batch, columns[:middle]) + self._find(batch, columns[middle:])

    @torch.no_grad()
    def _is_finite(self, batch: Batch) -> bool:
        # Its own noise: finding a fault must not change what the run draws next.
        generator = torch.Generator().manual_seed(self._config.seed)
        model = self._learner.model.eval()
        next_z = model.encode(batch.obs[1:], batch.task)
        target = td_target(
            *(model, next_z, batch.reward, batch.task, generator), terminated=batch.terminated
        )
        weights = self._config.weights
        losses, _ = model_losses(model, batch, next_z, target, weights)
        return bool(losses.total(weights).isfinite())


def require_finite_weights(learner: Learner, folder: Path) -> None:
    """Make sure that no weight is NaN or infinite.

    Raises:
        RunError: One is; no further batch can be learnt from.
    """
    if not all(bool(value.isfinite().all()) for value in learner.model.parameters()):
        raise RunError(
            f"a weight became NaN or infinite before update {learner.update + 1}; the "
            f"checkpoint in {folder} is from before that: lower --lr"
        )


def _part(batch: Batch, columns: range) -> Batch:
    chosen = slice(columns.start, columns.stop)
    return Batch(
        obs=batch.obs[:, chosen],
        action=batch.action[:, chosen],
        label=batch.label[:, chosen],
        reward=batch.reward[:, chosen],
        task=batch.task[chosen],
        terminated=None if batch.terminated is None else batch.terminated[:, chosen],
    )
