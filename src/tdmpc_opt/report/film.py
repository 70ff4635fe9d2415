"""Films of agents at work, drawn off-screen and written as mp4, GIF or a contact sheet."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from tdmpc_opt.agents.compute import threads
from tdmpc_opt.agents.rollout import Player, Policy
from tdmpc_opt.agents.sources import CheckpointSource, PolicySource, open_source, refuse_unused
from tdmpc_opt.configs.measure import VideoConfig
from tdmpc_opt.errors import RunError
from tdmpc_opt.files import refuse_overwrite, replace_when_done, written
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.schema import Task, TaskTable
from tdmpc_opt.tasks.offscreen import drawing_process

Picture = NDArray[np.uint8]

_PANEL = 384  # edge of an agent's picture, in pixels
_TITLE = 30  # height of the row with task and time
_CAPTION = 46  # height of the two lines above each picture
_COLUMNS, _THUMB, _LABEL = 6, 192, 36  # of the contact sheet
_INK, _FAINT, _PAPER = "#f2f2f2", "#a8b0b8", "#15181c"
_SEED = 0  # of the environments
_LETTERS = 46  # of an agent's name in a film


FRAMES_PER_SECOND = 25.0
"""Of every film."""

_FORMATS: dict[str, dict[str, Any]] = {
    ".mp4": {
        "codec": "libx264",
        "quality": 7,
        "output_params": ["-f", "mp4", "-movflags", "+faststart"],
    },
    ".gif": {
        "codec": "gif",
        "pix_fmt_out": "pal8",
        "output_params": [
            *("-f", "gif", "-loop", "0", "-filter_complex"),
            # A palette of the film's own colours; half the frames do for a small picture.
            "fps=12.5,split[a][b];[a]palettegen=max_colors=128[p];[b][p]paletteuse=dither=bayer",
        ],
    },
}


@dataclass(frozen=True)
class Shot:
    """One step of all agents in a task."""

    task: str
    seconds: float
    """Simulated time since the start of the episode."""
    frames: int
    """Frames of the film that it lasts."""
    share: float
    """Part of the task's shots that are done with this one."""
    pictures: tuple[Picture, ...]
    returns: tuple[float, ...]
    latencies_ms: tuple[float | None, ...]
    """Median time of the latest actions; None before the first."""


@dataclass(frozen=True)
class _Job:
    sources: tuple[PolicySource, ...]
    tasks: TaskTable
    seconds: float | None = None
    """Simulated time of a film; None films whole episodes."""
    poses: bool = False
    """Whether one picture is taken of each task, half of its steps after its start or at its
    end."""


def video(config: VideoConfig, progress: Progress | None = None) -> list[Path]:
    """Film an agent, alone or beside another, and draw a contact sheet of its tasks.

    Returns:
        The files written.

    Raises:
        CheckpointError: An agent that cannot be read.
        UnknownTaskError: A task that an agent does not know.
        InputError: An environment that draws nothing.
        MissingDependencyError: No off-screen OpenGL on this machine, or a library is missing.
        RunError: A file that cannot be written.
    """
    refuse_overwrite(config)
    progress = progress or Silent()
    chosen = [(config.checkpoint, config.chosen_mode)]
    if config.against is not None:
        chosen.append((config.against, config.against_mode or config.chosen_mode))
    sources = tuple(
        open_source(source, mode=mode, names=config.tasks, preset=config.preset, device="cpu")
        for source, mode in chosen
    )
    for source, mode in zip(sources, (config.mode, config.against_mode), strict=False):
        refuse_unused(source, mode, preset=config.preset if config.against is None else None)
    tasks = sources[0].tasks(config.tasks)
    for source in sources[1:]:
        source.tasks(tasks.selection)
    if config.output is not None:
        names = [_name(source, tasks) for source in sources]
        with drawing_process(film, _Job(sources, tasks, config.seconds)) as shots:
            size = (_PANEL * len(sources), _PANEL + _TITLE + _CAPTION)
            seen = _reported(shots, progress, len(tasks), "film")
            write_film(config.output, size, (_frame(shot, names) for shot in seen))
    if config.sheet is not None:
        with drawing_process(film, _Job(sources[:1], tasks, poses=True)) as shots:
            seen = _reported(shots, progress, len(tasks), "contact sheet")
            _write_sheet(config.sheet, list(seen))
    return [path for path in (config.output, config.sheet) if path is not None]


def _name(source: PolicySource, tasks: TaskTable) -> str:
    """Return what a film calls an agent, shortened in its middle to the width of a picture."""
    name = str(source.identity(tasks)["name"])
    name = f"{name}, {source.mode}" if isinstance(source, CheckpointSource) else name
    return (
        name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2]}...{name[-_LETTERS // 2 :]}"
    )


def film(job: _Job) -> Iterator[Shot]:
    """Yield the shots of each task in turn, all agents in step; run where drawing works."""
    with threads(1):
        policies = [source.load(job.tasks) for source in job.sources]
        for task in job.tasks.tasks:
            yield from _clip(policies, task, job)


def _clip(policies: list[Policy], task: Task, job: _Job) -> Iterator[Shot]:
    players = [Player(policy, task, _SEED) for policy in policies]
    last = task.episode_length // 2 if job.poses else task.episode_length
    if job.seconds is not None:
        last = min(last, round(job.seconds * players[0].steps_per_second))
    # The film runs in real time whatever the task's control step.
    rate = FRAMES_PER_SECOND / players[0].steps_per_second
    for step in range(last + 1):
        for player in players if step else ():
            player.step()
        frames = int((step + 1) * rate + 1e-6) - int(step * rate + 1e-6)
        over = all(player.over for player in players)
        if (over or step == last) if job.poses else frames:
            yield _shot(players, task, step, frames, (step + 1) / (last + 1))
        if over:
            break
    for player in players:
        player.env.close()


def _shot(players: list[Player], task: Task, step: int, frames: int, share: float) -> Shot:
    return Shot(
        task=task.name,
        seconds=step / players[0].steps_per_second,
        frames=frames,
        share=share,
        pictures=tuple(player.picture() for player in players),
        returns=tuple(player.total for player in players),
        latencies_ms=tuple(player.latency_ms for player in players),
    )


def _reported(
    shots: Iterator[Shot], progress: Progress, total: int, what: str
) -> Iterator[Shot]:
    tasks, task = 0, ""
    progress.update(0, 100 * total, f"{what}: starting the process that draws")
    for shot in shots:
        if shot.task != task:
            tasks, task = tasks + 1, shot.task
        # In hundredths of a task, so that the time left is known early in the first.
        done = 100 * (tasks - 1) + int(100 * shot.share)
        progress.update(done, 100 * total, f"{what}: {task}")
        yield shot


def _frame(shot: Shot, names: list[str]) -> tuple[Picture, int]:
    """Return the annotated picture, and how many frames of the film it lasts."""
    width = _PANEL * len(names)
    image = Image.new("RGB", (width, _PANEL + _TITLE + _CAPTION), _PAPER)
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(16), ImageFont.load_default(14)
    draw.text((10, 7), shot.task, _INK, large)
    draw.text((width - 10, 7), f"{shot.seconds:.1f} s", _FAINT, large, anchor="ra")
    for index, name in enumerate(names):
        left = index * _PANEL
        draw.text((left + 10, _TITLE), name, _FAINT, small)
        draw.text((left + 10, _TITLE + 20), f"return {shot.returns[index]:.1f}", _INK, large)
        latency = shot.latencies_ms[index]
        if latency is not None:
            place = (left + _PANEL - 10, _TITLE + 20)
            draw.text(place, f"{latency:.1f} ms an action", _INK, large, anchor="ra")
        picture = _square(shot.pictures[index], _PANEL)
        image.paste(picture, (left, _TITLE + _CAPTION))
        if index:
            draw.line((left, _TITLE, left, image.height), _PAPER, 2)
    return np.asarray(image), shot.frames


def _square(picture: Picture, edge: int) -> Image.Image:
    return ImageOps.pad(Image.fromarray(picture), (edge, edge), color=_PAPER)


def _write_sheet(path: Path, shots: list[Shot]) -> None:
    columns = min(_COLUMNS, len(shots))
    rows = -(-len(shots) // columns)
    image = Image.new("RGB", (columns * _THUMB, rows * (_THUMB + _LABEL)), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for index, shot in enumerate(shots):
        left = index % columns * _THUMB
        top = index // columns * (_THUMB + _LABEL)
        image.paste(_square(shot.pictures[0], _THUMB - 2), (left + 1, top + _LABEL))
        draw.text((left + 4, top + 3), shot.task, _INK, font)
        note = f"return {shot.returns[0]:.0f} after {shot.seconds:.1f} s"
        draw.text((left + 4, top + 18), note, _FAINT, font)
    with written(path, RunError) as temporary:
        image.save(temporary, format="PNG")


def write_film(
    path: Path, size: tuple[int, int], frames: Iterable[tuple[NDArray[np.uint8], int]]
) -> None:
    """Write a film.

    Args:
        path: File that ends in `.mp4` or `.gif`.
        size: Width and height in pixels, both even.
        frames: Pictures [height, width, 3] and for how many frames each is shown.

    Raises:
        RunError: A file that cannot be written, or an encoder that fails.
    """
    options = _FORMATS[path.suffix.lower()]
    try:
        with replace_when_done(path) as temporary:
            writer = imageio_ffmpeg.write_frames(
                str(temporary),
                size,
                fps=FRAMES_PER_SECOND,
                macro_block_size=2,
                ffmpeg_log_level="error",  # it warns of colours that a GIF has twice
                **options,
            )
            writer.send(None)
            sent = 0
            try:
                for picture, repeats in frames:
                    sent += repeats
                    for _ in range(repeats):
                        writer.send(np.ascontiguousarray(picture))
            finally:
                writer.close()
            _require_whole(temporary, sent)
    except OSError as error:
        reason = str(error).strip().splitlines() or ["the encoder failed"]
        raise RunError(f"cannot write {path}: {reason[0]}") from error


def _require_whole(path: Path, frames: int) -> None:
    """Read a film back: the writer does not report an encoder that failed at the end."""
    try:
        _, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:  # nothing that can be read
        seconds = 0.0
    if seconds < (frames - 1.5) / FRAMES_PER_SECOND:
        raise OSError(
            f"the encoder wrote {seconds:.2f} of {frames / FRAMES_PER_SECOND:.2f} s; free some "
            "space on the disk"
        )
