import subprocess

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from tdmpc_opt import cli
from tdmpc_opt.agents.rollout import Player
from tdmpc_opt.agents.sources import open_source
from tdmpc_opt.configs.measure import VideoConfig
from tdmpc_opt.errors import InputError, MissingDependencyError, RunError
from tdmpc_opt.report import film
from tdmpc_opt.report.film import video, write_film
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.offscreen import choose_backend, drawing_process


def _or_skip(function, *arguments):
    """Tests of drawing need an OpenGL library, which not every machine has."""
    try:
        return function(*arguments)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def _frames(path, size):
    """Decode a film into pictures [frames, height, width, 3]."""
    words = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo"]
    run = subprocess.run([*words, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    return np.frombuffer(run.stdout, np.uint8).reshape(-1, *size, 3)


def test_two_agents_are_filmed_side_by_side(checkpoint_file, tmp_path):
    config = VideoConfig(
        checkpoint=str(checkpoint_file),
        against="random",
        tasks="cartpole-balance",
        seconds=0.5,
        output=tmp_path / "film.mp4",
        sheet=tmp_path / "sheet.png",
    )
    assert _or_skip(video, config) == [config.output, config.sheet]
    frames = _frames(config.output, (384 + 30 + 46, 768))
    assert len(frames) == 13  # 0.5 s at 25 Hz, and the start
    moved = np.abs(frames[-1].astype(int) - frames[0]).mean(axis=2)
    assert moved[80:, :384].max() > 60
    assert moved[80:, 384:].max() > 60
    assert moved[30:76, :384].max() > 60  # the return was drawn anew
    sheet = np.asarray(Image.open(config.sheet))
    assert sheet.shape == (192 + 36, 192, 3)
    assert sheet.std() > 5


def test_planning_in_the_simulator_is_filmed_too():
    tasks = MT30.subset(["pendulum-swingup"])
    player = Player(open_source("plan").load(tasks), tasks.tasks[0], seed=0)
    player.step()
    assert player.latency_ms > 0


def test_a_gif_is_written_too(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8), 5) for _ in range(4)]
    write_film(tmp_path / "film.gif", (48, 32), pictures)
    with Image.open(tmp_path / "film.gif") as image:
        assert image.format == "GIF"
        assert image.size == (48, 32)
        assert image.n_frames == 10  # half of 20


def test_an_encoder_that_cannot_write_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_film(tmp_path / "file" / "film.mp4", (32, 32), [])


@pytest.mark.parametrize("end", [".mp4", ".gif"])
def test_an_encoder_that_stops_early_is_reported(end, tmp_path, monkeypatch):
    """As on a full disk: the library closes such a film without an error."""
    options = film._FORMATS[end]
    cut = [*options["output_params"], "-frames:v", "3"]
    pictures = [(np.full((32, 48, 3), shade, np.uint8), 1) for shade in range(0, 200, 10)]
    write_film(tmp_path / f"whole{end}", (48, 32), pictures)
    monkeypatch.setitem(film._FORMATS, end, options | {"output_params": cut})
    with pytest.raises(RunError, match=r"cannot write .*: the encoder wrote 0\.\d+ of 0\.80 s"):
        write_film(tmp_path / f"film{end}", (48, 32), pictures)
    assert not (tmp_path / f"film{end}").exists()


def test_the_next_backend_is_tried_and_all_failures_are_told():
    with pytest.raises(MissingDependencyError, match=r"one: .*two: .*libegl1 .*libosmesa6"):
        choose_backend(("one", "two"))
    assert _or_skip(choose_backend, ("one", "osmesa")) == "osmesa"


def test_what_the_user_set_is_all_that_is_tried(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(MissingDependencyError, match="nonsense: ") as error:
        choose_backend()
    assert "egl:" not in str(error.value)


def _count(job):
    yield from range(job)
    raise InputError("no more")


def _die(job):
    import os

    yield job
    os._exit(1)


def test_items_and_errors_come_from_the_drawing_process():
    seen = []
    with drawing_process(_count, 3) as items, pytest.raises(InputError, match="no more"):
        seen.extend(items)
    assert seen == [] or seen == [0, 1, 2]


def test_a_process_that_dies_is_reported():
    with drawing_process(_die, 3) as items, pytest.raises(RunError, match="MUJOCO_GL=osmesa"):
        list(items)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["random"], "name a film"),
        (["random", "--output", "x.avi"], "ends in .mp4 or .gif"),
        (["random", "--output", "x.gif", "--seconds", "0"], "above 0"),
    ],
)
def test_wrong_usage_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["video", *words])
    streams = capsys.readouterr()
    assert message in " ".join((streams.out + streams.err).replace("│", "").split())
