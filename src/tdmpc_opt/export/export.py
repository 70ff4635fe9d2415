"""`tdmpc-opt export`: trace, compare with torch on real observations, write what agrees.

Policies are compared with torch in fp64. In fp32 torch itself errs: a trained policy's steep
outputs magnify what rounding does to them, by up to a thousand times in the released student.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.checkpoints.summary import stored_contracts
from tdmpc_opt.compression.extract import one_task, policy_only
from tdmpc_opt.configs.deploy import ExportConfig
from tdmpc_opt.data.episodes import EpisodeDataset
from tdmpc_opt.errors import CheckpointError, DataError, InputError
from tdmpc_opt.evaluation.results import read_finished
from tdmpc_opt.evaluation.score import stored_score, unit_of
from tdmpc_opt.export.graphs import Inputs, Run
from tdmpc_opt.export.targets import Facts, make_artifact
from tdmpc_opt.files import alone, refuse_overwrite, sha256, written, written_together
from tdmpc_opt.model.fold import FoldedModel
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning.mppi import PlanNoise, draw_noise, plan
from tdmpc_opt.planning.presets import find_preset
from tdmpc_opt.progress import Progress, Silent, expected
from tdmpc_opt.runtime.onnx_file import open_onnx
from tdmpc_opt.schema import MT30, PlannerBudget, Task, TaskTable
from tdmpc_opt.tasks import choose_tasks, with_own_contracts

Array = NDArray[np.float32]
_Pair = tuple[Array, Array]

Observations = dict[str, NDArray[np.float32]]
"""By task name, [n, obs] of the task's own width."""

_STEPS = 40
_NOISE = 0.5
"""Standard deviation of the noise on the driving policy's actions."""
_PLANNED_ROWS = 32
"""Observations that are planned from, over all tasks: each takes a plan of torch."""
_SHARE = 0.9
"""Of plans, and of actions in fp16 and int8, this share has to keep the tolerance. Two samples
whose values tie may swap places among the elites, and what follows from there differs; an
action that switches between -1 and 1 may switch a little earlier or later."""
_TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.3}
_TOLERANCE_OF_PLANS = {"fp32": 5e-3, "fp16": 0.2, "int8": 1.0}
_ENDINGS: dict[str, tuple[str, ...]] = {"onnx": (".onnx",), "executorch": (".pte",), "c": ()}
"""How the names of files end, by target; C source is a folder."""
_SECONDS_OF_TRACING = {"policy": 5.0, "planner": 20.0}
"""Of the bundled student on one core; larger networks take about as long."""
_OF_TORCH_ITSELF = 3.0
"""Times the error of torch's own fp32 that a policy may err, where that is the larger."""


@dataclass(frozen=True)
class Parity:
    """How actions compare with those of torch."""

    max_error: float
    """Largest difference of an action."""
    judged_error: float
    """What has to keep the tolerance: the same, or what 9 of 10 observations stay below."""
    cosine: float
    """Mean cosine of the angle between the two actions of an observation."""
    torch_error: float
    """Largest difference of torch itself in fp32; 0 for plans, whose reference it is."""
    rows: int
    tasks: int
    act_ms: float
    """Median milliseconds of one action of the exported file here."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What exporting one file cost, and how it acts."""

    source: Path
    output: Path
    """File, or folder of C source, that was written."""
    source_bytes: int
    output_bytes: int
    """Length of what was written, of all files together."""
    format: str
    preset: str | None
    """Name of the planner's budget; None for the policy alone."""
    parity: Parity
    tolerance: float
    """What they had to keep."""
    seconds: float
    """How long exporting took."""


def export(
    config: ExportConfig,
    budget: PlannerBudget | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write an agent for an engine without torch.

    Args:
        config: What to write and where.
        budget: Sizes of the planner's search; None takes the config's preset.
        progress: Takes the stages: observations, tracing, comparison.

    Raises:
        CheckpointError: A checkpoint that cannot be read or cannot plan, actions that miss the
            tolerance, or a file that cannot be written.
        UnknownTaskError: A task that the agent does not know.
        InputError: An unknown preset, or no observations to check with.
        DataError, ResultError: A dataset or result file that does not fit.
        MissingDependencyError: A library that the target or the simulator needs.
        RunError: Another process writes the same output.
    """
    refuse_overwrite(config, *_ENDINGS[config.target])
    start, progress = time.perf_counter(), progress or Silent()
    source = resolve(config.checkpoint)
    read = read_checkpoint(source, tasks=config.tasks)
    checkpoint = _part(read, config)
    digest, source_bytes = sha256(source), source.stat().st_size
    if not config.policy_only and budget is None:
        budget = _budget(config, read)
    score = None if config.result is None else _measured_score(config.result, digest)
    facts = Facts(
        source=source,
        sha256=digest,
        config=checkpoint.config,
        tasks=checkpoint.tasks,
        contracts=with_own_contracts(
            stored_contracts(checkpoint), checkpoint.tasks, config.tasks
        ),
        number_format=config.format,
        preset=None if budget is None else config.preset or "full",
        budget=budget,
        score=score,
    )
    model = build(checkpoint, policy_will_do=config.policy_only)
    double = build(checkpoint, policy_will_do=config.policy_only, dtype=torch.float64)
    reference, single = Agent(double, mode="policy"), Agent(model, mode="policy")
    simulated = _simulated(checkpoint.tasks, config.tasks)
    progress.update(0, 3, f"observations{_expected(config, single, budget, simulated)} in all")
    seen = observations(reference, config.data, simulated)
    progress.update(1, 3, "tracing")
    artifact = make_artifact(config, model, facts)
    progress.update(2, 3, "comparing with torch")
    exact = config.format == "fp32"
    if budget is None:
        parity = _policy_parity(artifact.run, reference, single, seen, exact=exact)
    else:
        parity = _planner_parity(artifact.run, single, budget, seen)
    usual = _TOLERANCE_OF_PLANS[config.format]
    if config.policy_only:
        usual = max(_TOLERANCE[config.format], _OF_TORCH_ITSELF * parity.torch_error)
    tolerance = config.tolerance or usual
    if not parity.judged_error <= tolerance:
        raise CheckpointError(_too_far(config, parity, tolerance))
    files = artifact.files(asdict(parity) | {"tolerance": tolerance})
    _write(files, config)
    progress.update(3, 3, "written")
    return ExportReport(
        source=source,
        output=config.output,
        source_bytes=source_bytes,
        output_bytes=sum(map(len, files.values())),
        format=config.format,
        preset=facts.preset,
        parity=parity,
        tolerance=tolerance,
        seconds=time.perf_counter() - start,
    )


def _write(files: Mapping[str, bytes], config: ExportConfig) -> None:
    """Write one file, whose name is empty, or the folder of C source."""
    with alone(config.output / [*files][-1]):  # of C source, the metadata
        if config.target == "c":
            with written_together(config.output, CheckpointError) as folder:
                for name, content in files.items():
                    (folder / name).write_bytes(content)
            return
        with written(config.output, CheckpointError) as temporary:
            temporary.write_bytes(files[""])
            if config.target == "onnx":
                open_onnx(temporary, threads=1, providers=None)


def _expected(
    config: ExportConfig, agent: Agent, budget: PlannerBudget | None, simulated: Sequence[Task]
) -> str:
    """Return how long an export takes, from one task's observations and one plan."""
    seconds = _SECONDS_OF_TRACING["policy" if budget is None else "planner"]
    if config.data is None:
        start = time.perf_counter()
        for task in simulated[:1]:
            _drive(agent, task, np.random.default_rng(0))
            seconds += len(simulated) * (time.perf_counter() - start)
    if budget is not None:
        planner, start = Agent(agent.world_model, budget=budget), time.perf_counter()
        planner.act(np.zeros(agent.tasks.tasks[0].obs_dim, np.float32), agent.tasks.names[0])
        seconds += _PLANNED_ROWS * (time.perf_counter() - start)
    return expected(seconds)


def _budget(config: ExportConfig, checkpoint: Checkpoint) -> PlannerBudget:
    chosen = find_preset(config.preset, checkpoint.extra)
    if chosen.mode == "policy":
        raise InputError(f"the preset {config.preset} plans nothing; export with --policy-only")
    return chosen.budget


def _part(checkpoint: Checkpoint, config: ExportConfig) -> Checkpoint:
    """Return what goes into the file, without target Qs."""
    part = replace(checkpoint, tensors=checkpoint.without_targets())
    if config.policy_only:
        part = policy_only(part)
    if config.task is not None:
        return one_task(part, config.task)
    if len(part.tasks) == 1 and part.config.task_dim:
        return one_task(part, part.tasks.names[0])
    return part


def _too_far(config: ExportConfig, parity: Parity, tolerance: float) -> str:
    exact = parity.judged_error == parity.max_error
    how = "by up to" if exact else "in one of ten by more than"
    return (
        f"{config.output} is not written: its actions differ from torch's {how} "
        f"{parity.judged_error:.1e} (mean cosine {parity.cosine:.6f}), more than the tolerance "
        f"{tolerance:.1e}; take another --format, or allow more with --tolerance"
    )


def _measured_score(path: Path, sha256: str) -> dict[str, Any]:
    """Return what a result file states about a checkpoint."""
    content = read_finished(path, sha256)
    config = content["config"]
    unit = unit_of(content["tasks"])
    score = unit.shown(stored_score(content["score"]))
    return {
        "mean": score.mean,
        "ci95": score.ci95,
        "unit": unit.name,
        "tasks": len(content["tasks"]),
        "episodes": config.get("episodes"),
        "mode": config.get("mode"),
    }


def _policy_parity(
    run: Run, agent: Agent, single: Agent, observations: Observations, *, exact: bool
) -> Parity:
    """Compare mean actions with those of an agent in fp64; `single` is the same in fp32."""
    pairs, asked, own = list[_Pair](), list[Inputs](), 0.0
    for name, obs in observations.items():
        wanted = agent.act(obs, name)
        inputs = [_inputs(agent, name, row[None]) for row in obs]  # one by one, as on a device
        found = np.concatenate([run(each)["action"] for each in inputs])
        pairs += zip(wanted, found[:, : wanted.shape[1]], strict=True)
        own = max(own, float(np.abs(single.act(obs, name) - wanted).max()))
        asked = asked or inputs
    return _parity(run, asked, pairs, len(observations), own, exact=exact)


def _planner_parity(
    run: Run, agent: Agent, budget: PlannerBudget, observations: Observations
) -> Parity:
    """Compare the means of plans, a few observations of each task, one at a time.

    Of a model that predicts ends it is the mean of the first action: sequences that differ only
    after an end have one value, and which of them refit the plan is up to rounding.
    """
    model = agent.world_model
    networks, steps = FoldedModel(model), 1 if model.config.episodic else budget.horizon
    each = max(1, _PLANNED_ROWS // len(observations))
    source = torch.Generator().manual_seed(0)
    pairs, asked = list[_Pair](), list[Inputs]()
    for name, obs in observations.items():
        index = agent.tasks.index(name)
        for row in obs[np.linspace(0, len(obs) - 1, each).astype(int)]:
            noise = draw_noise(model, budget, [source])
            asked.append(_inputs(agent, name, row[None]) | _noise_inputs(noise, budget))
            wanted = _plan(model, networks, budget, torch.from_numpy(row), index, noise)
            found = run(asked[-1])["new_mean"]
            pairs.append((wanted[:steps].ravel(), found[:steps].ravel()))
    return _parity(run, asked[:8], pairs, len(observations))


def _parity(
    run: Run,
    asked: list[Inputs],
    pairs: list[_Pair],
    tasks: int,
    torch_error: float = 0.0,
    *,
    exact: bool = False,
) -> Parity:
    """Compare pairs of actions or plans, and time the file on some inputs."""
    errors = np.array([float(np.abs(a - b).max()) for a, b in pairs])
    largest = float(errors.max())
    judged = largest if exact else float(np.quantile(errors, _SHARE))
    cosine = float(np.mean([_cosine(a, b) for a, b in pairs]))
    times = []
    for inputs in asked:
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    act_ms = 1000 * float(np.median(times))
    return Parity(largest, judged, cosine, torch_error, len(errors), tasks, act_ms)


def _inputs(agent: Agent, task: str, obs: Array) -> Inputs:
    """Return the graph's inputs for observations [B, obs] of a task."""
    if len(agent.tasks) == 1:
        return {"obs": obs}
    return {"obs": obs, "task": np.full(len(obs), agent.tasks.index(task))}


def _plan(
    model: WorldModel,
    networks: FoldedModel,
    budget: PlannerBudget,
    row: torch.Tensor,
    task: int,
    noise: PlanNoise,
) -> Array:
    obs = torch.nn.functional.pad(row, (0, model.config.obs_dim - len(row))).unsqueeze(0)
    ids = torch.tensor([task])
    previous = torch.zeros(budget.horizon, 1, model.config.action_dim)
    with torch.inference_mode():
        result = plan(networks, model.encode(obs, ids), ids, previous, noise, budget)
    mean: Array = result.mean.numpy()
    return mean


def _noise_inputs(noise: PlanNoise, budget: PlannerBudget) -> Inputs:
    start = torch.zeros(budget.horizon, 1, noise.prior.shape[-1])
    named = {
        "prior": noise.prior,
        "samples": noise.samples,
        "value": noise.value,
        "heads": noise.heads[..., 0],
        "pick": noise.pick,
        "mean": start,
        "std": torch.full_like(start, budget.max_std),
    }
    return {name: np.ascontiguousarray(value.numpy()) for name, value in named.items()}


def _cosine(a: Array, b: Array) -> float:
    """Return the cosine of the angle between two rows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / max(lengths, 1e-30)


def observations(agent: Agent, data: Path | None, simulated: Sequence[Task]) -> Observations:
    """Return observations of each task of an agent that has any.

    Args:
        agent: In policy mode; it drives the simulator where there is no dataset.
        data: Dataset to take them from; None drives the simulator.
        simulated: Those of its tasks that have a simulator.

    Raises:
        DataError: A dataset that cannot be read, or has none of the tasks.
        InputError: Tasks that have no simulator here, and no dataset.
        MissingDependencyError: The simulator is not installed.
    """
    if data is None:
        if not simulated:
            raise InputError(
                "the check needs observations, and there is no simulator of the agent's tasks; "
                "name their environments with --tasks MODULE:ID, or a dataset with --data"
            )
        rng = np.random.default_rng(0)
        return {task.name: _drive(agent, task, rng) for task in simulated}
    found = dict(_stored(agent.tasks, data))
    if found:
        return found
    raise DataError(f"{data} has no episode of this agent's tasks; name another dataset")


def _stored(tasks: TaskTable, data: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    dataset = EpisodeDataset.open(data)
    for name in tasks.names:
        episodes = [
            episode.obs
            for shard in dataset.shards
            if shard.task == name
            for episode in dataset.episodes(shard)
        ]
        if episodes and episodes[0].shape[1] == tasks[name].obs_dim:
            rows = np.concatenate(episodes)
            yield name, rows[np.linspace(0, len(rows) - 1, _STEPS).astype(int)]


def _simulated(tasks: TaskTable, named: str | None) -> list[Task]:
    """Return those of MT30, and those whose environments the command line names."""
    known = (*MT30.tasks, *(choose_tasks(named).tasks if named else ()))
    return [task for task in tasks.tasks if task in known]


def _drive(agent: Agent, task: Task, rng: np.random.Generator) -> NDArray[np.float32]:
    from tdmpc_opt.tasks.environment import make_env

    env = make_env(task, 0)
    rows = [env.reset()[0]]
    while len(rows) < _STEPS:
        action = agent.act(rows[-1], task.name)
        noisy = np.clip(action + _NOISE * rng.standard_normal(action.shape), -1, 1)
        obs, _, terminated, truncated, _ = env.step(noisy.astype(np.float32))
        rows.append(env.reset()[0] if terminated or truncated else obs)
    env.close()
    return np.stack(rows)
