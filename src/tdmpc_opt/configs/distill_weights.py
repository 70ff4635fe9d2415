"""How much each distillation term counts, as plain facts that need no torch."""

import math
from dataclasses import dataclass, fields

from tdmpc_opt.errors import InputError


@dataclass(frozen=True, slots=True)
class Schedule:
    """A weight over the updates of a run: constant, or on a line and then constant."""

    start: float
    """Weight at the first update, at least 0."""
    end: float | None = None
    """Weight from update number `updates` on; None keeps `start`."""
    updates: int = 0
    """Updates that lead from `start` to `end`; 0 without an `end`."""

    def __post_init__(self) -> None:
        """Refuse weights that cannot be meant."""
        for value in (self.start, self.end):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"a weight must be finite and at least 0, got {value}")
        if (self.end is None) != (self.updates == 0) or self.updates < 0:
            raise InputError(
                f"a schedule needs an end and at least 1 update to get there, got end "
                f"{self.end} after {self.updates} updates"
            )

    def at(self, update: int) -> float:
        """Return the weight in force when `update` updates are done."""
        if self.end is None:
            return self.start
        part = min(update / self.updates, 1.0)
        return (1 - part) * self.start + part * self.end

    @property
    def is_zero(self) -> bool:
        """True for a weight that is 0 all along."""
        return not (self.start or self.end)

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read `0.4` (constant) or `0.4:0@10000` (from 0.4 to 0 in 10,000 updates).

        Raises:
            InputError: Another text, or numbers that cannot be meant.
        """
        start, line, rest = text.partition(":")
        end, _, updates = rest.partition("@")
        try:
            return cls(float(start), float(end), int(updates)) if line else cls(float(start))
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"{text!r} is no weight; write a number, or START:END@UPDATES such as "
                "0.4:0@10000"
            ) from None

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.start}" + ("" if self.end is None else f":{self.end}@{self.updates}")


@dataclass(frozen=True, kw_only=True)
class DistillWeights:
    """Weights of the distillation terms; only the published one is on (arXiv:2507.01823).

    Each is a number, or START:END@UPDATES: 0.4:0@10000 falls from 0.4 to 0 in 10,000 updates.
    """

    reward_mse: Schedule = Schedule(0.4)
    """Weight d of the squared distance to the teacher's decoded reward."""
    reward_kl: Schedule = Schedule(0.0)
    """Weight of the divergence from the teacher's two-hot reward distribution."""
    value_kl: Schedule = Schedule(0.0)
    """Weight of the divergence of each Q from the mean of the teacher's Q distributions."""
    policy_mse: Schedule = Schedule(0.0)
    """Weight of the squared distance to the teacher's mean action. It trains the policy and,
    through the latents, the encoder and the dynamics."""
    policy_kl: Schedule = Schedule(0.0)
    """Weight of the divergence from the teacher's policy; trains what `policy_mse` trains."""
    latent: Schedule = Schedule(0.0)
    """Weight of the divergence of a learned projection of the student's latents from the
    teacher's latents."""

    def at(self, update: int) -> dict[str, float]:
        """Return the weights in force when `update` updates are done, by term.

        Terms whose weight is 0 all along are left out.
        """
        schedules = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: schedule.at(update)
            for name, schedule in schedules.items()
            if not schedule.is_zero
        }


TERMS: tuple[str, ...] = tuple(field.name for field in fields(DistillWeights))
"""Names of the distillation terms."""
