"""Updates that the host does not wait for, as on a GPU: the device leaves out what is NaN."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from tdmpc_opt.configs.training import TrainConfig
from tdmpc_opt.data.sampler import Batch, SliceSampler
from tdmpc_opt.errors import RunError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.training.loop import FaultKeeper
from tdmpc_opt.training.step import Learner, build_learner, train_step

ON_THE_CPU = {"aten::quantile", "aten::_fused_adam_"}
CONFIG = TrainConfig(data=Path("unused"), output=Path("unused"), updates=1, max_skipped=1)


def _batch(device: str = "cpu") -> Batch:
    source = torch.Generator().manual_seed(7)
    obs = torch.randn(4, 4, 5, generator=source)
    action = torch.rand(3, 4, 3, generator=source) * 2 - 1
    reward = torch.rand(3, 4, 1, generator=source)
    task = torch.tensor([0, 0, 0, 0])
    values = {"obs": obs, "action": action, "label": action, "reward": reward, "task": task}
    return Batch(**{name: value.to(device) for name, value in values.items()})


@pytest.fixture
def model(make_model: Callable[..., WorldModel]) -> WorldModel:
    """Without dropout, whose positions the kernel of the CPU draws on the host."""
    model = make_model()
    sizes = replace(model.config, dropout=0.0)
    plain = WorldModel(sizes, model.tasks)
    plain.load_state_dict(model.state_dict())
    return plain


def _learner(model: WorldModel, *, waits: bool) -> Learner:
    fabric = Fabric(accelerator="cpu", devices=1)
    learner = build_learner(fabric, deepcopy(model), CONFIG)
    learner.waits = waits
    return learner


def test_an_update_does_not_make_the_host_wait_for_a_value(model):
    """On the CPU alone, `quantile` reads its percentiles and Adam's kernel `found_inf`."""
    learner = _learner(model, waits=False)
    batch = _batch()
    train_step(learner, batch)
    with torch.profiler.profile() as profile:
        train_step(learner, batch)
    reads = [event for event in profile.events() if event.name == "aten::_local_scalar_dense"]
    assert {_outermost(event) for event in reads} <= ON_THE_CPU
    learner = _learner(model, waits=True)
    with torch.profiler.profile() as profile:
        train_step(learner, batch)
    reads = [event for event in profile.events() if event.name == "aten::_local_scalar_dense"]
    assert "aten::is_nonzero" in {_outermost(event) for event in reads}


def _outermost(event) -> str:
    while event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::"):
        event = event.cpu_parent
    return event.name


def test_updates_with_and_without_waiting_are_the_same(model):
    weights = []
    for waits in (True, False):
        learner = _learner(model, waits=waits)
        for _ in range(3):
            terms = train_step(learner, _batch())
        weights.append(learner.model.state_dict())
    assert bool(terms["finite"])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


def test_an_update_with_nan_is_left_out_by_the_device(model):
    learner = _learner(model, waits=False)
    train_step(learner, _batch())
    before, scale = deepcopy(learner.model.state_dict()), learner.scale.value.clone()
    bad = replace(_batch(), reward=torch.full((3, 4, 1), torch.nan))
    terms = train_step(learner, bad)
    assert not bool(terms["finite"])
    assert float(terms["loss"]) == float(terms["grad_norm"]) == 0
    assert torch.equal(learner.scale.value, scale)
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    terms = train_step(learner, _batch())
    assert bool(terms["finite"])
    assert not torch.equal(
        learner.model.state_dict()["dynamics.0.weight"], before["dynamics.0.weight"]
    )


def test_where_the_policys_gradient_is_nan_the_model_alone_moves(model):
    learner = _learner(model, waits=False)
    with torch.no_grad():
        learner.model.q_ensemble[-1].weight.mul_(20.0)  # a scale that moves
    train_step(learner, _batch())
    before, scale = deepcopy(learner.model.state_dict()), float(learner.scale.value)
    assert scale > 1
    learner.model.policy_head[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    assert not bool(train_step(learner, _batch())["finite"])
    after = learner.model.state_dict()
    moved = {n.split(".")[0] for n, value in after.items() if not torch.equal(value, before[n])}
    assert moved == {"encoder", "dynamics", "reward_head", "q_ensemble", "task_embedding"}
    assert float(learner.scale.value) == scale


def test_left_out_updates_are_reported_and_limited(model):
    class Told(list):
        def update(self, done, total, text):
            """Nothing is reported but warnings."""

        def warn(self, text):
            self.append(text)

    learner = _learner(model, waits=False)
    told, flags = Told(), (True, False, True)
    faults = FaultKeeper(learner, SliceSampler.__new__(SliceSampler), told)
    for number, flag in enumerate(flags, 1):
        learner.update, terms = number, {"finite": torch.tensor(flag)}
        faults.read_later(terms)
        assert terms == {}
    assert not told, "the host waits when it is told to"
    faults.read()
    assert len(told) == 1
    assert "of update 2 was NaN or infinite" in told[0]
    assert learner.skipped == 1
    faults.read_later({"finite": torch.tensor(False)})
    with pytest.raises(RunError, match="stopped, for 1 batches were skipped"):
        faults.read()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_update_on_a_gpu_does_not_synchronise(make_model):
    fabric = Fabric(accelerator="cuda", devices=1)
    learner = build_learner(fabric, make_model(), CONFIG)
    assert not learner.waits
    batch = _batch("cuda")
    train_step(learner, batch)  # allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = train_step(learner, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(terms["finite"])
