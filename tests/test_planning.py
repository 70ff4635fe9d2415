import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tdmpc_opt.errors import InputError
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning import mppi, presets
from tdmpc_opt.planning.mppi import Plan, draw_noise, plan, prepare, sequence_values
from tdmpc_opt.schema import PlannerBudget, Task, TaskTable

BUDGET = PlannerBudget(iterations=6, samples=96, policy_samples=8, elites=12)


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _plan(
    model: WorldModel,
    budget: PlannerBudget = BUDGET,
    seeds: tuple[int, ...] = (0, 1),
    previous: Tensor | None = None,
    task: Tensor | None = None,
) -> Plan:
    rows = len(seeds)
    task = torch.arange(rows) % 2 if task is None else task
    source = torch.Generator().manual_seed(5)
    obs = torch.randn(1, model.config.obs_dim, generator=source).expand(rows, -1)
    width = model.config.action_dim
    previous = torch.zeros(budget.horizon, rows, width) if previous is None else previous
    noise = draw_noise(model, budget, _generators(*seeds))
    with torch.no_grad():
        ids = task if model.task_embedding is not None else None
        z = model.encode(obs, ids)
        return plan(FoldedModel(model), z, ids, previous, noise, budget)


def _values(
    model: WorldModel, z: Tensor, actions: Tensor, task: Tensor, noise: Tensor, heads: Tensor
) -> Tensor:
    """Values of these sequences alone, without any of the policy prior."""
    networks = FoldedModel(model)
    none = torch.zeros(len(actions), 0, *actions.shape[2:])
    problem = prepare(networks, z, task, none)
    return sequence_values(networks, problem, actions, noise, heads)


@pytest.fixture(scope="module")
def toy(make_model) -> WorldModel:
    """A model that learned that action 0.7 in every real dimension earns most."""
    torch.manual_seed(0)
    model = make_model(mlp_dim=32)
    parameters = list(model.reward_head.parameters())
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    source = torch.Generator().manual_seed(0)
    for _ in range(400):
        task = torch.randint(0, 2, (128,), generator=source)
        action = (torch.rand(128, 3, generator=source) * 2 - 1) * model.mask(task)
        z = model.encode(torch.randn(128, 5, generator=source), task).detach()
        distance = ((action - 0.7) ** 2 * model.mask(task)).sum(-1, keepdim=True)
        logits = model.reward(z, action, task)
        loss = model.soft_cross_entropy(logits, 10 - 10 * distance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # no opinion beyond the horizon
        model.q_ensemble[-1].weight.zero_()
        model.q_ensemble[-1].bias.zero_()
    return model


def test_the_plan_moves_to_the_best_action(toy):
    result = _plan(toy)
    real = toy.mask(torch.tensor([0, 1])).bool()
    # The rewards of imagined latents were not trained, so the first step is the sharpest.
    assert (result.mean[0] - 0.7).abs()[real].max() < 0.25
    assert (result.mean - 0.7).abs()[:, real].mean() < 0.25
    assert (result.std[:, real] < 0.5).all()


def _distance_to_policy(model: WorldModel, **held: float) -> float:
    """Return how far a plan with such a hold is from what the policy would do."""
    task = torch.tensor([0, 0])
    with torch.no_grad():
        source = torch.Generator().manual_seed(5)
        z = model.encode(torch.randn(1, 5, generator=source).expand(2, -1), task)
        noise = draw_noise(model, BUDGET, _generators(0, 1))
        own = prepare(FoldedModel(model), z, task, noise.prior).prior_actions.mean(1)
    found = _plan(model, replace(BUDGET, **held), task=task).mean
    return float((found - own).abs().mean())


@pytest.mark.parametrize(("field", "some"), [("prior_penalty", 1.0), ("prior_hold", 10.0)])
def test_a_hold_keeps_the_plan_by_the_policy(toy, field, some):
    free, held, tied = (_distance_to_policy(toy, **{field: x}) for x in (0.0, some, 1e4))
    assert free > 1.2 * held > 1.2 * tied
    assert tied < 0.1


def test_a_hold_ties_the_faster_the_less_is_foreseen_and_a_share_does_not(toy):
    def distance(values: float, **held: float) -> float:
        blind = copy.deepcopy(toy)
        with torch.no_grad():
            blind.reward_head[-1].weight.zero_()
            blind.reward_head[-1].bias.zero_()
            errors = torch.Generator().manual_seed(0)
            blind.q_ensemble[-1].weight.normal_(0.0, values, generator=errors)
        return _distance_to_policy(blind, **held)

    assert distance(1e-3, prior_penalty=0.3) > 0.5 * distance(0.1, prior_penalty=0.3)
    assert distance(1e-3, prior_hold=0.1) < 0.5 * distance(0.1, prior_hold=0.1)


def test_more_iterations_find_better_plans(toy):
    task = torch.tensor([0, 1])
    z = toy.encode(
        torch.randn(1, 5, generator=torch.Generator().manual_seed(5)).expand(2, -1), task
    )
    values = []
    for rounds in (1, 6):
        mean = _plan(toy, replace(BUDGET, iterations=rounds)).mean
        with torch.no_grad():
            heads = torch.tensor([[0, 0], [1, 1]])
            noise = torch.zeros(1, 2, 3)
            values.append(_values(toy, z, mean.unsqueeze(1), task, noise, heads))
    assert (values[1] > values[0]).all()


def test_the_same_noise_gives_the_same_plan(model):
    first, again, other = _plan(model), _plan(model), _plan(model, seeds=(2, 3))
    for name in ("mean", "std", "action"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.mean, other.mean)


def test_a_row_is_independent_of_those_beside_it(model):
    both = _plan(model, seeds=(0, 1))
    alone = _plan(model, seeds=(1,), task=torch.tensor([1]))
    for name in ("mean", "std"):
        torch.testing.assert_close(
            getattr(both, name)[:, 1], getattr(alone, name)[:, 0], atol=1e-4, rtol=0
        )
    torch.testing.assert_close(both.action[1], alone.action[0], atol=1e-4, rtol=0)


def test_plans_stay_within_bounds_and_mask(model):
    result = _plan(model, seeds=(0, 1, 2, 3))
    for part in (result.mean, result.action):
        assert (part.abs() <= 1).all()
    assert not result.mean[:, 1::2, 2].any()
    assert not result.std[:, 1::2, 2].any()
    assert not result.action[1::2, 2].any()
    assert result.std[:, 0].min() >= BUDGET.min_std
    assert result.std.max() <= BUDGET.max_std


def test_the_warm_start_is_the_last_mean_shifted_by_one_step(model):
    """With no spread the samples are the start itself."""
    budget = PlannerBudget(
        iterations=1, samples=2, policy_samples=0, elites=2, min_std=0.0, max_std=0.0
    )
    previous = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1).expand(3, 2, 3)
    mean = _plan(model, budget, previous=previous).mean
    torch.testing.assert_close(mean[:, 0], torch.tensor([[0.2] * 3, [0.3] * 3, [0.0] * 3]))
    torch.testing.assert_close(mean[:, 1, :2], torch.tensor([[0.2] * 2, [0.3] * 2, [0.0] * 2]))
    assert not mean[:, 1, 2].any()


def test_elites_are_drawn_by_their_weight():
    weights = torch.tensor([0.6, 0.3, 0.1]).unsqueeze(1).expand(3, 9000)
    first = torch.arange(3.0).reshape(3, 1, 1).expand(3, 9000, 1)
    pick = torch.rand(9000, generator=torch.Generator().manual_seed(0))
    drawn = mppi.draw_elite(first, weights, pick).flatten().long()
    share = torch.bincount(drawn, minlength=3) / 9000
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("pick", "expected"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.74, 1), (0.75, 2), (1 - 2**-24, 2)]
)
def test_the_pick_inverts_the_cumulative_weights(pick, expected):
    weights = torch.tensor([[0.5], [0.25], [0.25 - 2**-20]])  # by rounding below 1
    first = torch.arange(3.0).reshape(3, 1, 1)
    assert float(mppi.draw_elite(first, weights, torch.tensor([pick]))) == expected


def test_the_drawn_heads_decide_the_value(make_model):
    model = make_model(num_q=5)
    with torch.no_grad():
        for head in range(5):
            value = two_hot.two_hot(torch.tensor([float(head)]), model.bins)
            model.q_ensemble[-1].weight.zero_()
            model.q_ensemble[-1].bias[head] = value[0].clamp(min=1e-9).log()
        model.reward_head[-1].weight.zero_()
        model.reward_head[-1].bias.copy_(
            two_hot.two_hot(torch.tensor([0.0]), model.bins)[0].clamp(min=1e-9).log()
        )
        z = torch.zeros(3, 16)
        value = _values(
            model,
            z,
            torch.zeros(3, 1, 3, 3),
            torch.tensor([0, 1, 0]),
            torch.zeros(1, 3, 3),
            torch.tensor([[0, 1, 4], [2, 3, 4]]),
        )
    expected = 0.99**3 * torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-3)


def test_every_plan_draws_two_different_heads(make_model):
    model = make_model(num_q=5)
    noise = draw_noise(model, BUDGET, _generators(*range(20)))
    assert (noise.pick.shape, noise.explore.shape) == ((20,), (20, 3))
    heads = noise.heads
    assert heads.shape == (6, 2, 20)
    assert (heads[:, 0] != heads[:, 1]).all()
    assert heads.unique().tolist() == [0, 1, 2, 3, 4]


def test_noise_has_the_number_format_of_the_model(make_model):
    noise = draw_noise(make_model().double(), BUDGET, _generators(0))
    assert noise.prior.dtype == noise.samples.dtype == noise.pick.dtype == torch.float64
    assert noise.heads.dtype == torch.int64


def test_a_model_with_one_q_plans_too(make_model):
    heads = draw_noise(make_model(num_q=1), BUDGET, _generators(0)).heads
    assert not heads.any()
    assert _plan(make_model(num_q=1)).action.isfinite().all()


@pytest.mark.parametrize(("action_dim", "expected"), [(6, 6), (19, 6), (20, 8), (38, 8)])
def test_wide_action_spaces_get_two_more_iterations(action_dim, expected, make_model):
    assert mppi.iterations(BUDGET, action_dim) == expected
    tasks = TaskTable((Task("one", 5, action_dim), Task("two", 5, 2)))
    model = make_model(tasks)
    assert len(draw_noise(model, BUDGET, _generators(0)).samples) == expected


def test_single_task_models_plan(make_model):
    model = make_model(TaskTable((Task("only", 5, 3),)), task_dim=0)
    result = _plan(model, seeds=(0, 1))
    assert result.action.shape == (2, 3)
    assert result.action.isfinite().all()


def test_a_value_that_is_no_number_ranks_as_zero(model, monkeypatch):
    """As in the public code."""
    values = torch.tensor([[-0.5], [torch.nan], [-0.2], [0.3]])
    monkeypatch.setattr(mppi, "sequence_values", lambda *_: values)
    budget = PlannerBudget(horizon=2, samples=4, policy_samples=0, elites=3)
    networks, task = FoldedModel(model), torch.tensor([0])
    problem = prepare(networks, torch.zeros(1, 16), task, torch.zeros(2, 0, 1, 3))
    noise = draw_noise(model, budget, _generators(0)).round(0)
    mean, std = torch.zeros(2, 1, 3), torch.ones(2, 1, 3)
    found = mppi.refine(networks, budget, problem, mean, std, noise)
    assert torch.equal(found.first, noise.samples[0, [3, 1, 2]].clamp(-1, 1))
    weights = torch.tensor([0.0, -0.3, -0.5]).mul(0.5).exp()  # temperature 0.5
    torch.testing.assert_close(found.weights[:, 0], weights / weights.sum())


def test_the_distribution_is_refit_to_the_weighted_moments_of_the_elites(model, monkeypatch):
    """0 and 1 by 1/4 and 3/4 have mean 3/4 and variance 3/16; equal ones have the least std."""
    values = torch.tensor([[-2 * math.log(3)], [0.0]])  # a third of the weight, at 0.5
    monkeypatch.setattr(mppi, "sequence_values", lambda *_: values)
    budget = PlannerBudget(horizon=2, samples=2, policy_samples=0, elites=2)
    networks, task = FoldedModel(model), torch.tensor([1])
    problem = prepare(networks, torch.zeros(1, 16), task, torch.zeros(2, 0, 1, 3))
    samples = torch.tensor([[0.0, 1.0], [0.4, 0.4]]).reshape(2, 2, 1, 1).expand(-1, -1, 1, 3)
    noise = draw_noise(model, budget, _generators(0)).round(0)._replace(samples=samples)
    mean, std = torch.zeros(2, 1, 3), torch.ones(2, 1, 3)
    found = mppi.refine(networks, budget, problem, mean, std, noise)
    real = torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(found.mean[:, 0], torch.tensor([[0.75], [0.4]]) * real)
    torch.testing.assert_close(found.std[:, 0], torch.tensor([[0.4330127], [0.05]]) * real)


def test_the_hold_counts_the_squared_distance_from_the_mean_of_the_policys_sequences(
    model, monkeypatch
):
    """Sequences of the policy are 0.2 from their mean at both steps, in one dimension of two;
    the sampled ones 0.3 and 0.4. The policy's sequences are worth 2 on average, but for sign.
    """
    values = torch.tensor([[-3.0], [-1.0], [0.0], [0.5]])
    monkeypatch.setattr(mppi, "sequence_values", lambda *_: values)
    budget = PlannerBudget(
        horizon=2, samples=4, policy_samples=2, elites=4, prior_penalty=0.3, prior_hold=0.2
    )
    noise = draw_noise(model, budget, _generators(0)).round(0)
    own = (
        torch.tensor([[0.0, 0.2, 0.0], [0.4, 0.2, 0.0]]).reshape(1, 2, 1, 3).expand(2, -1, 1, 3)
    )
    networks, task = FoldedModel(model), torch.tensor([1])
    problem = prepare(networks, torch.zeros(1, 16), task, torch.zeros(2, 2, 1, 3))
    mean = torch.tensor([[[0.5, 0.2, 0.0]], [[0.2, -0.2, 0.0]]])
    found = mppi.refine(
        *(networks, budget, problem._replace(prior_actions=own), mean),
        *(torch.zeros_like(mean), noise),
    )
    hold = (0.3 * 2 + 0.2) * torch.tensor([0.125, 0.125, 0.04, 0.04])
    weights = torch.exp(0.5 * (torch.tensor([0.5, 0.0, -1.0, -3.0]) - hold))
    torch.testing.assert_close(found.weights[:, 0], weights / weights.sum())


def test_values_that_are_not_numbers_count_as_zero(model):
    with torch.no_grad():
        model.q_ensemble[-1].bias.fill_(torch.nan)
    result = _plan(model)
    assert result.mean.isfinite().all()
    assert result.action.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_samples": 96},
        {"policy_samples": -1},
        {"elites": 0},
        {"elites": 97},
        {"horizon": 0},
        {"iterations": 0},
        {"prior_penalty": -1.0},
        {"prior_hold": -1.0},
    ],
)
def test_budgets_that_cannot_run_are_refused(changes):
    with pytest.raises(ValueError, match=r"must be|at least 0"):
        replace(BUDGET, **changes)


@pytest.mark.parametrize("field", ["prior_penalty", "prior_hold"])
def test_a_hold_without_a_prior_is_refused(field):
    with pytest.raises(ValueError, match="need policy_samples"):
        replace(BUDGET, policy_samples=0, **{field: 1.0})


def test_a_preset_is_the_published_budget_whatever_a_checkpoint_stores():
    regularised = presets.Preset(budget=PlannerBudget(prior_hold=300.0, mean_action=True))
    extra = presets.storable(dict.fromkeys(["full", "published"], regularised))
    assert presets.find_preset(None, extra) == regularised
    published = presets.find_preset("published", extra).budget
    assert (published.horizon, published.iterations, published.samples) == (3, 6, 512)
    assert (published.policy_samples, published.elites) == (24, 64)
    assert (published.temperature, published.min_std, published.max_std) == (0.5, 0.05, 2.0)
    assert (published.prior_penalty, published.prior_hold) == (0.0, 0.0)
    assert not published.mean_action
    assert (published.replan_every, published.warm_mean, published.warm_std) == (1, 1.0, 0.0)


def test_full_is_the_published_budget_where_a_checkpoint_stores_none():
    published = presets.find_preset("published")
    assert presets.find_preset(None) == presets.find_preset("full") == published
    assert published == presets.Preset("planner", PlannerBudget())
    with pytest.raises(InputError, match=r"unknown planner preset 'ful'; known: .*full"):
        presets.find_preset("ful")
