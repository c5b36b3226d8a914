"""What a study may spend. Its hours are counted by its controllers' monotonic clocks, while at least one is at work."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from steer_experiments.run_dir import read_json, write_json

from .executors.locks import try_lock

TICK_S = 5.0


class StudyClock:
    """Hours of work of a study, kept in ``clock.json``. One of its controllers counts, whoever has the lock; when it is
    gone another goes on. Being killed loses a few seconds of it."""

    def __init__(self, study: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._lock = study / "clock.json", study / "clock.lock"
        self._clock = clock
        self._handle: int | None = None
        self._seconds = self._last = 0.0
        self._looked: float | None = None

    def hours(self) -> float:
        """Hours so far; call it now and then, for it also does the counting."""
        now = self._clock()
        if self._looked is not None and now - self._looked < TICK_S:
            return self._total(now)
        self._looked = now
        if self._handle is None:
            self._handle = try_lock(self._lock)
            found = read_json(self._file) or {}
            self._seconds, self._last = float(found.get("seconds", 0.0)), now
        if self._handle is not None:
            self._seconds, self._last = self._seconds + now - self._last, now
            with suppress(OSError):  # a full disk: the number goes on in memory, and is written later
                write_json(self._file, {"seconds": self._seconds})
        return self._total(now)

    def _total(self, now: float) -> float:
        return (self._seconds + now - self._last) / 3600

    def close(self) -> None:
        if self._handle is not None:
            self._looked = None
            self.hours()
            os.close(self._handle)
            self._handle = None
