"""How far a long evaluation is, and how long it will still take."""

import time
from collections.abc import Callable

EVERY_SECONDS = 10.0
Say = Callable[[str], None]


class Progress:
    """Says so at most every ten seconds. The rate is that of this process: what was kept from before does not count."""

    def __init__(
        self, title: str, total: int, kept: int, say: Say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._total, self._done, self._kept, self._say = title, total, kept, kept, say
        self._clock = clock
        self._first: float | None = None  # the first answer's time: before it the engine was starting
        self._last = clock()

    def add(self, answers: int) -> None:
        """Count answers that have been saved; call it with 0 as often as you like."""
        now = self._clock()
        if answers and self._first is None:
            self._first, self._kept = now, self._done + answers
        self._done += answers
        if now - self._last >= EVERY_SECONDS:
            self._last = now
            self._say(f"{self._title}: {self._done} of {self._total} answers{self._outlook(now)}")

    def _outlook(self, now: float) -> str:
        new = self._done - self._kept
        if self._first is None or new <= 0 or now <= self._first:
            return ""
        rate = new / (now - self._first)
        return f", {rate:.3g} a second, {duration((self._total - self._done) / rate)} left"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
