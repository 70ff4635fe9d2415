"""What torchrun tells the processes that it starts, in environment variables."""

import os


def world_size() -> int:
    """Return how many processes train together; 1 for one that torchrun did not start."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return _number("RANK", 0)


def local_world_size() -> int:
    """Return how many of them run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def nodes() -> int:
    """Return on how many machines they run."""
    return _number("GROUP_WORLD_SIZE", 1)


def restarts() -> int:
    """Return how often torchrun has started the processes of this machine again."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def _number(name: str, otherwise: int) -> int:
    # Other launchers set some of these names too; this one is torchrun's own.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return otherwise
    return int(os.environ.get(name, otherwise))
