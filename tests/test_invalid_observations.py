"""Every engine answers an observation that cannot be used in the same way."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc_opt.agents.agent import load_agent
from tdmpc_opt.configs.deploy import ExportConfig
from tdmpc_opt.errors import InputError, ObservationError, UnknownTaskError
from tdmpc_opt.runtime import load
from tdmpc_opt.schema import PlannerBudget

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("websockets", reason="needs the extra server")
from serving import served
from websockets.sync.client import connect

from tdmpc_opt.export.export import export
from tdmpc_opt.server.server import pack, unpack

TASK = "cartpole-balance"
GOOD = np.array([0.1, 1.0, 0.0, 0.2, -0.3], np.float32)
BUDGET = PlannerBudget(horizon=2, iterations=2, samples=24, policy_samples=4, elites=6)
INVALID = {
    "NaN": (GOOD * np.nan, "the observation contains NaN"),
    "infinity": (np.array([np.inf, 0, 0, 0, 0]), "the observation contains NaN, infinity"),
    "beyond float32": (np.array([0, -1e300, 0, 0, 0]), "too large for the network"),
    "overflowing the network": (np.full(5, 1e16), "too large for the network"),
    "integers beyond float32's use": (np.array([-(2**63)] * 5), "too large for the network"),
    "short": (GOOD[:4], "observations of cartpole-balance have 5 numbers; got shape"),
    "long": (np.zeros(9), "observations of cartpole-balance have 5 numbers; got shape"),
    "empty": (np.zeros(0), r"observations are \[obs\] or \[B, obs\]; got shape \[0\]"),
    "no rows": (np.zeros((0, 5)), r"observations? (is|are) .* got shape \[0, 5\]"),
    "three axes": (np.zeros((1, 1, 5)), r"observations? (is|are) .* got shape \[1, 1, 5\]"),
    "missing": (None, "the observation is missing; give one number per sensor"),
    "words": (["a"] * 5, "the observation is not an array of numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "the observation is not an array of numbers"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory, checkpoint_file) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("engines")
    found = {"policy.onnx": folder / "policy.onnx", "planner.onnx": folder / "planner.onnx"}
    source = str(checkpoint_file)
    export(ExportConfig(checkpoint=source, policy_only=True, output=found["policy.onnx"]))
    export(ExportConfig(checkpoint=source, output=found["planner.onnx"]), BUDGET)
    return found | {"numpy": checkpoint_file}


@contextmanager
def _served(path: Path):
    """Serve a file and yield a function that acts like `Agent.act`."""
    with served(path) as (_, address), connect(f"ws://{address}") as client:
        client.recv(timeout=10)

        def act(obs, task, **options):
            message = {"task": task, **options}
            client.send(pack(message if obs is None else message | {"observation": obs}))
            answer = client.recv(timeout=10)
            if isinstance(answer, str):
                raise (UnknownTaskError if "unknown task" in answer else InputError)(answer)
            return unpack(answer)["actions"]

        yield act


@pytest.fixture(
    scope="module",
    params=["torch", "torch planner", "numpy", "policy.onnx", "planner.onnx", "server"],
)
def act(request, files):
    """The function `act` of one engine, without state of another test."""
    if request.param == "server":
        with _served(files["numpy"]) as found:
            yield found
    elif request.param.startswith("torch"):
        plans = request.param.endswith("planner")
        options = {"preset": BUDGET} if plans else {"mode": "policy"}
        yield load_agent(files["numpy"], **options).act
    else:
        yield load(files[request.param]).act


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_observation_is_an_error_the_last_action_or_zeros(case, act, unchecked):
    obs, message = INVALID[case]
    with pytest.raises(InputError, match=message) as caught:
        act(obs, TASK)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        act(obs, TASK, on_invalid="error")
    last = act(GOOD, TASK, on_invalid="hold")
    assert last.shape == (1,)
    assert np.abs(last).max() > 0
    for _ in range(2):
        np.testing.assert_array_equal(act(obs, TASK, on_invalid="hold"), last)
    np.testing.assert_array_equal(act(obs, TASK, on_invalid="zero"), [0.0])
    np.testing.assert_array_equal(act(obs, TASK, on_invalid="hold"), last)


def test_what_is_no_observation_stays_an_error(act, unchecked):
    for on_invalid in ("hold", "zero"):
        with pytest.raises(UnknownTaskError, match="unknown task 'cartpole'"):
            act(GOOD, "cartpole", on_invalid=on_invalid)
        with pytest.raises(InputError, match="deadline_ms must be above 0"):
            act(GOOD, TASK, deadline_ms=-1.0, on_invalid=on_invalid)
        assert act(GOOD, TASK, deadline_ms=0.5, on_invalid=on_invalid).shape == (1,)
    with pytest.raises(InputError, match="on_invalid must be error, hold or zero, got 'last'"):
        act(GOOD, TASK, on_invalid="last")


@pytest.fixture(params=["torch", "torch planner", "numpy", "policy.onnx", "planner.onnx"])
def agent(request, files):
    if request.param.startswith("torch"):
        plans = request.param.endswith("planner")
        options = {"preset": BUDGET} if plans else {"mode": "policy"}
        return load_agent(files["numpy"], **options)
    return load(files[request.param])


def test_hold_begins_with_zeros_and_forgets_at_the_reset(agent):
    bad = GOOD * np.nan
    np.testing.assert_array_equal(agent.act(bad, TASK, on_invalid="hold"), [0.0])
    agent.act(GOOD, TASK)  # of a call without hold nothing is kept
    agent.act(GOOD, TASK, on_invalid="zero")
    np.testing.assert_array_equal(agent.act(bad, TASK, on_invalid="hold"), [0.0])
    last = agent.act(GOOD, TASK, on_invalid="hold")
    kept = last.copy()
    last *= 0  # what a caller does with an action is no concern of the agent
    np.testing.assert_array_equal(agent.act(bad, TASK, on_invalid="hold"), kept)
    np.testing.assert_array_equal(
        agent.act(bad[:3], "pendulum-swingup", on_invalid="hold"), [0.0]
    )
    agent.reset()
    np.testing.assert_array_equal(agent.act(bad, TASK, on_invalid="hold"), [0.0])
    assert agent.invalid == 5


def test_complex_numbers_are_refused(agent):
    with pytest.raises(ObservationError, match="not an array of numbers"):
        agent.act(GOOD * 1j, TASK)
    np.testing.assert_array_equal(agent.act(GOOD * 1j, TASK, on_invalid="zero"), [0.0])


def test_a_batch_is_answered_as_a_whole(agent):
    rows = np.stack([GOOD, -GOOD])
    bad = rows.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ObservationError, match="contains NaN"):
        agent.act(bad, TASK)
    np.testing.assert_array_equal(agent.act(bad, TASK, on_invalid="zero"), np.zeros((2, 1)))
    last = agent.act(rows, TASK, on_invalid="hold")
    np.testing.assert_array_equal(agent.act(bad, TASK, on_invalid="hold"), last)
    np.testing.assert_array_equal(agent.act(bad[:, :4], TASK, on_invalid="hold"), last)
    assert agent.act(bad[[1]], TASK, on_invalid="zero").shape == (1, 1)
    np.testing.assert_array_equal(agent.act(GOOD[:0], TASK, on_invalid="hold"), [0.0])
    zeros = np.zeros((3, 1))  # another number of rows has no last action
    np.testing.assert_array_equal(agent.act(bad[[1, 1, 1]], TASK, on_invalid="hold"), zeros)


def test_a_plan_stays_as_it_was(files):
    """An invalid observation in between changes no later action."""
    found = []
    for between in (0, 3):
        agent, source = load(files["planner.onnx"]), np.random.default_rng(0)
        agent.act(GOOD, TASK, generator=source)
        for _ in range(between):
            agent.act(GOOD * np.nan, TASK, on_invalid="zero", generator=source)
        found.append(agent.act(GOOD, TASK, generator=source))
    np.testing.assert_array_equal(*found)


def test_a_tensor_is_answered_with_a_tensor(checkpoint_file):
    agent = load_agent(checkpoint_file, mode="policy")
    obs = torch.full((2, 5), torch.nan, dtype=torch.float64)
    action = agent.act(obs, TASK, on_invalid="hold")
    assert (action.shape, action.dtype) == ((2, 1), torch.float64)
    both = agent.act(obs, [0, 1], on_invalid="zero")
    assert both.shape == (2, agent.tasks.action_dim)
    with pytest.raises(ObservationError, match="complex numbers"):
        agent.act(torch.zeros(5, dtype=torch.complex64), TASK)


def test_an_overflowing_network_is_answered_like_an_invalid_observation(tmp_path):
    from dataclasses import replace

    from tdmpc_opt.checkpoints.load import read_checkpoint
    from tdmpc_opt.checkpoints.native import write_native
    from tdmpc_opt.compression.extract import policy_only

    checkpoint = policy_only(read_checkpoint("demo-teacher"))
    broken = dict(checkpoint.tensors)
    broken["encoder.0.weight"] = 3e38 * broken["encoder.0.weight"].float().sign()
    path = tmp_path / "policy.safetensors"
    write_native(path, replace(checkpoint, tensors=broken))
    obs = np.linspace(1, 9, 8)
    for broken_agent in (load(path), load_agent(path, mode="policy")):
        with np.errstate(all="ignore"):
            action = broken_agent.act(obs, "cup-catch", on_invalid="zero")
        np.testing.assert_array_equal(action, [0.0, 0.0])


@pytest.mark.parametrize("on_invalid", ["hold", "zero"])
def test_the_robot_loop_holds_or_sends_zeros(on_invalid, checkpoint_file):
    path = Path(__file__).parents[1] / "examples" / "robot_loop.py"
    spec = importlib.util.spec_from_file_location("robot_loop", path)
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    invalid = [obs for obs, _ in INVALID.values()]
    observations, actions = [GOOD, *invalid, GOOD], []

    class Source:
        def read(self, seconds):
            return observations.pop(0) if observations else loop.END

        def write(self, action):
            actions.append(action.copy())

    agent = load(checkpoint_file)
    steps = list(loop.control(agent, TASK, Source(), 0.1, None, on_invalid))
    assert [missed for _, missed in steps] == [False, *[True] * len(invalid), False]
    first, *answers, last = actions
    for answer in answers:
        np.testing.assert_array_equal(answer, first if on_invalid == "hold" else [0.0])
    np.testing.assert_array_equal(last, first)
    assert np.abs(first).max() > 0
