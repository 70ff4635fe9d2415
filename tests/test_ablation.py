import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc_opt.cli import main
from tdmpc_opt.errors import ResultError
from tdmpc_opt.evaluation.compare import ablation, compare, score_over_seeds
from tdmpc_opt.evaluation.score import MEAN_RETURN

TRAINING: dict[str, Any] = {
    "data": {"name": "data", "sha256": "d1"},
    "updates": 100,
    "batch_size": 8,
    "horizon": 3,
    "size": "0.3",
    "seed": 0,
    "output": "run",
    "weights": {"reward": 0.1, "behaviour": 0.0},
}
TEACHER = {"teacher": {"name": "teacher.safetensors", "sha256": "t1"}}


def _write(
    folder: Path,
    name: str,
    returns: list[float],
    training: dict[str, Any] | None,
    **config: Any,
) -> Path:
    tasks = ("walker-run", "cup-catch")
    content = {
        "kind": "evaluation",
        "complete": True,
        "tasks": {
            task: {"returns": returns, "seeds": list(range(len(returns)))} for task in tasks
        },
        "config": {"tasks": list(tasks), "episodes": len(returns), "seed": 0, **config},
        "training": training,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_folders_count_as_the_results_in_them(tmp_path: Path) -> None:
    paths = [_write(tmp_path, name, [100.0, 200.0], TRAINING | {"lr": name}) for name in "ab"]
    (tmp_path / "config.json").write_text(json.dumps({"kind": "run"}))
    assert ablation([tmp_path]) == ablation(paths)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ResultError, match="contains no result of tdmpc-opt evaluate"):
        ablation([empty])
    with pytest.raises(ResultError, match=r"several results, a\.json and b\.json"):
        compare(tmp_path, paths[0])
    paths[1].unlink()
    assert compare(tmp_path, paths[0]).difference.mean == 0


def test_own_tasks_are_compared_by_their_returns(tmp_path: Path) -> None:
    path = _write(tmp_path, "a", [-20.0, -40.0], TRAINING)
    content = json.loads(path.read_text())
    content["tasks"] = {"Point-v0": content["tasks"]["cup-catch"]}
    content["config"]["tasks"] = ["Point-v0"]
    path.write_text(json.dumps(content))
    (row,) = ablation([path])
    assert (row.score.mean, row.unit) == (-30.0, MEAN_RETURN)
    assert row.score.ci95 == pytest.approx((-40.0, -20.0))
    assert compare(path, path).unit == MEAN_RETURN


def test_runs_are_grouped_by_what_they_differ_in(tmp_path: Path) -> None:
    paths = [
        _write(tmp_path, "a0", [100, 200], TRAINING),
        _write(tmp_path, "a1", [300, 400], TRAINING | {"seed": 1, "output": "other"}),
        _write(tmp_path, "b0", [500, 700], TRAINING | TEACHER | {"reward_weight": 0.4}),
        _write(tmp_path, "c0", [800, 900], TRAINING | TEACHER | {"reward_weight": 0.9}),
    ]
    rows = ablation(paths)
    assert [row.label for row in rows] == [
        "no teacher",
        "teacher teacher.safetensors, reward_weight 0.4",
        "teacher teacher.safetensors, reward_weight 0.9",
    ]
    assert [row.seeds for row in rows] == [(0, 1), (0,), (0,)]
    assert [row.score.mean for row in rows] == [25.0, 60.0, 85.0]


def test_what_a_distillation_left_alone_is_not_told(tmp_path: Path) -> None:
    usual = {"temperature": 1.0, "reward_steps": "first", "teacher_precision": "32-true"}
    taught = TRAINING | TEACHER | usual
    paths = [
        _write(tmp_path, "a", [1, 2], TRAINING),
        _write(tmp_path, "b", [1, 2], taught),
        _write(tmp_path, "c", [1, 2], taught | {"temperature": 2.0}),
    ]
    assert [row.label for row in ablation(paths)] == [
        "no teacher",
        "teacher teacher.safetensors",
        "teacher teacher.safetensors, temperature 2.0",
    ]


def test_nested_settings_that_differ_are_named(tmp_path: Path) -> None:
    weights = {"weights": {"reward": 0.1, "behaviour": 2.0}}
    paths = [
        _write(tmp_path, "a", [1, 2], TRAINING),
        _write(tmp_path, "b", [1, 2], TRAINING | weights),
    ]
    labels = [row.label for row in ablation(paths)]
    assert labels == ["weights.behaviour 0.0", "weights.behaviour 2.0"]


@pytest.mark.parametrize(
    ("training", "config", "message"),
    [
        ({"updates": 200}, {}, "another budget than .*a.json: its updates is 200, not 100"),
        ({"data": {"name": "data", "sha256": "d2"}}, {}, "its data is .*d2"),
        ({}, {"mode": "planner"}, "its mode is planner, not None"),
        ({"output": "x"}, {}, "two result files are of the same training run"),
    ],
)
def test_unequal_or_repeated_runs_are_refused(
    tmp_path: Path, training: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    paths = [
        _write(tmp_path, "a", [1, 2], TRAINING),
        _write(tmp_path, "b", [1, 2], TRAINING | training, **config),
    ]
    with pytest.raises(ResultError, match=message):
        ablation(paths)


def test_agents_of_unknown_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="does not state how its agent was trained"):
        ablation([_write(tmp_path, "a", [1, 2], None)])


def test_unfinished_evaluations_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, "a", [1, 2], TRAINING)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    with pytest.raises(ResultError, match="is not complete"):
        ablation([path])


def test_the_interval_covers_the_spread_of_seeds() -> None:
    rng = np.random.default_rng(3)
    episodes = rng.normal(500, 10, size=(3, 4, 20))
    apart = episodes + np.array([-200.0, 0.0, 200.0])[:, None, None]
    narrow, wide = score_over_seeds(episodes).ci95, score_over_seeds(apart).ci95
    assert narrow is not None
    assert wide is not None
    assert narrow[1] - narrow[0] < 1.0
    assert wide[0] < 40.0
    assert wide[1] > 60.0
    assert score_over_seeds(episodes[:1, :, :1]).ci95 is None


def test_the_interval_of_one_seed_is_that_of_a_mean() -> None:
    returns = np.random.default_rng(5).normal(500, 100, size=400)
    interval = score_over_seeds(returns[None, None]).ci95
    assert interval is not None
    half = 1.96 * returns.std() / 10 / np.sqrt(400)
    np.testing.assert_allclose(
        np.array(interval) - returns.mean() / 10, [-half, half], atol=0.05
    )


def test_the_command_prints_and_draws_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        _write(tmp_path, "a", [100, 200], TRAINING),
        _write(tmp_path, "b", [300, 500], TRAINING | TEACHER),
    ]
    picture = tmp_path / "ablation.png"
    assert main(["ablation", *map(str, paths), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"no teacher +│ +1 │ +15.00 │ \[10.00, 20.00\]", out)
    assert re.search(r"teacher.safetensors +│ +1 │ +40.00", out)
    assert picture.read_bytes().startswith(b"\x89PNG")
