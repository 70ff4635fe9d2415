"""Control a task by a program that maps lines of observations to lines of actions.

python examples/cpp/drive.py walker-walk ./policy walk.onnx
"""

import subprocess
import sys
from collections.abc import Sequence

import numpy as np

import tdmpc_opt


def drive(task: str, command: Sequence[str], seed: int = 0) -> float:
    """Return the sum of rewards of one episode."""
    env = tdmpc_opt.make_env(task, seed)
    width = env.action_space.shape[0]
    total, done = 0.0, False
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as program:
        obs = env.reset()[0]
        while not done:
            program.stdin.write(" ".join(f"{number:.9g}" for number in obs) + "\n")
            answer = program.stdout.readline()
            if answer.startswith("error: ") or not answer:
                reason = answer.strip() or "its error stands above"
                raise RuntimeError(f"{command[0]} gave no action; {reason}")
            action = np.array(answer.split(), np.float32)
            obs, reward, terminated, truncated, _ = env.step(action[:width])
            total, done = total + float(reward), terminated or truncated
        program.stdin.close()
    return total


if __name__ == "__main__":
    sys.stdout.write(f"return {drive(sys.argv[1], sys.argv[2:]):.1f}\n")
