"""Deadlines and the reuse of plans, through the agent that offers them."""

import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tdmpc_opt.agents.agent import Agent, load_agent
from tdmpc_opt.errors import InputError
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.planning import mppi
from tdmpc_opt.planning.planner import EagerEngine
from tdmpc_opt.runtime.plan_state import DeadlineTimer, PlanState
from tdmpc_opt.schema import PlannerBudget

SIX = PlannerBudget(iterations=6, samples=24, policy_samples=4, elites=6)


def _seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _obs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclass
class Clock:
    """A clock that stands still but for the iterations, which cost what `costs` say."""

    costs: list[float]
    now: float = 100.0
    iterations: int = 0

    def __call__(self) -> float:
        return self.now

    def iterate(self) -> None:
        self.now += self.costs[min(self.iterations, len(self.costs) - 1)]
        self.iterations += 1


@pytest.fixture
def timed(model: WorldModel, monkeypatch):
    """Makes an agent of six iterations, and the clock that it goes by, in milliseconds."""

    def make(*costs_ms: float) -> tuple[Agent, Clock]:
        clock = Clock([cost / 1000 for cost in costs_ms])
        refine = mppi.refine

        def slow(*arguments):
            clock.iterate()
            return refine(*arguments)

        monkeypatch.setattr(mppi, "refine", slow)
        return Agent(model, budget=SIX, clock=clock), clock

    return make


def _act(agent: Agent, clock: Clock, deadline_ms: float | None, seed: int = 0) -> float:
    """Act, and return the milliseconds that it took."""
    start = clock.now
    agent.act(
        _obs(5), "one", generator=_seeded(seed), deadline_ms=deadline_ms and float(deadline_ms)
    )
    return 1000 * (clock.now - start)


def test_without_a_deadline_every_iteration_runs_and_none_is_counted(timed):
    agent, clock = timed(10)
    assert _act(agent, clock, None) == pytest.approx(60)
    assert agent.iterations == 6
    assert (agent.deadlines, agent.deadline_misses) == (0, 0)


@pytest.mark.parametrize(
    ("deadline", "iterations"), [(1000, 6), (60.1, 6), (59, 5), (35, 3), (10.1, 1)]
)
def test_the_planner_stops_before_an_iteration_that_would_be_late(timed, deadline, iterations):
    agent, clock = timed(10)
    for step in range(3):
        assert _act(agent, clock, deadline) <= deadline
        assert agent.iterations == iterations
        assert (agent.deadlines, agent.deadline_misses) == (step + 1, 0)


def test_one_iteration_always_runs_and_a_late_action_counts_as_a_miss(timed):
    agent, clock = timed(10)
    for step in range(3):
        assert _act(agent, clock, 4) == pytest.approx(10)
        assert agent.iterations == 1
        assert (agent.deadlines, agent.deadline_misses) == (step + 1, step + 1)
    assert _act(agent, clock, 25) == pytest.approx(20)
    assert (agent.deadlines, agent.deadline_misses) == (4, 3)


def test_no_action_is_later_than_its_deadline_by_more_than_one_iteration(timed):
    costs = [10, 10, 10, 400, 10, 900, 30, 30, 2000, 30, 30, 30]  # jumps that none foresees
    agent, clock = timed(*costs)
    for _ in range(3):
        before = clock.iterations
        took = _act(agent, clock, 50)
        assert took <= 50 + max(costs[before : clock.iterations])
        assert 1 <= clock.iterations - before <= 6


def test_a_plan_that_was_cut_is_the_one_of_so_many_iterations(timed, model):
    agent, clock = timed(10)
    cut = agent.act(_obs(5), "one", generator=_seeded(3), deadline_ms=25.0)
    assert agent.iterations == 2
    agent.reset()
    whole = agent.act(_obs(5), "one", generator=_seeded(3))
    assert not np.array_equal(cut, whole)
    assert clock.iterations == 8


def test_one_slow_iteration_does_not_spoil_those_after_it(timed):
    agent, clock = timed(5000, 10)
    assert _act(agent, clock, 100) == pytest.approx(5000)
    assert agent.deadline_misses == 1
    for _ in range(3):
        assert _act(agent, clock, 70) == pytest.approx(60)
    assert agent.deadline_misses == 1


def test_the_planner_follows_a_change_of_pace(timed):
    agent, clock = timed(*[10] * 6, *[40] * 12, 10)
    assert _act(agent, clock, 65) == pytest.approx(60)
    slow = [_act(agent, clock, 125) for _ in range(4)]
    assert slow[-1] == pytest.approx(120)
    fast = [_act(agent, clock, 125) for _ in range(4)]
    assert fast[-1] == pytest.approx(60)


def test_the_cost_of_a_part_is_the_second_largest_of_the_last_eight():
    timer = DeadlineTimer(lambda: now)
    now = 0.0
    timer.begin(500.0)
    assert not timer.enough()
    for now in (1.0, 2.0):
        timer.end_part(now - 1)
    for _ in range(7):
        now = 0.0
        assert timer.enough()
        now = 0.25
        timer.end_part(0.0)
    assert not timer.enough(), "a part that ends with the deadline is in time"
    now = 0.5
    timer.finish()
    assert (timer.acts, timer.misses) == (1, 0)
    now = 0.50002
    timer.finish()
    assert (timer.acts, timer.misses) == (2, 1)
    timer.begin(None)
    timer.finish()
    assert (timer.acts, timer.misses) == (2, 1)


@pytest.mark.parametrize("deadline", [0.0, -5.0, float("nan")])
def test_a_deadline_must_be_positive(model, deadline):
    agent = Agent(model, budget=SIX)
    with pytest.raises(InputError, match="deadline_ms must be above 0"):
        agent.act(_obs(5), "one", deadline_ms=deadline)


def test_the_policy_alone_counts_its_misses_too(model):
    times = iter([0.0, 0.002, 1.0, 1.1])
    agent = Agent(model, mode="policy", clock=lambda: next(times))
    for _ in range(2):
        agent.act(_obs(5), "one", deadline_ms=10.0)
    assert (agent.deadlines, agent.deadline_misses, agent.iterations) == (2, 1, None)


@pytest.fixture
def reusing(model) -> Agent:
    return Agent(model, budget=replace(SIX, iterations=2, replan_every=3))


@dataclass
class Made:
    """A plan: the mean that it started from, its result and the action drawn."""

    start: np.ndarray
    action: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@pytest.fixture
def made(monkeypatch) -> list[Made]:
    """Every plan from now on."""
    plans: list[Made] = []
    begin = EagerEngine.begin

    def recording(engine, *inputs):
        run = begin(engine, *inputs)

        def rounds(numbers, mean, std):
            found = run(numbers, mean, std)
            plans.append(Made(mean, *found))
            return found

        return rounds

    monkeypatch.setattr(EagerEngine, "begin", recording)
    return plans


def test_a_plan_is_executed_until_the_next_one_is_due(reusing, made):
    sources = _seeded(0, 1)
    actions = [
        reusing.act(_obs(2, 5, seed=step), "one", generator=sources) for step in range(7)
    ]
    assert len(made) == 3
    for step, action in enumerate(actions):
        plan = made[step // 3]
        expected = plan.action if step % 3 == 0 else plan.mean[step % 3]
        np.testing.assert_array_equal(action, expected)


def test_the_warm_start_leaves_out_every_executed_action(reusing, made):
    for step in range(4):
        reusing.act(_obs(5, seed=step), "one", generator=_seeded(step))
    assert not made[1].start.any(), "all three actions were executed"


@pytest.mark.parametrize("every", [1, 2])
def test_the_warm_start_is_the_rest_of_the_last_plan(model, made, every):
    agent = Agent(model, budget=replace(SIX, iterations=2, replan_every=every))
    for step in range(every + 1):
        agent.act(_obs(5, seed=step), "one", generator=_seeded(step))
    np.testing.assert_array_equal(made[1].start[:-every], made[0].mean[every:])
    assert made[1].start[:-every].any()
    assert not made[1].start[-every:].any()


def test_a_row_that_was_reset_is_planned_for_alone(reusing, made):
    obs, ids = _obs(2, 5), [0, 1]
    sources = _seeded(0, 1)
    reusing.act(obs, ids, generator=sources)
    reusing.reset([1])
    reusing.act(obs, ids, generator=sources)
    assert [plan.mean.shape[1] for plan in made] == [2, 1]
    assert not made[1].start.any()
    state = sources[0].get_state()
    third = reusing.act(obs, ids, generator=sources)
    assert len(made) == 2
    np.testing.assert_array_equal(third[0], made[0].mean[2, 0])
    np.testing.assert_array_equal(third[1], made[1].mean[1, 0])
    assert torch.equal(sources[0].get_state(), state)
    reusing.act(obs, ids, generator=sources)
    assert [plan.mean.shape[1] for plan in made] == [2, 1, 1]


def test_a_row_is_the_same_whatever_is_reset_beside_it(model):
    budget = replace(SIX, iterations=2, replan_every=2)
    obs = _obs(2, 5)

    def first_row(reset_at: int | None) -> np.ndarray:
        agent = Agent(model, budget=budget)
        sources = _seeded(0, 1)
        actions = []
        for step in range(5):
            if step == reset_at:
                agent.reset([1])
            action = agent.act(obs, [0, 1], deterministic=False, generator=sources)
            actions.append(action[0])
        return np.stack(actions)

    np.testing.assert_allclose(first_row(None), first_row(1), atol=1e-5)


def test_reused_actions_explore_with_their_own_spread(model):
    tight = replace(SIX, min_std=0.2, max_std=0.2, replan_every=2)
    actions = {}
    for explore in (False, True):
        agent = Agent(model, budget=tight)
        sources = _seeded(0)
        for _ in range(2):
            state = sources[0].get_state()
            actions[explore] = agent.act(
                _obs(5), "one", deterministic=not explore, generator=sources
            )
    noise = torch.randn(3, generator=torch.Generator().set_state(state)).numpy()
    expected = np.clip(actions[False] + 0.2 * noise, -1, 1)
    np.testing.assert_allclose(actions[True], expected, atol=1e-6)


@pytest.mark.parametrize("every", [0, 4])
def test_no_more_actions_are_reused_than_a_plan_has(every):
    with pytest.raises(InputError, match="`replan_every` must be between 1 and the horizon"):
        replace(SIX, replan_every=every)


def test_agents_are_loaded_with_a_budget_of_their_own(checkpoint_file):
    budget = replace(SIX, replan_every=2)
    assert load_agent(checkpoint_file, preset=budget).budget == budget


@pytest.fixture
def starts(monkeypatch) -> list[torch.Tensor]:
    """The mean and standard deviation that each plan's first iteration begins with."""
    begun: list[torch.Tensor] = []
    refine = mppi.refine

    def recording(networks, budget, problem, mean, std, noise):
        begun.append(torch.stack([mean, std]))
        return refine(networks, budget, problem, mean, std, noise)

    monkeypatch.setattr(mppi, "refine", recording)
    return begun


def test_a_warm_plan_starts_from_the_last_ones_spread_but_for_its_new_last_step(
    model, starts, made
):
    budget = replace(SIX, iterations=1, warm_mean=0.5, warm_std=1.5, max_std=1.0)
    agent = Agent(model, budget=budget)
    for step in range(2):
        agent.act(_obs(5, seed=step), "one", generator=_seeded(step))
    assert (starts[0][1] == 1).all(), "the first plan has no last one"
    last = made[0]
    np.testing.assert_allclose(starts[1][0][:2], 0.5 * last.mean[1:])
    np.testing.assert_allclose(starts[1][1][:2], (1.5 * last.std[1:]).clip(0.05, 1), rtol=1e-6)
    assert (starts[1][1][2] == 1).all()
    assert (starts[1][1][:2] < 1).any(), "else nothing was shown"


def test_a_row_that_was_reset_starts_from_zero_and_the_others_from_their_plans():
    rules, started = PlannerBudget(horizon=2, replan_every=1), []

    def refine(rounds, mean, std):
        started.append(mean.copy())
        return np.full((2, 1), 0.5), np.full((2, 2, 1), 0.5), std

    state = PlanState(rules, 1, DeadlineTimer(time.perf_counter))
    for reset in (False, True):
        if reset:
            state.reset([1])
        state.plan(state.due(2), 1, np.ones((1, 1)), refine)
        state.next()
    np.testing.assert_array_equal(started[1][..., 0], [[0.5, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("converged", "asked"), [(0.0, [range(3)]), (0.5, [range(i, i + 1) for i in range(3)])]
)
def test_rounds_are_asked_for_at_once_where_none_may_be_the_last(converged, asked):
    """A spread of 0.5 has not fallen below 0.5."""
    rules, found = PlannerBudget(horizon=2, converged_std=converged), []

    def refine(rounds, mean, std):
        found.append(rounds)
        return mean[0], mean, np.full_like(std, 0.5)

    state = PlanState(rules, 1, DeadlineTimer(time.perf_counter))
    assert state.plan(state.due(1), 3, np.ones((1, 1)), refine) == 3
    assert found == asked


def test_a_row_that_was_reset_starts_wide_again(model, starts):
    agent = Agent(model, budget=replace(SIX, iterations=1, warm_std=1.0))
    for step in range(2):
        agent.act(_obs(2, 5, seed=step), [0, 0], generator=_seeded(0, 1))
        agent.reset([1])
    assert (starts[1][1][:, 1] == SIX.max_std).all()
    assert (starts[1][1][:2, 0] < SIX.max_std).any()


def test_a_converged_row_is_left_as_it_is_and_the_plan_ends_with_the_last_of_them(model):
    obs = _obs(2, 5)

    def act(converged_std: float, iterations: int = 6) -> tuple[np.ndarray, int | None]:
        budget = replace(SIX, iterations=iterations, converged_std=converged_std)
        agent = Agent(model, budget=budget)
        action = agent.act(obs, [0, 0], generator=_seeded(5, 6))
        return action, agent.iterations

    whole, rounds = act(0.0)
    assert rounds == 6
    np.testing.assert_array_equal(act(1e-9)[0], whole)
    first, rounds = act(1e9)
    assert rounds == 1
    assert not np.array_equal(first, whole)


def test_a_row_converges_by_the_mean_spread_of_its_real_dimensions():
    """It is 0.5, 0.52 and 0.54; the first and the last row have two of them."""
    rules, found = PlannerBudget(horizon=2, converged_std=0.51), []
    first = [[0.2, 0.6, 0.0], [0.3, 0.3, 0.36], [0.3, 0.7, 0.0]]
    second = [[0.4, 0.8, 0.0], [0.5, 0.7, 0.96], [0.5, 0.66, 0.0]]
    spread = np.array([first, second])

    def refine(rounds, mean, std):
        found.append(rounds)
        number = len(found)
        return np.full((3, 3), number), np.full_like(mean, number), spread / number

    state = PlanState(rules, 3, DeadlineTimer(time.perf_counter))
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0]])
    assert state.plan(state.due(3), 6, mask, refine) == 2
    action, std = state.next()
    np.testing.assert_array_equal(action[:, 0], [1, 2, 2])
    np.testing.assert_allclose(std, spread[0] / action, rtol=1e-6)


def test_rows_converge_each_for_itself(model, monkeypatch):
    """The noise is drawn by each row's own generator, so a row alone is a row beside others."""
    budget = replace(SIX, converged_std=0.45)
    agent = Agent(model, budget=budget)
    obs, rounds, alone = _obs(8, 5), [], []
    for row in range(8):
        agent.reset()
        alone.append(agent.act(obs[row : row + 1], [0], generator=_seeded(row))[0])
        rounds.append(agent.iterations)
    assert len(set(rounds)) > 1, "the threshold should part them"
    agent.reset()
    together = agent.act(obs, [0] * 8, generator=_seeded(*range(8)))
    assert agent.iterations == max(rounds)
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4)


@pytest.mark.parametrize("wrong", [{"warm_mean": 1.5}, {"warm_std": -1.0}, {"min_std": 3.0}])
def test_starts_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match=r"warm_mean is in 0..1|min_std must be"):
        replace(SIX, **wrong)


@pytest.mark.parametrize("name", ["horizon", "iterations"])
def test_a_budget_without_steps_or_refinements_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"^{name} must be at least 1$"):
        replace(SIX, **{name: 0})


def test_a_plan_may_act_by_its_mean(model, made):
    agent = Agent(model, budget=replace(SIX, iterations=1, mean_action=True))
    action = agent.act(_obs(5), "one", generator=_seeded(0))
    np.testing.assert_array_equal(action, made[0].mean[0, 0])
    assert not np.array_equal(action, made[0].action[0])
