"""One update of TD-MPC2 as its formulas read: what the training loop is compared with.

torch.nn modules one after the other, each member of the Q ensemble a module of its own, torch's
Adam and clipping, and nothing computed that no loss needs.

Source: TD-MPC2, arXiv:2310.16828, equations 3 to 6; TD-MPC-Opt, arXiv:2507.01823, section 3.
"""

import copy
import math

import torch
from plain_planner import plain
from torch import Tensor, nn
from torch.nn import functional

from tdmpc_opt.configs import LossWeights
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.world_model.model import LOG_STD_MAX, LOG_STD_MIN, WorldModel

LR, ENCODER_LR, CLIP, TAU = 3e-4, 0.9e-4, 20.0, 0.01


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

    def policy(self, z: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Sample actions, and return them with their log-probability."""
        mask = self.masks[task]
        mean, log_std = self.pi(self.join(z, task)).chunk(2, dim=-1)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(log_std) + 1)
        mean, log_std = mean * mask, log_std * mask
        noise = torch.randn_like(mean) * mask
        density = (-0.5 * noise**2 - log_std).sum(-1, keepdim=True)
        density = (density - 0.5 * math.log(2 * math.pi)) * mask.sum(-1, keepdim=True)
        action = torch.tanh(mean + noise * log_std.exp())
        squash = torch.log(torch.relu(1 - action**2) + 1e-6).sum(-1, keepdim=True)
        return action, density - squash


class PlainTeacher:
    """A frozen world model that says what rewards it expects."""

    def __init__(self, model: WorldModel) -> None:
        self._model = PlainModel(model).eval().requires_grad_(False)

    @torch.no_grad()
    def reward(self, obs: Tensor, action: Tensor, task: Tensor) -> Tensor:
        """Return decoded rewards [batch, 1] of the first step."""
        model = self._model
        z = model.encoder(model.join(obs, task))
        return model.decode(model.reward(model.join(z, task, action)))


class PlainLearner:
    """A student, its target Qs and its optimisers."""

    def __init__(self, model: WorldModel, teacher: PlainTeacher | None, weight: float) -> None:
        self.model = PlainModel(model).train().requires_grad_(True)
        self._targets = copy.deepcopy(self.model.qs).eval().requires_grad_(False)
        self._teacher, self._weight = teacher, weight
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
        self._scale = torch.ones(())

    def step(self, batch: Batch, weights: LossWeights) -> float:
        """Update model, policy and target Qs, and return the model's loss."""
        m, task, horizon = self.model, batch.task, len(batch.action)
        with torch.no_grad():
            next_z = m.encoder(m.join(batch.obs[1:], task))
            action, _ = m.policy(next_z, task)
            x = m.join(next_z, task, action)
            chosen = torch.randperm(len(self._targets))[:2]
            values = [m.decode(self._targets[index](x)) for index in chosen]
            target = torch.min(*values) * m.discount[task].unsqueeze(-1) + batch.reward
        zs = [m.encoder(m.join(batch.obs[0], task))]
        consistency = reward = value = 0.0
        for t in range(horizon):
            rho = weights.rho**t
            zs.append(m.dynamics(m.join(zs[t], task, batch.action[t])))
            consistency = consistency + rho * functional.mse_loss(zs[-1], next_z[t])
        z = torch.stack(zs)
        x = m.join(z[:-1], task, batch.action)
        rewards, qs = m.reward(x), [q(x) for q in m.qs]
        for t in range(horizon):
            rho = weights.rho**t
            reward = reward + rho * m.two_hot_loss(rewards[t], batch.reward[t]).mean()
            for q in qs:
                value = value + rho * m.two_hot_loss(q[t], target[t]).mean() / len(qs)
        loss = weights.consistency * consistency + weights.reward * reward
        loss = (loss + weights.value * value) / horizon
        if self._teacher is not None:
            goal = self._teacher.reward(batch.obs[0], batch.action[0], task)
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
        action, log_prob = m.policy(z, task)
        x = m.join(z, task, action)
        chosen = torch.randperm(len(m.qs))[:2]
        q = torch.stack([m.decode(m.qs[index](x)) for index in chosen]).mean(0)
        low, high = torch.quantile(q[0].detach(), torch.tensor([0.05, 0.95]))
        self._scale = torch.lerp(self._scale, (high - low).clamp(min=1.0), TAU)
        per_step = (weights.entropy * log_prob - q / self._scale).mean(dim=(1, 2))
        loss = (per_step * weights.rho ** torch.arange(len(z))).mean()
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
