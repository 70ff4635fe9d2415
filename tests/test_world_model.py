from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from tdmpc_opt.model import layers, two_hot
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.layers import draw_positions, norm_mish, simnorm
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import MT30, Task, TaskTable, model_config


def _count(model: WorldModel, *parts: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in parts)


ONLINE = ("task_embedding", "encoder", "dynamics", "reward_head", "policy_head", "q_ensemble")


def test_the_1m_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = WorldModel(model_config("1", MT30), MT30)
    assert _count(model, *ONLINE) == 1_426_427
    assert _count(model, "task_embedding", "encoder", "policy_head") == 307_916


@pytest.mark.parametrize(
    ("size", "millions", "real"),
    [
        ("0.3", 0.3, True),
        ("1", 1.4, True),
        ("5", 5, True),
        ("19", 16, False),  # named for a latent of 768; that of the MT30 release has 512
        ("48", 48, False),
        ("317", 317, False),
    ],
)
def test_each_size_has_about_the_parameters_it_is_named_for(size, millions, real):
    with torch.device("cpu" if real else "meta"):
        model = WorldModel(model_config(size, MT30), MT30)
    assert _count(model, *ONLINE) == pytest.approx(millions * 1e6, rel=0.1)


def test_two_hot_codes_come_back_as_the_scalars_they_stand_for(model):
    x = torch.tensor([-3e4, -20.0, -1.0, -0.01, 0.0, 0.3, 1.0, 2.0, 777.0, 2.2e4])
    code = two_hot.two_hot(x, model.bins)
    torch.testing.assert_close(code.sum(-1), torch.ones(10))
    assert (code >= 0).all()
    assert int((code > 0).sum(-1).max()) <= 2
    inside = x.clamp(-np.expm1(10), np.expm1(10))
    decoded = two_hot.decode(code.log(), model.bins)
    torch.testing.assert_close(decoded, inside, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("x", "bin_index"), [(-1e9, 0), (1e9, -1), (0.0, 50)])
def test_values_beyond_the_bins_go_to_the_first_or_last_one(model, x, bin_index):
    code = two_hot.two_hot(torch.tensor([x]), model.bins)
    assert float(code[0, bin_index]) == pytest.approx(1, abs=1e-4)


def test_symexp_inverts_symlog():
    x = torch.linspace(-100, 100, 41)
    torch.testing.assert_close(two_hot.symexp(two_hot.symlog(x)), x, rtol=1e-5, atol=1e-6)


def test_soft_cross_entropy_is_least_at_the_code_itself(model):
    x = torch.tensor([0.3])
    code = two_hot.two_hot(x, model.bins)
    at_code = two_hot.soft_cross_entropy(code.clamp(min=1e-9).log(), x, model.bins)
    entropy = -(code * code.clamp(min=1e-9).log()).sum(-1)
    torch.testing.assert_close(at_code, entropy)
    assert two_hot.soft_cross_entropy(torch.zeros(1, 101), x, model.bins) > at_code


def test_only_the_online_qs_drop_out_and_only_while_training(make_model):
    model = make_model(mlp_dim=256)
    action, task = torch.zeros(8, 3), torch.zeros(8).long()
    z = model.encode(torch.ones(8, 5), task)

    def twice(target: bool) -> bool:
        first, second = (model.q_values(z, action, task, target=target) for _ in range(2))
        return torch.equal(first, second)

    assert twice(target=False)
    model.train()
    assert not twice(target=False)
    assert twice(target=True)
    model.eval()
    assert twice(target=False)


def test_embedding_rows_longer_than_one_are_rescaled_and_others_left(model):
    with torch.no_grad():
        model.task_embedding.weight[0] = 3.0
        model.task_embedding.weight[1] = 0.1
    model.renormalize_task_embedding()
    weight = model.task_embedding.weight.detach()
    torch.testing.assert_close(weight[0], torch.full((4,), 0.5))
    assert torch.equal(weight[1], torch.full((4,), 0.1))


def test_embedding_look_up_equals_torch_with_a_largest_norm():
    source = torch.Generator().manual_seed(3)
    model = WorldModel(model_config("0.3", MT30), MT30, source)
    with torch.no_grad():
        model.task_embedding.weight.normal_(std=0.2, generator=source)
    oracle = torch.nn.Embedding(30, 32, max_norm=1, _weight=model.task_embedding.weight.clone())
    model.renormalize_task_embedding()
    task = torch.arange(30)
    torch.testing.assert_close(model.task_embedding(task), oracle(task))


def test_building_twice_from_one_seed_gives_equal_models():
    config = model_config("0.3", MT30)
    first, second, other = (
        WorldModel(config, MT30, torch.Generator().manual_seed(seed)).state_dict()
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


def test_initial_weights_follow_the_published_rules():
    model = WorldModel(model_config("1", MT30), MT30, torch.Generator().manual_seed(0))
    assert not model.reward_head[-1].weight.any()
    assert not model.q_ensemble[-1].weight.any()
    assert model.policy_head[-1].weight.any()
    assert float(model.task_embedding.weight.detach().abs().max()) <= 0.02
    assert float(model.encoder[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model.dynamics[1].bias.any()
    for name, tensor in model.q_ensemble.state_dict().items():
        assert torch.equal(tensor, model.target_q_ensemble.state_dict()[name]), name
    assert not any(p.requires_grad for p in model.target_q_ensemble.parameters())


@pytest.mark.parametrize("heads", [(), (2,)])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_the_fused_hidden_layer_and_its_slopes_equal_torchs_in_float64(heads, rate):
    """Norms of inputs up to 100, where exponentials overflow, with what was dropped given."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(*heads, 40, 16, generator=source)
    gain = torch.randn(*heads, 16, generator=source) * 30
    inputs = [part.requires_grad_() for part in (x, gain, torch.ones(*heads, 16))]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    kept = torch.ones(x.numel(), dtype=torch.float64)
    torch.manual_seed(1)
    if rate:
        kept[draw_positions(x.numel(), rate)] = 0
    normed = functional.layer_norm(exact[0] * kept.view(x.shape) / (1 - rate), (16,))
    gains, shifts = (part.unsqueeze(-2) for part in exact[1:])
    wanted = functional.mish(normed * gains + shifts)
    torch.manual_seed(1)
    found = norm_mish(*inputs, rate)
    upstream = torch.randn(x.shape, generator=source)
    slopes = torch.autograd.grad(found, inputs, upstream)
    expected = torch.autograd.grad(wanted, exact, upstream.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)
    for slope, exact_slope in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=2e-4)
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(norm_mish(*inputs, rate), found, rtol=1e-6, atol=2e-5)


def test_a_number_is_dropped_as_often_as_the_rate_says_and_alone():
    torch.manual_seed(0)
    dropped = torch.zeros(1_000_000)
    dropped[draw_positions(len(dropped), 0.01)] = 1
    assert float(dropped.mean()) == pytest.approx(0.01, abs=5e-4)
    both = dropped[1:] * dropped[:-1]
    assert float(both.mean()) == pytest.approx(1e-4, abs=5e-5)
    halves = torch.stack(
        [torch.bincount(draw_positions(3, 0.5), minlength=3) for _ in range(4000)]
    )
    assert halves.float().mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.04)


def test_what_tasks_add_is_the_same_once_per_task_and_once_per_row(model, monkeypatch):
    """In values and in all gradients; few rows are not worth a look at every task."""
    task = torch.tensor([0, 1, 1, 0])
    source = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 16, generator=source)
    action = torch.rand(3, 4, 3, generator=source)
    runs = []
    for rows_per_task in (10**9, 1):
        monkeypatch.setattr(layers, "ROWS_PER_TASK", rows_per_task)
        inputs = z.clone().requires_grad_(), action.clone().requires_grad_()
        outputs = [
            model.next(*inputs, task),
            model.reward(*inputs, task),
            model.q_values(*inputs, task),
            model.policy(inputs[0], task, action).mean,
            model.encode(z[..., :5], task),
        ]
        loss = sum((out * torch.arange(out.shape[-1])).square().mean() for out in outputs)
        wanted = [*inputs, *(p for p in model.parameters() if p.requires_grad)]
        runs.append([*outputs, *torch.autograd.grad(loss, wanted)])
    for once, per_row in zip(*runs, strict=True):
        size = float(per_row.detach().abs().max())
        torch.testing.assert_close(once, per_row, rtol=0, atol=1e-5 * size + 1e-6)


def test_simnorm_makes_groups_that_sum_to_one():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    out = simnorm(x, 8)
    torch.testing.assert_close(out.unflatten(-1, (2, 8)).sum(-1), torch.ones(3, 2))
    assert (out >= 0).all()


def test_padded_actions_are_zero_and_cost_no_probability(model):
    task = torch.tensor([0, 1])
    z = model.encode(torch.ones(2, 5), task)
    out = model.policy(z, task, torch.ones(2, 3))
    assert out.action[0].all()
    assert out.mean[1, 2] == out.action[1, 2] == out.log_std[1, 2] == 0
    alone = model.policy(z, task, torch.tensor([[1.0, 1, 1], [1, 1, 99]]))
    assert torch.equal(alone.log_prob, out.log_prob)


def test_policy_std_stays_between_its_limits(model):
    with torch.no_grad():
        model.policy_head[-1].bias.fill_(50.0)
    task = torch.zeros(2).long()
    out = model.policy(torch.zeros(2, 16), task, torch.ones(2, 3))
    torch.testing.assert_close(out.log_std, torch.full((2, 3), 2.0))
    assert (out.action.abs() <= 1).all()
    assert out.log_prob.isfinite().all()


def test_ids_broadcast_over_leading_axes(model):
    task, obs = torch.tensor([0, 1, 1]), torch.randn(4, 3, 5)
    z = model.encode(obs, task)
    assert z.shape == (4, 3, 16)
    for t in range(4):
        torch.testing.assert_close(z[t], model.encode(obs[t], task))
    q = model.q_values(z, torch.zeros(4, 3, 3), task)
    assert q.shape == (2, 4, 3, 101)
    step = model.q_values(z[2], torch.zeros(3, 3), task)
    torch.testing.assert_close(q[:, 2], step)


@pytest.mark.parametrize("target", [False, True])
def test_chosen_heads_are_those_of_the_ensemble(model, target):
    task, z, action = torch.tensor([0, 1, 1]), torch.randn(4, 3, 16), torch.randn(4, 3, 3)
    five = WorldModel(replace(model.config, num_q=5), model.tasks).eval()
    for ensemble in (five.q_ensemble, five.target_q_ensemble):
        torch.nn.init.normal_(ensemble[-1].weight)
    chosen = five.q_values(z, action, task, torch.tensor([3, 1]), target=target)
    every = five.q_values(z, action, task, target=target)
    torch.testing.assert_close(chosen, every[[3, 1]])


def test_a_single_task_model_needs_no_ids(make_model):
    model = make_model(TaskTable((Task("only", 5, 3),)), task_dim=0)
    z = model.encode(torch.ones(2, 5), None)
    assert model.task_embedding is None
    assert torch.equal(z, model.encode(torch.ones(2, 5), torch.zeros(2).long()))
    assert model.policy(z, None).action.shape == (2, 3)


def test_two_hot_values_are_decoded_in_float32(model):
    values = torch.linspace(0.01, 2, 50)
    logits = two_hot.two_hot(values, model.bins).clamp_min(1e-9).log()
    exact = two_hot.decode(logits, model.bins)
    torch.testing.assert_close(exact, values, atol=1e-4, rtol=0)
    rounded = logits.bfloat16()
    assert torch.equal(
        two_hot.decode(rounded, model.bins), two_hot.decode(rounded.float(), model.bins)
    )


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("rows", "num_q"), [(1, 2), (3, 5)])
@torch.no_grad()
def test_the_folded_model_acts_and_predicts_as_the_world_model(
    make_model, centred, rows, num_q
):
    model = make_model(num_q=num_q)
    folded, source = FoldedModel(model, centred=centred), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    task = torch.arange(rows) % 2
    obs, action, noise = normal(rows, 5), normal(4, rows, 3), normal(4, rows, 3)
    mask, z = model.mask(task), model.encode(obs, task)
    start = z.expand(4, -1, -1)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(folded.encode(obs, task), z)
    close(folded.encode(obs[:, :4], task), model.encode(obs * (torch.arange(5) < 4), task))
    close(folded(obs, task), model.policy(z, task, torch.zeros(rows, 3)).mean)
    shares = folded.shares(z, task)
    after = model.next(start, action, task)
    reward = model.decode(model.reward(start, action, task)).squeeze(-1)
    for latent in (None, start):
        found = folded.step(shares, latent, action)
        close(found[0], after)
        close(found[1], reward)
        close(folded.act(shares, latent, noise, mask), model.policy(start, task, noise).action)
    heads = torch.tensor([[1], [0]])
    q = model.decode(model.q_values(after, action, task, heads[:, 0])).squeeze(-1).mean(0)
    close(folded.q_mean(shares, after, action, heads), q)
