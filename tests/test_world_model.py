from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs import LossWeights, model_config
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.planning.mppi import prepare, sequence_values
from tdmpc_opt.planning.networks import PlannerNetworks
from tdmpc_opt.task_table import MT30, Task, TaskTable
from tdmpc_opt.training.objective import RunningScale, model_losses, policy_losses
from tdmpc_opt.training.teachers import TeacherTargets
from tdmpc_opt.training.terms import Lesson, model_terms
from tdmpc_opt.world_model import network, two_hot
from tdmpc_opt.world_model.hidden import draw_positions, norm_mish
from tdmpc_opt.world_model.layers import mish, simnorm
from tdmpc_opt.world_model.model import WorldModel

REFERENCE_INPUTS = (
    *("task", "obs", "action", "reward", "td_target", "teacher_reward", "pi_eps"),
    *("two_hot_in", "soft_ce_logits", "soft_ce_target"),
    *("policy_eps", "plan_actions", "plan_pi_eps"),
)
REFERENCE_OUTPUTS = (
    *("z", "z_next", "reward_logits", "reward_value", "q_logits", "q_value"),
    *("target_q_value", "pi_mean", "pi_sample", "pi_log_prob", "pi_log_std"),
    *("two_hot_out", "soft_ce", "consistency_loss", "reward_loss", "value_loss"),
    *("model_loss", "distill_loss", "total_loss", "grad_norm"),
    *("policy_scale", "policy_loss", "policy_grad_norm", "plan_value"),
)


@pytest.fixture(scope="module")
def reference(reference_dir) -> dict[str, Tensor]:
    arrays = np.load(reference_dir / "reference" / "world_model_reference.npz")
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def public_model(reference_dir) -> WorldModel:
    name = "mt30_1M_steps_045dist_fp16.pt"
    return build(read_checkpoint(reference_dir / "checkpoints" / name))


@pytest.fixture(scope="module")
def ours(reference, public_model) -> dict[str, Tensor]:
    """Our value of every output that the reference file holds."""
    outputs = _forward(public_model, reference) | _training(public_model, reference)
    return {name: value.detach() for name, value in outputs.items()}


def _forward(model: WorldModel, d: dict[str, Tensor]) -> dict[str, Tensor]:
    task, action = d["task"], d["action"][0]
    z = model.encode(d["obs"][0], task)
    policy = model.policy(z, task, d["pi_eps"])
    rewards, qs = model.reward(z, action, task), model.q_values(z, action, task)
    networks, plan_actions = PlannerNetworks(model), d["plan_actions"].unsqueeze(2)
    problem = prepare(networks, z[:1], task[:1], plan_actions[:, :0])
    return {
        "z": z,
        "z_next": model.next(z, action, task),
        "reward_logits": rewards,
        "reward_value": model.decode(rewards),
        "q_logits": qs,
        "q_value": model.decode(qs),
        "target_q_value": model.decode(model.q_values(z, action, task, target=True)),
        "pi_mean": policy.mean,
        "pi_sample": policy.action,
        "pi_log_prob": policy.log_prob,
        "pi_log_std": policy.log_std,
        "two_hot_out": two_hot.two_hot(d["two_hot_in"][:, 0], model.bins),
        "soft_ce": model.soft_cross_entropy(d["soft_ce_logits"], d["soft_ce_target"]),
        "plan_value": sequence_values(
            networks,
            problem,
            plan_actions,
            d["plan_pi_eps"].unsqueeze(1),
            torch.tensor([[0], [1]]),
        ),
    }


def _training(model: WorldModel, d: dict[str, Tensor]) -> dict[str, Tensor]:
    batch = Batch(
        obs=d["obs"],
        action=d["action"],
        label=d["action"],
        reward=d["reward"],
        task=d["task"],
    )
    weights = LossWeights()
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], batch.task)
    losses, rollout = model_losses(model, batch, next_z, d["td_target"], weights)
    targets = TeacherTargets(reward=d["teacher_reward"].unsqueeze(0))
    lesson = Lesson(targets, {"reward_mse": 0.45}, 1.0)
    distilled = model_terms(model, rollout, batch, lesson, None)
    total = losses.total(weights) + lesson.total(distilled)
    total.backward()
    grad_norm = _grad_norm(model)
    scale = RunningScale(0.01, torch.device("cpu"))
    zs = rollout.zs.detach()
    policy, _ = policy_losses(
        model, zs, batch, scale, weights, torch.Generator(), d["policy_eps"]
    )
    policy.objective.backward()
    policy_grad_norm = _grad_norm(model.policy_head)
    model.zero_grad()
    return {
        "consistency_loss": losses.consistency,
        "reward_loss": losses.reward,
        "value_loss": losses.value,
        "distill_loss": distilled["reward_mse"],
        "model_loss": losses.total(weights),
        "total_loss": total,
        "grad_norm": grad_norm,
        "policy_scale": scale.value,
        "policy_loss": policy.objective,
        "policy_grad_norm": policy_grad_norm,
    }


def _grad_norm(part: torch.nn.Module) -> Tensor:
    norms = [p.grad.norm() for p in part.parameters() if p.grad is not None]
    norm = torch.stack(norms).norm()
    part.zero_grad()
    return norm


@pytest.mark.parametrize("name", REFERENCE_OUTPUTS)
def test_output_equals_that_of_the_original_code(name, reference, ours):
    expected = reference[name]
    error = (ours[name].reshape(expected.shape) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4


def test_every_array_of_the_reference_is_used(reference):
    assert set(reference) == {*REFERENCE_INPUTS, *REFERENCE_OUTPUTS}


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


@pytest.mark.parametrize("function", [mish, functional.mish], ids=["ours", "torch"])
def test_mish_equals_its_definition(function: Callable[[Tensor], Tensor]):
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([0.0, -0.0, 1e-8, -1e-8])])
    exact = x.double() * torch.tanh(functional.softplus(x.double()))
    with torch.no_grad():
        error = (function(x) - exact).abs() / exact.abs().clamp(min=1)
    assert float(error.max()) < 2e-6


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
        monkeypatch.setattr(network, "ROWS_PER_TASK", rows_per_task)
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
    out = model.policy(torch.zeros(2, 16), task)
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


def test_two_hot_values_are_decoded_in_float32_under_autocast(model):
    values = torch.linspace(0.01, 2, 50)
    logits = two_hot.two_hot(values, model.bins).clamp_min(1e-9).log()
    exact = two_hot.decode(logits, model.bins)
    torch.testing.assert_close(exact, values, atol=1e-4, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(two_hot.decode(logits, model.bins), exact)
        rounded = logits.bfloat16()
        assert torch.equal(
            two_hot.decode(rounded, model.bins), two_hot.decode(rounded.float(), model.bins)
        )
