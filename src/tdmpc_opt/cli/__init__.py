"""The command line: parse a config, call one function, print what came of it."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

import tdmpc_opt
from tdmpc_opt import machine
from tdmpc_opt.cli import (
    compression,
    data,
    deploy,
    files,
    planner,
    reports,
    scores,
    show,
    training,
)
from tdmpc_opt.cli.command import check_paths, rules
from tdmpc_opt.cli.output import console
from tdmpc_opt.errors import InputError, TdmpcOptError, printable

_COMMANDS = (
    *files.COMMANDS,
    *compression.COMMANDS,
    *deploy.COMMANDS,
    *planner.COMMANDS,
    *scores.COMMANDS,
    *data.COMMANDS,
    *training.COMMANDS,
    *reports.COMMANDS,
    *show.COMMANDS,
)
_RUNS = {command.config: command.run for command in _COMMANDS}
_BY_RANKS = {command.config for command in _COMMANDS if command.by_ranks}

# Libraries that only some commands need, and the extra that brings each.
_EXTRAS = {
    **dict.fromkeys(("torch", "tensordict", "lightning_fabric", "tensorboard"), "train"),
    **dict.fromkeys(("jaxtyping", "scipy", "matplotlib"), "train"),
    "optuna": "tune",
    "ray": "ray",
    **dict.fromkeys(("gymnasium", "dm_control", "mujoco"), "envs"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript", "onnxruntime"), "export"),
    "executorch": "executorch",
    "emx_onnx_cgen": "c",
    **dict.fromkeys(("websockets", "msgpack"), "server"),
    "jinja2": "report",
    **dict.fromkeys(("imageio_ffmpeg", "PIL"), "video"),
    **dict.fromkeys(("minari", "h5py"), "minari"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        console().print(f"tdmpc-opt {tdmpc_opt.__version__}", highlight=False)
        return 0
    status = 0
    try:
        config = _parse(arguments)
        if machine.world_size() > 1 and type(config) not in _BY_RANKS:
            raise InputError("torchrun can start train and distill; call others without it")
        check_paths(config)
        _RUNS[type(config)](config)
    except TdmpcOptError as error:
        status = _fail(str(error))
    except ModuleNotFoundError as error:
        status = _fail(_missing(error))
    except KeyboardInterrupt:
        done = "interrupted; what was finished is kept, and the same command goes on from there"
        status = _fail(done, 130)
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    return status


def _parse(arguments: list[str]) -> Any:
    """Return the config of a command; leave with status 2 where the words make none."""
    if arguments[:1] == ["data"]:  # its commands are two words, one name to the parser
        name = next((word for word in arguments[1:2] if not word.startswith("-")), "info")
        arguments[: 1 + (name in arguments[1:2])] = [f"data {name}"]
    if unknown := _unknown(arguments):
        raise SystemExit(_fail(unknown, 2))
    choices = [
        Annotated[command.config, tyro.conf.subcommand(command.name)] for command in _COMMANDS
    ]
    union: Any = reduce(or_, choices)
    return tyro.cli(
        union,
        args=arguments,
        prog="tdmpc-opt",
        description=tdmpc_opt.__doc__,
        registry=rules(),
    )


def _unknown(arguments: list[str]) -> str | None:
    """Return what is wrong with a first word that no command has, which is likely misspelt."""
    names = [command.name for command in _COMMANDS]
    word = next(iter(arguments), "-")
    if word.startswith("-") or word in names:
        return None
    near = get_close_matches(word, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"no command {printable(word, 40)!r}{hint} (tdmpc-opt --help lists them all)"


def _fail(message: str, status: int = 1) -> int:
    who = f"tdmpc-opt, rank {machine.rank()}" if machine.rank() else "tdmpc-opt"
    sys.stderr.write(f"{who}: {message}\n")
    return status


def _missing(error: ModuleNotFoundError) -> str:
    library = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(library)
    if library in ("", "tdmpc_opt"):
        raise error
    if extra is None:  # of an environment of the user's
        return (
            f"this needs the library {library}, which is not installed: pip install {library}"
        )
    return f'this command needs {error.name}: pip install "tdmpc-opt[{extra}]"'
