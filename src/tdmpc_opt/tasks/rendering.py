"""Finding an OpenGL backend on machines without a display."""

from collections.abc import Iterator
from contextlib import contextmanager

import glfw


@contextmanager
def honest_glfw() -> Iterator[None]:
    """Make GLFW raise where it finds no display, while dm_control looks for a backend.

    dm_control tries GLFW, then EGL, then OSMesa, and expects the first to raise where it
    cannot draw. By default GLFW only warns, so that dm_control would keep it and later fail.
    """
    before = glfw.ERROR_REPORTING
    glfw.ERROR_REPORTING = "raise"
    try:
        yield
    finally:
        glfw.ERROR_REPORTING = before
