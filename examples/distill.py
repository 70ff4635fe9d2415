"""Collect episodes of the bundled teacher and distil a student of a fifth of its size."""

from pathlib import Path

from tdmpc_opt.agents.collect import collect
from tdmpc_opt.checkpoints.load import describe
from tdmpc_opt.configs import CollectConfig, LossWeights, TrainConfig
from tdmpc_opt.training.loop import train

OUTPUT = Path("example-output")
TASK = "cartpole-balance"

if __name__ == "__main__":  # collection starts worker processes
    data = OUTPUT / "data"
    collect(
        CollectConfig(policy="demo-teacher", tasks=TASK, episodes=4, noise=0.3, output=data)
    )
    config = TrainConfig(
        data=data,
        teacher="demo-teacher",
        size="0.3",
        updates=50,  # enough to test the code; training takes thousands
        batch_size=64,
        weights=LossWeights(behaviour=20.0),
        output=OUTPUT / "student",
    )
    student = describe(train(config))
    print(f"{student.path}: {student.parameters:,} parameters, {student.size_bytes:,} bytes")
