"""Who looks after a configuration: one controller at a time, also when several run a study, also on several hosts.

A lease is a locked file of the study. The kernel lifts the lock when its holder dies. Where the holder was on another
machine, whose kernel cannot be asked on every file system, the lease is taken over only when its beat counter has not
moved for ``lease_s`` of the observer's own monotonic clock: no two clocks are compared.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .executors.locks import try_lock

LEASE_S = 60.0
BEAT_S = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def kernel_id() -> str:
    """What names the running kernel: containers on one machine share it, and its locks."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else socket.gethostname()


@dataclass
class _Held:
    handle: int
    beats: int = 0


class Leases:
    """The leases of one controller, files ``<folder>/<name>``. ``owner`` says who it is, for people too."""

    def __init__(
        self,
        folder: Path,
        lease_s: float = LEASE_S,
        kernel: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.lease_s, self.clock = folder, lease_s, clock
        self.kernel = kernel or kernel_id()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._beaten = clock()

    def take(self, name: str) -> bool:
        """Whether the lease is ours now. Never waits."""
        if name in self._held:
            return True
        handle = try_lock(self.folder / name)
        if handle is None:
            self._seen.pop(name, None)
            return False
        if not self._abandoned(name, os.pread(handle, 4096, 0)):
            os.close(handle)
            return False
        held = _Held(handle)
        try:
            self._write(held)
        except OSError:  # a full disk: nobody could see whose it is
            os.close(handle)
            return False
        self._held[name] = held
        self._seen.pop(name, None)
        return True

    def _abandoned(self, name: str, content: bytes) -> bool:
        """Of a lease whose lock we could get: whether its owner is surely gone."""
        if not content:
            return True
        try:
            if json.loads(content)["kernel"] == self.kernel:
                return True
        except (ValueError, KeyError, TypeError):
            pass  # read while it was written: what counts is whether it changes
        before, since = self._seen.get(name, (b"", 0.0))
        if content != before:
            self._seen[name] = (content, self.clock())
            return False
        return self.clock() - since >= self.lease_s

    def release(self, name: str) -> None:
        """Give a lease back. One we do not hold is left alone."""
        held = self._held.pop(name, None)
        if held is None:
            return
        if self._is_ours(held):
            (self.folder / name).unlink(missing_ok=True)
        os.close(held.handle)

    def release_all(self) -> None:
        for name in list(self._held):
            self.release(name)

    def beat(self) -> list[str]:
        """Move our counters when it is time; the names of leases that others took while we stood still."""
        if self.clock() - self._beaten < BEAT_S:
            return []
        self._beaten = self.clock()
        lost = [name for name, held in self._held.items() if not self._is_ours(held)]
        for name in lost:
            os.close(self._held.pop(name).handle)
        for held in self._held.values():
            with suppress(OSError):
                self._write(held)
        return lost

    def _is_ours(self, held: _Held) -> bool:
        try:
            return bool(json.loads(os.pread(held.handle, 4096, 0))["owner"] == self.owner)
        except (ValueError, KeyError, TypeError):
            return False

    def _write(self, held: _Held) -> None:
        held.beats += 1
        text = json.dumps({"owner": self.owner, "kernel": self.kernel, "beats": held.beats}) + "\n"
        os.pwrite(held.handle, text.encode(), 0)
        os.ftruncate(held.handle, len(text))
