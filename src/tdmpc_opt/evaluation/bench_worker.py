"""The process in which `bench` times one policy.

It reads and writes lines of JSON, and imports no more than its policy needs, so that its memory
is that of the policy on a device.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from tdmpc_opt import load_agent
from tdmpc_opt.errors import TdmpcOptError
from tdmpc_opt.schema import UNNAMED, TaskTable

Array = NDArray[np.float32]
Act = Callable[[Array, str | None], Array]


def main() -> None:
    """Load the policy that the first line describes, then time it for each further line."""
    replies = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not come between the replies
    try:
        request = json.loads(sys.stdin.readline())
        start = time.perf_counter()
        act, tasks, facts = _load(request)
        facts["load_seconds"] = time.perf_counter() - start
        facts["tasks"] = {task.name: task.obs_dim for task in tasks.tasks}
        _reply(replies, facts)
    except TdmpcOptError as error:
        _reply(replies, {"error": str(error)})
        return
    except ModuleNotFoundError as error:
        needs = f'it needs {error.name}: pip install "tdmpc-opt[train]"'
        without = "an exported file and a checkpoint of `quantize --policy-only` need no torch"
        _reply(replies, {"error": f"{needs}; {without}"})
        return
    for line in sys.stdin:
        turn = json.loads(line)
        task = None if tasks.names == (UNNAMED,) else turn["task"]
        try:
            _reply(replies, _time(act, task, np.asarray(turn["obs"], np.float32), turn))
        except TdmpcOptError as error:
            _reply(replies, {"error": str(error)})


def _load(request: dict[str, Any]) -> tuple[Act, TaskTable, dict[str, Any]]:
    if request["engine"] == "runtime":
        from tdmpc_opt.runtime import load

        device_agent = load(request["path"], threads=request["threads"])
        mode = "planner" if (plan := device_agent.plan) else "policy"
        facts = {"engine": "runtime", "mode": mode, "budget": plan and asdict(plan)}
        return device_agent.act, device_agent.tasks, facts
    import torch

    torch.set_num_threads(request["threads"])
    agent = load_agent(
        request["path"], request["device"], request["preset"], engine=request["engine"]
    )
    budget = asdict(agent.budget) if agent.mode == "planner" else None
    facts = {"engine": agent.engine or "eager", "mode": agent.mode, "budget": budget}
    return agent.act, agent.tasks, facts


def _time(act: Act, task: str | None, steps: Array, turn: dict[str, Any]) -> dict[str, Any]:
    """Act for a while on observations [steps, batch, obs], and return the milliseconds."""
    for _ in range(turn["warm"]):
        act(steps[0], task)
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + turn["seconds"]
    while not wall or time.perf_counter() < end:
        obs = steps[len(wall) % len(steps)]
        before = time.perf_counter(), time.process_time()
        act(obs, task)
        wall.append(1000 * (time.perf_counter() - before[0]))
        cpu.append(1000 * (time.process_time() - before[1]))
    return {"wall_ms": wall, "cpu_ms": cpu, "peak_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int | None:
    """Return the peak memory of this process in bytes; None where the system does not state it.

    Not `getrusage` on Linux: there it includes what the parent used when it started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _reply(replies: TextIO, content: dict[str, Any]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
