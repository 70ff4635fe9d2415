import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mujoco
import numpy as np
import pytest
from dm_control import suite
from gymnasium.utils.env_checker import check_env

from tdmpc_opt.errors import InputError, MissingDependencyError, UnknownTaskError
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks import custom
from tdmpc_opt.tasks.environment import make_env

GOLDEN = Path(__file__).parent / "golden"
CUP_TASKS = ("cup-catch", "cup-spin")


def _read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return _read("mt30.npz")


@pytest.fixture(scope="module")
def legacy_reference() -> dict[str, np.ndarray]:
    return _read("mt30_cup_legacy.npz")


def _tolerances(task: str, steps: int) -> np.ndarray:
    """Allowed observation error after each agent step; infinite where chaos has taken over."""
    limit = np.full(steps, 1e-5)
    if task.startswith("walker"):
        limit[:60], limit[60:] = 1e-4, np.inf
    elif task.startswith("hopper"):
        limit[:100], limit[100:] = 1e-4, np.inf
    limit[:40] = 1e-6
    return limit


@pytest.mark.parametrize("task", ["cheetah-run", "cheetah-jump"])
def test_the_cheetah_is_built_without_a_warning_and_as_the_suite_builds_it(task, caplog):
    built = make_env(task).physics.model.ptr
    assert not caplog.records
    wanted = suite.load("cheetah", "run").physics.model.ptr
    for name in (name for name in dir(wanted) if not name.startswith("_")):
        if isinstance(value := getattr(wanted, name), np.ndarray):
            np.testing.assert_array_equal(getattr(built, name), value, err_msg=name)


def _assert_replays(task: str, data: Mapping[str, np.ndarray], *, legacy: bool = False) -> None:
    for seed in json.loads(str(data["meta"]))["seeds"]:
        run = {
            key: data[f"{task}/{seed}/{key}"] for key in ("actions", "obs", "rewards", "resets")
        }
        env = make_env(task, seed, legacy_cup_physics=legacy)
        outward, _ = env.reset()
        np.testing.assert_allclose(env.observation, run["obs"][0], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(outward, env.observation.astype(np.float32))
        limits = _tolerances(task, len(run["actions"]))
        for step, action in enumerate(run["actions"]):
            _, reward, *_ = env.step(action)
            error = np.abs(env.observation - run["obs"][step + 1]).max()
            assert error <= limits[step], (
                f"{task} seed {seed}: observation {step + 1} off by {error}"
            )
            if np.isfinite(limits[step]):
                assert reward == pytest.approx(run["rewards"][step], rel=0, abs=1e-6)
        for expected in run["resets"]:
            env.reset()
            np.testing.assert_allclose(env.observation, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", MT30.names)
def test_trajectories_match_the_public_definition(
    task: str, reference: dict[str, np.ndarray]
) -> None:
    _assert_replays(task, reference)


@pytest.mark.parametrize("task", CUP_TASKS)
def test_legacy_cup_physics_matches_mujoco_2(
    task: str, legacy_reference: dict[str, np.ndarray]
) -> None:
    _assert_replays(task, legacy_reference, legacy=True)


def test_legacy_cup_physics_is_off_by_default(legacy_reference: dict[str, np.ndarray]) -> None:
    with pytest.raises(AssertionError, match="off by"):
        _assert_replays("cup-catch", legacy_reference)


@pytest.mark.parametrize("task", MT30.names)
def test_rewards_match_over_their_whole_range(
    task: str, reference: dict[str, np.ndarray]
) -> None:
    probe = {
        key: reference[f"probe/{task}/{key}"] for key in ("qpos", "qvel", "obs", "rewards")
    }
    env = make_env(task, int(reference[f"probe/{task}/seed"]))
    env.reset()
    dm_task = env._environment.task
    for row, (qpos, qvel) in enumerate(zip(probe["qpos"], probe["qvel"], strict=True)):
        with env.physics.reset_context():
            env.physics.data.qpos[:], env.physics.data.qvel[:] = qpos, qvel
        env._flatten(dm_task.get_observation(env.physics))
        np.testing.assert_allclose(env.observation, probe["obs"][row], rtol=0, atol=1e-9)
        reward = dm_task.get_reward(env.physics)
        assert reward == pytest.approx(probe["rewards"][row], rel=0, abs=1e-9)


@pytest.mark.parametrize(
    "task", ["reacher-three-hard", "cup-spin", "cheetah-jump", "fish-swim"]
)
def test_seed_of_reset_restarts_the_random_stream(task: str) -> None:
    fresh, used = make_env(task, 3), make_env(task, 99)
    first, second = fresh.reset()[0], fresh.reset()[0]
    used.reset()
    used.step(used.action_space.sample())
    np.testing.assert_array_equal(used.reset(seed=3)[0], first)
    np.testing.assert_array_equal(used.reset()[0], second)
    assert not np.array_equal(first, second)
    action = np.full(fresh.task.action_dim, 0.3)
    np.testing.assert_array_equal(used.step(action)[0], fresh.step(action)[0])


@pytest.mark.parametrize("task", ["pendulum-spin", "cartpole-balance"])
def test_episode_is_truncated_at_500_and_then_needs_a_reset(task: str) -> None:
    env = make_env(task)
    action = np.zeros(env.task.action_dim, dtype=np.float32)
    with pytest.raises(InputError, match="has not begun; call reset"):
        env.step(action)
    for _ in range(2):
        env.reset()
        ends = [env.step(action)[2:4] for _ in range(500)]
        assert ends == [(False, False)] * 499 + [(False, True)]
        with pytest.raises(InputError, match="is over; call reset"):
            env.step(action)


@pytest.mark.parametrize("task", MT30.names)
def test_spaces_follow_the_task_table(task: str) -> None:
    env = make_env(task)
    observation, _ = env.reset()
    assert observation.dtype == np.float32
    assert observation.shape == env.observation_space.shape == (MT30[task].obs_dim,)
    assert env.action_space.shape == (MT30[task].action_dim,)
    assert env.physics.model.nu == MT30[task].action_dim
    assert env.unwrapped.physics is env.physics


@pytest.mark.filterwarnings("ignore:.*minimum value is -infinity:UserWarning")
@pytest.mark.filterwarnings("ignore:.*maximum value is infinity:UserWarning")
@pytest.mark.parametrize("task", ["walker-walk", "reacher-three-easy", "cup-spin"])
def test_gymnasium_accepts_the_environment(task: str) -> None:
    check_env(make_env(task), skip_render_check=True)


def test_three_link_reacher_has_the_stated_masses() -> None:
    model = make_env("reacher-three-easy").physics.named.model
    masses = [float(model.body_mass[name]) for name in ("arm0", "arm1", "hand", "finger")]
    assert masses == pytest.approx([0.032463, 0.032463, 0.035605, 0.0041888], rel=1e-4)


def test_unknown_task_names_near_matches() -> None:
    with pytest.raises(UnknownTaskError, match=r"'walker_walk'; did you mean walker-walk"):
        make_env("walker_walk")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0], r"has shape \(2,\), got \(1,\)"),
        ([[0.0, 0.0]], r"got \(1, 2\)"),
        ([0.0, float("nan")], "must be finite"),
        ([0.0, float("inf")], "must be finite"),
        ("go", "must be 2 numbers"),
    ],
)
def test_bad_actions_are_refused(action: object, message: str) -> None:
    env = make_env("reacher-easy")
    env.reset()
    with pytest.raises(InputError, match=message) as caught:
        env.step(action)
    assert "\n" not in str(caught.value)


def test_rendering_must_be_asked_for() -> None:
    env = make_env("pendulum-swingup")
    env.reset()
    with pytest.raises(InputError, match="render_mode"):
        env.render()
    with pytest.raises(InputError, match="human"):
        make_env("pendulum-swingup", render_mode="human")


def test_version_clash_names_both_versions_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AttributeError(
            "'mujoco._structs.MjModel' object has no attribute 'flex_vertedge'"
        )

    monkeypatch.setattr(custom, "load", fail)
    with pytest.raises(MissingDependencyError, match="flex_vertedge") as caught:
        make_env("walker-walk")
    text = str(caught.value)
    assert mujoco.__version__ in text
    assert "pip install mujoco==3.17.0 dm_control==1.0.50" in text
    assert "\n" not in text


@pytest.mark.parametrize("package", ["dm_control", "gymnasium"])
def test_missing_package_names_the_extra(package: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from tdmpc_opt.errors import MissingDependencyError\n"
        "try:\n    import tdmpc_opt.tasks.environment\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert package in done.stdout
    assert "pip install 'tdmpc-opt[envs]'" in done.stdout


def test_tasks_do_not_load_torch() -> None:
    code = "import sys, tdmpc_opt.tasks.environment; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("package", "content"),
    [
        ("mujoco", ""),
        ("mujoco", "raise ImportError('libmujoco.so: cannot open shared object file')"),
        ("mujoco", "raise OSError('libmujoco.so: cannot open shared object file')"),
        ("mujoco", "import mujoco._structs"),
        ("dm_control", "raise RuntimeError('module compiled against ABI version 0x1000009')"),
        ("gymnasium", "raise ValueError('numpy.dtype size changed')"),
    ],
)
def test_a_simulator_that_lacks_a_part_is_told_of_in_one_line(
    tmp_path: Path, package: str, content: str
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(content)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from tdmpc_opt.cli import main; sys.exit(main(['evaluate', 'random', '--tasks', "
        "'walker-walk', '--workers', '1', '--output', 'score.json']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("tdmpc-opt: gymnasium, mujoco or dm_control is installed in part")
    assert "pip install --force-reinstall" in last
    assert "Traceback" not in run.stderr
