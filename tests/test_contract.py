"""What is written about the tasks' numbers is what the simulator has; every file states it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.checkpoints.summary import stored_contracts
from tdmpc_opt.cli import main
from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs.deploy import QuantizeConfig
from tdmpc_opt.contract import Block, Contract, contract, contracts_of, contracts_to_json
from tdmpc_opt.errors import CheckpointError
from tdmpc_opt.files import CONTRACT
from tdmpc_opt.runtime import load
from tdmpc_opt.schema import MT30, Task, TaskTable


@pytest.mark.parametrize("task", MT30.tasks, ids=MT30.names)
def test_the_contract_of_a_task_is_that_of_the_simulator(task):
    from tdmpc_opt import make_env
    from tdmpc_opt.tasks.environment import ACTION_REPEAT

    found, env = contract(task), make_env(task.name, 0)
    assert found is not None
    suite = env._environment
    env.reset()
    for _ in range(3):
        env.step(np.full(task.action_dim, 0.5))
    physics, obs = suite.physics, env.observation
    seen = suite.task.get_observation(physics)
    widths: dict[str, int] = {}
    for block in found.observation:
        widths[block.group] = widths.get(block.group, 0) + len(block.names)
    assert widths == {name: np.size(values) for name, values in seen.items()}
    assert list(widths) == list(seen)
    (control,) = found.action
    names = [physics.model.id2name(i, "actuator") for i in range(physics.model.nu)]
    assert list(control.names) == names
    assert physics.model.actuator_ctrlrange.tolist() == [[control.low, control.high]] * len(
        names
    )
    assert found.rate_hz == pytest.approx(1 / (ACTION_REPEAT * suite.control_timestep()))
    first = 0
    for block in found.observation:
        for name, value in zip(block.names, obs[first:], strict=False):
            known = _measured(physics, block, name)
            if known is not None:
                assert value == pytest.approx(known[0], abs=1e-12), f"{block.group}.{name}"
                assert block.unit == known[1]
            assert block.low is None or value >= block.low
            assert block.high is None or value <= block.high
        first += len(block.names)
    assert first == task.obs_dim


def _measured(physics, block: Block, name: str) -> tuple[float, str] | None:
    """Return what the simulator has for a number of this name, and its unit."""
    data, model = physics.named.data, physics.model
    body, _, axes = name.rpartition("_")
    if axes in ("xx", "xz", "zz"):
        return data.xmat[body, axes], "1"
    if block.group == "touch":
        return np.log1p(data.sensordata[name][0]), "ln(1 + N)"
    if name not in [model.id2name(i, "joint") for i in range(model.njnt)]:
        return None
    slides = model.jnt_type[model.name2id(name, "joint")] == 2
    if block.group == "velocity":
        return data.qvel[name], "m/s" if slides else "rad/s"
    return data.qpos[name], "m" if slides else "rad"


def test_other_tasks_have_no_contract_here():
    assert contract(Task("walker-walk", 25, 6)) is None
    assert contract(Task("arm", 4, 2)) is None


OF_AN_ARM = Contract(
    (Block("joints", ("a", "b"), "rad", -1.5, 1.5), Block("touch", ("t",), "N", 0.0)),
    (Block("torque", ("a",), "Nm", -2.0, 2.0),),
    40.0,
)


def test_a_contract_is_stored_and_read():
    arm = Task("arm", 3, 1, env="module:arm")
    tasks = TaskTable((arm, *MT30.tasks))
    known = contracts_of(tasks) | {"arm": OF_AN_ARM}
    assert len(known) == 31
    assert contracts_of(tasks, contracts_to_json(known)) == known
    assert contracts_of(TaskTable((arm,)), contracts_to_json(known)) == {"arm": OF_AN_ARM}
    assert contracts_of(tasks).keys() == {*MT30.names}, "nothing is known of an own task"


@pytest.mark.parametrize(
    "change",
    [
        {"rate_hz": -1},
        {"rate_hz": "fast"},
        {"observation": [["joints", ["a"], "rad", None, None]]},
        {"observation": [["joints", ["a", "b", "\u001b[2J"], "rad", None, None]]},
        {"observation": [["joints", ["a", "b", "c"], "rad", "low", None]]},
        {"observation": 3},
        {"action": [["torque", ["a"]]]},
        {"tasks": 5},
    ],
)
def test_a_damaged_contract_is_refused(change, tmp_path, make_model):
    tasks = TaskTable((Task("arm", 3, 1, env="module:arm"),))
    (record,) = json.loads(contracts_to_json({"arm": OF_AN_ARM}))
    text = json.dumps([record | change])
    checkpoint = from_model(make_model(tasks, task_dim=0))
    path = tmp_path / "arm.safetensors"
    write_native(path, replace(checkpoint, extra={CONTRACT: text}))
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)
    with pytest.raises(CheckpointError, match="its contract is damaged"):
        stored_contracts(read_checkpoint(path))


def test_a_policy_file_states_the_numbers_of_its_tasks(tmp_path, capsys):
    path = tmp_path / "policy.safetensors"
    quantize(
        QuantizeConfig(checkpoint="mt30-1m", policy_only=True, task="fish-swim", output=path)
    )
    stored = json.loads(read_checkpoint(path).extra[CONTRACT])
    assert ["velocity", ["root_x", "root_y", "root_z"], "m/s", None, None] in [
        block for record in stored for block in record["observation"]
    ]
    agent = load(path)
    assert agent.contract() == contract(MT30["fish-swim"])
    assert main(["inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fish-swim: 12.5 actions/s" in shown
    assert "upright: torso_zz" in shown
    assert '"rate_hz"' not in shown, "the table is enough"


OWN = "own_envs:Point-v0"


def test_an_own_task_gets_its_contract_from_its_spaces_once_it_is_named(
    tmp_path, make_model, capsys
):
    from tdmpc_opt.tasks import choose_tasks

    tasks = choose_tasks(OWN)
    source, path = tmp_path / "own.safetensors", tmp_path / "policy.safetensors"
    write_native(source, from_model(make_model(tasks, task_dim=0)))
    options = {"checkpoint": str(source), "policy_only": True, "output": path}
    quantize(QuantizeConfig(**options))
    assert load(path).contract() is None
    quantize(QuantizeConfig(**options, tasks=OWN))
    wanted = Contract(
        (Block("observation", ("0", "1"), "-"),),
        (Block("action", ("0",), "-", -3.0, 1.0),),
        None,
    )
    assert load(path).contract() == wanted
    assert stored_contracts(read_checkpoint(path)) == {"Point-v0": wanted}
    capsys.readouterr()
    assert main(["inspect", str(source)]) == 0
    assert "observation 0-1" not in capsys.readouterr().out
    for words in ([str(source), "--tasks", OWN], [str(path)]):
        assert main(["inspect", *words]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "Point-v0: unknown rate" in shown
        assert "action 0 action: 0 - [-3, 1]" in shown.replace("│", "").replace("  ", " ")


@pytest.mark.parametrize(
    ("name", "rate"), [("own_envs:Slider-v0", 25.0), ("Pendulum-v1", 20.0)]
)
def test_the_rate_of_an_own_task_is_that_of_its_environment(name, rate):
    from tdmpc_opt.tasks import choose_tasks
    from tdmpc_opt.tasks.own import own_contract

    (task,) = choose_tasks(name).tasks
    assert own_contract(task).rate_hz == pytest.approx(rate)
