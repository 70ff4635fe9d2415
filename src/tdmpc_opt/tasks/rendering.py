"""Loading dm_control's OpenGL backend on machines that may have none."""

import importlib
import os

import dm_control  # noqa: F401  # that it is missing must not pass for a missing backend
import glfw

_VARIABLE = "MUJOCO_GL"


def load_renderer() -> str | None:
    """Import dm_control's OpenGL backend; where that fails, one that refuses to draw.

    dm_control imports its backend with everything else, so that a bad one would keep tasks from
    being stepped. It tries GLFW, then EGL, then OSMesa, and expects the first to raise where it
    cannot draw. By default GLFW only warns, so that dm_control would keep it and later fail.

    Returns:
        Why nothing can be drawn in this process; None if the backend was loaded.
    """
    before = glfw.ERROR_REPORTING
    glfw.ERROR_REPORTING = "raise"
    try:
        _import_simulator()
    except (ImportError, AttributeError, RuntimeError, glfw.GLFWError) as error:
        asked = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = "disabled"
        _import_simulator()
        del os.environ[_VARIABLE]
        if asked is not None:
            os.environ[_VARIABLE] = asked
        reason = str(error) or repr(error.__cause__)  # dm_control raises some without words
        return f"{_VARIABLE}={asked or ''}: {reason.strip().splitlines()[0]}"
    finally:
        glfw.ERROR_REPORTING = before
    return None


def _import_simulator() -> None:
    for name in ("mujoco", "dm_control._render", "dm_control.suite"):
        importlib.import_module(name)
