"""What is written about the tasks' numbers is what the simulator has."""

import pytest

from tdmpc_opt.runtime.contract import contract
from tdmpc_opt.schema import MT30, Task


@pytest.mark.parametrize("task", MT30.tasks, ids=MT30.names)
def test_the_contract_of_a_task_is_that_of_the_simulator(task):
    from tdmpc_opt import make_env
    from tdmpc_opt.tasks.environment import ACTION_REPEAT

    found, env = contract(task), make_env(task.name, 0)
    assert found is not None
    suite = env._environment
    physics = suite.physics
    seen = suite.reset().observation
    assert {group.name: group.width for group in found.observation} == {
        name: getattr(values, "size", 1) for name, values in seen.items()
    }
    assert [group.name for group in found.observation] == list(seen)
    names = [physics.model.id2name(i, "actuator") for i in range(physics.model.nu)]
    assert list(found.actions) == names
    assert physics.model.actuator_ctrlrange.tolist() == [[-1, 1]] * len(names)
    assert found.rate_hz == pytest.approx(1 / (ACTION_REPEAT * suite.control_timestep()))


def test_other_tasks_have_no_contract_here():
    assert contract(Task("walker-walk", 25, 6)) is None
    assert contract(Task("arm", 4, 2)) is None
