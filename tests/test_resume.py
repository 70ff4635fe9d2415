import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import pytest

from tdmpc_opt.configs.common import LATER, UNRECORDED, cost_fields, knobs, recorded
from tdmpc_opt.configs.training import (
    REMOVED,
    DaggerConfig,
    DistillWeights,
    LossWeights,
    Schedule,
    TrainConfig,
)
from tdmpc_opt.errors import ResultError, RunError
from tdmpc_opt.files import require_same, without_removed
from tdmpc_opt.machine import ResultFile

OLD = {
    "lr": 1.0,
    "weights": {"reward": 0.1, "rho": 0.5},
    "tau": 0.01,
    "td_heads": None,
    "precision": "32-true",
}
NEW = {"lr": 1.0, "weights": {"reward": 0.1}}
OFF = Schedule(0.0)


def test_a_record_with_removed_options_at_their_constants_is_the_same_run(tmp_path):
    require_same(tmp_path, OLD, NEW, RunError, removed=REMOVED)
    assert without_removed(OLD, REMOVED) == NEW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 0.5}, "was made with tau=0.5; this option no longer exists"),
        ({"td_heads": "mean"}, "was made with td_heads=mean"),
        ({"weights": {"reward": 0.1, "rho": 0.9}}, r"was made with weights\.rho=0\.9"),
        ({"lr": 2.0}, r"existing run has lr=2\.0, requested lr=1\.0"),
        (
            {"weights": {"reward": 0.2, "rho": 0.5}},
            r"existing run has weights\.reward=0\.2, requested weights\.reward=0\.1",
        ),
        ({"unknown": 1}, "existing run has unknown=1, requested unknown=None"),
    ],
)
def test_what_differs_is_named(tmp_path, change, message):
    with pytest.raises(RunError, match=message) as caught:
        require_same(tmp_path, OLD | change, NEW, RunError, removed=REMOVED)
    assert "--output" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_changed_is_named_and_not_shown_as_a_hash(tmp_path):
    file, other = {"name": "a.pt", "sha256": "12"}, {"name": "b.pt", "sha256": "12"}
    changed = file | {"sha256": "34"}
    for old, new, message in (
        (file, changed, r"source a\.pt has changed since"),
        ([other, file], [other, changed], r"source a\.pt has changed since"),
        ({"Lift-v0": file}, {"Lift-v0": changed}, r"source\.Lift-v0 a\.pt has changed since"),
        (file, other, r"has source=a\.pt, requested source=b\.pt"),
        (
            [file],
            [file, other],
            r"has source=\['a\.pt'\], requested source=\['a\.pt', 'b\.pt'\]",
        ),
        ({"Lift-v0": file}, {}, r"has source\.Lift-v0=a\.pt, requested source\.Lift-v0=None"),
    ):
        with pytest.raises(ResultError, match=message):
            require_same(tmp_path, {"source": old}, {"source": new}, ResultError)


def test_fields_of_cost_may_differ(tmp_path):
    cost = cost_fields(TrainConfig)
    require_same(tmp_path, OLD | {"save_every": 1}, NEW, RunError, cost=cost, removed=REMOVED)


@pytest.mark.parametrize("kind", [TrainConfig, DaggerConfig])
def test_no_field_that_moves_the_weights_is_marked_as_cost(kind):
    free = {"output", "device", "threads", "log_every", "save_every", "eval_every", "wandb"}
    free |= {"keep", "max_skipped"}
    more = {
        TrainConfig: {"updates"},
        DaggerConfig: {"rounds", "on_policy", "workers", "ray"},
    }
    assert cost_fields(kind) == free | more[kind]


def test_younger_fields_are_recorded_as_absent_at_their_default(tmp_path):
    config = TrainConfig(data=tmp_path, output=tmp_path, updates=1)
    younger = {name for name, knob in knobs(TrainConfig).items() if knob.since > 1}
    assert younger == {"sampling", "behaviour_batch", "td_lambda", "more_teachers", "matmul"}
    assert {recorded(config)[name] for name in younger} == {None}
    assert recorded(replace(config, td_lambda=0.5))["td_lambda"] == 0.5
    names = {field.name for field in fields(TrainConfig)}
    assert names - recorded(config).keys() == {"threads"}


@dataclass(frozen=True, kw_only=True)
class YoungerWeights(LossWeights):
    latent_l2: Annotated[float, LATER] = 0.0
    note: Annotated[str, UNRECORDED] = ""


@dataclass(frozen=True, kw_only=True)
class YoungerTerms(DistillWeights):
    latent_l2: Annotated[Schedule, LATER] = OFF


def test_a_run_resumes_where_a_part_of_its_configuration_has_a_younger_field(tmp_path):
    old = TrainConfig(data=tmp_path, output=tmp_path, updates=1, teacher="T")
    assert recorded(old)["weights"] == asdict(LossWeights())
    assert recorded(old)["terms"] == asdict(DistillWeights())
    parts = {"weights": YoungerWeights(), "terms": YoungerTerms()}
    assert recorded(replace(old, **parts)) == recorded(old)
    changed = replace(old, weights=YoungerWeights(latent_l2=0.5))
    found, asked = (recorded(config)["weights"] for config in (old, changed))
    with pytest.raises(RunError, match=r"latent_l2=None, requested weights\.latent_l2=0\.5"):
        require_same(tmp_path, {"weights": found}, {"weights": asked}, RunError)


def test_a_result_file_states_config_versions_commit_and_machine(tmp_path):
    path = tmp_path / "folder" / "x.json"
    content = ResultFile(path, "demo", {"seed": 3}).write(score=1.0)
    assert json.loads(path.read_text()) == content
    assert (content["kind"], content["score"], content["config"]) == ("demo", 1.0, {"seed": 3})
    assert content["versions"]["tdmpc_opt"]
    assert content["machine"]["cores"] >= 1
    assert ResultFile(None, "demo", {}).write(score=1.0)["kind"] == "demo"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ResultError, match="cannot write"):
        ResultFile(blocked / "x.json", "demo", {}).write()


def test_committed_results_name_no_removed_option_with_another_value():
    """So that every student of a committed result can still be trained and compared."""
    files = sorted((Path(__file__).parents[1] / "results").rglob("*.json"))
    trained = 0
    for path in files:
        content = json.loads(path.read_text())
        training = content.get("training") if isinstance(content, dict) else None
        if isinstance(training, dict):
            trained += 1
            kept = without_removed(training, REMOVED)
            assert not {name.partition(".")[0] for name in REMOVED} - {"weights"} & kept.keys()
            assert "rho" not in kept.get("weights", {}), path
    assert trained > 20
