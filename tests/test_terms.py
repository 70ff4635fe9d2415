"""Each distillation term against a calculation that shares no code with it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.configs.training import TERMS, DistillWeights, LossWeights, Schedule
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.layers import Dense
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.training import losses as terms
from tdmpc_opt.training.distillation import Distillation
from tdmpc_opt.training.losses import Supervision, model_losses, model_terms, policy_terms
from tdmpc_opt.training.teachers import TeacherTargets, WorldModelTeacher

DECAY = torch.tensor([1.0, 0.5, 0.25, 0.125])
BINS = torch.linspace(-10, 10, 101)
WIDTHS = (3, 2, 1)
"""Action widths of three rows."""


@pytest.fixture
def source() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0]])


def _batch(model: WorldModel, source: torch.Generator) -> Batch:
    task = torch.tensor([0, 1, 0, 1, 0])
    obs = torch.randn(4, 5, model.config.obs_dim, generator=source)
    action = torch.rand(3, 5, model.config.action_dim, generator=source) * model.mask(task)
    return Batch(
        obs=obs,
        action=action,
        label=action,
        reward=torch.rand(3, 5, 1, generator=source),
        task=task,
    )


def test_the_total_is_the_weighted_sum():
    losses = {"reward_mse": torch.tensor(3.0), "latent": torch.tensor(4.0)}
    assert Supervision(None, {"reward_mse": 2.0, "latent": 0.5}).total(losses) == 8


def test_reward_mse_of_one_step_is_the_published_term(source):
    student, teacher = (torch.randn(1, 6, 1, generator=source) for _ in range(2))
    expected = np.mean((student.numpy() - teacher.numpy()) ** 2)
    assert float(terms.reward_mse(student, teacher, DECAY)) == pytest.approx(expected)


def test_reward_mse_of_all_steps_weighs_later_ones_less(source):
    student, teacher = (torch.randn(3, 6, 1, generator=source) for _ in range(2))
    squared = ((student.numpy() - teacher.numpy()) ** 2).mean(axis=(1, 2))
    expected = (squared[0] + 0.5 * squared[1] + 0.25 * squared[2]) / 3
    assert float(terms.reward_mse(student, teacher, DECAY)) == pytest.approx(expected)


def test_reward_kl_is_that_of_torch(source):
    student, teacher = (3 * torch.randn(3, 6, 101, generator=source) for _ in range(2))
    expected = 0.0
    for t in range(3):
        for row in range(6):
            p = Categorical(logits=teacher[t, row])
            q = Categorical(logits=student[t, row])
            expected += 0.5**t * float(kl_divergence(p, q)) / 18
    got = float(terms.two_hot_kl(student, teacher, DECAY))
    assert got == pytest.approx(expected, rel=1e-4)


def test_reward_kl_meets_the_bins_of_the_two_hot_code(source):
    """Of a teacher that says a two-hot code, it is the student's own loss less its entropy."""
    rewards = 20 * torch.rand(3, 6, generator=source) - 2
    student = torch.randn(3, 6, 101, generator=source)
    code = two_hot.two_hot(rewards, BINS)
    entropy = -torch.special.xlogy(code, code).sum(-1)
    expected = two_hot.soft_cross_entropy(student, rewards, BINS) - entropy
    got = terms.two_hot_kl(student, code.clamp_min(1e-12).log(), torch.ones(4))
    torch.testing.assert_close(got, expected.mean(), rtol=1e-4, atol=0)
    same = code.clamp_min(1e-12).log()
    assert abs(float(terms.two_hot_kl(same, same, DECAY))) < 1e-6
    assert float(terms.two_hot_kl(same.roll(1, dims=-1), same, DECAY)) > 1


def test_value_kl_teaches_each_q_the_mean_of_the_teachers(source):
    student = torch.randn(2, 3, 6, 101, generator=source)
    qs = 2 * torch.randn(5, 3, 6, 101, generator=source)
    mean = np.exp(qs.numpy()) / np.exp(qs.numpy()).sum(-1, keepdims=True)
    mean = mean.mean(0)
    p = mean
    q = np.exp(student.numpy())
    q = q / q.sum(-1, keepdims=True)
    divergence = (p * (np.log(p) - np.log(q))).sum(-1).mean(axis=(0, 2))
    expected = (divergence * [1, 0.5, 0.25]).mean()
    got = terms.two_hot_kl(student, torch.from_numpy(mean).log(), DECAY)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_policy_mse_is_the_distance_of_squashed_means_per_real_dimension(source, mask):
    student = torch.rand(4, 3, 3, generator=source) * 2 - 1
    teacher = 2 * torch.randn(4, 3, 3, generator=source)
    expected = 0.0
    for t in range(4):
        for row, width in enumerate(WIDTHS):
            a = student[t, row, :width].numpy()
            b = np.tanh(teacher[t, row, :width].numpy())
            expected += 0.5**t * np.mean((a - b) ** 2) / 12
    assert float(terms.policy_mse(student, teacher, mask, DECAY)) == pytest.approx(expected)


def test_policy_kl_is_that_of_torch_per_real_dimension(source, mask):
    values = [torch.randn(4, 3, 3, generator=source) for _ in range(4)]
    mean, log_std, goal, goal_log_std = values
    expected = 0.0
    for t in range(4):
        for row, width in enumerate(WIDTHS):
            teacher, student = (
                Independent(Normal(m[t, row, :width], s[t, row, :width].exp()), 1)
                for m, s in ((goal, goal_log_std), (mean, log_std))
            )
            expected += 0.5**t * float(kl_divergence(teacher, student)) / width / 12
    got = terms.policy_kl((mean, log_std), (goal, goal_log_std), mask, DECAY)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_policy_kl_is_that_of_the_squashed_policies(source):
    """By sampling actions of the teacher: the mean difference of log-probabilities."""
    mean, log_std = torch.tensor([0.3, -0.2]), torch.tensor([-0.7, -1.0])
    goal, goal_log_std = torch.tensor([-0.1, 0.4]), torch.tensor([-1.2, -0.6])
    noise = torch.randn(200_000, 2, generator=source)
    squash = TanhTransform()
    actions = squash(goal + noise * goal_log_std.exp())
    teacher, student = (
        TransformedDistribution(Normal(m, s.exp()), squash)
        for m, s in ((goal, goal_log_std), (mean, log_std))
    )
    sampled = (teacher.log_prob(actions) - student.log_prob(actions)).mean()
    got = terms.policy_kl(
        (mean.expand(1, 1, 2), log_std.expand(1, 1, 2)),
        (goal.expand(1, 1, 2), goal_log_std.expand(1, 1, 2)),
        torch.ones(1, 2),
        torch.ones(1),
    )
    assert float(got) == pytest.approx(float(sampled), rel=0.02)


def test_padded_actions_do_not_count(source, mask):
    student, teacher = (torch.randn(4, 3, 3, generator=source) for _ in range(2))
    other = torch.where(mask.bool(), student, 7.0)
    mse, kl = terms.policy_mse, terms.policy_kl
    assert torch.equal(mse(student, teacher, mask, DECAY), mse(other, teacher, mask, DECAY))
    assert torch.equal(
        kl((student, student), (teacher, teacher), mask, DECAY),
        kl((other, other), (teacher, teacher), mask, DECAY),
    )


def test_latent_kl_is_that_of_torch_over_the_simplices_of_the_teacher(source):
    projected = torch.randn(4, 3, 24, generator=source)
    teacher = torch.softmax(2 * torch.randn(4, 3, 3, 8, generator=source), dim=-1)
    expected = 0.0
    for t in range(4):
        for row in range(3):
            for k in range(3):
                q = Categorical(logits=projected[t, row, 8 * k : 8 * k + 8])
                expected += (
                    0.5**t * float(kl_divergence(Categorical(teacher[t, row, k]), q)) / 36
                )
    got = terms.latent_kl(projected, teacher.flatten(2), 8, DECAY)
    assert float(got) == pytest.approx(expected, rel=1e-4)
    exact = terms.latent_kl(teacher.log().flatten(2), teacher.flatten(2), 8, DECAY)
    assert abs(float(exact)) < 1e-6


def test_a_simplex_with_zeros_gives_no_nan(source):
    projected = torch.randn(1, 1, 8, generator=source, requires_grad=True)
    teacher = torch.eye(8)[:1].unsqueeze(0)
    loss = terms.latent_kl(projected, teacher, 8, torch.ones(1))
    loss.backward()
    expected = -torch.log_softmax(projected[0, 0], -1)[0]
    torch.testing.assert_close(loss, expected)
    assert projected.grad.isfinite().all()


@pytest.fixture
def teacher(make_model) -> WorldModel:
    return make_model(seed=8, latent_dim=24, mlp_dim=24, num_q=3)


@pytest.fixture
def projection() -> Dense:
    layer = Dense(16, 24, activation="none")
    layer.initialize(torch.Generator().manual_seed(1))
    return layer


def _supervision(
    model: WorldModel,
    teacher: WorldModel,
    batch: Batch,
    weights: dict[str, float],
    **kinds: bool,
) -> Supervision:
    terms, cpu = frozenset(weights), torch.device("cpu")
    asked = WorldModelTeacher(from_model(teacher), model.tasks, terms, cpu, **kinds)
    return Supervision(asked(batch), weights)


def _rollout(model: WorldModel, batch: Batch):
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], batch.task)
    return model_losses(model, batch, next_z, batch.reward, LossWeights())[1]


REACHED = {
    "reward_mse": {"reward_head"},
    "reward_kl": {"reward_head"},
    "value_kl": {"q_ensemble"},
    "policy_mse": {"policy_head"},
    "policy_kl": {"policy_head"},
    "latent": {"projection"},
}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_reaches_what_it_should_and_nothing_else(
    name, model, teacher, projection, source
):
    batch = _batch(model, source)
    supervision = _supervision(model, teacher, batch, {name: 1.0})
    losses = model_terms(model, _rollout(model, batch), batch, supervision, projection)
    assert losses.keys() == {name}
    assert float(losses[name].detach()) > 0
    losses[name].backward()
    parts = {
        parameter_name.partition(".")[0]
        for parameter_name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    if projection.weight.grad is not None and projection.weight.grad.any():
        parts.add("projection")
    assert parts == {"encoder", "dynamics", "task_embedding", *REACHED[name]}


@pytest.mark.parametrize("name", ["policy_mse", "policy_kl"])
def test_the_policy_terms_say_the_same_to_model_and_policy(name, model, teacher, source):
    batch = _batch(model, source)
    supervision, rollout = (
        _supervision(model, teacher, batch, {name: 1.0}),
        _rollout(model, batch),
    )
    of_model = model_terms(model, rollout, batch, supervision, None)
    zs = rollout.zs.detach()
    output = model.policy(zs, batch.task, torch.zeros(*zs.shape[:-1], batch.action.shape[-1]))
    of_policy = policy_terms(output, model.mask(batch.task), supervision, rollout.decay)
    assert of_policy.keys() == of_model.keys()
    torch.testing.assert_close(of_policy[name], of_model[name])


def test_terms_of_a_student_that_equals_its_teacher_vanish_on_the_encoded_step(
    make_model, source
):
    """At t = 0 both see the same observation; then the student predicts what the other sees."""
    model = make_model()
    batch = _batch(model, source)
    weights = dict.fromkeys(set(TERMS) - {"latent", "value_kl"}, 1.0)
    supervision, rollout = _supervision(model, model, batch, weights), _rollout(model, batch)
    losses = model_terms(model, rollout, batch, supervision, None)
    assert all(loss > 1e-4 for loss in losses.values())
    one = torch.tensor([1.0, 0, 0, 0])
    first = type(rollout)(rollout.zs, rollout.reward_logits, rollout.q_logits, one)
    losses = model_terms(model, first, batch, supervision, None)
    assert all(abs(loss) < 1e-6 for loss in losses.values())


def test_the_reward_terms_take_one_step_or_all(model, teacher, source):
    batch = _batch(model, source)
    weights = {"reward_mse": 1.0, "reward_kl": 1.0}
    rollout = _rollout(model, batch)
    first, every = (
        model_terms(
            model,
            rollout,
            batch,
            _supervision(model, teacher, batch, weights, first_reward_only=only),
            None,
        )
        for only in (True, False)
    )
    with torch.no_grad():
        z = teacher.encode(batch.obs[0], batch.task)
        goal = teacher.decode(teacher.reward(z, batch.action[0], batch.task))
        own = model.decode(rollout.reward_logits[0])
    torch.testing.assert_close(first["reward_mse"], (own - goal).square().mean())
    for name in weights:
        assert float(first[name].detach()) != pytest.approx(float(every[name].detach()))


def test_nothing_is_computed_or_asked_while_every_weight_is_zero(model, source):
    asked = []

    def teachers(batch: Batch) -> TeacherTargets:
        asked.append(batch)
        return TeacherTargets(reward=torch.zeros(1, 5, 1))

    weights = DistillWeights(reward_mse=Schedule(1.0, 0.0, 2))
    distillation = Distillation(teachers, weights, None)
    batch = _batch(model, source)
    updates = [distillation.supervision(batch, update) for update in range(4)]
    assert len(asked) == 2
    found = [
        model_terms(model, _rollout(model, batch), batch, supervision, None).keys()
        for supervision in updates
    ]
    assert found == [{"reward_mse"}, {"reward_mse"}, set(), set()]
    assert [supervision.weights["reward_mse"] for supervision in updates] == [
        1.0,
        0.5,
        0.0,
        0.0,
    ]
