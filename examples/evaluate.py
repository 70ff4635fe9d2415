"""Score the bundled teacher and random actions on the same starts of two tasks."""

from pathlib import Path

from tdmpc_opt.configs.measure import EvaluateConfig
from tdmpc_opt.evaluation.compare import compare
from tdmpc_opt.evaluation.evaluate import evaluate

OUTPUT = Path("example-output")

if __name__ == "__main__":  # evaluation starts worker processes
    for name in ("demo-teacher", "random"):
        config = EvaluateConfig(
            checkpoint=name,
            mode="policy",
            tasks="cartpole-balance,pendulum-spin",
            episodes=3,
            output=OUTPUT / f"{name}.json",
        )
        score = evaluate(config)["score"]
        print(f"{name}: {score['mean']:.1f}, 95% interval {score['ci95']}")
    gain = compare(OUTPUT / "random.json", OUTPUT / "demo-teacher.json")
    print(f"the agent is {gain.difference} points better over {gain.episodes} episodes")
