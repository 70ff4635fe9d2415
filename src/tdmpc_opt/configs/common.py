"""What configs of several commands share."""

from typing import Literal

Mode = Literal["planner", "policy"]
Device = Literal["auto", "cpu", "cuda", "mps"]

COLLECTION_SEED = 1_000_000
"""First environment seed of experts, collection and relabelling; evaluation stays below."""
