"""What a Ray job of ours runs on the cluster: ``python -m steer_sweeps.executors.ray_entry``.

It waits at the gate (:mod:`.ray_gate`), runs the trial below it, and, where the controller cannot see the run
directory, prints its files (:mod:`.ray_mirror`). Ray's request to stop goes to every process below the job at once; so
this one only sees to it that they end in time, and that nothing is left.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer_experiments import processes
from steer_experiments.run_dir import RunDir, write_text

from .ray_gate import BEAT_S, Gate, connect, disconnect
from .ray_mirror import Sender
from .records import JOB_VARIABLE, end_marked, marked

POLL_S = 0.2
NEWS_S = 1.0
KEY = "steer"
"""The key of the job's metadata with its :class:`Task`, as JSON."""
STOPPED = 130


@dataclass(frozen=True)
class Task:
    """What the controller sends. ``config``: the text of ``config.yaml`` where the nodes cannot read it, else None."""

    name: str
    mark: str
    command: list[str]
    run_dir: str
    gpus: int
    cpus_per_gpu: float
    stop_s: float
    scratch: str
    config: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    def local(self) -> tuple[RunDir, list[str]]:
        """The run directory on this node, and the command that writes into it."""
        if self.config is None:
            return RunDir(self.run_dir), self.command
        run = RunDir(Path(self.scratch) / self.name)
        return run, [word.replace(self.run_dir, str(run.path)) for word in self.command]


def main() -> int:
    task = Task(**json.loads(_metadata()[KEY]))
    run, command = task.local()
    if task.config is not None:
        run.path.mkdir(parents=True, exist_ok=True)
        write_text(run.config, task.config)
    sender = Sender(run) if task.config is not None else None
    processes.adopt_orphans()
    with processes.stop_requests() as stop, _janitor(task.mark):
        gate = _enter(task, stop)
        try:
            code = STOPPED if stop else _run(task, run, command, gate, sender, stop)
        finally:
            if gate:
                gate.leave()
    end_marked(Path(task.mark), task.stop_s)
    if sender:
        _say(sender.everything())
        shutil.rmtree(run.path / "ckpt", ignore_errors=True)  # the largest part, of no use without its run
    return code


def kill(mark: str) -> int:
    """End the trial with this mark, if it is on this node, at once: ``--kill MARK``. Its entry point then ends too."""
    end_marked(Path(mark), patience_s=0.0)
    return 0


@contextmanager
def _janitor(mark: str) -> Iterator[None]:
    """A process that sees to it, when this one is killed, that the trial's processes end: it waits for the end of a
    pipe. (When a node's raylet dies, Ray kills this process group, and nothing that left it.)"""
    command = [sys.executable, "-m", __spec__.name, "--janitor", mark]
    quiet = subprocess.DEVNULL  # not the job's log: who ends what uses Ray's folder must not end this
    janitor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield
    finally:
        janitor.communicate()


def tidy_up(mark: str) -> int:
    """``--janitor MARK``. A request to stop is for others."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_marked(Path(mark), processes.PATIENCE_S)
    return 0


def _metadata() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]
    return found


def _enter(task: Task, stop: list[int]) -> Gate | None:
    """Wait for the trial's turn and GPUs; None for a trial without."""
    if not task.gpus:
        return None
    connect()
    gate = Gate(task.name, task.gpus, task.cpus_per_gpu)
    print(f"waiting for {task.gpus} GPUs at once", flush=True)
    while not stop and not gate.open():
        time.sleep(BEAT_S)
    return gate


def _run(task: Task, run: RunDir, command: list[str], gate: Gate | None, sender: Sender | None, stop: list[int]) -> int:
    variables = os.environ | task.env | {JOB_VARIABLE: task.mark}
    if address := os.environ.get("RAY_ADDRESS"):
        variables["STEER_RAY_ADDRESS"] = address
    with (run.path / "supervisor.txt").open("ab") as output:
        child = processes.spawn(command, output, variables)
    waiting, said, asked = gate, time.monotonic(), 0.0
    while child.poll() is None:
        time.sleep(POLL_S)
        now = time.monotonic()
        if waiting and _is_placed(waiting, run, Path(task.mark)):
            waiting.leave()
            waiting = None
            disconnect()
        if sender and now - said >= NEWS_S:
            said = now
            _say(sender.news())
        asked = asked or (now if stop else 0.0)
        if asked and now - asked > task.stop_s:
            child.kill()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _is_placed(gate: Gate, run: RunDir, mark: Path) -> bool:
    """By its placement groups, or, for a training with fewer than were reserved for it, by its first step."""
    status = run.read_status()
    return gate.placed(marked(mark)) or bool(status and status.step)


def _say(messages: list[str]) -> None:
    for message in messages:
        os.write(sys.stdout.fileno(), message.encode())  # one call each: nobody's output comes in between


if __name__ == "__main__":
    actions = {"--kill": kill, "--janitor": tidy_up}
    sys.exit(actions[sys.argv[1]](sys.argv[2]) if len(sys.argv) > 2 else main())
