"""A wall clock that somebody sets: loaded as ``sitecustomize``, ``time.time`` and ``datetime.now`` jump back and forth
by hours, again and again; monotonic clocks go on, as the kernel has it. The number of looks is kept for the test."""

import atexit
import datetime
import os
import time
from pathlib import Path

_real = time.time
_looks = 0
_born = time.monotonic()
JUMPS_S = (0.0, 7200.0, -10800.0, 86400.0, -3600.0)


def jumped() -> float:
    global _looks
    _looks += 1
    return _real() + JUMPS_S[int((time.monotonic() - _born) / 0.3) % len(JUMPS_S)]


class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Jumping":
        return cls.fromtimestamp(jumped(), tz)


def note() -> None:
    folder = os.environ.get("CLOCK_LOOKS")
    if folder:
        (Path(folder) / str(os.getpid())).write_text(str(_looks))


time.time = jumped
datetime.datetime = Jumping  # type: ignore[misc]
atexit.register(note)
