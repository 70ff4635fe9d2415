"""What one update draws: slices for the whole objective, and more for the behaviour term."""

from collections.abc import Sequence

from tdmpc_opt.configs import TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import DataError
from tdmpc_opt.schema import TaskTable
from tdmpc_opt.training.ranks import ALONE, Ranks


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
        """Return the random states as text, which any safe format can hold."""
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
