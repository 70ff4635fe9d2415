"""Planner and training update as the papers write them: the baseline of speedups.

Only torch.nn modules, each member of the Q ensemble one of them; the task embedding is looked
up at each call; nothing is folded or computed in advance.

Source: TD-MPC2, arXiv:2310.16828, section 3.2 and equations 3 to 6; TD-MPC-Opt,
arXiv:2507.01823, section 3.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.configs.training import LossWeights
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import LOG_STD_MAX, LOG_STD_MIN, WorldModel
from tdmpc_opt.planning.mppi import PlanNoise
from tdmpc_opt.schema import PlannerBudget
from tdmpc_opt.training.losses import RHO

LR, ENCODER_LR, CLIP, TAU = 3e-4, 0.9e-4, 20.0, 0.01


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
    if dense.activation == "mish":
        return [linear, norm, nn.Mish()]
    groups = nn.Unflatten(-1, (-1, dense.simnorm_dim))
    return [linear, norm, groups, nn.Softmax(-1), nn.Flatten(-2)]


class PlainModel(nn.Module):
    """The networks of a world model of many tasks."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        assert model.task_embedding is not None, "made for models of many tasks"
        self.embedding = nn.Embedding(*model.task_embedding.weight.shape, max_norm=1)
        self.embedding.weight.data.copy_(model.task_embedding.weight)
        self.encoder, self.dynamics = plain(model.encoder), plain(model.dynamics)
        self.reward, self.pi = plain(model.reward_head), plain(model.policy_head)
        self.qs = nn.ModuleList(
            _with_dropout(plain(model.q_ensemble, index), model.config.dropout)
            for index in range(model.config.num_q)
        )
        self.register_buffer("bins", model.bins.clone())
        self.register_buffer("masks", model.action_mask.clone())
        self.register_buffer("discount", model.discount.clone())

    def join(self, x: Tensor, task: Tensor, *rest: Tensor) -> Tensor:
        """Append the task's embedding, and what else there is."""
        embedding = self.embedding(task).expand(*x.shape[:-1], -1)
        return torch.cat([x, embedding, *rest], dim=-1)

    def decode(self, logits: Tensor) -> Tensor:
        """Turn two-hot logits into scalars [..., 1]."""
        x = (torch.softmax(logits, dim=-1) * self.bins).sum(-1, keepdim=True)
        return torch.sign(x) * (torch.exp(x.abs()) - 1)

    def two_hot_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy [...] of logits against scalars [..., 1]."""
        width = self.bins[1] - self.bins[0]
        x = (torch.sign(target) * torch.log1p(target.abs())).clamp(self.bins[0], self.bins[-1])
        position = (x - self.bins[0]) / width
        lower = position.floor().clamp(max=len(self.bins) - 2)
        share = position - lower
        code = torch.zeros_like(logits)
        code.scatter_(-1, lower.long(), 1 - share)
        code.scatter_(-1, lower.long() + 1, share)
        return -(code * functional.log_softmax(logits, dim=-1)).sum(-1)

    def policy(self, z: Tensor, task: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions and their log-probability, from standard normal noise."""
        mask = self.masks[task]
        mean, log_std = self.pi(self.join(z, task)).chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(log_std) + 1)
        mean, log_std = mean * mask, log_std * mask
        noise = noise * mask
        density = (-0.5 * noise**2 - log_std).sum(-1, keepdim=True)
        density = (density - 0.5 * math.log(2 * math.pi)) * mask.sum(-1, keepdim=True)
        action = torch.tanh(mean + noise * log_std.exp())
        squash = torch.log(torch.relu(1 - action**2) + 1e-6).sum(-1, keepdim=True)
        return action, density - squash


class PlainPlanner:
    """MPPI with the modules of one world model.

    Args:
        model: World model of many tasks, in eval mode.
        budget: Sizes of the search.
    """

    def __init__(self, model: WorldModel, budget: PlannerBudget) -> None:
        self._model, self._budget = PlainModel(model).eval().requires_grad_(False), budget

    def _values(
        self, z: Tensor, task: Tensor, actions: Tensor, noise: Tensor, heads: Tensor
    ) -> Tensor:
        m, z = self._model, z.expand(actions.shape[1], *z.shape).contiguous()
        total, weight = torch.zeros(z.shape[:2]), torch.ones(z.shape[1])
        for action in actions:
            x = m.join(z, task, action)
            total = total + weight * m.decode(m.reward(x)).squeeze(-1)
            z = m.dynamics(x)
            weight = weight * m.discount[task]
        x = m.join(z, task, m.policy(z, task, noise)[0])
        q = m.decode(torch.stack([member(x) for member in m.qs])).squeeze(-1)
        chosen = q.gather(0, heads.unsqueeze(1).expand(-1, q.shape[1], -1))
        return total + weight * chosen.mean(0)

    def _prior(self, z: Tensor, task: Tensor, noise: Tensor) -> Tensor:
        m, z = self._model, z.expand(noise.shape[1], *z.shape).contiguous()
        actions = []
        for step_noise in noise:
            actions.append(m.policy(z, task, step_noise)[0])
            z = m.dynamics(m.join(z, task, actions[-1]))
        return torch.stack(actions)

    def plan(
        self, z: Tensor, task: Tensor, previous_mean: Tensor, noise: PlanNoise
    ) -> tuple[Tensor, Tensor]:
        """Return mean and std of the action sequences, each [horizon, batch, action]."""
        budget, mask = self._budget, self._model.masks[task]
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


class PlainLearner:
    """A student, its target Qs and its optimisers."""

    def __init__(self, model: WorldModel, teacher: WorldModel | None, weight: float) -> None:
        self.model = PlainModel(model).train().requires_grad_(True)
        self._targets = copy.deepcopy(self.model.qs).eval().requires_grad_(False)
        self._weight, self._teacher = weight, teacher and PlainModel(teacher).eval()
        m = self.model
        rest = [m.embedding, m.dynamics, m.reward, m.qs]
        self._adam = torch.optim.Adam(
            [
                {"params": [p for part in rest for p in part.parameters()]},
                {"params": m.encoder.parameters(), "lr": ENCODER_LR},
            ],
            lr=LR,
        )
        self._policy_adam = torch.optim.Adam(m.pi.parameters(), lr=LR, eps=1e-5)
        self._scale = torch.ones((), device=model.bins.device)

    def step(self, batch: Batch, weights: LossWeights) -> float:
        """Update model, policy and target Qs, and return the model's loss."""
        m, task, horizon = self.model, batch.task, len(batch.action)
        with torch.no_grad():
            next_z = m.encoder(m.join(batch.obs[1:], task))
            noise = torch.randn(*next_z.shape[:-1], m.masks.shape[-1], device=next_z.device)
            action, _ = m.policy(next_z, task, noise)
            x = m.join(next_z, task, action)
            chosen = torch.randperm(len(self._targets))[:2]
            values = [m.decode(self._targets[index](x)) for index in chosen]
            target = torch.min(*values) * m.discount[task].unsqueeze(-1) + batch.reward
        zs = [m.encoder(m.join(batch.obs[0], task))]
        consistency = reward = value = 0.0
        for t in range(horizon):
            rho = RHO**t
            zs.append(m.dynamics(m.join(zs[t], task, batch.action[t])))
            consistency = consistency + rho * functional.mse_loss(zs[-1], next_z[t])
        z = torch.stack(zs)
        x = m.join(z[:-1], task, batch.action)
        rewards, qs = m.reward(x), [q(x) for q in m.qs]
        for t in range(horizon):
            rho = RHO**t
            reward = reward + rho * m.two_hot_loss(rewards[t], batch.reward[t]).mean()
            for q in qs:
                value = value + rho * m.two_hot_loss(q[t], target[t]).mean() / len(qs)
        loss = weights.consistency * consistency + weights.reward * reward
        loss = (loss + weights.value * value) / horizon
        if self._teacher is not None:
            with torch.no_grad():
                t = self._teacher
                first = t.encoder(t.join(batch.obs[0], task))
                goal = t.decode(t.reward(t.join(first, task, batch.action[0])))
            loss = loss + self._weight * functional.mse_loss(m.decode(rewards[0]), goal)
        self._adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), CLIP)
        self._adam.step()
        self._improve_policy(z.detach(), task, weights)
        self._move_targets()
        return float(loss.detach())

    def _improve_policy(self, z: Tensor, task: Tensor, weights: LossWeights) -> None:
        m = self.model
        m.qs.requires_grad_(False)
        noise = torch.randn(*z.shape[:-1], m.masks.shape[-1], device=z.device)
        action, log_prob = m.policy(z, task, noise)
        x = m.join(z, task, action)
        chosen = torch.randperm(len(m.qs))[:2]
        q = torch.stack([m.decode(m.qs[index](x)) for index in chosen]).mean(0)
        low, high = torch.quantile(q[0].detach(), q.new_tensor([0.05, 0.95]))
        self._scale = torch.lerp(self._scale, (high - low).clamp(min=1.0), TAU)
        per_step = (weights.entropy * log_prob - q / self._scale).mean(dim=(1, 2))
        loss = (per_step * RHO ** torch.arange(len(z), device=z.device)).mean()
        self._policy_adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.pi.parameters(), CLIP)
        self._policy_adam.step()
        m.qs.requires_grad_(True)

    @torch.no_grad()
    def _move_targets(self) -> None:
        pairs = zip(self._targets.parameters(), self.model.qs.parameters(), strict=True)
        for target, online in pairs:
            target.lerp_(online, TAU)


def _with_dropout(network: nn.Sequential, rate: float) -> nn.Sequential:
    """Put dropout behind the first linear layer."""
    layers = list(network)
    return nn.Sequential(layers[0], nn.Dropout(rate), *layers[1:])
