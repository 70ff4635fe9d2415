import math
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tdmpc_opt.configs.training import DistillWeights, LossWeights, Schedule, TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.errors import NonFiniteError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.training import losses as module
from tdmpc_opt.training import step
from tdmpc_opt.training.batches import slices_of
from tdmpc_opt.training.distillation import Distillation
from tdmpc_opt.training.losses import (
    ModelLosses,
    RunningScale,
    imitation,
    model_losses,
    policy_losses,
    td_target,
    two_random_heads,
)
from tdmpc_opt.training.ranks import Ranks
from tdmpc_opt.training.step import Learner, build_learner, train_step
from tdmpc_opt.training.teachers import TeacherTargets

CONFIG = TrainConfig(data=Path("unused"), output=Path("unused"), updates=1)

PUBLISHED = LossWeights()


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def batch() -> Batch:
    """Four slices of the two tasks of `model`, padded to 5 observations and 3 actions."""
    source = torch.Generator().manual_seed(7)
    task = torch.tensor([0, 1, 0, 1])
    obs = torch.randn(4, 4, 5, generator=source)
    action = torch.rand(3, 4, 3, generator=source) * 2 - 1
    obs[:, task == 1, 4:] = 0
    action[:, task == 1, 2:] = 0
    reward = torch.rand(3, 4, 1, generator=source) * 2
    return Batch(obs=obs, action=action, label=action.clone(), reward=reward, task=task)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _terms(
    model: WorldModel, batch: Batch, weights: LossWeights = PUBLISHED
) -> tuple[ModelLosses, Tensor]:
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], batch.task)
    target = td_target(model, next_z, batch, _generator())
    losses, rollout = model_losses(model, batch, next_z, target, weights)
    return losses, rollout.zs


def _weights(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def _changed(before: dict[str, Tensor], part: torch.nn.Module) -> set[str]:
    after = part.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("lookahead", [0.0, 0.3, 1.0])
def test_targets_look_ahead_as_far_as_lambda_says(model, batch, lookahead):
    """Against the mixture of n-step returns that defines them, for each step of the slice."""
    with torch.no_grad():
        model.target_q_ensemble[-1].bias.add_(torch.randn(2, 101, generator=_generator()))
        next_z = model.encode(batch.obs[1:], batch.task)
        noise = torch.randn(3, 4, 3, generator=_generator())
        action = model.policy(next_z, batch.task, noise).action
        qs = model.decode(model.q_values(next_z, action, batch.task, target=True))
    value = qs.amin(0)

    def after(t: int, steps: int) -> Tensor:
        rewards = sum(0.99**k * batch.reward[t + k] for k in range(steps))
        return rewards + 0.99**steps * value[t + steps - 1]

    target = td_target(model, next_z, batch, _generator(), td_lambda=lookahead)
    for t in range(3):
        longest = 3 - t
        expected = lookahead ** (longest - 1) * after(t, longest)
        for n in range(1, longest):
            expected = expected + (1 - lookahead) * lookahead ** (n - 1) * after(t, n)
        torch.testing.assert_close(target[t], expected)


def test_targets_come_from_the_target_qs_alone(model, batch):
    next_z = model.encode(batch.obs[1:], batch.task).detach()
    before = td_target(model, next_z, batch, _generator())
    with torch.no_grad():
        model.q_ensemble[-1].bias.add_(torch.arange(101.0))
    same = td_target(model, next_z, batch, _generator())
    assert torch.equal(before, same)
    with torch.no_grad():
        model.target_q_ensemble[-1].bias.add_(torch.arange(101.0))
    assert not torch.allclose(before, td_target(model, next_z, batch, _generator()))


@pytest.mark.parametrize("name", [field.name for field in fields(LossWeights)])
def test_each_weight_changes_the_total(name, model, batch):
    weights = LossWeights(**{field.name: 0.1 for field in fields(LossWeights)})
    losses, zs = _terms(model, batch, weights)

    def totals(weights: LossWeights) -> Tensor:
        policy, _ = policy_losses(
            model, zs.detach(), batch, _scale(), weights, _generator(), torch.ones(4, 4, 3)
        )
        return torch.stack([losses.total(weights), policy.total(weights)])

    before = totals(weights)
    after = totals(replace(weights, **{name: getattr(weights, name) + 0.5}))
    model_changed, policy_changed = (before != after).tolist()
    assert model_changed == (name != "entropy")
    assert policy_changed == (name in ("entropy", "behaviour"))


def test_rho_weighs_later_steps(model, batch, monkeypatch):
    next_z = model.encode(batch.obs[1:], batch.task).detach()
    found = []
    for rho in (1e-9, 1.0):
        monkeypatch.setattr(module, "RHO", rho)
        weights = LossWeights(behaviour=1.0)
        found.append(model_losses(model, batch, next_z, batch.reward, weights)[0])
    near, far = found
    for name in ("consistency", "reward", "value", "behaviour"):
        assert getattr(near, name) < getattr(far, name)


def _scale() -> RunningScale:
    return RunningScale(0.01, torch.device("cpu"))


def test_the_behaviour_term_pulls_the_mean_to_the_data(model, batch):
    _, zs = _terms(model, batch)
    optimizer = torch.optim.Adam(model.policy_head.parameters(), lr=1e-2)
    distances = []
    for _ in range(150):
        loss = policy_losses(
            model, zs.detach(), batch, _scale(), LossWeights(), _generator(), None
        )[0].behaviour
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(float(loss.detach()))
    assert distances[-1] < 0.2 * distances[0]


def test_the_behaviour_term_reaches_the_encoder_where_it_has_a_weight(model, batch):
    assert float(_terms(model, batch)[0].behaviour) == 0
    losses, zs = _terms(model, batch, LossWeights(behaviour=1.0))
    own = model.policy(zs[:-1], batch.task).mean
    mask = model.mask(batch.task)
    distance = ((own - batch.label) ** 2 * mask).sum(-1) / mask.sum(-1)
    expected = (torch.tensor([1.0, 0.5, 0.25]) * distance.mean(1)).mean()
    torch.testing.assert_close(losses.behaviour, expected)
    losses.behaviour.backward()
    assert model.encoder[0].weight.grad.any()


def _behaviour(model: WorldModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The term of the model's loss and of the policy's, the latter without noise."""
    losses, zs = _terms(model, batch, weights=LossWeights(behaviour=1.0))
    return losses.behaviour, _policy_behaviour(model, zs.detach(), batch)


def _policy_behaviour(model: WorldModel, zs: Tensor, batch: Batch) -> Tensor:
    noise = torch.zeros(4, len(batch.task), 3)
    args = (zs, batch, _scale(), LossWeights(), _generator(), noise)
    return policy_losses(model, *args)[0].behaviour


def _gradient(model: WorldModel, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_behaviour_term_holds_down_the_noise_of_the_policy(model, batch):
    """Nothing else would: entropy asks for more of it, and TD targets are drawn with it."""
    zs = _terms(model, batch)[1].detach()
    with torch.no_grad():
        model.policy_head[-1].bias[3:] = 0.8  # a standard deviation of about 1
    optimizer = torch.optim.Adam(model.policy_head.parameters(), lr=1e-2)
    generator, spread = _generator(), []
    for _ in range(150):
        losses, output = policy_losses(model, zs, batch, _scale(), LossWeights(), generator)
        optimizer.zero_grad()
        (losses.objective + 20 * losses.behaviour).backward()
        optimizer.step()
        spread.append(float((output.log_std.exp() * model.mask(batch.task)).mean().detach()))
    assert spread[0] > 0.3
    assert spread[-1] < 0.5 * spread[0]


def test_the_behaviour_term_imitates_labels_and_not_actions(model, batch):
    zs = _terms(model, batch)[1].detach()
    before = _policy_behaviour(model, zs, batch)
    noisy = replace(batch, action=batch.action + 0.3)
    assert torch.equal(before, _policy_behaviour(model, zs, noisy))
    labelled = replace(batch, label=batch.label + 0.3)
    assert not torch.allclose(before, _policy_behaviour(model, zs, labelled))


def test_slices_without_labels_take_no_part_in_the_behaviour_term(model, batch):
    """Neither the loss nor a gradient may know that they were in the batch."""
    label, kept = batch.label.clone(), [0, 3]
    label[:, [1, 2]] = torch.nan
    alone = Batch(
        obs=batch.obs[:, kept],
        action=batch.action[:, kept],
        label=batch.label[:, kept],
        reward=batch.reward[:, kept],
        task=batch.task[kept],
    )
    masked = _behaviour(model, replace(batch, label=label))
    for loss, expected in zip(masked, _behaviour(model, alone), strict=True):
        torch.testing.assert_close(loss, expected)
        assert loss > 0
        torch.testing.assert_close(_gradient(model, loss), _gradient(model, expected))


def test_single_steps_without_labels_take_no_part(model, batch):
    label = batch.label.clone()
    label[1, 2, :] = label[2, 1, :2] = torch.nan
    before = _behaviour(model, replace(batch, label=label))
    known = label.isfinite().all(-1)
    own = model.policy(_terms(model, batch)[1][:-1], batch.task).mean
    expected = sum(
        0.5**t * ((own[t, b] - batch.label[t, b])[: (3, 2)[b % 2]] ** 2).mean()
        for t in range(3)
        for b in range(4)
        if known[t, b]
    ) / int(known.sum())
    assert int(known.sum()) == 10
    for loss in before:
        torch.testing.assert_close(loss, expected)
        assert _gradient(model, loss).isfinite().all()


def test_a_batch_without_any_label_leaves_the_behaviour_term_zero(model, batch):
    for loss in _behaviour(
        model, replace(batch, label=torch.full_like(batch.label, torch.nan))
    ):
        assert float(loss.detach()) == 0
        assert not _gradient(model, loss).any()


def test_the_behaviour_term_ignores_padded_actions(model, batch):
    _, zs = _terms(model, batch)
    args = (zs.detach(), batch, _scale(), LossWeights(), _generator(), torch.ones(4, 4, 3))
    before = policy_losses(model, *args)[0].behaviour
    batch.label[:, batch.task == 1, 2] = 9.0
    assert torch.equal(before, policy_losses(model, *args)[0].behaviour)


def test_a_single_label_counts_in_full(model, batch):
    label = torch.full_like(batch.label, torch.nan)
    label[1, 0] = 0.5
    zs = model.encode(batch.obs[:-1], batch.task)
    own = model.policy(zs, batch.task).mean[1, 0]
    found = imitation(model, zs, replace(batch, label=label))
    torch.testing.assert_close(found, ((own - 0.5) ** 2).mean())


class LabelledAlone(Ranks):
    """One of two ranks, of which the other has no labels."""

    def mean(self, value: Tensor) -> Tensor:
        return value / 2


def test_a_single_label_of_all_ranks_counts_in_full(model, batch):
    """The mean of the ranks' losses is the batch's, and the other's is 0."""
    label = torch.full_like(batch.label, torch.nan)
    label[1, 0] = 0.5
    zs = model.encode(batch.obs[:-1], batch.task)
    own = model.policy(zs, batch.task).mean[1, 0]
    found = imitation(model, zs, replace(batch, label=label), LabelledAlone(0, 2))
    torch.testing.assert_close(found / 2, ((own - 0.5) ** 2).mean())


def test_ranks_draw_the_noise_of_their_rows_of_the_batch(model, batch):
    with torch.no_grad():
        model.target_q_ensemble[-1].bias.add_(torch.randn(2, 101, generator=_generator()))
    next_z = model.encode(batch.obs[1:], batch.task).detach()
    whole = td_target(model, next_z, batch, _generator())
    for rank in range(2):
        own = slices_of(batch, slice(rank, None, 2))
        target = td_target(model, next_z[:, rank::2], own, _generator(), Ranks(rank, 2))
        torch.testing.assert_close(target, whole[:, rank::2])


def test_the_scale_follows_the_percentile_range_and_stays_above_one():
    scale = RunningScale(0.5, torch.device("cpu"))
    scale.update(torch.linspace(0, 10, 101).unsqueeze(1))
    assert float(scale.value) == pytest.approx(0.5 * 1 + 0.5 * 9)
    for _ in range(30):
        scale.update(torch.full((5, 1), 3.0))
    assert float(scale.value) == pytest.approx(1)


def test_two_different_heads_are_drawn(model):
    five, source = WorldModel(replace(model.config, num_q=5), model.tasks), _generator()
    drawn = [two_random_heads(five, source).tolist() for _ in range(60)]
    assert all(a != b for a, b in drawn)
    assert {head for pair in drawn for head in pair} == {0, 1, 2, 3, 4}
    assert two_random_heads(model, source) is None, "both of two, in their order"


@pytest.fixture
def learner(fabric, model) -> Learner:
    return build_learner(fabric, model, CONFIG)


def test_the_optimisers_own_each_trainable_parameter_once(learner):
    owned = [
        parameter
        for optimizer in (learner.model_optimizer, learner.policy_optimizer)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    trainable = [p for p in learner.model.parameters() if p.requires_grad]
    assert len(owned) == len({id(p) for p in owned})
    assert {id(p) for p in owned} == {id(p) for p in trainable}
    policy = [p for group in learner.policy_optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in policy} == {id(p) for p in learner.model.policy_head.parameters()}
    targets = learner.model.target_q_ensemble.parameters()
    assert not {id(p) for p in owned} & {id(p) for p in targets}


@pytest.mark.parametrize(("factor", "falling"), [(0.3, None), (0.05, None), (0.05, 10)])
def test_the_encoder_learns_at_its_own_rate(fabric, model, batch, factor, falling):
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    config = replace(CONFIG, encoder_lr_scale=factor, lr_zero_at=falling)
    learner = build_learner(fabric, model, config)
    before = _weights(model)
    train_step(learner, batch)

    def step(name: str) -> float:
        return float((model.state_dict()[name] - before[name]).abs().max())

    assert step("dynamics.0.weight") == pytest.approx(3e-4, rel=1e-2)
    assert step("encoder.0.weight") == pytest.approx(factor * 3e-4, rel=1e-2)
    assert step("policy_head.0.weight") == pytest.approx(3e-4, rel=2e-2)


def test_the_learning_rates_fall_on_a_line_to_zero(learner, batch):
    learner.config = replace(CONFIG, lr_zero_at=4)
    for share in (1, 0.75, 0.5, 0.25):
        train_step(learner, batch)
        rest, encoder = (group["lr"] for group in learner.model_optimizer.param_groups)
        assert rest == learner.policy_optimizer.param_groups[0]["lr"]
        assert rest == pytest.approx(share * 3e-4)
        assert encoder == pytest.approx(share * 9e-5)


def test_further_labels_train_encoder_and_policy_and_nothing_else(fabric, model, batch):
    """Beside a batch without labels, at a weight that drowns every other term."""
    config = replace(CONFIG, weights=LossWeights(behaviour=1e6), behaviour_batch=4)
    plain = replace(batch, label=torch.full_like(batch.label, torch.nan))
    gradients = []
    for labelled in (None, batch):
        torch.manual_seed(0)
        learner = build_learner(fabric, deepcopy(model), config)
        train_step(learner, plain, labelled=labelled)
        gradients.append({n: p.grad for n, p in learner.model.named_parameters()})
    without, with_labels = gradients
    moved = {
        name.split(".")[0]
        for name, gradient in with_labels.items()
        if gradient is not None and float((gradient / (without[name].norm() + 1)).norm()) > 0.1
    }
    assert moved == {"encoder", "policy_head", "task_embedding"}


def test_further_labels_belong_to_the_states_that_they_were_given_in(fabric, model, batch):
    """The loss grows by the distance at each state's own observation."""
    config = replace(CONFIG, weights=LossWeights(behaviour=10.0), behaviour_batch=4)
    expected = 10 * imitation(model, model.encode(batch.obs[:-1], batch.task), batch).item()
    plain = replace(batch, label=torch.full_like(batch.label, torch.nan))
    losses = []
    for labelled in (None, batch):
        torch.manual_seed(0)
        learner = build_learner(fabric, deepcopy(model), config)
        losses.append(train_step(learner, plain, labelled)["loss"])
    assert float(losses[1] - losses[0]) == pytest.approx(expected, rel=1e-4)


def test_further_labels_are_imitated_in_every_state_alike(model, batch):
    zs = model.encode(batch.obs[:-1], batch.task)
    own = model.policy(zs, batch.task).mean
    mask = model.mask(batch.task)
    expected = (((own - batch.label) ** 2 * mask).sum(-1) / mask.sum(-1)).mean()
    torch.testing.assert_close(imitation(model, zs, batch), expected)


def test_a_step_trains_every_part_and_the_policy_by_its_own_loss_alone(learner, batch):
    before = _weights(learner.model)
    train_step(learner, batch)
    untouched = before.keys() - _changed(before, learner.model)
    assert untouched == set()
    assert all(p.requires_grad for p in learner.model.q_ensemble.parameters())

    before = _weights(learner.model)
    for group in learner.model_optimizer.param_groups:
        group["lr"] = 0.0
    train_step(learner, batch)
    moved = {name.split(".")[0] for name in _changed(before, learner.model)}
    assert moved == {"policy_head", "target_q_ensemble"}

    before = _weights(learner.model)
    for group in learner.policy_optimizer.param_groups:
        group["lr"] = 0.0
    train_step(learner, batch)
    moved = {name.split(".")[0] for name in _changed(before, learner.model)}
    assert moved == {"target_q_ensemble"}


def test_the_policy_step_leaves_no_gradient_elsewhere(learner, batch, monkeypatch):
    """Each optimiser's clipping must count what it steps and nothing else."""
    train_step(learner, batch)
    kept = {
        name: p.grad.clone()
        for name, p in learner.model.named_parameters()
        if p.grad is not None and not name.startswith("policy_head")
    }
    assert kept.keys() == {
        name
        for name, p in learner.model.named_parameters()
        if p.requires_grad and not name.startswith("policy_head")
    }
    monkeypatch.setattr(step, "GRAD_CLIP", 1e-3)
    terms = train_step(learner, batch)
    for part, total in (("policy_head", "policy_grad_norm"), ("", "grad_norm")):
        grads = [
            p.grad
            for name, p in learner.model.named_parameters()
            if p.grad is not None and name.startswith("policy_head") == bool(part)
        ]
        clipped = float(torch.stack([g.norm() for g in grads]).norm())
        assert clipped == pytest.approx(min(1e-3, float(terms[total])), rel=1e-3)
        assert float(terms[total]) > 1e-3


def test_target_qs_move_by_tau(learner, batch, monkeypatch):
    monkeypatch.setattr(step, "TAU", 0.25)
    before = _weights(learner.model.target_q_ensemble)
    train_step(learner, batch)
    online = learner.model.q_ensemble.state_dict()
    for name, tensor in learner.model.target_q_ensemble.state_dict().items():
        torch.testing.assert_close(tensor, before[name].lerp(online[name], 0.25))


class Deaf(Ranks):
    """A rank that takes its own values for those of all."""

    def mean(self, value: Tensor) -> Tensor:
        return value

    def gather_rows(self, rows: Tensor) -> Tensor:
        return rows


def test_dropout_of_each_rank_follows_from_seed_update_and_rank(fabric, make_model, batch):
    """So that a resumed run draws the same, whatever torch's own generator did before."""
    losses = []
    for rank, update, seed in ((0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0)):
        ranks = Deaf(rank, 2)
        learner = build_learner(fabric, make_model(dropout=0.5), CONFIG, ranks=ranks)
        learner.update = update
        torch.manual_seed(seed)
        losses.append(float(train_step(learner, batch)["value"]))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("owner", ["model", "policy"])
@pytest.mark.parametrize("given", ["teacher", "labels"])
def test_each_optimiser_follows_teacher_and_labels(owner, given, fabric, model, batch):
    """The other one stands still, so that the distance to the goal can fall by one alone."""
    weights = LossWeights(behaviour=100.0 * (given == "labels"))
    config = replace(CONFIG, lr=1e-3, weights=weights)
    goal = torch.full((4, 4, 3), 0.3)
    batch = replace(batch, label=torch.full_like(batch.label, torch.nan))
    labelled = replace(batch, label=goal[:3].tanh()) if given == "labels" else None
    off, on = Schedule(0.0), Schedule(100.0)
    taught = Distillation(
        lambda _: TeacherTargets(policy_location=goal),
        DistillWeights(reward_mse=off, policy_mse=on if given == "teacher" else off),
        None,
    )
    learner = build_learner(fabric, model, config, taught)
    still = learner.policy_optimizer if owner == "model" else learner.model_optimizer
    for group in still.param_groups:
        group["lr"] = 0.0

    def distance() -> float:
        with torch.no_grad():
            return float(imitation(model, model.encode(batch.obs[:-1], batch.task), known))

    known = replace(batch, label=goal[:3].tanh())
    before = distance()
    for _ in range(20):
        train_step(learner, batch, labelled)
    assert distance() < 0.9 * before


def test_what_is_not_finite_changes_nothing(fabric, learner, batch):
    before = _weights(learner.model)
    bad = replace(batch, reward=torch.full_like(batch.reward, torch.nan))
    with pytest.raises(NonFiniteError, match="the loss is NaN or infinite"):
        train_step(learner, bad)
    learner.model.encoder[0].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match="a gradient is NaN or infinite"):
        train_step(learner, batch)
    assert not _changed(before, learner.model)


def test_a_gradient_of_the_policy_that_is_not_finite_changes_the_model_alone(learner, batch):
    with torch.no_grad():
        learner.model.q_ensemble[-1].weight.mul_(20.0)  # a scale that moves
    train_step(learner, batch)
    before, scale = _weights(learner.model), float(learner.scale.value)
    assert scale > 1
    learner.model.policy_head[0].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match="a gradient is NaN or infinite"):
        train_step(learner, batch)
    moved = {name.split(".")[0] for name in _changed(before, learner.model)}
    assert moved == {"encoder", "dynamics", "reward_head", "q_ensemble", "task_embedding"}
    assert (float(learner.scale.value), learner.update) == (scale, 1)


def test_dropout_of_a_single_process_is_drawn_by_torchs_own_generator(
    fabric, make_model, batch
):
    losses = []
    for seed in (0, 0, 1):
        learner = build_learner(fabric, make_model(dropout=0.5), CONFIG)
        torch.manual_seed(seed)
        losses.append(float(train_step(learner, batch)["loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_a_step_reports_finite_scalars_and_counts(fabric, learner, batch):
    terms = train_step(learner, batch)
    assert (learner.update, learner.skipped) == (1, 0)
    assert "finite" not in terms, "the host waits for the CPU"
    for name, value in terms.items():
        assert value.shape == (), name
        assert math.isfinite(value), name
        assert not value.requires_grad, name


def test_embedding_rows_stay_within_one(fabric, model, batch):
    learner = build_learner(fabric, model, replace(CONFIG, lr=0.3))
    with torch.no_grad():
        learner.model.task_embedding.weight.fill_(0.5)
    train_step(learner, batch)
    assert float(learner.model.task_embedding.weight.detach().norm(dim=-1).max()) <= 1 + 1e-6
