"""Stands for ``python`` in Ray's workers and for vLLM's engine where :mod:`.fork_server` serves.

    python -I -S fork_client.py ADDRESS ARGUMENTS...

Gets the process that ``python ARGUMENTS`` would be from the server (the first client starts one), passes signals on to
it and ends as it ends. Where there is no answer it becomes ``python ARGUMENTS`` itself, so a server is never needed,
only faster. Imports nothing but the standard library: it starts in milliseconds.
"""

import array
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

SERVER = "steer_openrlhf.fork_server"
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
BACKLOG = 64
HEAD = 4
"""Bytes of the request's length that go before it."""


def is_served(arguments: list[str]) -> bool:
    """Whether the process is one that imports the stack: a Ray worker, or a process spawned by multiprocessing."""
    return any(one.endswith("default_worker.py") or "import spawn_main" in one for one in arguments)


def connect(address: str) -> socket.socket | None:
    """A connection to the server at ``address``, started now if nobody has; None when it has gone."""
    with open(f"{address}.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(address):
            _start_server(address)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        return None
    return connection


def _start_server(address: str) -> None:
    """With this process's environment, which is a worker's: some of the stack reads it when it is imported."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.set_inheritable(True)
        command = [sys.executable, "-P", "-m", SERVER, address, str(listener.fileno())]
        os.posix_spawn(sys.executable, command, os.environ)


def ask(connection: socket.socket, arguments: list[str]) -> int | None:
    """Send the request with this process's descriptors; the pid of the new process, None when it is refused."""
    descriptors = sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if _inheritable(fd))
    request = {"arguments": arguments, "descriptors": descriptors, "cwd": os.getcwd(), "environ": dict(os.environ)}
    text = json.dumps(request).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        connection.sendmsg([len(text).to_bytes(HEAD, "big")], rights)
        connection.sendall(text)
    except OSError:
        return None
    return _number(connection)


def _inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # that of /proc/self/fd itself
        return False


def _number(connection: socket.socket) -> int | None:
    """The next line of the server; None when it has ended. Byte by byte: there are two short lines in all."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            line += (byte := connection.recv(1))
            if not byte:
                return None
    except OSError:
        return None
    return int(line)


def _forward(pid: int) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return  # it has ended, and we are about to

    return handler


def main(address: str, arguments: list[str]) -> int:
    """The exit code of the process, or a death by the signal it died of."""
    connection = connect(address) if is_served(arguments) else None
    pid = ask(connection, arguments) if connection else None
    if connection is None or pid is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in FORWARDED:
        signal.signal(number, _forward(pid))
    code = _number(connection)
    if code is None:  # the server was killed, and its processes with it
        code = -signal.SIGKILL
    if code < 0:
        if -code in FORWARDED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
