from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from public_layouts import layout_b
from torch import Tensor

from tdmpc_opt.agents.expert import ExpertNetwork, expert_path
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs.training import TERMS, DistillWeights, Schedule, TrainConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import MT30, Task, TaskTable
from tdmpc_opt.training.distillation import Distillation, open_distillation
from tdmpc_opt.training.step import build_learner, train_step
from tdmpc_opt.training.teachers import (
    ExpertTeacher,
    TeacherTargets,
    WorldModelTeacher,
    load_experts,
)

CPU = torch.device("cpu")
EXPERTS = Path(__file__).parents[1] / "experts"
EARLIER = Path(__file__).parents[1] / "weights" / "earlier-1m.safetensors"
EXPERT_TASKS = MT30.subset(
    ["walker-stand", "reacher-easy", "cartpole-balance", "cup-catch", "pendulum-spin"]
)
ON = Schedule(1.0)
OFF = Schedule(0.0)
ALL = dict.fromkeys(TERMS, ON)


def _batch(tasks: TaskTable, rows: int = 8, seed: int = 0) -> Batch:
    source = torch.Generator().manual_seed(seed)
    task = torch.arange(rows) % len(tasks)
    obs = torch.randn(4, rows, tasks.obs_dim, generator=source)
    widths = torch.tensor([known.obs_dim for known in tasks.tasks])[task]
    obs *= torch.arange(tasks.obs_dim) < widths[:, None]
    action = torch.rand(3, rows, tasks.action_dim, generator=source) * 2 - 1
    return Batch(
        obs=obs,
        action=action * torch.from_numpy(tasks.action_mask())[task],
        label=action,
        reward=torch.rand(3, rows, 1, generator=source),
        task=task,
    )


def _teacher(
    model: WorldModel,
    tasks: TaskTable,
    terms: tuple[str, ...] = TERMS,
    *,
    first: bool = False,
) -> WorldModelTeacher:
    return WorldModelTeacher(
        from_model(model), tasks, frozenset(terms), CPU, first_reward_only=first
    )


def _given(targets: TeacherTargets) -> dict[str, Tensor]:
    names = TeacherTargets.__dataclass_fields__
    return {n: getattr(targets, n) for n in names if getattr(targets, n) is not None}


def test_a_teacher_says_what_its_networks_say_of_the_real_observations(make_model):
    model = make_model(num_q=3)
    batch = _batch(model.tasks)
    targets = _teacher(model, model.tasks)(batch)
    with torch.no_grad():
        for t in range(4):
            z = model.encode(batch.obs[t], batch.task)
            out = model.policy(z, batch.task)
            torch.testing.assert_close(targets.latent[t], z)
            torch.testing.assert_close(torch.tanh(targets.policy_location[t]), out.mean)
            torch.testing.assert_close(targets.policy_log_std[t], out.log_std)
            if t == 3:
                continue
            logits = model.reward(z, batch.action[t], batch.task)
            torch.testing.assert_close(targets.reward_logits[t], logits)
            torch.testing.assert_close(targets.reward[t], model.decode(logits))
            qs = model.q_values(z, batch.action[t], batch.task)
            mean = torch.softmax(qs, -1).mean(0)
            torch.testing.assert_close(targets.value_logits[t].exp(), mean)


def test_an_answer_belongs_to_its_own_step(make_model):
    """Another action or observation at one step changes the answers of that step alone."""
    model = make_model()
    batch, teacher = _batch(model.tasks), _teacher(model, model.tasks)
    before = _given(teacher(batch))
    changes = {
        "action": ({"reward", "reward_logits", "value_logits"}, batch.action.clone()),
        "obs": (before.keys(), batch.obs.clone()),
    }
    for field, (touched, values) in changes.items():
        values[1] = values[1] * 0.5
        after = _given(teacher(replace(batch, **{field: values})))
        for name, tensor in before.items():
            moved = [not torch.equal(a, b) for a, b in zip(tensor, after[name], strict=True)]
            expected = [step == 1 and name in touched for step in range(len(tensor))]
            assert moved == expected, (field, name)


@pytest.mark.usefixtures("unchecked")
def test_an_agent_predicts_the_reward_of_its_own_step(dataset_dir):
    """On cartpole-balance with random actions; a shift by one step costs a fifth and more.

    The data of this agent contain random actions, those of the bundled student do not.
    """
    dataset = EpisodeDataset.open(dataset_dir)
    tasks = dataset.tasks.subset(dataset.task_names)
    teacher = WorldModelTeacher(read_checkpoint(EARLIER), tasks, frozenset({"reward_mse"}), CPU)
    batch = SliceSampler([dataset], tasks, horizon=6, batch_size=1024, seed=0).sample()
    chosen = batch.task == tasks.index("cartpole-balance")
    task = batch.task[chosen]
    obs, action, reward = (x[:, chosen] for x in (batch.obs, batch.action, batch.reward))

    def error(action_shift: int, reward_shift: int) -> float:
        actions = action[1 + action_shift : 5 + action_shift]
        predicted = teacher(Batch(obs[1:6], actions, actions, reward[1:5], task)).reward
        real = reward[1 + reward_shift : 5 + reward_shift]
        return float((predicted - real).square().mean())

    shifted = [error(-1, 0), error(1, 0), error(0, -1), error(0, 1)]
    assert error(0, 0) < 0.8 * min(shifted)


PARTS = {
    "reward_mse": {"reward_head"},
    "reward_kl": {"reward_head"},
    "value_kl": {"q_ensemble"},
    "policy_mse": {"policy_head"},
    "policy_kl": {"policy_head"},
    "latent": set(),
}
FIELDS = {
    "reward_mse": {"reward"},
    "reward_kl": {"reward_logits"},
    "value_kl": {"value_logits"},
    "policy_mse": {"policy_location"},
    "policy_kl": {"policy_location", "policy_log_std"},
    "latent": {"latent"},
}


@pytest.mark.parametrize("name", TERMS)
def test_a_teacher_keeps_and_computes_what_is_asked_for_alone(name, make_model):
    model = make_model()
    teacher = _teacher(model, model.tasks, (name,))
    kept = {key.partition(".")[0] for key, _ in teacher.model.named_parameters()}
    assert kept == {"encoder", "task_embedding", *PARTS[name]}
    targets = _given(teacher(_batch(model.tasks)))
    assert targets.keys() == FIELDS[name]
    assert {tensor.dtype for tensor in targets.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("terms", "first", "observations"),
    [
        (("reward_mse",), True, 1),
        (("reward_mse", "reward_kl"), False, 3),
        (("reward_mse", "value_kl"), True, 3),
        (("reward_mse", "policy_mse"), True, 4),
        (("latent",), True, 4),
    ],
)
def test_a_teacher_encodes_no_more_observations_than_it_needs(
    terms, first, observations, make_model
):
    model = make_model()
    teacher = _teacher(model, model.tasks, terms, first=first)
    seen = []
    teacher.model.encoder.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    targets = teacher(_batch(model.tasks))
    assert seen == [observations]
    if targets.reward is not None:
        assert len(targets.reward) == (1 if first else 3)


def test_a_teacher_never_drops_out_and_never_changes(make_model):
    fabric = Fabric(accelerator="cpu", devices=1)
    student = make_model()
    model = make_model(seed=5, dropout=0.9)
    teacher = _teacher(model, student.tasks)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    batch = _batch(student.tasks)
    weights = DistillWeights(**{**ALL, "latent": OFF})
    distillation = Distillation(teacher, weights, None)
    config = TrainConfig(data=Path("unused"), output=Path("unused"), updates=1)
    learner = build_learner(fabric, student, config, distillation)
    first = _given(teacher(batch))
    for _ in range(3):
        train_step(learner, batch)
    again = _given(teacher(batch))
    assert all(torch.equal(first[name], again[name]) for name in first)
    after = teacher.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(module.training for module in teacher.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert not any(tensor.requires_grad for tensor in first.values())


def test_a_teacher_maps_its_own_ids_and_widths(make_model):
    """The teacher knows the tasks in another order, and pads them wider."""
    wide = TaskTable((Task("wide", 9, 4), Task("two", 4, 2), Task("one", 5, 3)))
    model, student = make_model(wide), make_model()
    batch = _batch(student.tasks)
    targets = _teacher(model, student.tasks)(batch)
    obs = torch.nn.functional.pad(batch.obs, (0, 4))
    action = torch.nn.functional.pad(batch.action, (0, 1))
    ids = torch.tensor([2, 1])[batch.task]
    expected = _teacher(model, wide)(
        Batch(obs=obs, action=action, label=action, reward=batch.reward, task=ids)
    )
    assert targets.policy_location.shape == (4, 8, 3)
    torch.testing.assert_close(targets.policy_location, expected.policy_location[..., :3])
    for name in ("reward", "value_logits", "latent"):
        torch.testing.assert_close(getattr(targets, name), getattr(expected, name))


def test_the_experts_of_the_repository_say_what_they_say_one_by_one():
    batch = _batch(EXPERT_TASKS, rows=13)
    experts = load_experts(EXPERTS, EXPERT_TASKS)
    targets = ExpertTeacher(experts, EXPERT_TASKS, CPU)(batch)
    assert _given(targets).keys() == {"policy_location"}
    actions = torch.tanh(targets.policy_location).numpy()
    for row, index in enumerate(batch.task.tolist()):
        task = EXPERT_TASKS.tasks[index]
        obs = batch.obs[:, row, : task.obs_dim].numpy()
        expected = experts[task.name].mean(obs)
        found = actions[:, row]
        np.testing.assert_allclose(found[:, : task.action_dim], expected, atol=1e-5)
        assert not found[:, task.action_dim :].any()


def _expert(task: str, obs_dim: int, action_dim: int, widths: tuple[int, ...], seed: int):
    rng = np.random.default_rng(seed)
    sizes = (obs_dim, *widths, action_dim)
    return ExpertNetwork(
        task=task,
        algorithm="sac",
        steps=1,
        returns=(),
        weights=tuple(rng.normal(size=(b, a)) for a, b in pairwise(sizes)),
        biases=tuple(rng.normal(size=size) for size in sizes[1:]),
    )


def test_experts_of_different_widths_and_depths_teach_together():
    tasks = TaskTable((Task("one", 5, 3), Task("two", 4, 2), Task("none", 6, 4)))
    experts = {
        "two": _expert("two", 4, 2, (7, 3, 5), seed=0),
        "one": _expert("one", 5, 3, (4, 9), seed=1),
    }
    batch = _batch(tasks.subset(["one", "two"]), rows=5)
    targets = ExpertTeacher(experts, tasks, CPU)(batch)
    assert targets.policy_location.shape == (4, 5, 4)
    for row, name in enumerate(("one", "two", "one", "two", "one")):
        task = tasks[name]
        expected = experts[name].mean(batch.obs[:, row, : task.obs_dim].numpy())
        found = torch.tanh(targets.policy_location[:, row, : task.action_dim])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_experts_that_do_not_fit_are_refused(tmp_path):
    tasks = TaskTable((Task("one", 5, 3), Task("two", 4, 2)))
    with pytest.raises(CheckpointError, match="holds no expert for any of one, two"):
        load_experts(tmp_path, tasks)
    _expert("one", 5, 2, (4, 4), seed=0).save(expert_path(tmp_path, "one"))
    with pytest.raises(CheckpointError, match="gives 2 actions; one has 5 and 3"):
        load_experts(tmp_path, tasks)


@pytest.fixture
def write(make_model, tmp_path):
    """Writes a tiny agent of some MT30 tasks and returns its path as text and the model."""

    def write(name: str, tasks: str, **sizes: int) -> tuple[str, WorldModel]:
        model = make_model(MT30.select(tasks), **sizes)
        path = tmp_path / f"{name}.safetensors"
        write_native(path, from_model(model))
        return str(path), model

    return write


def _open(student: WorldModel, weights: dict[str, Schedule], **settings) -> Distillation:
    config = TrainConfig(
        data=Path("unused"),
        output=Path("unused"),
        updates=1,
        terms=DistillWeights(**{"reward_mse": OFF, **weights}),
        **settings,
    )
    found = open_distillation(config, student, CPU)
    assert found is not None
    return found


def test_each_row_is_answered_by_the_first_teacher_that_knows_its_task(write, make_model):
    student = make_model(MT30.select("pendulum-swingup,cartpole-balance,cup-catch"))
    first, a = write("a", "pendulum-swingup,cartpole-balance", seed=1)
    second, b = write("b", "cartpole-balance,cup-catch,walker-walk", seed=2, latent_dim=24)
    weights = {**ALL, "latent": OFF}
    panel = _open(student, weights, teacher=first, more_teachers=(second,)).teachers
    batch = _batch(student.tasks, rows=9)
    targets = _given(panel(batch))
    owner = {"pendulum-swingup": a, "cartpole-balance": a, "cup-catch": b}
    for row, index in enumerate(batch.task.tolist()):
        name = student.tasks.names[index]
        alone = Batch(
            obs=batch.obs[:, [row]],
            action=batch.action[:, [row]],
            label=batch.label[:, [row]],
            reward=batch.reward[:, [row]],
            task=batch.task[[row]],
        )
        wanted = tuple(set(TERMS) - {"latent"})
        said = _given(_teacher(owner[name], student.tasks, wanted, first=True)(alone))
        assert said.keys() == targets.keys()
        for field, value in said.items():
            torch.testing.assert_close(targets[field][:, row], value[:, 0])


def test_experts_teach_the_policies_of_their_tasks_and_the_teacher_those_of_the_others(
    write, make_model, two_experts
):
    student = make_model(MT30.select("pendulum-swingup,cartpole-balance,cup-catch"))
    path, model = write("main", "mt30", seed=3)
    found = _open(
        student,
        {"policy_mse": ON, "reward_mse": ON, "value_kl": ON},
        teacher=path,
        policy_teacher=str(two_experts),
    )
    batch = _batch(student.tasks, rows=9)
    targets = found.teachers(batch)
    wanted = ("policy_mse", "reward_mse", "value_kl")
    main = _teacher(model, student.tasks, wanted, first=True)(batch)
    torch.testing.assert_close(targets.reward, main.reward)
    torch.testing.assert_close(targets.value_logits, main.value_logits)
    swingup = batch.task == student.tasks.index("pendulum-swingup")
    torch.testing.assert_close(
        targets.policy_location[:, swingup], main.policy_location[:, swingup]
    )
    experts = load_experts(two_experts, student.tasks)
    for name in ("cartpole-balance", "cup-catch"):
        rows = batch.task == student.tasks.index(name)
        task = student.tasks[name]
        obs = batch.obs[:, rows, : task.obs_dim].numpy()
        own = np.stack([experts[name].mean(step) for step in obs])
        said = torch.tanh(targets.policy_location[:, rows, : task.action_dim])
        np.testing.assert_allclose(said.numpy(), own, atol=1e-5)


def test_a_teacher_whose_policy_nobody_wants_has_none(write, make_model):
    """Experts of every task leave the main teacher no policy to give, and maybe nothing."""
    student = make_model(MT30.select("cartpole-balance,cup-catch"))
    path, _ = write("main", "mt30")
    settings = {"teacher": path, "policy_teacher": str(EXPERTS)}
    both = _open(student, {"policy_mse": ON, "reward_mse": ON}, **settings).teachers
    kept = {
        name.partition(".")[0] for name, _ in both.members[1].teacher.model.named_parameters()
    }
    assert kept == {"encoder", "task_embedding", "reward_head"}
    alone = _open(student, {"policy_mse": ON}, **settings).teachers
    assert [type(member.teacher) for member in alone.members] == [ExpertTeacher]
    same = _open(student, {"policy_mse": ON}, teacher=str(EXPERTS)).teachers
    batch = _batch(student.tasks)
    assert torch.equal(alone(batch).policy_location, same(batch).policy_location)


def test_another_checkpoint_can_teach_the_policy(write, make_model):
    student = make_model(MT30.select("cartpole-balance,cup-catch"))
    main, _ = write("main", "mt30", seed=1)
    other, model = write("other", "mt30", seed=2)
    found = _open(
        student, {"policy_kl": ON, "reward_mse": ON}, teacher=main, policy_teacher=other
    )
    batch = _batch(student.tasks)
    wanted = _teacher(model, student.tasks, ("policy_kl",))(batch)
    targets = found.teachers(batch)
    torch.testing.assert_close(targets.policy_location, wanted.policy_location)
    torch.testing.assert_close(targets.policy_log_std, wanted.policy_log_std)


def test_the_reward_steps_reach_the_teachers(write, make_model):
    student = make_model(MT30.select("cartpole-balance,cup-catch"))
    path, _ = write("main", "mt30")
    batch = _batch(student.tasks)
    plain = _open(student, {"reward_kl": ON}, teacher=path)
    other = _open(student, {"reward_kl": ON}, teacher=path, reward_steps="all")
    for found, steps in ((plain, 1), (other, 3)):
        assert len(found.supervision(batch, 0).targets.reward_logits) == steps


def test_teachers_that_cannot_answer_are_refused_in_one_line(write, make_model, tmp_path):
    student = make_model(MT30.select("cartpole-balance,cup-catch"))
    both, _ = write("both", "mt30")
    half, _ = write("half", "cartpole-balance")
    rest, _ = write("rest", "cup-catch")
    experts = str(EXPERTS)
    for weights, settings, kind, text in (
        (
            {"policy_kl": ON},
            {"teacher": both, "policy_teacher": experts},
            InputError,
            "mean actions alone and nothing for policy_kl",
        ),
        ({"reward_mse": ON}, {"teacher": experts}, InputError, "nothing for reward_mse"),
        (
            {"reward_mse": ON},
            {"teacher": both, "policy_teacher": experts},
            InputError,
            "is not used: give --terms.policy-mse",
        ),
        (
            {"reward_mse": ON},
            {"teacher": both, "more_teachers": (half,)},
            InputError,
            "half.safetensors is not used",
        ),
        ({"reward_mse": ON}, {"teacher": half}, UnknownTaskError, "no teacher has cup-catch"),
        (
            {"latent": ON},
            {"teacher": half, "more_teachers": (rest,)},
            InputError,
            "the latent term takes one teacher",
        ),
        (
            {"policy_mse": ON},
            {"teacher": both, "policy_teacher": str(tmp_path)},
            CheckpointError,
            "holds no expert for any of",
        ),
        (
            {"policy_mse": ON},
            {
                "teacher": half,
                "more_teachers": (rest,),
                "policy_teacher": write("walker", "walker-walk")[0],
            },
            UnknownTaskError,
            "walker.safetensors has none of cartpole-balance, cup-catch",
        ),
        ({"policy_mse": ON}, {"teacher": "none"}, CheckpointError, "neither a file nor"),
    ):
        with pytest.raises(kind, match=text) as caught:
            _open(student, weights, **settings)
        assert "\n" not in str(caught.value)


def test_bins_must_be_the_same_where_they_are_compared(write, make_model):
    student = make_model(MT30.select("cartpole-balance,cup-catch"))
    fewer, _ = write("fewer", "mt30", num_bins=51)
    for name in ("reward_kl", "value_kl"):
        with pytest.raises(InputError, match=f"{name} compares bin by bin.* 51 bins up to 10"):
            _open(student, {name: ON}, teacher=fewer)
    targets = _open(student, {"reward_mse": ON}, teacher=fewer).teachers(_batch(student.tasks))
    assert targets.reward is not None


def test_a_task_of_the_same_name_but_another_size_is_refused(write, make_model):
    student = make_model(TaskTable((Task("cartpole-balance", 4, 1), Task("cup-catch", 8, 2))))
    path, _ = write("mt30", "mt30")
    with pytest.raises(InputError, match=r"cartpole-balance has 4 observations .* 5 and 1 in"):
        _open(student, {"reward_mse": ON}, teacher=path)


def test_a_teacher_reads_no_network_that_its_terms_do_not_ask_for(tmp_path, make_model):
    model = make_model()
    tensors = dict(model.state_dict())
    for name in ("q_ensemble.0.weight", "dynamics.1.bias", "target_q_ensemble.2.bias"):
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    path = tmp_path / "spoilt.pt"
    torch.save({"model": layout_b(tensors, [3, 2])}, path)
    with pytest.raises(CheckpointError, match="contains NaN or infinity"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, check_values=False)
    tasks = checkpoint.tasks

    def ask(*terms: str) -> WorldModelTeacher:
        return WorldModelTeacher(
            checkpoint, tasks, frozenset(terms), CPU, first_reward_only=True
        )

    teacher = ask("reward_mse", "policy_kl")
    assert len(teacher.model.reward_head) == len(teacher.model.policy_head) == 3
    assert not len(teacher.model.q_ensemble) + len(teacher.model.dynamics)
    terms = ("reward_mse", "policy_kl")
    whole = _teacher(model, model.tasks, terms, first=True)
    expected = _given(whole(_batch(model.tasks)))
    found = _given(teacher(_batch(model.tasks)))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values)
    with pytest.raises(CheckpointError, match=r"'q_ensemble.0.weight' contains NaN"):
        ask("value_kl")
