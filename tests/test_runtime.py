import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import tdmpc_opt
from tdmpc_opt import make_env, zoo
from tdmpc_opt.agents.agent import Agent as TorchAgent
from tdmpc_opt.agents.agent import load_agent
from tdmpc_opt.agents.expert import ExpertNetwork
from tdmpc_opt.checkpoints.checkpoint import build
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.compression.extract import one_task, policy_only
from tdmpc_opt.errors import (
    CheckpointError,
    InputError,
    MissingDependencyError,
    NonFiniteError,
    TdmpcOptError,
    UnknownTaskError,
)
from tdmpc_opt.runtime import Agent, load
from tdmpc_opt.runtime.plan_state import DeadlineTimer
from tdmpc_opt.schema import LARGEST_OBSERVATION

TEACHER = zoo.path("demo-teacher")


def _observations(task: str, count: int = 40) -> np.ndarray:
    """Return real observations along an episode of random actions."""
    env = make_env(task, 3)
    rng = np.random.default_rng(3)
    actions = rng.uniform(-1, 1, (count - 1, *env.action_space.shape)).astype(np.float32)
    return np.stack([env.reset()[0], *(env.step(action)[0] for action in actions)])


def _torch_agent(path: Path) -> TorchAgent:
    model = build(read_checkpoint(path), policy_will_do=True, dtype=torch.float64)
    return TorchAgent(model, mode="policy")


def test_actions_equal_those_of_torch_on_real_observations() -> None:
    agent, reference = load(TEACHER), _torch_agent(TEACHER)
    for name in agent.tasks.names:
        obs = _observations(name)
        found = agent.act(obs, name)
        wanted = reference.act(obs, name)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        np.testing.assert_allclose(agent.act(obs[7], name), found[7], atol=2e-6)
        assert found.dtype == np.float32
        assert found.shape == (40, agent.tasks[name].action_dim)


def test_the_bundled_student_acts_as_in_torch_on_every_task(tmp_path: Path) -> None:
    checkpoint = policy_only(read_checkpoint("mt30-1m"))
    reference = TorchAgent(
        build(checkpoint, policy_will_do=True, dtype=torch.float64), mode="policy"
    )
    write_native(tmp_path / "policy.safetensors", checkpoint)
    agent = load(tmp_path / "policy.safetensors")
    for name in checkpoint.tasks.names:
        obs = np.random.default_rng(0).normal(size=(50, checkpoint.tasks[name].obs_dim))
        single = one_task(checkpoint, name)
        torch_single = TorchAgent(
            build(single, policy_will_do=True, dtype=torch.float64), mode="policy"
        )
        wanted = reference.act(obs, name)
        np.testing.assert_allclose(torch_single.act(obs), wanted, atol=5e-6)
        np.testing.assert_allclose(agent.act(obs, name), wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_number_format_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = policy_only(read_checkpoint(TEACHER))
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    path = tmp_path / "policy.safetensors"
    write_native(path, replace(checkpoint, tensors=tensors))
    obs = _observations("walker-stand")
    wanted = _torch_agent(path).act(obs, "walker-stand")
    np.testing.assert_allclose(load(path).act(obs, "walker-stand"), wanted, atol=2e-5)


def test_one_task_files_need_no_task_and_hold_no_padding(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_native(path, one_task(policy_only(read_checkpoint(TEACHER)), "cup-catch"))
    agent, obs = load(path), _observations("cup-catch")
    np.testing.assert_allclose(agent.act(obs), load(TEACHER).act(obs, "cup-catch"), atol=1e-4)
    assert (agent.tasks.obs_dim, agent.tasks.action_dim) == (8, 2)
    assert path.stat().st_size < 0.8 * TEACHER.stat().st_size


def test_one_task_agents_plan_as_the_whole_one(tmp_path: Path) -> None:
    whole = read_checkpoint(TEACHER)
    models = [
        build(whole, dtype=torch.float64),
        build(one_task(whole, "walker-stand"), dtype=torch.float64),
    ]
    obs = torch.from_numpy(_observations("walker-stand")).double()
    actions = [
        TorchAgent(model).act(
            obs[5], "walker-stand", generator=torch.Generator().manual_seed(1)
        )
        for model in models
    ]
    torch.testing.assert_close(actions[0], actions[1], atol=1e-6, rtol=0)


def test_bad_input_is_refused_in_one_line(unchecked: None) -> None:
    agent = load(TEACHER)
    cases: list[tuple[type[TdmpcOptError], str, np.ndarray, Any]] = [
        (UnknownTaskError, "did you mean cup-catch", np.zeros(8), "cup-cach"),
        (UnknownTaskError, "name a task; known: ", np.zeros(8), None),
        (UnknownTaskError, r"task ids must be in 0\.\.", np.zeros(8), 99),
        (UnknownTaskError, "a task is a name or an id, got 1.0", np.zeros(8), 1.0),
        (UnknownTaskError, "a task is a name or an id, got list", np.zeros(8), ["cup-catch"]),
        (
            InputError,
            r"have 8 \(or padded to 24\) numbers; got shape \[9\]",
            np.zeros(9),
            "cup-catch",
        ),
        (InputError, r"got shape \[2, 3, 8\]", np.zeros((2, 3, 8)), "cup-catch"),
        (InputError, "check the sensors", np.full(8, np.nan), "cup-catch"),
    ]
    for kind, message, obs, task in cases:
        with pytest.raises(kind, match=message) as caught:
            agent.act(obs, task)
        assert "\n" not in str(caught.value)


def _rewritten(path: Path, **changes: str) -> Path:
    checkpoint = policy_only(read_checkpoint(TEACHER))
    metadata = {
        "format": "tdmpc-opt",
        "schema": "1",
        "config": json.dumps({"latent_dim": 128, "simnorm_dim": 8}),
        "tasks": json.dumps(checkpoint.tasks.to_json()),
    }
    tensors = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, path, metadata | changes)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pt"}, "of another program"),
        ({"schema": "7"}, "newer version .its schema is 7"),
        ({"schema": "x"}, "damaged: its schema number is 'x'"),
        ({"config": "{}"}, "is damaged: KeyError"),
        ({"tasks": "[{}]"}, "is damaged: TypeError"),
    ],
)
def test_foreign_and_damaged_metadata_is_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(_rewritten(tmp_path / "policy.safetensors", **changes))
    load(_rewritten(tmp_path / "policy.safetensors"))


def test_a_file_without_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    header = b'{"__metadata__":null}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="of another program"):
        load(path)


def test_a_model_folder_is_read_by_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*agent.model.safetensors"):
        load(folder)
    shutil.copy(TEACHER, folder / "model.safetensors")
    task = load(TEACHER).tasks.names[0]
    obs = _observations(task)
    np.testing.assert_array_equal(load(folder).act(obs, task), load(TEACHER).act(obs, task))


def test_an_onnxruntime_that_would_crash_is_named_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases before 1.19 end the process with numpy 2."""
    (tmp_path / "__init__.py").write_text('__version__ = "1.16.3"\n')
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    spec = importlib.util.spec_from_file_location("onnxruntime", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(np, "__version__", "2.4.6")
    message = r'1\.16 was built for numpy 1 and crashes with numpy 2\.4\.6; run: .*"numpy<2"'
    with pytest.raises(MissingDependencyError, match=message):
        load(tmp_path / "model.onnx")
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with pytest.raises(CheckpointError, match="is damaged, or not an ONNX file"):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("threads", [0, 1025])
def test_a_number_of_threads_that_no_machine_needs_is_refused(threads: int) -> None:
    with pytest.raises(InputError, match=rf"threads must be in 1\.\.1024, got {threads}"):
        load(TEACHER, threads)


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot read .*No such file"):
        load(path)
    content = TEACHER.read_bytes()
    for length in (0, 5, 300, len(content) - 7):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="no ONNX or safetensors file, or damaged"):
            load(path)


def test_a_policy_file_cannot_plan_teach_or_be_trained(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    write_native(path, policy_only(read_checkpoint(TEACHER)))
    with pytest.raises(CheckpointError, match="encoder and policy alone"):
        build(read_checkpoint(path))
    with pytest.raises(InputError, match="cannot plan; use the mode `policy`"):
        TorchAgent(build(read_checkpoint(path), policy_will_do=True))


def test_a_policy_drives_a_real_task() -> None:
    agent: Agent = load(TEACHER)
    env = make_env("cartpole-balance", 0)
    obs, total, done = env.reset()[0], 0.0, False
    while not done:
        obs, reward, _, done, _ = env.step(agent.act(obs, "cartpole-balance"))
        total += float(reward)
    assert total > 500


def test_a_policy_loads_no_more_than_it_needs() -> None:
    """numpy.random alone takes 6 MB, a tenth of what the runtime takes with onnxruntime."""
    program = (
        "import sys, numpy as np; from tdmpc_opt.runtime import load; "
        f"load({str(TEACHER)!r}).act(np.zeros(8, np.float32), 'cup-catch'); "
        "print({'numpy.random', 'onnxruntime', 'torch', 'rich', 'tyro'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout.decode().strip() == "set()"


def _in_threads(work: Callable[[int], None], count: int = 2) -> None:
    """Run the work in threads that the interpreter switches between as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(count) as pool:
            for future in [pool.submit(work, number) for number in range(count)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)


def test_threads_that_share_a_policy_get_the_actions_of_one(unchecked: None) -> None:
    """Scratch arrays that all calls shared gave up to half of them another thread's numbers."""
    device, torch_agent = load(TEACHER), load_agent("demo-teacher", mode="policy")
    obs = _observations("walker-stand", 2)
    for agent, calls in ((device, 3000), (torch_agent, 100)):
        wanted = [agent.act(row, "walker-stand") for row in obs]

        def work(
            number: int, agent: Any = agent, calls: int = calls, wanted: Any = wanted
        ) -> None:
            for _ in range(calls):
                found = agent.act(obs[number], "walker-stand", deadline_ms=1e5)
                np.testing.assert_array_equal(found, wanted[number])

        _in_threads(work)
        assert (agent.deadlines, agent.deadline_misses) == (2 * calls, 0)


def test_a_deadline_belongs_to_the_thread_that_set_it() -> None:
    now = [0.0]
    timer = DeadlineTimer(lambda: now[0])
    timer.begin(1000.0)
    _in_threads(lambda _: timer.begin(None), 1)
    assert timer.limited
    now[0] = 2.0
    timer.finish()
    assert (timer.acts, timer.misses) == (1, 1)


@pytest.mark.parametrize("huge", [1e20, -1e25, 3e38])
def test_experts_refuse_what_would_overflow(huge: float, two_experts: Path) -> None:
    expert = ExpertNetwork.load(two_experts / "cup-catch.safetensors")
    with pytest.raises(InputError, match="too large for the network"):
        expert.mean(np.full((1, 8), huge))


def test_an_overflowing_network_is_an_error_and_no_action(tmp_path: Path) -> None:
    checkpoint = policy_only(read_checkpoint(TEACHER))
    broken = dict(checkpoint.tensors)
    broken["encoder.0.weight"] = 3e38 * broken["encoder.0.weight"].float().sign()
    path = tmp_path / "policy.safetensors"
    write_native(path, replace(checkpoint, tensors=broken))
    agents = (load(path), load_agent(path, mode="policy"))
    for agent in agents:
        with (
            np.errstate(all="ignore"),
            pytest.raises(NonFiniteError, match="magnitude of nan, not at most 1"),
        ):
            agent.act(np.linspace(1, 9, 8), "cup-catch")
    at_the_limit = load(TEACHER).act(np.full(8, LARGEST_OBSERVATION), "cup-catch")
    assert np.abs(at_the_limit).max() <= 1


def test_a_bundled_agent_is_loaded_by_its_name() -> None:
    obs = _observations("walker-stand", 2)
    wanted = load(TEACHER).act(obs, "walker-stand")
    np.testing.assert_array_equal(load("demo-teacher").act(obs, "walker-stand"), wanted)
    with pytest.raises(CheckpointError, match=r"no file and no bundled .* 'demo'; bundled: d"):
        load("demo")


def _without_torch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command where torch is not installed."""
    missing = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    (folder / "torch.py").write_text(missing)
    paths = os.pathsep.join([str(folder), str(Path(tdmpc_opt.__file__).parents[1])])
    command = [sys.executable, "-m", "tdmpc_opt", *words]
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_checkpoint_is_inspected_without_torch(tmp_path: Path) -> None:
    run = _without_torch(tmp_path, "inspect", "demo-teacher")
    assert run.returncode == 0, run.stderr
    digest = hashlib.sha256(TEACHER.read_bytes()).hexdigest()
    for fact in (digest, "cup-catch", "ball", "the policy alone is shown"):
        assert fact in run.stdout
    public = tmp_path / "public.pt"
    public.write_bytes(b"PK\x03\x04")
    run = _without_torch(tmp_path, "inspect", str(public))
    assert run.returncode == 1
    assert 'needs torch: pip install "tdmpc-opt[train]"' in run.stderr


def test_bench_without_torch_names_what_it_needs(tmp_path: Path) -> None:
    run = _without_torch(tmp_path, "bench", "demo-teacher", "--preset", "policy")
    assert run.returncode == 1
    assert 'needs torch: pip install "tdmpc-opt[train]"' in run.stderr
    assert "quantize --policy-only` need no torch" in run.stderr
