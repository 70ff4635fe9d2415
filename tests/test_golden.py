"""Fidelity to the public code of TD-MPC2: its numbers, on weights that it wrote.

`golden/README.md` tells where each file comes from.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.configs.training import LossWeights, TrainConfig
from tdmpc_opt.data.sampler import Batch
from tdmpc_opt.model import two_hot
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.mppi import PlanNoise, plan, prepare, sequence_values
from tdmpc_opt.schema import PlannerBudget, Task, TaskTable
from tdmpc_opt.training import losses, step
from tdmpc_opt.training.losses import td_target
from tdmpc_opt.training.step import build_learner, train_step

FOLDER = Path(__file__).parent / "golden"
LENGTHS = (500, 100, 150)
"""Steps of an episode of each task; their discounts are 0.99, 0.95 and 29/30."""
SEED = 3
"""Seed of the public code's noise in its updates, which draws in the order of ours."""
TRAINING = TrainConfig(data=Path("unused"), output=Path("unused"), updates=3, seed=SEED)
BUDGET = PlannerBudget(iterations=2, samples=64, policy_samples=6, elites=12)

Arrays = dict[str, Tensor]


def _read(name: str) -> Arrays:
    with np.load(FOLDER / name) as archive:
        return {key: torch.from_numpy(np.asarray(array)) for key, array in archive.items()}


def _public_model(path: Path) -> WorldModel:
    """Build the agent of a file, which names no tasks, for the tasks it was made for."""
    checkpoint = read_checkpoint(path)
    named = zip(("one", "two", "three"), checkpoint.tasks.tasks, LENGTHS, strict=True)
    tasks = tuple(
        Task(name, task.obs_dim, task.action_dim, episode_length=length)
        for name, task, length in named
    )
    config = replace(checkpoint.config, dropout=0.0)
    return build(replace(checkpoint, config=config, tasks=TaskTable(tasks)))


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return _read("world_model.npz")


@pytest.fixture
def model() -> WorldModel:
    return _public_model(FOLDER / "public_small.pt")


@pytest.fixture
def batch(golden) -> Batch:
    action = golden["action"]
    return Batch(
        obs=golden["obs"],
        action=action,
        label=action,
        reward=golden["reward"],
        task=golden["task"],
    )


def _close(ours: Tensor, public: Tensor, tolerance: float = 1e-4) -> None:
    """Compare with a tolerance relative to the largest of the public values."""
    error = (ours.detach().reshape(public.shape) - public).abs().max()
    assert error <= tolerance * public.abs().max()


FORWARD: dict[str, Callable[[WorldModel, Arrays], Tensor]] = {
    "z": lambda m, d: m.encode(d["obs"][0], d["task"]),
    "z_next": lambda m, d: m.next(d["z"], d["action"][0], d["task"]),
    "reward_logits": lambda m, d: m.reward(d["z"], d["action"][0], d["task"]),
    "reward_value": lambda m, d: m.decode(d["reward_logits"]),
    "q_logits": lambda m, d: m.q_values(d["z"], d["action"][0], d["task"]),
    "q_value": lambda m, d: m.decode(d["q_logits"]),
    "target_q_value": lambda m, d: m.decode(
        m.q_values(d["z"], d["action"][0], d["task"], target=True)
    ),
    "pi_mean": lambda m, d: m.policy(d["z"], d["task"], d["noise"][0]).mean,
    "pi_sample": lambda m, d: m.policy(d["z"], d["task"], d["noise"][0]).action,
    "pi_log_prob": lambda m, d: m.policy(d["z"], d["task"], d["noise"][0]).log_prob,
    "pi_log_std": lambda m, d: m.policy(d["z"], d["task"], d["noise"][0]).log_std,
    "two_hot_out": lambda m, d: two_hot.two_hot(d["two_hot_in"][:, 0], m.bins),
    "soft_ce": lambda m, d: m.soft_cross_entropy(d["reward_logits"], d["reward"][0]),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_pass_gives_what_the_public_code_gives(name, golden, model):
    _close(FORWARD[name](model, golden), golden[name])


def test_td_targets_use_the_discount_of_each_task(golden, model, batch):
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], batch.task)
    noise = torch.Generator().manual_seed(SEED)
    _close(td_target(model, next_z, batch, noise), golden["td_target"])


@pytest.fixture
def trained(golden, model, batch) -> tuple[WorldModel, list[Arrays]]:
    """The model after three updates, and the terms of each."""
    fabric = Fabric(accelerator="cpu", devices=1)
    learner = build_learner(fabric, model, TRAINING)
    updates = [train_step(learner, batch) for _ in range(3)]
    return learner.model, [{k: torch.as_tensor(v) for k, v in u.items()} for u in updates]


def test_three_updates_have_the_losses_of_the_public_code(golden, trained):
    columns = {
        "consistency": "consistency_loss",
        "reward": "reward_loss",
        "value": "value_loss",
        "loss": "total_loss",
        "grad_norm": "grad_norm",
        "policy": "pi_loss",
        "policy_grad_norm": "pi_grad_norm",
        "q_scale": "pi_scale",
    }
    for number, found in enumerate(trained[1]):
        for ours, public in columns.items():
            expected = float(golden[f"update{number}/{public}"])
            assert float(found[ours]) == pytest.approx(expected, rel=1e-4, abs=1e-4), (
                number,
                ours,
            )


def test_three_updates_move_each_weight_as_far_as_the_public_code(
    golden, model, trained, tmp_path
):
    """The encoder by its smaller learning rate; the target Qs by their share of the way."""
    before = _public_model(FOLDER / "public_small.pt").state_dict()
    public = {k.removeprefix("after/"): v for k, v in golden.items() if k.startswith("after/")}
    torch.save({"model": public}, tmp_path / "after.pt")
    expected = _public_model(tmp_path / "after.pt").state_dict()
    for name, tensor in trained[0].named_parameters():
        moved = expected[name] - before[name]
        error = (tensor.detach() - expected[name]).norm() / moved.norm()
        assert error < 1e-3, name


def test_plans_are_those_of_the_public_code(golden, model):
    """From the same noise, at an episode's start and one step later, for a row of each task."""
    networks, task = FoldedModel(model), golden["task"]
    for row in range(3):
        previous = torch.zeros(3, 1, 3)
        for index in (2 * row, 2 * row + 1):
            noise = PlanNoise(
                prior=golden["plan_prior"][index].unsqueeze(2),
                samples=golden["plan_samples"][index].unsqueeze(3),
                value=golden["plan_value"][index].unsqueeze(2),
                heads=golden["plan_heads"][index].unsqueeze(2),
                pick=torch.zeros(1),
                explore=torch.zeros(1, 3),
            )
            with torch.no_grad():
                z = model.encode(golden["obs"][0, row : row + 1], task[row : row + 1])
                result = plan(networks, z, task[row : row + 1], previous, noise, BUDGET)
            _close(result.mean[:, 0], golden["plan_mean"][index])
            _close(result.std[0], golden["plan_std"][index], 1e-3)
            _close(result.action[0], golden["plan_best"][index])
            previous = result.mean


def test_rewards_of_the_released_agent_are_coded_and_distilled_as_by_the_public_code():
    d = _read("released.npz")
    bins = torch.linspace(-10, 10, 101)
    _close(two_hot.two_hot(d["two_hot_in"][:, 0], bins), d["two_hot_out"])
    _close(two_hot.decode(d["reward_logits"], bins), d["reward_value"])
    target = d["soft_ce_target"][:, 0]
    _close(two_hot.soft_cross_entropy(d["soft_ce_logits"], target, bins), d["soft_ce"])
    student, teacher = d["reward_value"][None], d["teacher_reward"][None]
    _close(losses.reward_mse(student, teacher, torch.ones(1)), d["distill_loss"])


def test_the_published_weights_of_the_losses_are_the_default():
    weights = LossWeights()
    assert (weights.consistency, weights.reward, weights.value) == (20, 0.1, 0.1)
    assert (weights.entropy, losses.RHO) == (1e-4, 0.5)
    assert (step.TAU, step.GRAD_CLIP) == (0.01, 20)


@pytest.fixture(scope="module")
def ended() -> Arrays:
    return _read("episodic.npz")


@pytest.fixture
def episodic() -> WorldModel:
    return build(read_checkpoint(FOLDER / "public_episodic.pt")).requires_grad_(False)


def test_terminations_are_predicted_as_by_the_public_code(ended, episodic):
    assert episodic.config.episodic
    logits = episodic.termination(episodic.encode(ended["obs"][1:], None), None)
    _close(logits, ended["termination_logits"])


def test_targets_and_losses_with_terminations_are_those_of_the_public_code(ended, episodic):
    task = torch.zeros(ended["action"].shape[1], dtype=torch.int64)
    fields = {name: ended[name] for name in ("obs", "action", "reward", "terminated")}
    batch = Batch(**fields, label=ended["action"], task=task)
    next_z = episodic.encode(batch.obs[1:], task)
    noise = torch.Generator().manual_seed(SEED)
    target = td_target(episodic, next_z, batch, noise)
    _close(target, ended["td_target"])
    weights = LossWeights()
    found, _ = losses.model_losses(episodic, batch, next_z, target, weights)
    for name in ("consistency", "reward", "value", "termination"):
        _close(getattr(found, name), ended[f"{name}_loss"])
    _close(found.total(weights), ended["total_loss"])


def test_plans_earn_after_a_predicted_end_what_they_do_in_the_public_code(ended, episodic):
    sequences = ended["sequences"].unsqueeze(2)
    networks = FoldedModel(episodic)
    problem = prepare(
        networks, episodic.encode(ended["obs"][0, :1], None), None, torch.zeros(3, 0, 1, 3)
    )
    noise, heads = ended["last_noise"].unsqueeze(1), torch.tensor([[0], [1]])
    values = sequence_values(networks, problem, sequences, noise, heads)
    _close(values, ended["values"])


def test_sequences_of_the_policy_are_worth_what_they_are_as_given_ones(ended, episodic):
    """Those that end early too: their rewards and ends are computed once, for all rounds."""
    networks, z = FoldedModel(episodic), episodic.encode(ended["obs"][0], None)
    source, shape = torch.Generator().manual_seed(SEED), (len(z), episodic.config.action_dim)
    noise = torch.randn(3, 40, *shape, generator=source)
    last, heads = torch.randn(40, *shape, generator=source), torch.tensor([[0], [1]])
    problem, without = (prepare(networks, z, None, part) for part in (noise, noise[:, :0]))
    given = problem.prior_actions
    expected = sequence_values(networks, without, given, last, heads)
    found = sequence_values(networks, problem, given[:, :0], last, heads)
    torch.testing.assert_close(found, expected)
    assert problem.prior_weight.unique().tolist() == pytest.approx([0.0, 0.99**3])
