"""The search of planner budgets for score against latency, and its result as JSON."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from tdmpc_opt.agents.agent import Agent
from tdmpc_opt.agents.compute import threads
from tdmpc_opt.agents.executor import run_parallel
from tdmpc_opt.agents.rollout import Array, torch_generator
from tdmpc_opt.agents.sources import CheckpointSource
from tdmpc_opt.agents.timing import estimate
from tdmpc_opt.checkpoints.checkpoint import Checkpoint, build
from tdmpc_opt.checkpoints.load import read_checkpoint, resolve
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs.measure import SEARCH_SEED, TUNING_SEED, TuneConfig
from tdmpc_opt.errors import CheckpointError, InputError, ResultError
from tdmpc_opt.evaluation.evaluate import TaskWork, evaluate_task
from tdmpc_opt.evaluation.results import REMOVED_ENGINES
from tdmpc_opt.evaluation.score import Score, normalized_score, unit_of
from tdmpc_opt.files import MODEL_FILE, alone, refuse_overwrite, require_same
from tdmpc_opt.machine import ResultFile, choose_processes
from tdmpc_opt.planning.planner import ChooseEngine, eager_engine
from tdmpc_opt.planning.presets import Preset, storable
from tdmpc_opt.progress import Progress, Silent
from tdmpc_opt.schema import UNNAMED, PlannerBudget, Task, TaskTable
from tdmpc_opt.tasks.environment import make_env

Parameters = dict[str, Any]
"""What the search draws, by name."""

FEWEST = 32
"""Sequences sampled per iteration, those of the policy prior not counted."""

_FIELDS = {field.name for field in fields(PlannerBudget)}
_LONGEST = 5
"""Most steps that a plan looks ahead."""


def _space(max_samples: int, max_iterations: int) -> dict[str, BaseDistribution]:
    """Return what the search draws from, by name."""
    return {
        "horizon": IntDistribution(2, _LONGEST),
        "iterations": IntDistribution(1, max_iterations),
        "samples": IntDistribution(FEWEST, max_samples, log=True),
        "prior_share": FloatDistribution(0.0, 1.0),
        "elite_share": FloatDistribution(0.02, 0.5, log=True),
        "temperature": FloatDistribution(0.25, 8.0, log=True),
        "max_std": FloatDistribution(0.2, 2.0, log=True),
        "warm_mean": CategoricalDistribution([0.0, 1.0]),
        "warm_std": CategoricalDistribution([0.0, 1.0, 2.0, 4.0]),
        "converged_std": CategoricalDistribution([0.0, 0.1, 0.2, 0.4]),
        "mean_action": CategoricalDistribution([False, True]),
        "prior_penalty": CategoricalDistribution([0.0, 0.03, 0.1, 0.3, 1.0]),
        "prior_hold": CategoricalDistribution([0.0, 10.0, 100.0, 300.0]),
    }


_PUBLISHED: Parameters = {
    **{name: getattr(PlannerBudget(), name) for name in _space(FEWEST, 1).keys() & _FIELDS},
    **{"samples": 488, "prior_share": 24 / 488, "elite_share": 64 / 512},
}


def budget_of(drawn: Mapping[str, Any]) -> PlannerBudget:
    """Return the budget of what was drawn.

    `samples` are those of the Gaussian; the policy prior's share of them comes on top. Shares,
    so that a choice means the same whatever the number of samples.
    """
    others = dict(drawn)
    prior_share, elite_share = others.pop("prior_share"), others.pop("elite_share")
    prior = round(prior_share * drawn["samples"])
    total = drawn["samples"] + prior
    others |= {"samples": total, "policy_samples": prior}
    others |= {} if prior else {"prior_penalty": 0.0, "prior_hold": 0.0}
    return PlannerBudget(
        **others,
        elites=max(2, round(elite_share * total)),
        min_std=min(PlannerBudget.min_std, drawn["max_std"]),
    )


def starts(max_samples: int, max_iterations: int) -> list[Parameters]:
    """Return what to try first: the published shape at small sizes, the cheapest first."""
    small = {"horizon": 2, "iterations": 1, "samples": FEWEST, "prior_share": 0.5}
    shapes: list[Parameters] = [
        small,
        small | {"mean_action": True},
        small | {"mean_action": True, "temperature": 4.0},
        small
        | {"mean_action": True, "temperature": 4.0, "prior_penalty": 0.3, "prior_hold": 300.0},
        small | {"horizon": 3, "samples": 64, "mean_action": True},
        small | {"horizon": 3, "samples": 64, "iterations": 2, "mean_action": True},
        {"samples": 128, "iterations": 2, "prior_share": 24 / 128},
        {
            **{"samples": 128, "iterations": 2, "prior_share": 24 / 128},
            **{"mean_action": True, "prior_penalty": 0.3},
        },
        {"samples": 256, "iterations": 3, "prior_share": 24 / 256},
    ]
    return [
        _PUBLISHED | shape
        for shape in shapes
        if shape["samples"] <= max_samples and shape["iterations"] <= max_iterations
    ]


_TURNS, _ACTIONS = 5, 8
_TURNS_THAT_WARM = 1


def cost_of(agent: Agent, full: Agent, task: Task) -> tuple[float, float]:
    """Time the agent in an episode, and in between the same model with the published budget.

    An agent that does not name its tasks acts in its only one.

    Returns:
        Time of one action for one observation on one thread as a share of that of the published
        budget, and the latter in milliseconds: processor time, so that other programs count
        little.
    """
    name = None if agent.tasks.names == (UNNAMED,) else task.name
    generators = {each: torch_generator((0,)) for each in (agent, full)}

    def act(acting: Agent, obs: Array) -> tuple[Array, float]:
        start = time.process_time()
        action = acting.act(obs, name, generator=generators[acting])
        return action, time.process_time() - start

    shares, full_ms = [], []
    with threads(1):
        env = make_env(task, TUNING_SEED)
        obs, _ = env.reset()
        for turn in range(_TURNS_THAT_WARM + _TURNS):
            own = []
            for _ in range(_ACTIONS):
                action, seconds = act(agent, obs)
                own.append(seconds)
                obs, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    obs, _ = env.reset()
            _, seconds = act(full, obs)
            if turn >= _TURNS_THAT_WARM:
                shares.append(statistics.mean(own) / seconds)
                full_ms.append(1000 * seconds)
        env.close()
    return statistics.median(shares), min(full_ms)


@dataclass(frozen=True)
class Trial:
    """A budget that was scored."""

    number: int
    budget: PlannerBudget
    score: Score
    share: float
    """Time of an action, as a share of the published budget's."""
    latency_ms: float
    """That share of the least time that the published budget took in this search."""
    on_front: bool
    """True where no other budget is both better and faster."""


def tune(
    config: TuneConfig,
    progress: Progress | None = None,
    choose_engine: ChooseEngine = eager_engine,
) -> dict[str, Any]:
    """Search budgets, write `tuning.json`, and store the presets if asked; resumable.

    Returns:
        The content of `tuning.json`.

    Raises:
        CheckpointError: A checkpoint that cannot be read or written, or cannot plan.
        InputError: The presets would replace a file of a public layout.
        ResultError: The folder contains another search.
        RunError: Another process searches in the folder.
        UnknownTaskError: A task that the agent does not know.
    """
    refuse_overwrite(config)
    progress = progress or Silent()
    policy = CheckpointSource(
        source=config.checkpoint,
        mode="planner",
        names=config.tasks,
        choose_engine=choose_engine,
    )
    tasks = policy.tasks(config.tasks)
    checkpoint = read_checkpoint(config.checkpoint, tasks=config.tasks)
    if not checkpoint.has_world_model:
        raise CheckpointError(f"{config.checkpoint} contains a policy alone and cannot plan")
    store = _store(config, checkpoint)
    identity = {
        "checkpoint": policy.identity(tasks),
        "tasks": list(tasks.names),
        "episodes": config.episodes,
        "seeds": [TUNING_SEED, TUNING_SEED + config.episodes - 1],
        "engine": policy.engine_name(),
    }
    with alone(config.output / "tuning.json"):
        study = _open(config, identity)
        content = _Search(config, policy, tasks, checkpoint, identity, study).run(progress)
    if store is not None:
        presets = choose(_trials(study), config.realtime_ms, config.balanced_ms)
        extra = checkpoint.extra | storable(presets)
        write_native(store, replace(checkpoint, extra=extra))
    return content


def _store(config: TuneConfig, checkpoint: Checkpoint) -> Path | None:
    """Return the file that gets the presets; of a model folder its weights.

    A file of a public layout has more than what would be written in its place.
    """
    if config.store is None:
        return None
    store = config.store / MODEL_FILE if config.store.is_dir() else config.store
    source = resolve(config.checkpoint)
    if checkpoint.layout != "native" and store.exists() and store.samefile(source):
        raise InputError(
            f"--store {store} would replace a file of another layout by one of this project; "
            "name a new file"
        )
    return store


def choose(
    trials: Sequence[Trial], realtime_ms: float, balanced_ms: float
) -> dict[str, Preset]:
    """Return presets: the best scored budget within each time, beside `full` and `policy`.

    Where no budget is as fast as `realtime_ms`, the fastest of them is taken. `full` has the
    published sizes, and keeps as close to the policy as `balanced` does: how far a model may be
    trusted is the agent's, not the budget's.
    """
    presets: dict[str, Preset] = {}
    for name, limit in (("balanced", balanced_ms), ("realtime", realtime_ms)):
        within = [trial for trial in trials if trial.latency_ms <= limit]
        within = within or [min(trials, key=lambda trial: trial.share)]
        best = max(within, key=lambda trial: (trial.score.mean, -trial.share))
        presets[name] = Preset(budget=best.budget)
    balanced = presets["balanced"].budget
    full = PlannerBudget(
        prior_penalty=balanced.prior_penalty,
        prior_hold=balanced.prior_hold,
        mean_action=balanced.regularised and balanced.mean_action,
    )
    return {"full": Preset(budget=full)} | presets | {"policy": Preset("policy")}


@dataclass(frozen=True)
class _Search:
    config: TuneConfig
    policy: CheckpointSource
    tasks: TaskTable
    checkpoint: Checkpoint
    identity: Mapping[str, Any]
    study: optuna.Study

    def run(self, progress: Progress) -> dict[str, Any]:
        """Score budgets until there are as many as asked for; return the content of the file.

        The file is written after each.
        """
        config, study, done = self.config, self.study, len(_done(self.study))
        progress.update(done, config.trials, self._expected(config.trials - done))
        full = self._agent(PlannerBudget())
        while (done := len(_done(study))) < config.trials:
            # A search that goes on must not draw again what it drew before it was stopped.
            seed = SEARCH_SEED + len(study.trials)
            study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
            trial = study.ask(_space(config.max_samples, config.max_iterations))
            budget = budget_of(trial.params)
            share, full_ms = cost_of(self._agent(budget), full, self.tasks.tasks[0])
            returns = self._returns(budget)
            record = {"returns": returns, "budget": asdict(budget), "full_ms": full_ms}
            for name, value in record.items():
                trial.set_user_attr(name, value)
            score = normalized_score(returns).mean
            study.tell(trial, (score, share))
            shown = unit_of(self.tasks.names).per_point * score
            note = f"{shown:.1f} at {100 * share:.1f}% of the published budget's time"
            progress.update(done + 1, config.trials, note)
            self._write()
        if config.score_full:
            # Unless a search that goes on scored the same one before.
            best, found = self._presets()["full"].budget, study.user_attrs.get("full")
            if found is None or found["budget"] != asdict(best):
                scored = {"budget": asdict(best), "returns": self._returns(best)}
                study.set_user_attr("full", scored)
        return self._write()

    def _expected(self, budgets: int) -> str:
        """Return how long the search takes at most, judged by the largest budget."""
        config = self.config
        workers = choose_processes(config.workers)
        if config.ray:
            return f"{budgets} budgets"
        sizes = {"iterations": config.max_iterations, "samples": config.max_samples}
        largest = budget_of(_PUBLISHED | sizes | {"horizon": _LONGEST})
        policy = replace(self.policy, preset=largest, choose_engine=eager_engine)
        episodes = dict.fromkeys(self.tasks.tasks, config.episodes * max(budgets, 1))
        time_left = estimate([policy], episodes, workers.count)
        return f"{budgets} budgets; processes: {workers}{time_left} if all were the largest"

    def _presets(self) -> dict[str, Preset]:
        return choose(_trials(self.study), self.config.realtime_ms, self.config.balanced_ms)

    def _returns(self, budget: PlannerBudget) -> dict[str, list[float]]:
        policy = replace(self.policy, preset=budget)
        work = [
            TaskWork(policy, task, self.config.episodes, TUNING_SEED, 0)
            for task in self.tasks.tasks
        ]
        records = run_parallel(evaluate_task, work, self.config.workers, self.config.ray)
        return {item.task.name: record["returns"] for item, record in records}

    def _agent(self, budget: PlannerBudget) -> Agent:
        model = build(self.checkpoint)
        engine = self.policy.choose_engine(model.config, model.bins.device, model.dtype)
        return Agent(model, budget=budget, engine=engine)

    def _write(self) -> dict[str, Any]:
        config, full = self.config, self.study.user_attrs.get("full")
        limits = {"realtime_ms": config.realtime_ms, "balanced_ms": config.balanced_ms}
        settings = {**self.identity, **limits, "seed": SEARCH_SEED}
        return ResultFile(config.output / "tuning.json", "tuning", settings).write(
            trials=[asdict(trial) for trial in _trials(self.study)],
            full=None if full is None else asdict(normalized_score(full["returns"])),
            presets={name: asdict(preset) for name, preset in self._presets().items()},
        )


def _open(config: TuneConfig, identity: Mapping[str, Any]) -> optuna.Study:
    """Open or make the search of the output folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot write {config.output}: {error.strerror}") from error
    path = config.output / "search.sqlite"
    study = optuna.create_study(
        storage=f"sqlite:///{path.resolve()}",
        study_name="planner",
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", dict(identity))
        for parameters in starts(config.max_samples, config.max_iterations):
            study.enqueue_trial(parameters)
        return study
    if found["engine"] in REMOVED_ENGINES:
        raise ResultError(
            f"{config.output} was searched with the engine {found['engine']}, which no longer "
            "exists; choose another --output"
        )
    require_same(config.output, found, identity, ResultError)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # it was killed: once more
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _trials(study: optuna.Study) -> list[Trial]:
    """Return what was scored, the fastest first."""
    done = _done(study)
    front = {trial.number for trial in study.best_trials}
    least = min((trial.user_attrs["full_ms"] for trial in done), default=0.0)
    trials = [
        Trial(
            number=trial.number,
            budget=PlannerBudget(**trial.user_attrs["budget"]),
            score=normalized_score(trial.user_attrs["returns"]),
            share=trial.values[1],
            latency_ms=trial.values[1] * least,
            on_front=trial.number in front,
        )
        for trial in done
    ]
    return sorted(trials, key=lambda trial: trial.share)
