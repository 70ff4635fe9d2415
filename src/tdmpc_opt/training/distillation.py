"""Distillation of a large agent into a small one.

Source: TD-MPC-Opt, arXiv:2507.01823, section 3.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs import DistillConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import InputError
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.task_table import TaskTable
from tdmpc_opt.training.loop import TeacherReward, open_data, run_training


class RewardTeacher:
    """A frozen world model that says what reward it expects of a student's batch.

    Args:
        teacher: Checkpoint file or zoo name.
        tasks: The student's tasks; the teacher must know them all.
        device: Where it computes.

    Raises:
        CheckpointError: The teacher cannot be read.
        UnknownTaskError: The teacher does not know a task of the student.
    """

    def __init__(self, teacher: str, tasks: TaskTable, device: torch.device) -> None:
        self.model = build(read_checkpoint(teacher), device=device).requires_grad_(False)
        rows = [self.model.tasks.index(name) for name in tasks.names]
        self._rows = torch.tensor(rows, device=device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "batch 1"]:
        """Return the decoded reward at (s_0, a_0), in environment units."""
        config = self.model.config
        task = self._rows[batch.task]
        obs = _fit(batch.obs[0], config.obs_dim)
        action = _fit(batch.action[0], config.action_dim)
        logits = self.model.reward(self.model.encode(obs, task), action, task)
        return self.model.decode(logits)


def _fit(x: Float[Tensor, "batch dim"], width: int) -> Float[Tensor, "batch width"]:
    # Padding beyond a task's own width is zero in every table, so cutting it loses nothing.
    return functional.pad(x, (0, width - x.shape[-1]))


def distill(config: DistillConfig, progress: Progress | None = None) -> Path:
    """Train a student with a frozen teacher; the same call goes on with an interrupted run.

    Returns:
        The student's checkpoint.

    Raises:
        DataError: The dataset is missing, damaged, foreign or holds NaN.
        RunError: The folder holds another run, or a loss became NaN.
        CheckpointError: A checkpoint that cannot be read or written.
        UnknownTaskError: The teacher does not know a task of the dataset.
        InputError: A negative weight.
    """
    if config.reward_weight < 0:
        raise InputError(f"reward_weight must be at least 0, got {config.reward_weight}")

    def teacher(tasks: TaskTable, device: torch.device) -> TeacherReward:
        return RewardTeacher(config.teacher, tasks, device)

    return run_training(
        config, open_data(config), progress or Silent(), teacher, config.reward_weight
    )
