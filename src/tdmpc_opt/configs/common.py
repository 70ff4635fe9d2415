"""What configurations of several commands share: marks of fields, and the fields themselves."""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from tdmpc_opt.errors import InputError

Mode = Literal["planner", "policy"]
Device = Literal["auto", "cpu", "cuda", "mps"]
MatmulPrecision = Literal["highest", "medium"]
EngineName = Literal["auto", "eager"]
"""`auto` is ONNX Runtime where it is installed and the agent fits, and else eager torch."""

COLLECTION_SEED = 1_000_000
"""First environment seed of experts and collection; evaluation stays below."""
CHOICE_SEED = 500_000
"""First environment seed of scores that something is chosen by: no reported score uses it."""
REPORTED_SEED = 10_000
"""First environment seed of reported scores: those of ten episodes have starts 10,000 to 10,009
of each task. Older result files have starts from 0; each states its own."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """Facts about a field of a configuration, given as `Annotated[type, Knob(...)]`."""

    positional: bool = False
    """Whether the command line takes it by position."""
    result: bool = True
    """Whether it affects the result. One that does not may change when a run is resumed."""
    recorded: bool = True
    """Whether the record of a run states it."""
    since: int = 1
    """First schema of records that has the field. Records of earlier schemas lack it, so from 2
    on the default is recorded as null, and in a nested part not at all."""


POSITIONAL = Knob(positional=True)
COST = Knob(result=False)
"""Of a field that changes what a run costs or shows, and not its result."""
UNRECORDED = Knob(result=False, recorded=False)
LATER = Knob(since=2)


def knobs(config: type) -> dict[str, Knob]:
    """Return the facts about each field of a configuration class, by name."""
    hints = get_type_hints(config, include_extras=True)
    marks = {
        name: [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Knob)]
        for name, hint in hints.items()
    }
    return {field.name: (marks[field.name] or [Knob()])[0] for field in fields(config)}


def recorded(config: Any, *, part: bool = False) -> dict[str, Any]:
    """Return the values that identify a configuration in the record of its run.

    Args:
        config: The configuration.
        part: Whether it is a part of another one. Records of earlier schemas have parts as a
            whole, so these lack a later field at its default.
    """
    values, marks = dict[str, Any](), knobs(type(config))
    for field in fields(config):
        value, knob = getattr(config, field.name), marks[field.name]
        unchanged = knob.since > 1 and value == field.default
        if not knob.recorded or (part and unchanged):
            continue
        if is_dataclass(value):
            value = recorded(value, part=True)
        values[field.name] = None if unchanged else value
    return values


def cost_fields(config: type) -> frozenset[str]:
    """Return the fields of a configuration class that do not affect the result."""
    return frozenset(name for name, knob in knobs(config).items() if not knob.result)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Options with numbers: each is finite, at least 0, and fits 64 bits."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not 0 <= number < 2**63:
                    raise InputError(
                        f"`{field.name}` must be at least 0 and below 2**63, got {number}"
                    )


@dataclass(frozen=True, kw_only=True)
class OfCheckpoint:
    """The agent that a command reads."""

    checkpoint: Annotated[str, POSITIONAL]
    """Checkpoint file of any known layout, model folder, zoo name or hub id."""


@dataclass(frozen=True, kw_only=True)
class OnTasks:
    """The tasks that a command works on."""

    tasks: str | None = None
    """`mt30`, or task names joined by commas, MODULE:ID for Gymnasium environments of your own;
    without it every task of the agent or policy, or else of MT30. Of a
    checkpoint that does not name its tasks, these are all names, each once and in the order of
    its task embedding; several such teachers share the names out in their order."""


@dataclass(frozen=True, kw_only=True)
class ToOutput:
    """What a command writes."""

    output: Annotated[Path, COST]
    """File or folder to write, as the description of the command states."""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """The device of a command."""

    device: Annotated[Device, COST] = "auto"
    """Where the networks run."""


@dataclass(frozen=True, kw_only=True)
class ByWorkers(Numbers):
    """The processes that share the work of a command."""

    workers: Annotated[int, COST] = 0
    """Processes that share the tasks; 0 takes one per CPU core that is allotted and idle."""
    ray: Annotated[str | None, COST] = None
    """Address of a Ray cluster that does the work, HOST:PORT, `auto` for the one of this
    machine, or `local` for one that this command starts; without it plain processes."""


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How an agent acts."""

    mode: Mode | None = None
    """Act by planning, or by the policy network alone. Without it the agent plans where a
    preset or another option of the planner is given, and else acts by the policy, which takes
    minutes and not hours."""
    preset: str | None = None
    """Planner budget by name: published (TD-MPC2's own), full, balanced, realtime, policy, or
    one that the checkpoint contains; without it full. A checkpoint may contain other budgets
    under these names, except published."""

    @property
    def chosen_mode(self) -> Mode:
        """How the agent acts: as requested, or as the options of the planner imply."""
        return self.mode or ("planner" if self.preset else "policy")


@dataclass(frozen=True, kw_only=True)
class ToPlot:
    """A chart that a command may draw."""

    plot: Path | None = None
    """PNG of the chart; without it none."""


@dataclass(frozen=True, kw_only=True)
class Seeded(Numbers):
    """The seed of a command."""

    seed: int = 0
    """Seed of the training: of initial weights, sampling, exploration, dropout and noise."""


@dataclass(frozen=True, kw_only=True)
class AtPort(Numbers):
    """The port of a server."""

    port: int
    """Port to listen at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > 65535:
            raise InputError(f"`port` must be at most 65535, got {self.port}")


@dataclass(frozen=True, kw_only=True)
class Labelled(Numbers):
    """Episodes with labels to imitate."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the actions, in action units."""
    label: str | None = None
    """Checkpoint file, zoo name, folder of experts, MODULE:FACTORY or `plan` whose actions in
    the visited states are stored to imitate; without it those of the policy without noise."""


def device_of_work(device: Device, ray: str | None) -> Device:
    """Return where the networks of work for `run_parallel` run: on a Ray cluster, the CPU.

    Raises:
        InputError: Another device is requested on a Ray cluster.
    """
    if ray is not None and device in ("cuda", "mps"):
        raise InputError(
            f"--ray shares CPUs alone, and --device {device} is requested; leave one out"
        )
    return device if ray is None else "cpu"
