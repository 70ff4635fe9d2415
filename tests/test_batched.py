from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tdmpc_opt.agents.collect import collect
from tdmpc_opt.agents.rollout import Act, rollout
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.errors import InputError
from tdmpc_opt.planning.simulator import SimulatorBudget, SimulatorPlanner
from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.batched import Batch, BatchedTask
from tdmpc_opt.tasks.batched_suite import BatchedEpisodes, batched_task, suite_task
from tdmpc_opt.tasks.environment import DMControlEnv, make_env
from tdmpc_opt.tasks.own import own_task


@pytest.mark.parametrize("name", MT30.names)
def test_batched_steps_are_those_of_the_environment(name: str) -> None:
    task, env = suite_task(name), DMControlEnv(name, 3)
    env.reset()
    start, target = task.current(env)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, env.task.action_dim))
    observed, rewards = [], []
    for action in actions:
        _, reward, *_ = env.step(action)
        observed.append(env.observation.copy())
        rewards.append(reward)
    # Two rows, so that a row is seen to depend on itself alone.
    states, targets = np.stack([start, start]), np.stack([target, target])
    both = np.stack([actions, -actions])
    states, obs, reward = task.step(states, both, targets)
    np.testing.assert_allclose(obs[0], observed, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(reward[0], rewards, rtol=1e-9, atol=1e-9)
    last, _ = task.current(env)
    np.testing.assert_allclose(states[0][1:], last[1:], rtol=1e-7, atol=1e-7)
    assert not np.allclose(states[0], states[1])


@pytest.mark.parametrize("name", MT30.names)
def test_episodes_of_a_batch_are_those_of_separate_environments(name: str) -> None:
    task, seeds = replace(MT30[name], episode_length=15), (4, 5, 4)

    def policy(*_: object) -> Act:
        draw = np.random.default_rng(0)
        return lambda obs: draw.uniform(-1, 1, (3, task.action_dim)).astype(np.float32)

    streams = [(seed,) for seed in seeds]
    together = rollout(policy, task, seeds, streams, labeller=policy, batched=True)
    envs = [DMControlEnv(name, seed) for seed in seeds]
    for episode, env, seed in zip(together, envs, seeds, strict=True):
        assert (episode.seed, episode.obs.shape) == (seed, (16, task.obs_dim))
        np.testing.assert_array_equal(episode.obs[0], env.reset()[0])  # the very start
        for action, label, reward, obs in zip(
            episode.action[1:],
            episode.label[1:],
            episode.reward[1:],
            episode.obs[1:],
            strict=True,
        ):
            after, earned, *_ = env.step(action)
            np.testing.assert_array_equal(action, label)
            np.testing.assert_allclose(obs, after, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(reward, earned, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(together[0].obs[1:], together[1].obs[1:])


def test_a_batch_refuses_an_action_that_is_no_number() -> None:
    episodes = BatchedEpisodes(MT30["cup-catch"], [1, 2])
    with pytest.raises(InputError, match="an action of cup-catch is not finite"):
        episodes.step(np.array([[0, 0], [0, np.nan]], np.float32))


def test_states_are_observed_without_a_step() -> None:
    task, env = suite_task("finger-turn-hard"), DMControlEnv("finger-turn-hard", 5)
    first, _ = env.reset()
    state, target = task.current(env)
    seen = task.observe_now(state[None], target[None])
    np.testing.assert_allclose(seen[0], first, atol=1e-6)


def _drive(planner: SimulatorPlanner, task: BatchedTask, steps: int) -> float:
    env = DMControlEnv(task.task.name, 500_000)
    env.reset()
    total = 0.0
    for _ in range(steps):
        state, target = task.current(env)
        total += env.step(planner.plan(state[None], target[None])[0])[1]
    return total


def test_plans_collect_far_more_reward_than_no_action() -> None:
    task = suite_task("cartpole-swingup")
    budget = SimulatorBudget(samples=32, seconds=0.8)
    planned = _drive(SimulatorPlanner(task, budget, [np.random.default_rng(0)]), task, 100)
    still = suite_task("cartpole-swingup")
    env = DMControlEnv("cartpole-swingup", 500_000)
    env.reset()
    state, target = still.current(env)
    nothing = still.step(state[None], np.zeros((1, 100, 1)), target[None])[2].sum()
    assert planned > nothing + 20


def test_value_at_the_end_of_the_horizon_decides_between_equal_rewards() -> None:
    task = suite_task("cup-catch")  # no reward within two steps of the start
    env = DMControlEnv("cup-catch", 500_000)
    env.reset()
    state, target = task.current(env)
    budget = SimulatorBudget(samples=64, seconds=0.08, knots=2)
    sideways = [
        SimulatorPlanner(
            task,
            budget,
            [np.random.default_rng(0)],
            value=lambda obs, sign=sign: sign * obs[:, 0],  # position of the cup
        ).plan(state[None], target[None])[0, 0]
        for sign in (1.0, -1.0)
    ]
    assert sideways[0] > 0.5
    assert sideways[1] < -0.5


def test_policy_sequences_join_the_samples() -> None:
    task = suite_task("pendulum-swingup")
    env = DMControlEnv("pendulum-swingup", 500_000)
    env.reset()
    state, target = task.current(env)
    budget = SimulatorBudget(
        samples=3, seconds=0.2, knots=2, policy_samples=2, policy_noise=0.0
    )
    planner = SimulatorPlanner(
        task,
        budget,
        [np.random.default_rng(0)],
        policy=lambda obs: np.full((len(obs), 1), 0.7, np.float32),
        value=lambda obs: obs[:, 2],  # angular velocity, which torque raises
    )
    assert planner.plan(state[None], target[None])[0, 0] == pytest.approx(0.7, abs=0.3)


def test_planning_in_the_simulator_is_a_policy_that_collect_takes(tmp_path: Path) -> None:
    dataset = collect(
        CollectConfig(
            policy="plan", tasks="pendulum-spin", episodes=1, output=tmp_path, workers=1
        )
    )
    episode = next(iter(dataset.episodes(dataset.shards[0])))
    assert np.nansum(episode.reward) > 600
    np.testing.assert_array_equal(episode.label[1:], episode.action[1:])


def test_a_users_batched_task_is_planned_and_collected(tmp_path: Path) -> None:
    dataset = collect(
        CollectConfig(
            policy="plan", tasks="own_envs:Slider-v0", episodes=1, output=tmp_path, workers=1
        )
    )
    episode = next(iter(dataset.episodes(dataset.shards[0])))
    assert np.nansum(episode.reward) > 0.8 * (len(episode.reward) - 1)


def test_the_planner_labels_and_its_episodes_are_kept_apart_from_random_ones(
    tmp_path: Path,
) -> None:
    config = CollectConfig(
        policy="random", tasks="own_envs:Slider-v0", episodes=1, output=tmp_path, workers=1
    )
    collect(config)
    labelled = collect(replace(config, label="plan"))
    episode = next(iter(labelled.episodes(labelled.shards[1])))
    assert np.isfinite(episode.label[1:]).all()
    assert not np.array_equal(episode.label[1:], episode.action[1:])
    planned = collect(replace(config, policy="plan"))
    assert [shard.source["policy"]["name"] for shard in planned.shards] == [
        *("random", "random", "plan")
    ]


def test_batches_that_differ_from_the_users_environment_are_refused() -> None:
    with pytest.raises(InputError, match=r"batched_reward of own_envs:WrongSlider-v0 differs"):
        batched_task(own_task("own_envs:WrongSlider-v0"))
    with pytest.raises(InputError, match="ends an episode after 38 steps, which batches"):
        batched_task(own_task("own_envs:EndingSlider-v0"))


def test_an_environment_without_batches_is_told_what_it_lacks(tmp_path: Path) -> None:
    config = CollectConfig(policy="plan", tasks="own_envs:Point-v0", output=tmp_path, workers=1)
    with pytest.raises(InputError, match=r"Point-v0 lacks model, data, frame_skip"):
        collect(config)


def test_the_example_plans_by_the_functions_that_its_steps_use(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples" / "own_task")
    task = own_task("crane:Crane-v0")
    batched = batched_task(task)  # compares rewards and observations
    env = make_env(task, 3)
    obs, _ = env.reset()
    state, constants = batched.current(env)
    inner = env.unwrapped_environment
    now = Batch.of(inner.model, inner.data, constants)
    assert now["load"] == pytest.approx(inner.data.geom("load").xpos)
    np.testing.assert_allclose(
        batched.observe_now(state[None], constants[None])[0], obs, atol=1e-6
    )
    np.testing.assert_array_equal(batched.current(env)[0], state)  # reading changes nothing
