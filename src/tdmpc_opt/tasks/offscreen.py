"""Drawing without a display: the OpenGL backend of this process, and a process that can draw.

MuJoCo and dm_control choose their OpenGL backend once, when they are imported, from the
environment variable MUJOCO_GL; a later choice needs a fresh process.
"""

import importlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tdmpc_opt.errors import MissingDependencyError, RunError, TdmpcOptError

Job = TypeVar("Job")
Item = TypeVar("Item")

_VARIABLE = "MUJOCO_GL"
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/></worldbody></mujoco>")
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""
_END = b"end"


def load_renderer() -> str | None:
    """Import dm_control's OpenGL backend; where that fails, one that refuses to draw.

    dm_control imports its backend with everything else, so that a bad one would keep tasks from
    being stepped. It tries GLFW, then EGL, then OSMesa, and expects the first to raise where it
    cannot draw. By default GLFW only warns, so that dm_control would keep it and later fail.

    Returns:
        Why nothing can be drawn in this process; None if the backend was loaded.
    """
    import dm_control  # noqa: F401  # that it is missing must not pass for a missing backend

    glfw = _glfw()
    before = getattr(glfw, "ERROR_REPORTING", None)
    if glfw:
        glfw.ERROR_REPORTING = "raise"  # what it raises is a UserWarning
    try:
        _import_simulator()
    except (ImportError, AttributeError, OSError, RuntimeError, UserWarning) as error:
        _import_without_renderer()
        reason = str(error) or repr(error.__cause__)  # dm_control raises some without words
        asked = os.environ.get(_VARIABLE, "")
        return f"{_VARIABLE}={asked}: {reason.strip().splitlines()[0]}"
    finally:
        if glfw:
            glfw.ERROR_REPORTING = before
    return None


def _glfw() -> Any | None:
    """Return the module, None where it or its library is missing: there are other backends."""
    try:
        return importlib.import_module("glfw")
    except (ImportError, OSError):
        return None


def _import_without_renderer() -> None:
    asked = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "disabled"
    try:
        _import_simulator()
    finally:
        del os.environ[_VARIABLE]
        if asked is not None:
            os.environ[_VARIABLE] = asked


def _import_simulator() -> None:
    for name in ("mujoco", "dm_control._render", "dm_control.suite"):
        importlib.import_module(name)


def choose_backend(candidates: tuple[str, ...] | None = None) -> str:
    """Return the first OpenGL backend that draws here, as the variable MUJOCO_GL names it.

    Args:
        candidates: What to try; None tries what the user set, or else EGL and OSMesa, and GLFW
            where there is a display.

    Raises:
        MissingDependencyError: None does; the message names the system packages.
    """
    candidates = candidates or _candidates()
    reasons = []
    for backend in candidates:
        # In a separate process, which a broken driver may end.
        run = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, **_variables(backend)},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode == 0:
            return backend
        lines = run.stderr.strip().splitlines() or [f"ended with status {run.returncode}"]
        reasons.append(f"{backend}: {lines[-1][:120]}")
    raise MissingDependencyError(
        f"cannot draw without a display ({'; '.join(reasons)}); on Debian or Ubuntu run: "
        "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)"
    )


def _candidates() -> tuple[str, ...]:
    asked = os.environ.get(_VARIABLE)
    if asked:
        return (asked,)
    if not sys.platform.startswith("linux"):
        return ("glfw",)
    return ("egl", "osmesa", "glfw") if "DISPLAY" in os.environ else ("egl", "osmesa")


def _variables(backend: str) -> dict[str, str]:
    found = {_VARIABLE: backend}
    if backend in ("egl", "osmesa"):
        found["PYOPENGL_PLATFORM"] = backend
    return found


@contextmanager
def drawing_process(
    function: Callable[[Job], Iterator[Item]], job: Job
) -> Iterator[Iterator[Item]]:
    """Run a generator in a process that can draw, and yield what it yields.

    Args:
        function: Module-level generator function; it, the job and the items must pickle.
        job: Its argument.

    Raises:
        MissingDependencyError: Nothing here draws without a display.
        TdmpcOptError: What the generator raised.
        RunError: The process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    # Bytes, so that the process sets its variables before it imports what the job needs.
    payload = pickle.dumps((function, job))
    arguments = (_variables(choose_backend()), payload, theirs)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    theirs.close()  # so that its death ends the pipe
    try:
        yield _items(ours)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _items(connection: Connection) -> Iterator[Any]:
    while True:
        try:
            item = connection.recv()
        except EOFError:
            raise RunError(
                "the drawing process died, perhaps out of memory or by its OpenGL driver; try "
                f"another backend: {_VARIABLE}=osmesa"
            ) from None
        if isinstance(item, TdmpcOptError):
            raise item
        if item == _END:
            return
        yield item


def _serve(variables: dict[str, str], payload: bytes, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C for both
    os.environ.update(variables)
    function, job = pickle.loads(payload)
    try:
        for item in function(job):
            connection.send(item)
        connection.send(_END)
    except BrokenPipeError:  # the caller was ended: nobody reads an item or an error
        return
    except TdmpcOptError as error:
        connection.send(error)
    except Exception as error:  # else the caller would report a driver's fault
        connection.send(RunError(f"drawing raised {type(error).__name__}: {error}"))
        raise
