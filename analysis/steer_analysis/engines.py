"""Where answers come from: one engine inside this process, or several processes with a device each.

A source serves one checkpoint after the other. What vLLM raises about a checkpoint becomes ``RuntimeError`` (or
``ValueError``, ``OSError``), so that the next one can be tried.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from .generate import Answers, Completion, Engine, Request

DEVICES = "CUDA_VISIBLE_DEVICES"
TICK_SECONDS = 1.0  # so often an empty list is given out while nothing is finished


class Source(Protocol):
    """Anything that answers requests. ``device``: its name, known after the first answer."""

    device: str
    processes: int

    def answers(self, checkpoint: Path, requests: Sequence[Request]) -> Answers:
        """Every answer once, in any order."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def open_source(processes: int) -> Source:
    """One engine in this process, or ``processes`` of them, the k-th on the k-th visible device."""
    return Inside() if processes == 1 else Fleet(processes)


class Inside:
    """An engine in this process for each checkpoint, one after the other."""

    device, processes = "", 1

    def answers(self, checkpoint: Path, requests: Sequence[Request]) -> Answers:
        try:
            with closing(Engine(checkpoint, requests)) as engine:
                self.device = engine.device
                yield from engine.answers()
        except (OSError, RuntimeError, ValueError):
            raise
        except Exception as error:  # vLLM asserts on some checkpoints and finds keys missing in others
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Nothing is left between two checkpoints."""


class Fleet:
    """Engine processes that share the requests by prompt: all samples of a question go to one engine, which keeps the
    prompt's keys and values. One that dies or fails ends the checkpoint's evaluation; the others are ended with it."""

    def __init__(self, processes: int) -> None:
        self.device, self.processes = "", processes
        self._workers: list[_Worker] = []

    def answers(self, checkpoint: Path, requests: Sequence[Request]) -> Answers:
        shares = share(requests, self.processes)
        self._workers = self._workers or [_Worker(number, self.processes) for number in range(len(shares))]
        events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        finished = False
        try:
            for worker, places in zip(self._workers, shares, strict=False):
                worker.ask(checkpoint, [requests[place] for place in places], events)
            yield from self._collect(shares, events)
            finished = True
        finally:
            if not finished:
                self.close()

    def _collect(self, shares: Sequence[Sequence[int]], events: "queue.Queue[tuple[int, dict[str, Any]]]") -> Answers:
        working, devices = set(range(len(shares))), set()
        while working:
            for number, event in _waiting(events):
                if "answer" in event:
                    place = shares[number][event["place"]]
                    yield [(place, Completion(**event["answer"]))]
                elif "device" in event:
                    devices.add(event["device"])
                    self.device = ", ".join(sorted(devices))
                elif "done" in event:
                    working.discard(number)
                else:
                    raise RuntimeError(f"engine process {number + 1} of {self.processes}: {event['error']}")
                if "cpu" in devices and len(devices) > 1:
                    raise RuntimeError(f"{self.processes} engine processes found {self.device}: fewer GPUs than asked")
            yield []

    def close(self) -> None:
        """Kill the processes; a later call starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []


def share(requests: Sequence[Request], parts: int) -> list[list[int]]:
    """Places of the requests for each engine: equal prompts together, prompts dealt out in turn. No part is empty."""
    prompts: dict[str, int] = {}
    shares: list[list[int]] = [[] for _ in range(parts)]
    for place, request in enumerate(requests):
        number = prompts.setdefault(request.prompt, len(prompts))
        shares[number % parts].append(place)
    return [one for one in shares if one]


def _waiting(events: "queue.Queue[tuple[int, dict[str, Any]]]") -> Iterator[tuple[int, dict[str, Any]]]:
    """What is in the queue now; waits a tick for a first one."""
    try:
        yield events.get(timeout=TICK_SECONDS)
        while True:
            yield events.get_nowait()
    except queue.Empty:
        return


class _Worker:
    """One ``steer_analysis.engine_process``, speaking JSON lines over pipes."""

    def __init__(self, number: int, of: int) -> None:
        self._number = number
        shown = os.environ.get(DEVICES)
        visible = [str(one) for one in range(of)] if shown is None else shown.split(",")
        if shown and len(visible) < of:
            raise ValueError(f"{of} engines were asked for, {DEVICES} = {shown} shows {len(visible)} devices")
        command = [sys.executable, "-m", "steer_analysis.engine_process"]
        environment = os.environ | {DEVICES: visible[number] if shown != "" else ""}
        environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no process below it that could outlive it
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(
        self, checkpoint: Path, requests: Sequence[Request], events: "queue.Queue[tuple[int, dict[str, Any]]]"
    ) -> None:
        """Send the work and read the replies in a thread, into ``events``."""
        threading.Thread(target=self._talk, args=(checkpoint, requests, events), daemon=True).start()

    def _talk(
        self, checkpoint: Path, requests: Sequence[Request], events: "queue.Queue[tuple[int, dict[str, Any]]]"
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            work = {"checkpoint": str(checkpoint), "requests": [asdict(request) for request in requests]}
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                event = json.loads(line)
                events.put((self._number, event))
                if "done" in event or "error" in event:
                    return
            problem = f"it ended (exit code {self._process.wait()}) before its last answer"
        except (OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        events.put((self._number, {"error": problem}))

    def kill(self) -> None:
        """SIGKILL and reap."""
        self._process.kill()
        self._process.wait()
