"""The command line: parse a config, call one function, print its result."""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tdmpc_opt
from tdmpc_opt import machine
from tdmpc_opt.cli import deploy, files, measure, training
from tdmpc_opt.cli.command import Command, UsageError, overview, parse, with_options
from tdmpc_opt.cli.output import Terminal
from tdmpc_opt.errors import InputError, TdmpcOptError, printable

_GROUPS = {
    "Train": training.COMMANDS,
    "Measure and show": measure.COMMANDS,
    "Compress and deploy": deploy.COMMANDS,
    "Make and exchange data": training.DATA_COMMANDS,
    "Look at tasks and files": files.COMMANDS,
}
_COMMANDS = {command.name: command for group in _GROUPS.values() for command in group}
_OF_CONFIG = {command.config: command for command in _COMMANDS.values()}
_FAMILIES = {name.partition(" ")[0] for name in _COMMANDS if " " in name}

# Libraries that only some commands need, and the extra that brings each.
_EXTRAS = {
    **dict.fromkeys(("torch", "tensordict", "lightning_fabric", "tensorboard"), "train"),
    **dict.fromkeys(("jaxtyping", "scipy", "matplotlib"), "train"),
    "optuna": "tune",
    "ray": "ray",
    **dict.fromkeys(("gymnasium", "dm_control", "mujoco", "imageio"), "envs"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript", "onnxruntime"), "export"),
    "executorch": "executorch",
    "emx_onnx_cgen": "c",
    **dict.fromkeys(("websockets", "msgpack"), "server"),
    "jinja2": "report",
    **dict.fromkeys(("imageio_ffmpeg", "PIL"), "video"),
    **dict.fromkeys(("minari", "h5py"), "minari"),
    "pyarrow": "lerobot",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by what started the process
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        Terminal("").print(f"tdmpc-opt {tdmpc_opt.__version__}")
        return 0
    if arguments in (["-h"], ["--help"]):
        Terminal("").print(overview(_GROUPS))
        return 0
    if len(arguments) == 2 and arguments[0] in _FAMILIES and arguments[1] in ("-h", "--help"):
        Terminal("").print(overview(_members(arguments[0])))
        return 0
    try:
        config = _parse(arguments)
        return _run(_OF_CONFIG[type(config)], config)
    except KeyboardInterrupt:  # while the options were read
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _members(family: str) -> dict[str, list[Command]]:
    """Return the groups with the commands of one family, such as those of `data`."""
    groups = {
        title: [each for each in commands if each.name.startswith(f"{family} ")]
        for title, commands in _GROUPS.items()
    }
    return {title: commands for title, commands in groups.items() if commands}


def _run(command: Command, config: Any) -> int:
    """Run a command and return its exit status."""
    try:
        if machine.world_size() > 1 and not command.by_ranks:
            raise InputError(
                "torchrun can start train alone; call the other commands without it"
            )
        with closing(Terminal(command.name)) as terminal:
            command.run(config, terminal)
    except TdmpcOptError as error:
        return _fail(with_options(str(error), type(config)))
    except ImportError as error:
        return _fail(_not_imported(error))
    except KeyboardInterrupt:
        again = "the same command begins anew"
        if command.resumes:
            again = "the same command goes on with what is not finished yet"
        return _fail(f"interrupted; {again}", 130)
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    """Return the config of a command; leave with status 2 where the words make none."""
    if not arguments:
        raise SystemExit(_fail("name a command (tdmpc-opt --help lists them)", 2))
    words = 2 if arguments[0] in _FAMILIES else 1
    name = " ".join(word for word in arguments[:words] if not word.startswith("-"))
    if name not in _COMMANDS:
        raise SystemExit(_fail(_unknown(name or arguments[0]), 2))
    try:
        return parse(_COMMANDS[name], arguments[words:])
    except UsageError as error:
        raise SystemExit(_fail(f"{error} (tdmpc-opt {name} --help)", 2)) from error


def _unknown(name: str) -> str:
    """Return what is wrong with a first word, or two, that no command has."""
    known = [each for each in _COMMANDS if each.startswith(f"{name} ")]
    near = get_close_matches(name, _COMMANDS, 1)
    if known:
        hint = f"; there are {', '.join(known)}"
    else:
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"no command {printable(name, 40)!r}{hint} (tdmpc-opt --help lists them all)"


def _fail(message: str, status: int = 1) -> int:
    who = f"tdmpc-opt, rank {machine.rank()}" if machine.rank() else "tdmpc-opt"
    sys.stderr.write(f"{who}: {message}\n")
    return status


def _not_imported(error: ImportError) -> str:
    """Return which library cannot be imported, and what to do.

    Raises:
        ImportError: The same, where no other library is at fault.
    """
    name = error.name or _raised_in(error)
    library = name.partition(".")[0]
    extra = _EXTRAS.get(library)
    if library in ("", "tdmpc_opt"):
        raise error
    if not isinstance(error, ModuleNotFoundError):
        return (
            f"the library {library} is installed but cannot be imported "
            f"({printable(str(error), 1000)}); it is damaged or does not fit this machine: "
            "install it anew"
        )
    if extra is None:  # of an environment of the user's
        return (
            f"this needs the library {library}, which is not installed: pip install {library}"
        )
    return f'this command needs {name}: pip install "tdmpc-opt[{extra}]"'


def _raised_in(error: Exception) -> str:
    """Return the module that raised an exception."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
