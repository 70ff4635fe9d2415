"""One function applied to many items, by local processes or on a Ray cluster.

`ProcessPoolExecutor`, or Ray's tasks with their retries, schedule the work; this module names
faults and ends workers. Other pools were tried: busy workers of joblib 1.6 (loky) outlive a
parent that is killed, and receive Ctrl-C themselves; the pool of Ray 2.60, also joblib's
backend, returns an exception as if it were a result, took a minute to end after one, and did
not finish work whose process was killed.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from tdmpc_opt.errors import RunError
from tdmpc_opt.machine import choose_processes, cores

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3
"""How often Ray does a piece of work again whose worker or machine died."""
_SECONDS_TO_ANSWER = 10.0


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int = 0,
    ray: str | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items in worker processes; yield pairs as they finish.

    Args:
        function: Module-level callable; it, the items and the results must pickle.
        items: The work.
        workers: Processes at once; 0 starts one per free core, 1 works in this process.
        ray: Address of a Ray cluster that does the work, or `local` for one of this machine
            alone. Work whose process dies is done again.

    Raises:
        RunError: A worker process died, or the cluster cannot be reached.
        ModuleNotFoundError: `ray` is set and Ray not installed.
    """
    if ray is not None:
        yield from _over_ray(function, items, workers, ray)
        return
    workers = min(choose_processes(workers).count, len(items))
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch or JAX may deadlock
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    finished = False
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
        finished = True
    except BrokenProcessPool as error:
        raise RunError(
            f"a worker process died, {_likely_cause()}; finished work is kept"
        ) from error
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for child in multiprocessing.active_children():
                child.terminate()


def _likely_cause() -> str:
    """Return why a worker may have died and what to do.

    A worker imports the script that started it. Where that starts workers by itself, each of
    them dies as it begins.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and "__name__" not in Path(script).read_text(errors="replace"):
        return (
            f"since {script} starts work whenever it is imported, as each worker does; put its "
            'calls under `if __name__ == "__main__":`'
        )
    return "perhaps out of memory; run the same command again with fewer --workers"


def _begin_worker() -> None:
    # The parent handles Ctrl-C for all; each worker uses one core.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when its parent has ended, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _over_ray(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, address: str
) -> Iterator[tuple[Item, Result]]:
    import ray

    if not ray.is_initialized():
        _connect(address, workers)
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_in_folder)
    waiting = list(reversed(items))
    running: dict[Any, Item] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (workers or len(items)):
                item = waiting.pop()
                running[task.remote(function, item, str(Path.cwd()))] = item
            (done, *_), _ = ray.wait(list(running))
            result = _result(done)
            yield running.pop(done), result
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _connect(address: str, workers: int) -> None:
    """Join a cluster until this process ends, since a search comes back for more."""
    import ray

    try:
        if address == "local":
            # Ray reports usage by default; a cluster that this command starts does not.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init("local", num_cpus=workers or cores(), include_dashboard=False)
        else:
            if address != "auto":  # Ray itself would try for minutes where nothing listens
                host, _, port = address.removeprefix("ray://").rpartition(":")
                if not port.isdecimal():
                    raise ValueError("it is not HOST:PORT")
                socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
            ray.init(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"no Ray cluster at {address} ({error}); name the address that `ray start --head` "
            "printed, or take --ray local"
        ) from error
    except Exception as error:
        if type(error) is not Exception:  # what Ray raises after 30 s of a slow start
            raise
        raise RunError(f"Ray did not start ({error}); try again when less runs here") from error


def _in_folder(function: Callable[[Item], Result], item: Item, folder: str) -> Result:
    """Work in the caller's folder, so that relative paths name the same files."""
    os.chdir(folder)
    return function(item)


def _result(done: Any) -> Any:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what the function raised
    except ray.exceptions.RayError as error:
        raise RunError(
            f"a Ray worker died {RETRIES + 1} times over the same work "
            f"({type(error).__name__}), perhaps out of memory; run the same command again with "
            "fewer --workers, finished work is kept"
        ) from error
