"""Processes of a run: start one that cannot outlive us, and end all it leaves behind. Linux.

Ray's daemons and vLLM's engines leave their parent's process group, so a group alone does not find them. Two things do:
every orphan is handed to the nearest *subreaper* above it, and every process of a Ray cluster has a file open below the
cluster's private directory.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

RAY_DIR_PREFIX = "steer-ray-"
LONGEST_TEMP_ROOT = 30
PATIENCE_S = 10.0
"""From a polite SIGTERM to SIGKILL."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """From now on, orphaned descendants become our children, where :func:`descendants` sees them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spawn(command: Sequence[str], output: IO[bytes], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in its own session. The kernel kills it when we die; Ray's daemons share its fate in turn."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),
    )


def _die_with(parent: int) -> Callable[[], None]:
    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child


def die_with_parent() -> None:
    """End with the process that started us, when it is gone for a second. (The kernel's own way, as in :func:`spawn`,
    ends a child with the *thread* that started it.)"""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def descendants() -> set[psutil.Process]:
    """All processes below this one."""
    return set(psutil.Process().children(recursive=True))


def users_of(folder: str | Path) -> set[psutil.Process]:
    """Processes other than this one that name ``folder`` in their command line or have a file open below it."""
    below, own = str(folder).rstrip("/") + "/", os.getpid()
    found = set()
    for process in psutil.process_iter():
        try:
            named = any(below in word + "/" for word in process.cmdline())
            if process.pid != own and (named or any(file.path.startswith(below) for file in process.open_files())):
                found.add(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has gone, or is somebody else's
    return found


def end(processes: Iterable[psutil.Process], patience_s: float = PATIENCE_S) -> None:
    """SIGTERM, wait, SIGKILL what is left, and reap. Processes that have gone already are fine."""
    processes = list(processes)
    for process in processes:
        _send(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(processes, timeout=patience_s)
    for process in stubborn:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=patience_s)


def end_child(child: subprocess.Popen[bytes], patience_s: float = PATIENCE_S) -> int:
    """SIGTERM, wait, SIGKILL; the exit code. (psutil would reap the child and lose its code.)"""
    child.terminate()
    try:
        return child.wait(patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def is_alive(pid: int, created: float) -> bool:
    """Whether the very process that had ``pid`` and was created then (seconds since the epoch) still runs."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def ray_temp_dir() -> Iterator[Path]:
    """A short private directory for Ray (its unix sockets allow about 100 characters).

    At the end every process that uses it is killed and it is removed, also when we are killed: a janitor process waits
    for the end of a pipe to us. (Ray's agents outlive a killed driver by minutes.)
    """
    short = len(tempfile.gettempdir()) <= LONGEST_TEMP_ROOT
    root = tempfile.gettempdir() if short else "/tmp"
    folder, owned = _owned_dir(root)
    _remove_abandoned(folder.parent)
    command = [sys.executable, "-m", __name__, str(folder)]
    janitor = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield folder
    finally:
        janitor.communicate()
        remove_ray_dir(folder)  # in case the janitor was killed
        os.close(owned)


def remove_ray_dir(folder: Path | str) -> None:
    """Kill what uses a run's Ray directory and remove it. Anything that is not such a directory is left alone."""
    if Path(folder).name.startswith(RAY_DIR_PREFIX):
        end(users_of(folder), patience_s=2.0)
        shutil.rmtree(folder, ignore_errors=True)


def _owned_dir(root: str) -> tuple[Path, int]:
    """A new directory and the descriptor that holds its lock. The directory itself is locked: with a file open in it we
    would be one of its users. The kernel lifts the lock with the process, also where that is in another container and
    its number means nothing here."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=RAY_DIR_PREFIX, dir=root))
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            return folder, handle
        os.close(handle)  # another starter took it for abandoned before it was locked


def _remove_abandoned(where: Path) -> None:
    """Remove directories of ours that nobody owns: their janitor was killed too, or the power was cut."""
    for folder in where.glob(f"{RAY_DIR_PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):  # gone just now, or somebody else's
            continue
        try:
            if os.fstat(handle).st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_ray_dir(folder)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(handle)


@contextmanager
def stop_requests(polite: int = 1) -> Iterator[list[int]]:
    """A list that receives SIGINT, SIGTERM and SIGHUP instead of this process; after ``polite`` of them the next one
    kills as usual."""
    received: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > polite:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, on_signal) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _janitor(folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove_ray_dir(folder)


if __name__ == "__main__":
    _janitor(sys.argv[1])
