"""Stopping repeated work in time: what a part of it costs, and how often time ran out."""

import threading
from collections import deque
from collections.abc import Callable

Clock = Callable[[], float]
"""Monotonic time in seconds."""


class DeadlineTimer:
    """Measures parts of the work and tells when another would end after the deadline.

    Each thread has the deadline of its own action; the counts are those of all threads.

    Args:
        clock: Monotonic clock.
    """

    def __init__(self, clock: Clock) -> None:
        self.acts = 0
        """Actions that had a deadline."""
        self.misses = 0
        """Those of them that came too late."""
        self._clock = clock
        self._thread = threading.local()
        self._counting = threading.Lock()
        self._costs: deque[float] = deque(maxlen=8)

    @property
    def _end(self) -> float:
        """Time at which this thread's action should be done."""
        return getattr(self._thread, "end", float("inf"))

    @property
    def limited(self) -> bool:
        """Whether this action has a deadline."""
        return self._end < float("inf")

    def begin(self, deadline_ms: float | None) -> None:
        """Start the time of one action; None sets no limit."""
        if deadline_ms is not None:
            self._thread.end = self._clock() + deadline_ms / 1000
        elif self.limited:
            self._thread.end = float("inf")

    def finish(self) -> None:
        """Count the action, and whether it is late."""
        if self.limited:
            late = self._clock() > self._end
            with self._counting:
                self.acts += 1
                self.misses += late

    def enough(self) -> bool:
        """Return whether another part, at the cost of recent ones, would be late."""
        if not self.limited or not self._costs:
            return False
        # The second largest: one part that compiled, or was interrupted, says nothing.
        expected = sorted(self._costs)[-2:][0]
        return self._clock() + expected > self._end

    def start_part(self) -> float:
        """Return the time at which a part starts."""
        return self._clock()

    def end_part(self, started: float) -> None:
        """Remember what the part cost that started then."""
        self._costs.append(self._clock() - started)
