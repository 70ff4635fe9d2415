from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tdmpc_opt
from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.agents.compute import best_device
from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.rounding import round_weights
from tdmpc_opt.errors import CheckpointError, InputError, UnknownTaskError
from tdmpc_opt.schema import MT30, Task, TaskTable


@pytest.fixture
def policy(model) -> Agent:
    return Agent(model, mode="policy")


@pytest.fixture
def planner(model, small_budget) -> Agent:
    return Agent(model, budget=small_budget)


@pytest.fixture
def any_agent(request, model, small_budget) -> Agent:
    return Agent(model, mode=request.param, budget=small_budget)


both_modes = pytest.mark.parametrize("any_agent", ["policy", "planner"], indirect=True)


def _seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _obs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@both_modes
@pytest.mark.parametrize(
    ("task", "shape", "expected"),
    [
        ("one", (5,), (3,)),
        ("two", (4,), (2,)),
        ("two", (5,), (2,)),
        ("two", (3, 4), (3, 2)),
        ("two", (3, 5), (3, 2)),
        (1, (3, 4), (3, 2)),
        (np.int64(1), (3, 4), (3, 2)),
        ([1, 0, 1], (3, 5), (3, 3)),
        ((1, 0, 1), (3, 5), (3, 3)),
        (np.array([1, 0, 1]), (3, 5), (3, 3)),
        (np.array([1, 0, 1], np.uint8), (3, 5), (3, 3)),
        (torch.tensor([1, 0, 1]), (3, 5), (3, 3)),
        (torch.tensor([1, 0, 1], dtype=torch.int32), (3, 5), (3, 3)),
        ([1], (5,), (3,)),
    ],
)
def test_actions_have_the_kind_and_leading_shape_of_the_observations(
    any_agent, task, shape, expected
):
    obs = _obs(*shape)
    array = any_agent.act(obs, task, generator=_seeded(*range(len(np.atleast_2d(obs)))))
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert array.shape == expected
    any_agent.reset()
    tensor = any_agent.act(
        torch.from_numpy(obs), task, generator=_seeded(*range(len(np.atleast_2d(obs))))
    )
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), array)


@both_modes
def test_padded_and_own_width_act_alike(any_agent):
    own = _obs(3, 4)
    padded = np.pad(own, ((0, 0), (0, 1)))
    actions = []
    for obs, task in ((own, "two"), (padded, "two"), (padded, [1, 1, 1])):
        any_agent.reset()
        actions.append(any_agent.act(obs, task, generator=_seeded(0, 1, 2)))
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2][:, :2])
    assert not actions[2][:, 2].any()


@both_modes
def test_one_row_acts_as_a_batch_of_one(any_agent):
    obs = _obs(4)
    single = any_agent.act(obs, "two", generator=_seeded(0))
    any_agent.reset()
    batch = any_agent.act(obs[None], "two", generator=_seeded(0))
    np.testing.assert_array_equal(single, batch[0])


def test_numbers_of_any_format_are_taken(policy):
    obs = _obs(2, 5).round()
    expected = policy.act(obs, "one")
    np.testing.assert_array_equal(policy.act(obs.astype(np.float64), "one"), expected)
    np.testing.assert_array_equal(policy.act(obs.astype(np.int64), "one"), expected)
    tensor = policy.act(torch.from_numpy(obs).double(), "one")
    assert tensor.dtype == torch.float64
    np.testing.assert_array_equal(tensor.float().numpy(), expected)
    # Whole numbers in must not round the actions.
    tensor = policy.act(torch.from_numpy(obs).long(), "one")
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_arrays_that_cannot_be_written_or_run_backwards_are_taken(policy):
    obs = _obs(2, 5)
    expected = policy.act(obs, "one")
    obs.flags.writeable = False
    np.testing.assert_array_equal(policy.act(obs, "one"), expected)
    np.testing.assert_allclose(policy.act(obs[::-1], "one")[::-1], expected, atol=1e-6)
    ids = np.array([0, 0])
    ids.flags.writeable = False
    np.testing.assert_array_equal(policy.act(obs, ids), expected)


@both_modes
@pytest.mark.parametrize(
    ("shape", "task", "message"),
    [
        ((3,), "two", r"observations of two have 4 \(or padded to 5\) numbers; got shape"),
        ((6,), "one", r"observations of one have 5 numbers; got shape \[6\]"),
        ((2, 4), [0, 1], r"observations of the tasks have 5 numbers; got shape \[2, 4\]"),
        ((2, 2, 5), "one", r"got shape \[2, 2, 5\]"),
        ((), "one", "got shape"),
        ((0, 5), "one", r"got shape \[0, 5\]"),
        ((2, 5), [0, 1, 0], r"task ids must be integers of shape \[2\]"),
        ((2, 5), np.array([0.0, 1.0]), "task ids must be integers"),
        ((2, 5), np.array([True, False]), "task ids must be integers"),
        ((2, 5), torch.zeros(2, 1).long(), "task ids must be integers"),
    ],
)
def test_wrong_shapes_are_refused_in_one_line(any_agent, shape, task, message):
    with pytest.raises(InputError, match=message) as caught:
        any_agent.act(_obs(*shape), task)
    assert "\n" not in str(caught.value)


@both_modes
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_observations_that_are_not_finite_are_refused(any_agent, value):
    obs = _obs(2, 5)
    obs[1, 3] = value
    with pytest.raises(InputError, match="NaN, infinity or a number too large"):
        any_agent.act(obs, "one")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("on", r"unknown task 'on'; did you mean one\?"),
        ("walker-walk", r"unknown task 'walker-walk'; known: one, two"),
        (None, "name a task; known: one, two"),
        (2, r"task ids must be in 0..1, got 2"),
        (-1, r"task ids must be in 0..1, got -1"),
        ([0, 2], r"task ids must be in 0..1"),
        (torch.tensor([-1, 0]), r"task ids must be in 0..1"),
    ],
)
def test_unknown_tasks_are_refused(policy, task, message):
    with pytest.raises(UnknownTaskError, match=message):
        policy.act(_obs(2, 5), task)


@both_modes
def test_there_must_be_a_generator_for_each_row(any_agent):
    with pytest.raises(InputError, match="2 observations need as many generators, got 3"):
        any_agent.act(_obs(2, 5), "one", generator=_seeded(0, 1, 2))


@both_modes
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_same_generators_give_the_same_actions(any_agent, deterministic):
    def act(*seeds: int) -> np.ndarray:
        any_agent.reset()
        return any_agent.act(
            _obs(2, 5), "one", deterministic=deterministic, generator=_seeded(*seeds)
        )

    np.testing.assert_array_equal(act(0, 1), act(0, 1))
    if not (any_agent.mode == "policy" and deterministic):
        assert not np.array_equal(act(0, 1), act(2, 3))


@both_modes
def test_one_generator_may_serve_the_batch_and_none_is_the_default_one(any_agent):
    obs = _obs(2, 5)
    one = any_agent.act(
        obs, "one", deterministic=False, generator=torch.Generator().manual_seed(4)
    )
    any_agent.reset()
    torch.manual_seed(4)
    default = any_agent.act(obs, "one", deterministic=False)
    np.testing.assert_array_equal(one, default)


@both_modes
def test_a_row_does_not_depend_on_those_beside_it(any_agent):
    """Over three steps, so that the warm start is covered too; sums may round otherwise."""
    obs, ids = _obs(4, 5), [0, 1, 0, 1]
    obs[1::2, 4] = 0
    sources = _seeded(0, 1, 2, 3)
    batch = [any_agent.act(obs, ids, deterministic=False, generator=sources) for _ in range(3)]
    for rows in ([2], [3, 1]):
        any_agent.reset()
        sources = _seeded(*rows)
        for step in range(3):
            alone = any_agent.act(
                obs[rows], np.array(ids)[rows], deterministic=False, generator=sources
            )
            np.testing.assert_allclose(alone, batch[step][rows], atol=1e-4)


def test_reset_forgets_the_warm_start_of_the_named_rows_alone(planner):
    obs = _obs(2, 5)

    def second(rows: list[int] | None, *, reset: bool = True) -> np.ndarray:
        planner.reset()
        planner.act(obs, "one", generator=_seeded(0, 1))
        if reset:
            planner.reset(rows)
        return planner.act(obs, "one", generator=_seeded(5, 6))

    warm = second(None, reset=False)
    cold = second(None)
    assert not np.array_equal(warm[0], cold[0])
    assert not np.array_equal(warm[1], cold[1])
    mixed = second([1])
    np.testing.assert_array_equal(mixed[0], warm[0])
    np.testing.assert_array_equal(mixed[1], cold[1])
    np.testing.assert_array_equal(second([]), warm)
    np.testing.assert_array_equal(second([0, 1]), cold)


def test_resetting_rows_before_the_first_plan_does_nothing(planner):
    planner.reset([0])
    assert planner.act(_obs(5), "one").shape == (3,)


def test_another_batch_size_starts_afresh(planner):
    planner.act(_obs(2, 5), "one", generator=_seeded(0, 1))
    after = planner.act(_obs(3, 5), "one", generator=_seeded(0, 1, 2))
    planner.reset()
    np.testing.assert_array_equal(
        after, planner.act(_obs(3, 5), "one", generator=_seeded(0, 1, 2))
    )


@both_modes
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_stay_within_bounds_and_mask(any_agent, deterministic):
    ids = [0, 1] * 8
    for step in range(2):
        action = any_agent.act(
            _obs(16, 5, seed=step) * 5,
            ids,
            deterministic=deterministic,
            generator=_seeded(*range(16)),
        )
        assert (np.abs(action) <= 1).all()
        assert not action[1::2, 2].any()
        assert action[::2, 2].any()


def test_a_deterministic_policy_is_its_mean(policy, model):
    obs = torch.from_numpy(_obs(2, 5))
    ids = torch.tensor([0, 1])
    mean = model.policy(model.encode(obs, ids), ids).mean.detach()
    torch.testing.assert_close(policy.act(obs, ids), mean)
    sampled = policy.act(obs, ids, deterministic=False, generator=_seeded(0, 1))
    assert not torch.equal(sampled, mean)
    noise = torch.stack([torch.randn(3, generator=source) for source in _seeded(0, 1)])
    expected = model.policy(model.encode(obs, ids), ids, noise).action.detach()
    torch.testing.assert_close(sampled, expected)


def test_a_deterministic_planner_adds_no_noise_of_its_own(planner, model, small_budget):
    """With all spread gone, only the noise that exploring adds is left."""
    tight = replace(small_budget, min_std=0.3, max_std=0.3, policy_samples=0)
    agent = Agent(model, budget=tight)
    obs = _obs(5)
    plain = agent.act(obs, "one", generator=_seeded(0))
    agent.reset()
    noisy = agent.act(obs, "one", deterministic=False, generator=_seeded(0))
    from tdmpc_opt.planning.mppi import draw_noise

    explore = draw_noise(model, tight, _seeded(0)).explore[0].numpy()
    np.testing.assert_allclose(noisy, np.clip(plain + 0.3 * explore, -1, 1), atol=1e-6)
    assert not np.array_equal(noisy, plain)


def test_a_single_task_agent_needs_no_task(make_model, small_budget):
    model = make_model(TaskTable((Task("only", 5, 3),)), task_dim=0)
    for mode in ("policy", "planner"):
        agent = Agent(model, mode=mode, budget=small_budget)
        unnamed = agent.act(_obs(2, 5), generator=_seeded(0, 1))
        agent.reset()
        np.testing.assert_array_equal(
            unnamed, agent.act(_obs(2, 5), "only", generator=_seeded(0, 1))
        )


def test_acting_keeps_no_graph_and_trains_nothing(planner, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    action = planner.act(torch.from_numpy(_obs(2, 5)), "one")
    assert not action.requires_grad
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_an_unknown_mode_is_refused(model, checkpoint_file, unchecked):
    with pytest.raises(InputError, match="mode must be planner or policy, got 'plan'"):
        Agent(model, mode="plan")
    with pytest.raises(InputError, match="mode must be planner or policy"):
        tdmpc_opt.load_agent(checkpoint_file, mode="plan")


def test_an_unknown_preset_or_device_is_refused(checkpoint_file):
    with pytest.raises(InputError, match=r"unknown planner preset 'tiny'; known: .*full"):
        load_agent(checkpoint_file, preset="tiny")
    with pytest.raises(InputError, match="unknown device 'gpu'; take auto, cpu, cuda or mps"):
        load_agent(checkpoint_file, "gpu")
    with pytest.raises(InputError, match="device 'meta' is not available"):
        load_agent(checkpoint_file, "meta")
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"device '{missing}' is not available"):
        load_agent(checkpoint_file, missing)


def test_auto_takes_a_device_that_is_there():
    assert best_device("auto").type in ("cuda", "mps", "cpu")
    assert best_device("cpu") == torch.device("cpu")


def test_the_public_helpers_load_and_act(checkpoint_file):
    agent = tdmpc_opt.load_agent(str(checkpoint_file), mode="policy")
    env = tdmpc_opt.make_env("pendulum-swingup", seed=3)
    obs, _ = env.reset()
    action = agent.act(obs, "pendulum-swingup")
    assert env.action_space.contains(action)
    obs, reward, terminated, truncated, _ = env.step(action)
    assert np.isfinite(obs).all()
    assert not terminated
    assert not truncated
    assert 0 <= reward <= 2
    assert agent.tasks.names == ("pendulum-swingup", "cartpole-balance")


def test_the_public_helpers_name_what_is_unknown():
    with pytest.raises(CheckpointError, match=r"no file and no bundled .*'no-such'"):
        tdmpc_opt.load_pretrained("no-such")
    with pytest.raises(CheckpointError, match="neither a file nor a bundled checkpoint"):
        tdmpc_opt.load_agent("no-such")
    with pytest.raises(UnknownTaskError, match="did you mean walker-walk"):
        tdmpc_opt.make_env("walker_walk")


def test_an_fp16_file_computes_in_float32(make_model, tmp_path):
    checkpoint = from_model(make_model())
    half = replace(checkpoint, tensors=round_weights(checkpoint.tensors, torch.float16))
    path: Path = tmp_path / "half.safetensors"
    write_native(path, half)
    agent = load_agent(path, mode="policy")
    assert {p.dtype for p in agent.world_model.parameters()} == {torch.float32}
    assert agent.act(_obs(5), "one").dtype == np.float32
    tensor = agent.act(torch.from_numpy(_obs(5)), "one")
    assert tensor.dtype == torch.float32
    assert not torch.equal(tensor, tensor.half().float())


@both_modes
def test_a_bfloat16_agent_acts_about_alike(any_agent, make_model, small_budget):
    low = Agent(make_model().bfloat16(), mode=any_agent.mode, budget=small_budget)
    action = low.act(_obs(2, 5), "one", generator=_seeded(0, 1))
    assert action.dtype == np.float32
    assert np.isfinite(action).all()
    if any_agent.mode == "policy":
        np.testing.assert_allclose(action, any_agent.act(_obs(2, 5), "one"), atol=0.1)


def test_every_task_of_the_table_can_be_driven(make_model):
    agent = Agent(make_model(MT30), mode="policy")
    for task in MT30.tasks:
        assert agent.act(_obs(task.obs_dim), task.name).shape == (task.action_dim,)
