"""A control loop as a device runs it: numpy alone, without torch."""

import sys
import time

import numpy as np

import tdmpc_opt
from tdmpc_opt import zoo
from tdmpc_opt.runtime import load

agent = load(zoo.path("demo-teacher"))  # or what `tdmpc-opt quantize --policy-only` wrote
env = tdmpc_opt.make_env("pendulum-spin", seed=0)  # the robot
obs, _ = env.reset()
agent.reset()
times, total, done = [], 0.0, False
while not done:
    start = time.perf_counter()
    action = agent.act(obs, "pendulum-spin")
    times.append(time.perf_counter() - start)
    obs, reward, _, done, _ = env.step(action)
    total += float(reward)
assert "torch" not in sys.modules
print(f"return {total:.0f} of 1000; {1000 * np.median(times):.2f} ms an action, without torch")
