"""Distil, compress and run multi-task TD-MPC2 world models on small machines."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the heavy libraries load only inside the functions that need them
    from pathlib import Path

    import gymnasium
    import torch

    from tdmpc_opt.agents.agent import Agent
    from tdmpc_opt.pipeline.distill import Student
    from tdmpc_opt.schema import Size

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "load_agent", "load_pretrained", "make_env"]


def distill(
    *teachers: str,
    output: "str | Path",
    tasks: str | None = None,
    size: "Size" = "1",
    hours: float | None = None,
    updates: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    workers: int = 0,
    ray: str | None = None,
) -> "Student":
    """Make a small student of a teacher and score it: `tdmpc-opt distill`.

    The same call continues an interrupted one. Scripts that call it need
    `if __name__ == "__main__":`, because it starts worker processes.

    Args:
        teachers: Checkpoint files, zoo names, folders of experts, exported ONNX files, or
            `MODULE:FACTORY` for a policy of your own.
        output: Model folder to write; its data and runs are in `output/work`.
        tasks: Names of tasks joined by commas; None takes all of the teachers.
        size: Millions of parameters of the student.
        hours: Time to spend on this machine.
        updates: Gradient updates in all, in place of hours.
        seed: Seeds the student's training and the starts of its data.
        device: Where the networks compute.
        workers: Processes that drive episodes; 0 takes one per free core.
        ray: Address of a Ray cluster that drives episodes.

    Returns:
        The folder, and the scores of teacher and student from the same starts.

    Raises:
        TdmpcOptError: What `tdmpc-opt distill` reports as one line.
    """
    from pathlib import Path

    from tdmpc_opt.configs.pipeline import DistillConfig
    from tdmpc_opt.pipeline.distill import distill as run

    config = DistillConfig(
        teachers=teachers,
        output=Path(output),
        tasks=tasks,
        size=size,
        hours=hours,
        updates=updates,
        seed=seed,
        device=device,
        workers=workers,
        ray=ray,
    )
    return run(config)


def make_env(
    task: str,
    seed: int = 0,
    *,
    render_mode: Literal["rgb_array"] | None = None,
    legacy_cup_physics: bool = False,
) -> "gymnasium.Env":
    """Build the Gymnasium environment of a task.

    Args:
        task: Task name such as `walker-walk`, or `MODULE:ID` of an environment of your own.
        seed: Seed of the task's random stream; the first `reset()` starts from it.
        render_mode: `rgb_array` makes `render()` return a picture.
        legacy_cup_physics: Give the ball of the cup tasks the contact weights that MuJoCo had
            before 3.0, with which the first public agents were trained.

    Raises:
        UnknownTaskError: No such task.
        InputError: An environment of your own that no agent here can act in.
        MissingDependencyError: The simulator is missing, or its two parts do not fit.
    """
    from tdmpc_opt.tasks.environment import make_env as make

    return make(task, seed, render_mode=render_mode, legacy_cup_physics=legacy_cup_physics)


def load_agent(
    path_or_name: "str | Path",
    device: str = "cpu",
    preset: str | None = None,
    mode: Literal["planner", "policy"] = "planner",
    dtype: "torch.dtype | None" = None,
    engine: Literal["auto", "eager"] = "auto",
) -> "Agent":
    """Load an agent, ready to act, from any known checkpoint.

    Args:
        path_or_name: File of this project or of any public TD-MPC2 layout, model folder, zoo
            name, or `owner/name` on the Hugging Face hub.
        device: Where it computes; `auto` chooses.
        preset: Planner budget by name: `published`, `full`, `balanced`, `realtime`, `policy` or
            one stored in the file; None is `full`: the file's own, or else the published one.
        mode: `planner`, or `policy` for the policy network alone, whatever the preset.
        dtype: Number format of the computation, whatever the file stores; None is float32.
        engine: `auto` computes plans in ONNX Runtime where the extra `export` is installed and
            the agent is on the CPU in float32, and by torch elsewhere; `eager` always by torch.

    Raises:
        CheckpointError: The file is missing, damaged, foreign or unsafe.
        InputError: An unknown preset, mode, device or engine.
    """
    import torch

    from tdmpc_opt.agents.agent import load_agent as load
    from tdmpc_opt.export.engine import engine_choice

    dtype = torch.float32 if dtype is None else dtype
    return load(path_or_name, device, preset, mode, dtype, engine_choice(engine))


def load_pretrained(
    name: str,
    device: str = "cpu",
    preset: str | None = None,
    mode: Literal["planner", "policy"] = "planner",
) -> "Agent":
    """Load a bundled agent by its zoo name (`tdmpc-opt zoo` lists them).

    Raises:
        CheckpointError: No such name.
    """
    from tdmpc_opt import zoo

    return load_agent(zoo.path(name), device, preset, mode)
