"""Stopping a plan in time: each of its iterations is a part that may be left out."""

import torch
from jaxtyping import Float
from torch import Tensor

from tdmpc_opt.deadline import Clock, DeadlineTimer
from tdmpc_opt.planning.mppi import Engine, Problem, Refined, RoundNoise

__all__ = ["Clock", "PlanTimer"]


class PlanTimer(DeadlineTimer):
    """Measures the iterations of an engine."""

    def timed(self, engine: Engine) -> Engine:
        """Return the engine with its iterations measured, while there is a deadline."""

        def run(
            problem: Problem,
            mean: Float[Tensor, "horizon batch action"],
            std: Float[Tensor, "horizon batch action"],
            noise: RoundNoise,
        ) -> Refined:
            if not self.limited:
                return engine(problem, mean, std, noise)
            start = self.start_part()
            result = engine(problem, mean, std, noise)
            if mean.device.type != "cpu":  # else only the launch would be measured
                torch.accelerator.synchronize()
            self.end_part(start)
            return result

        return run
