import json

import pytest

from tdmpc_opt import zoo
from tdmpc_opt.pipeline import STUDENT_SIZE, TEACHER, demo


def test_the_demo_teacher_is_bundled_with_tasks_of_several_domains():
    from tdmpc_opt.checkpoints.load import describe
    from tdmpc_opt.model.world_model import WorldModel
    from tdmpc_opt.schema import MT30, model_config

    summary = describe(zoo.path(TEACHER))
    assert len({name.partition("-")[0] for name in summary.tasks}) >= 4
    tasks = MT30.subset(summary.tasks)
    student = WorldModel(model_config(STUDENT_SIZE, tasks), tasks)
    size = sum(p.numel() for n, p in student.named_parameters() if "target" not in n)
    assert size <= summary.parameters / 3


@pytest.mark.slow
def test_the_demo_runs_end_to_end_and_goes_on_where_it_was(tmp_path):
    output = tmp_path / "demo"
    rows = demo(output, updates=20, episodes=2)
    assert rows[0].name == "random actions"
    content = json.loads((output / "demo.json").read_text())
    assert [row["name"] for row in content["rows"]] == [row.name for row in rows]
    for picture in ("scores.png", "curves.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    half = output / "distilled-fp16.safetensors"
    assert half.stat().st_size < (output / "distilled/model.safetensors").stat().st_size / 2
    assert demo(output, updates=20, episodes=2) == rows
