"""Frames into mp4 or GIF, by the ffmpeg that imageio-ffmpeg brings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from tdmpc_opt.atomic import replace_when_done
from tdmpc_opt.errors import RunError

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
                str(temporary), size, fps=FRAMES_PER_SECOND, macro_block_size=2, **options
            )
            writer.send(None)
            try:
                for picture, repeats in frames:
                    for _ in range(repeats):
                        writer.send(np.ascontiguousarray(picture))
            finally:
                writer.close()
    except OSError as error:
        reason = str(error).strip().splitlines() or ["the encoder failed"]
        raise RunError(f"cannot write {path}: {reason[0]}") from error
