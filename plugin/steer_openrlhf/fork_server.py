"""Processes that have imported the stack before they start. Linux, without a GPU (CUDA does not survive a fork).

A training on CPU has four processes that each import torch, DeepSpeed, vLLM and OpenRLHF: 7 seconds of CPU time every
time. Here one process imports them and is forked for each: Ray's workers and vLLM's engine start through
:mod:`.fork_client`, in Ray's terms a ``py_executable``, for multiprocessing an executable. What runs in the fork is
the same program as otherwise, with the client's arguments, environment, folder and descriptors.

The server ends with Ray's daemon on this machine, and its processes with it. ``STEER_OPENRLHF_FORK=0`` turns it off.
"""

import array
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes import CDLL
from pathlib import Path
from types import ModuleType
from typing import Any

from . import fork_client

SWITCH = "STEER_OPENRLHF_FORK"
HOST_MODULES = ("openrlhf.trainer.ray.launcher", "openrlhf.trainer.ray.ppo_actor", "openrlhf.trainer.ppo_trainer")
ENGINE_MODULES = ("vllm.engine.async_llm_engine", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker")
OWN_THREADS = ("jemalloc_bg_thd",)  # jemalloc's (in pyarrow), which stops and restarts it around a fork
LONGEST_ADDRESS = 100  # bytes; a unix socket's path, sun_path, has 108
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MOST_DESCRIPTORS = 253  # SCM_MAX_FD of Linux
_ABOVE_ALL = 1000
"""Descriptors that arrive are put from here on first, out of the way of the numbers they shall get."""


@contextmanager
def python_program(root: str | None) -> Iterator[str | None]:
    """A program that stands for ``python`` and starts forks, in a folder of its own below ``root`` (None: the system's
    for temporary files); None where it is turned off or the folder's path is too long for a socket."""
    below = root if root and os.path.isdir(root) else None
    with tempfile.TemporaryDirectory(prefix="steer-fork-", dir=below, ignore_cleanup_errors=True) as folder:
        address, program = Path(folder) / "server", Path(folder) / "python"
        if os.environ.get(SWITCH) == "0" or len(os.fsencode(address)) > LONGEST_ADDRESS:
            yield None
            return
        words = [sys.executable, "-I", "-S", fork_client.__file__, str(address)]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o700)
        yield str(program)


def warm_up() -> None:
    """The first task of a cluster: its worker's start starts the server, long before an actor needs it."""


def import_stack(modules: Iterable[str]) -> None:
    """Import without garbage collections, a fifth of the time, and leave what was made out of all later ones."""
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
        gc.freeze()
    finally:
        gc.enable()


class Server:
    """One client, one fork: its end is told to the client, and the end of the client ends it."""

    def __init__(self, listener: socket.socket, environ: Mapping[str, str], raylet: int | None) -> None:
        self.environ = environ
        self.listener = listener
        self.clients: dict[int, socket.socket] = {}  # by the pid of the fork
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self._start)
        self.wake_up, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(self.wake_up, selectors.EVENT_READ, self._reap)
        self.raylet = os.pidfd_open(raylet) if raylet else None
        if self.raylet is not None:
            self.selector.register(self.raylet, selectors.EVENT_READ, sys.exit)

    def serve(self) -> dict[str, Any]:
        """The request, in the fork that is to fulfil it; never returns in the server."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes the selector
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        while True:
            for key, _ in self.selector.select():
                if key.fd not in self.selector.get_map():
                    continue  # forgotten by an earlier one of this round
                if request := key.data():
                    return request

    def _start(self) -> dict[str, Any] | None:
        connection, _ = self.listener.accept()
        request, descriptors = receive(connection)
        pid = _fork() if request is not None and fits(request, self.environ) else None
        if request is not None and pid == 0:
            self._leave(connection)
            rename(request["arguments"])
            become(request, descriptors)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        if pid is None:
            connection.close()
        else:
            self.clients[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ, lambda: self._end(pid))
            _send(connection, pid)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """In the fork: nothing of the server's stays open, and the end of the server is the end."""
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for one in (connection, self.listener, *self.clients.values()):
            one.close()
        for descriptor in (self.wake_up, self.waker, self.raylet):
            if descriptor is not None:
                os.close(descriptor)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.wake_up, 4096)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if client := self.clients.pop(ended[0], None):
                    _send(client, os.waitstatus_to_exitcode(ended[1]))
                    self._forget(client)

    def _end(self, pid: int) -> None:
        """The client was killed."""
        if client := self.clients.pop(pid, None):
            os.kill(pid, signal.SIGKILL)
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        self.selector.unregister(client)
        client.close()


def _fork() -> int | None:
    """None where the system has no room for another process: the client has to try for itself, the others go on."""
    try:
        return os.fork()
    except OSError:
        return None


def die_with_parent() -> None:
    parent = os.getppid()
    CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A client's request and the descriptors that came with it; None from a client that ended meanwhile."""
    passed = array.array("i")
    head, messages, _, _ = connection.recvmsg(fork_client.HEAD, socket.CMSG_SPACE(_MOST_DESCRIPTORS * passed.itemsize))
    for _, _, data in messages:
        passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
    text, length = b"", int.from_bytes(head, "big")
    while len(text) < length:
        if not (part := connection.recv(length - len(text))):
            break
        text += part
    return (json.loads(text) if text and len(text) == length else None), list(passed)


def _send(client: socket.socket, number: int) -> None:
    with suppress(OSError):  # it has gone: _end
        client.sendall(f"{number}\n".encode())


def fits(request: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether a fork can be the process asked for. Ray reads its settings when it is imported, so those of a worker
    must be the server's (job, daemon, and all the rest)."""
    if not any(one.endswith("default_worker.py") for one in request["arguments"]):
        return True
    asked, own = ({n: v for n, v in one.items() if n.startswith("RAY_")} for one in (request["environ"], environ))
    return asked == own


def rename(arguments: list[str]) -> None:
    """Show up as ``python ARGUMENTS``, and make room for the names that Ray and vLLM give their processes: each looks
    for it by a module of its own, and finds it only beside the environment of the process's start."""
    if any(one.endswith("default_worker.py") for one in arguments):
        from ray._raylet import setproctitle  # type: ignore[attr-defined]
    else:
        from setproctitle import setproctitle
    setproctitle(shlex.join([sys.executable, *arguments]))


def become(request: Mapping[str, Any], descriptors: list[int]) -> None:
    """Take the client's descriptors, folder and environment, and random numbers of one's own."""
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _ABOVE_ALL) for one in descriptors]
    for one in descriptors:
        os.close(one)
    for one, number in zip(moved, request["descriptors"], strict=True):
        os.dup2(one, number)
        os.close(one)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def run(arguments: list[str]) -> None:
    """What ``python ARGUMENTS`` does, in the two forms that :func:`.fork_client.is_served` lets through."""
    while arguments[0] != "-c" and arguments[0].startswith("-"):
        arguments = arguments[1:]  # the interpreter's own: -u, -B
    main = sys.modules["__main__"] = ModuleType("__main__")
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), vars(main))  # what multiprocessing hands to python -c
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def threads() -> list[str]:
    """The names of this process's other threads."""
    others = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    return [(task / "comm").read_text().strip() for task in others]


def main(address: str, descriptor: str, modules: Iterable[str] = HOST_MODULES + ENGINE_MODULES) -> None:
    """Import the stack and serve at the listening socket. Clients that came meanwhile wait in its queue."""
    from multiprocessing import set_executable

    from . import host

    environ = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for a worker with one CPU, before torch reads it
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's, which would start its threads when it is imported
    host.install()
    import_stack(modules)
    if strangers := [name for name in threads() if name not in OWN_THREADS]:
        sys.exit(f"steer_openrlhf: a process with threads is not forked, every worker imports for itself: {strangers}")
    raylet = os.environ.get("RAY_RAYLET_PID")
    listener = socket.socket(fileno=int(descriptor))
    request = Server(listener, environ, int(raylet) if raylet else None).serve()
    set_executable(str(Path(address).with_name("python")))
    run(request["arguments"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
