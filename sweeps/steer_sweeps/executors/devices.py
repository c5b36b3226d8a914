"""GPUs of this machine: which there are, which are in use, and whose turn it is. No CUDA is loaded.

Whoever runs trials here, in whichever study, takes a device by its lock file. A controller that needs more devices
than are free waits in a queue, and those behind it leave it what it needs: a trial of many GPUs is not starved by
small ones.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .base import ExecutorError
from .locks import is_locked, locked, try_lock

HOST_FOLDER = "STEER_SLOTS_DIR"
IDLE_MIB = 1024
"""An idle device shows up to several hundred MiB of the driver's own."""
WAITING_S = 60.0
"""A controller that has not asked for so long does not wait any more."""
SMI_TIMEOUT_S = 60.0
_GPUS = "--query-gpu=index,uuid,memory.used"
_APPS = "--query-compute-apps=gpu_uuid"


@dataclass(frozen=True)
class Gpu:
    """One line of ``nvidia-smi``. ``used_mib`` None: the driver does not say (MIG)."""

    index: str
    uuid: str
    used_mib: int | None


def parse_gpus(text: str) -> list[Gpu]:
    """Lines ``index, uuid, memory.used`` of ``--format=csv,noheader,nounits``. Raises ``ValueError``."""
    gpus = []
    for line in filter(str.strip, text.splitlines()):
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or not parts[0].isdigit():
            raise ValueError(f"nvidia-smi said {line!r}, not 'index, uuid, memory'")
        gpus.append(Gpu(parts[0], parts[1], int(parts[2]) if parts[2].isdigit() else None))
    return gpus


def busy(gpus: Sequence[Gpu], apps: str) -> set[str]:
    """Numbers and UUIDs of the devices with a compute process or memory in use. In a container other processes are
    hidden, the memory is not."""
    with_process = {line.strip() for line in apps.splitlines() if line.strip()}
    found = [gpu for gpu in gpus if gpu.uuid in with_process or (gpu.used_mib or 0) > IDLE_MIB]
    return {name for gpu in found for name in (gpu.index, gpu.uuid)}


def busy_now() -> set[str]:
    """As :func:`busy`, now; nothing where there is no ``nvidia-smi``. Raises :class:`ExecutorError` when it fails."""
    if shutil.which("nvidia-smi") is None:
        return set()
    return busy(_listed(), _ask(_APPS))


def present() -> list[str]:
    """Devices this process may use: those of ``CUDA_VISIBLE_DEVICES``, or all."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one.strip() for one in named.split(",") if one.strip() and one.strip() != "-1"]
    return [gpu.index for gpu in _listed()] if shutil.which("nvidia-smi") else []


def _listed() -> list[Gpu]:
    try:
        return parse_gpus(_ask(_GPUS))
    except ValueError as error:
        raise ExecutorError(str(error)) from None


def _ask(query: str) -> str:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        raise ExecutorError(f"nvidia-smi did not answer within {SMI_TIMEOUT_S:g} s") from None
    except subprocess.CalledProcessError as error:
        raise ExecutorError(f"nvidia-smi failed: {(error.stdout + error.stderr).strip()[:300]}") from None
    return done.stdout


class Devices:
    """The devices ``names``, shared by all controllers of this user on this host through lock files."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.folder = Path(os.environ.get(HOST_FOLDER) or f"/tmp/steer-slots-{os.getuid()}")
        self._ticket: tuple[Path, int] | None = None

    def grantable(self, need: int) -> int:
        """How many devices this controller may take now. Fewer than ``need``: it waits in the queue from now on."""
        with self._turn():
            free = self._free()
            left = len(free) - self._wanted_before()
            if left < need:
                self._wait(need)
            return max(left, 0)

    def take(self, need: int) -> dict[str, int] | None:
        """``need`` devices as name -> descriptor holding its lock, or None: all or nothing, in turn."""
        with self._turn():
            free = self._free()
            if len(free) - self._wanted_before() < need:
                self._wait(need)
                return None
            taken: dict[str, int] = {}
            for name in free:
                if len(taken) < need and (handle := try_lock(self._lock(name))) is not None:
                    taken[name] = handle
            if len(taken) < need:
                for handle in taken.values():
                    os.close(handle)
                return None
            self.stop_waiting()
            return taken

    def stop_waiting(self) -> None:
        if self._ticket is not None:
            path, handle = self._ticket
            path.unlink(missing_ok=True)
            os.close(handle)
            self._ticket = None

    def _free(self) -> list[str]:
        for name in self.names:  # whoever tidies up temporary folders looks for old files
            self._lock(name).parent.mkdir(parents=True, exist_ok=True)
            self._lock(name).touch()
        unlocked = [name for name in self.names if not is_locked(self._lock(name))]
        occupied = busy_now() if unlocked else set()
        return [name for name in unlocked if name not in occupied]

    def _wanted_before(self) -> int:
        """Devices of ours that those before us in the queue wait for."""
        mine = self._ticket[0].name if self._ticket else "~"
        wanted = 0
        for ticket in sorted((self.folder / "queue").glob("*")):
            if not is_locked(ticket):
                ticket.unlink(missing_ok=True)  # its controller is gone
            elif ticket.name < mine:
                asked, need, names = ticket.read_text().split("\n")
                fresh = time.monotonic() - float(asked) < WAITING_S
                wanted += int(need) if fresh and set(names.split(",")) & set(self.names) else 0
        return wanted

    def _wait(self, need: int) -> None:
        if self._ticket is None:
            path = self.folder / "queue" / f"{time.monotonic_ns():020d}-{os.getpid()}"
            handle = try_lock(path)
            assert handle is not None
            self._ticket = path, handle
        self._ticket[0].write_text(f"{time.monotonic()}\n{need}\n{','.join(self.names)}")

    def _turn(self) -> AbstractContextManager[None]:
        return locked(self.folder / "turn.lock")

    def _lock(self, name: str) -> Path:
        return self.folder / "devices" / f"{name}.lock"
