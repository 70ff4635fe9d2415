import json

import pytest

from tdmpc_opt.pipeline import demo as module
from tdmpc_opt.pipeline.demo import demo


@pytest.mark.slow
def test_the_demo_runs_end_to_end_and_goes_on_where_it_was(tmp_path):
    output = tmp_path / "demo"
    tasks = "pendulum-swingup"
    rows = demo(output, updates=20, tasks=tasks)
    content = json.loads((output / "demo.json").read_text())
    names = [row["name"] for row in content["rows"]]
    assert names == [
        "teacher",
        "distilled student",
        "control: no teacher",
        "control: cloned data",
        "random actions",
    ]
    assert [row["name"] for row in rows] == names
    for picture in ("scores.png", "curves.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    assert demo(output, updates=20, tasks=tasks) == rows


def test_the_cloning_control_imitates_the_actions_that_were_taken(dataset_dir, tmp_path):
    from tdmpc_opt.data.episodes import EpisodeDataset

    copied = EpisodeDataset.open(module._with_actions_as_labels(dataset_dir, tmp_path / "copy"))
    assert len(copied) == len(EpisodeDataset.open(dataset_dir))
    for shard in copied.shards:
        for episode in copied.episodes(shard):
            assert (episode.label[1:] == episode.action[1:]).all()
