"""Record states, observations and rewards of all MT30 tasks, for the browser to agree with.

Run it after a change of tasks: `python web/tools/record_fixtures.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc_opt.schema import MT30
from tdmpc_opt.tasks.environment import DMControlEnv, make_env

FILE = Path(__file__).parents[1] / "tests" / "fixtures" / "tasks.json"
SEED = 7
STEPS = 10
CANDIDATES = 600
PROBES = 8
DIGITS = 12


def record(name: str) -> dict[str, Any]:
    """Return starts, a short rollout and probed states of one task."""
    random = np.random.default_rng(SEED)
    probes = _probes(name, random)
    env = make_env(name, SEED)
    starts = [env.reset() and env.observation for _ in range(3)]
    actions, observations, returns = [], [], []
    for _ in range(STEPS):
        action = random.uniform(-1, 1, env.task.action_dim).round(3)
        _, reward, *_ = env.step(action)
        actions.append(action)
        observations.append(env.observation)
        returns.append(reward)
    return {
        "starts": _short(starts),
        "actions": _short(actions),
        "observations": _short(observations),
        "rewards": _short(returns),
        "probes": probes,
    }


def probe(env: DMControlEnv, state: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Set a state and return its observation and the reward of that instant."""
    data = env.physics.data
    with env.physics.reset_context():
        data.qpos[:], data.qvel[:] = state["qpos"], state["qvel"]
    data.ctrl[:] = state["ctrl"]
    task = env._environment.task
    env._flatten(task.get_observation(env.physics))
    return env.observation, float(task.get_reward(env.physics))


def _probes(name: str, random: np.random.Generator) -> list[dict[str, Any]]:
    """Return random states whose rewards lie as far apart as they can be found.

    Observed after the first start with the seed, whose target stays where it is.
    """
    env = make_env(name, SEED)
    found = [_random_state(env, random) for _ in range(CANDIDATES)]
    env.reset(seed=SEED)
    rewards = [probe(env, state)[1] for state in found]
    order = np.argsort(rewards, kind="stable")
    chosen = [found[order[i]] for i in np.linspace(0, CANDIDATES - 1, PROBES).astype(int)]
    for state in chosen:
        observation, reward = probe(env, state)
        state |= {"observation": _short(observation), "reward": _short(reward)}
    return chosen


def _random_state(env: DMControlEnv, random: np.random.Generator) -> dict[str, Any]:
    env.reset()
    data = env.physics.data
    # Half of them lie close to the model's own pose, where standing and balancing pay.
    near = random.random() < 0.5
    pose = env.physics.model.qpos0 + 0.1 * random.standard_normal(data.qpos.size)
    pose = pose if near else data.qpos + 0.2 * random.standard_normal(data.qpos.size)
    return {
        "qpos": pose.round(4).tolist(),
        "qvel": (6 * random.standard_normal(data.qvel.size)).round(4).tolist(),
        "ctrl": random.uniform(-1, 1, data.ctrl.size).round(3).tolist(),
    }


def _short(values: Any) -> Any:
    return np.asarray(values, dtype=np.float64).round(DIGITS).tolist()


def main() -> None:
    """Record every task."""
    tasks = {name: record(name) for name in MT30.names}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in tasks.items()]
    text = f'{{"seed": {SEED}, "tasks": {{\n' + ",\n".join(lines) + "\n}}\n"
    FILE.write_text(text)


if __name__ == "__main__":
    main()
