"""The same work over local processes; it knows nothing of the work."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from tdmpc_opt.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def run_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int = 0
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items in worker processes; yield pairs as they finish.

    Args:
        function: Module-level callable; it, the items and the results must pickle.
        items: The work.
        workers: Processes at once; 0 takes one per core, 1 works in this process.

    Raises:
        RunError: A worker process died.
    """
    workers = min(workers or cores(), len(items))
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
            "a worker process died, perhaps out of memory; run the same command again with "
            "fewer --workers, finished work is kept"
        ) from error
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for child in multiprocessing.active_children():
                child.terminate()


def _begin_worker() -> None:
    # The parent answers Ctrl-C for all; each worker keeps to one core.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when its parent is gone, however it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
