"""Writes lerobot/ with LeRobot's own library: `python make_lerobot.py`, with lerobot 0.4.4.

The actions are a function of the observation, which a student can learn.
"""

from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

EPISODES = ((8, "Lift the cube."), (12, "Lift the cube."), (10, "Push it!"))


def main() -> None:
    rng = np.random.default_rng(0)
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "observation.environment_state": {"dtype": "float32", "shape": (1,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    }
    folder = Path(__file__).with_name("lerobot")
    dataset = LeRobotDataset.create("test/test", 10, features, root=folder, use_videos=False)
    for number, (steps, task) in enumerate(EPISODES):
        for step in range(steps):
            state = rng.normal(size=3).astype(np.float32)
            frame = {
                "observation.state": state,
                "observation.environment_state": np.float32([number]),
                "action": np.float32([3 * np.tanh(state[0]), state[1] > 0]),
                "next.reward": np.float32([step]),
                "next.done": np.array([step == steps - 1]),
            }
            dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    main()
