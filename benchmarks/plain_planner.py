"""The planner as its formulas read: what engines are compared with.

torch.nn modules one after the other, the task embedding looked up and joined at each call, each
member of the Q ensemble a module of its own, nothing folded or computed ahead.

Source: TD-MPC2, arXiv:2310.16828, section 3.2.
"""

import torch
from torch import Tensor, nn

from tdmpc_opt.configs import PlannerBudget
from tdmpc_opt.planning.mppi import PlanNoise
from tdmpc_opt.world_model.layers import Dense
from tdmpc_opt.world_model.model import LOG_STD_MAX, LOG_STD_MIN, WorldModel


class SimNorm(nn.Module):
    """Softmax over groups of neighbours."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., latent] to simplices."""
        return torch.softmax(x.view(*x.shape[:-1], -1, self.group), dim=-1).view(x.shape)


def plain(network: nn.Sequential, member: int | None = None) -> nn.Sequential:
    """Rebuild a head, or one member of an ensemble, from torch's own modules."""
    modules: list[nn.Module] = []
    for dense in network:
        modules += _modules(dense, member)
    return nn.Sequential(*modules).eval().requires_grad_(False)


def _modules(dense: Dense, member: int | None) -> list[nn.Module]:
    def of(parameter: Tensor) -> nn.Parameter:
        return nn.Parameter((parameter if member is None else parameter[member]).clone())

    linear = nn.Linear(dense.weight.shape[-1], dense.weight.shape[-2])
    linear.weight, linear.bias = of(dense.weight), of(dense.bias)
    if dense.norm is None:
        return [linear]
    norm = nn.LayerNorm(linear.out_features)
    norm.weight, norm.bias = of(dense.norm.weight), of(dense.norm.bias)
    activation = nn.Mish() if dense.activation == "mish" else SimNorm(dense.simnorm_dim)
    return [linear, norm, activation]


class PlainPlanner:
    """MPPI with the modules of one world model.

    Args:
        model: World model of many tasks, in eval mode.
        budget: Sizes of the search.
    """

    def __init__(self, model: WorldModel, budget: PlannerBudget) -> None:
        assert model.task_embedding is not None, "made for models of many tasks"
        self._model, self._budget, self._embedding = model, budget, model.task_embedding
        self._dynamics, self._reward = plain(model.dynamics), plain(model.reward_head)
        self._policy_head = plain(model.policy_head)
        members = [plain(model.q_ensemble, member) for member in range(model.config.num_q)]
        self._qs = nn.ModuleList(members)

    def _with_task(self, z: Tensor, task: Tensor) -> Tensor:
        embedding = self._embedding(task)
        return torch.cat([z, embedding.expand(*z.shape[:-1], -1)], dim=-1)

    def _decode(self, logits: Tensor) -> Tensor:
        x = (torch.softmax(logits, dim=-1) * self._model.bins).sum(-1)
        return torch.sign(x) * (torch.exp(x.abs()) - 1)

    def _policy(self, z: Tensor, task: Tensor, noise: Tensor) -> Tensor:
        mask = self._model.mask(task)
        mean, log_std = self._policy_head(self._with_task(z, task)).chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(log_std) + 1)
        return torch.tanh(mean * mask + noise * mask * (log_std * mask).exp())

    def _values(
        self, z: Tensor, task: Tensor, actions: Tensor, noise: Tensor, heads: Tensor
    ) -> Tensor:
        z = z.expand(actions.shape[1], *z.shape).contiguous()
        total, weight = torch.zeros(z.shape[:2]), torch.ones(z.shape[1])
        for action in actions:
            reward = self._reward(torch.cat([self._with_task(z, task), action], dim=-1))
            total = total + weight * self._decode(reward)
            z = self._dynamics(torch.cat([self._with_task(z, task), action], dim=-1))
            weight = weight * self._model.discount[task]
        last = self._policy(z, task, noise)
        x = torch.cat([self._with_task(z, task), last], dim=-1)
        q = self._decode(torch.stack([member(x) for member in self._qs]))
        chosen = q.gather(0, heads.unsqueeze(1).expand(-1, q.shape[1], -1))
        return total + weight * chosen.mean(0)

    def _prior(self, z: Tensor, task: Tensor, noise: Tensor) -> Tensor:
        z = z.expand(noise.shape[1], *z.shape).contiguous()
        actions = []
        for step_noise in noise:
            actions.append(self._policy(z, task, step_noise))
            z = self._dynamics(torch.cat([self._with_task(z, task), actions[-1]], dim=-1))
        return torch.stack(actions)

    def plan(
        self, z: Tensor, task: Tensor, previous_mean: Tensor, noise: PlanNoise
    ) -> tuple[Tensor, Tensor]:
        """Return mean and std of the action sequences, each [horizon, batch, action]."""
        budget, mask = self._budget, self._model.mask(task)
        prior = self._prior(z, task, noise.prior)
        mean = torch.cat([previous_mean[1:], torch.zeros_like(previous_mean[:1])])
        std = torch.full_like(mean, budget.max_std)
        for k in range(len(noise.samples)):
            sampled = mean.unsqueeze(1) + std.unsqueeze(1) * noise.samples[k]
            actions = torch.cat([prior, sampled.clamp(-1, 1)], dim=1) * mask
            value = self._values(z, task, actions, noise.value[k], noise.heads[k])
            top, index = value.nan_to_num(0.0).topk(budget.elites, dim=0)
            index = index[None, ..., None].expand(len(actions), -1, -1, actions.shape[-1])
            elites = actions.gather(1, index)
            weights = torch.exp(budget.temperature * (top - top[0]))
            weights = (weights / weights.sum(0)).unsqueeze(-1)
            mean = (weights * elites).sum(1)
            std = (weights * (elites - mean.unsqueeze(1)) ** 2).sum(1).sqrt()
            mean, std = mean * mask, std.clamp(budget.min_std, budget.max_std) * mask
        return mean, std
