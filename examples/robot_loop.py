"""A robot's control loop, with the simulator in place of the robot.

python examples/robot_loop.py walk.onnx walker-walk
"""

import sys
import time

import numpy as np

from tdmpc_opt import make_env  # in place of the robot
from tdmpc_opt.runtime import load


def run(path: str, task: str, seed: int = 0) -> tuple[float, list[float]]:
    """Return the sum of rewards of one episode, and the milliseconds of each action."""
    agent, robot = load(path), make_env(task, seed)
    agent.reset()
    obs, total, done = robot.reset()[0], 0.0, False
    times: list[float] = []
    while not done:
        start = time.perf_counter()
        action = agent.act(obs, task)
        times.append(1000 * (time.perf_counter() - start))
        obs, reward, terminated, truncated, _ = robot.step(action)
        total, done = total + float(reward), terminated or truncated
    return total, times


if __name__ == "__main__":
    total, times = run(sys.argv[1], sys.argv[2])
    median, slow = np.quantile(times, [0.5, 0.99])
    sys.stdout.write(
        f"return {total:.1f}; an action took {median:.2f} ms, 99 of 100 at most {slow:.2f} ms\n"
    )
