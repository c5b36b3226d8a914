"""Graders: was this response right? A grader's own failure is a state of its own, never a wrong answer.

`IntegerGrader` is pure string work in bounded time. `MathGrader` asks math-verify in worker processes that are killed
at a deadline: math-verify's own timeouts use `signal.alarm`, which raises off the main thread, and sympy can compute
inside C code that no Python timeout interrupts. Both may be called from any thread.
"""

from __future__ import annotations

import json
import os
import queue
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from steer_experiments.answers import boxed_answer, clean, integer

State = Literal["correct", "wrong", "unparsed", "timeout", "error"]
ANSWER_LENGTH = 200
"""Characters of an extracted answer that are kept."""
FAILED: frozenset[str] = frozenset({"timeout", "error"})  # the grader failed, not the model


@dataclass(frozen=True)
class Grade:
    """`answer` is what was extracted from the response; `reason` says why it is unparsed, timeout or error."""

    state: State
    answer: str | None = None
    reason: str | None = None

    @property
    def failed(self) -> bool:
        """True when nothing is known about the response because the grader itself failed."""
        return self.state in FAILED


class Grader(Protocol):
    """Anything that grades; `name@version` is written beside every verdict."""

    name: str
    version: str

    def grade(self, response: str, gold: str) -> Grade:
        """Grade a response (without prompt and special tokens) against the right answer. Never raises, never hangs."""
        ...


class IntegerGrader:
    """The integer after the last "#" must end the response: "19#16" answers 16. Leading zeros do not matter."""

    name = "integer"
    version = "1"
    TAIL = 64  # characters looked at: bounds the time for any response
    MAX_DIGITS = 19
    _ANSWER = re.compile(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}")

    def grade(self, response: str, gold: str) -> Grade:
        """Constant time in the length of `response`; error when `gold` is no integer."""
        right = self._integer(gold.strip())
        if right is None:
            return Grade(
                "error", reason=f"the label {gold[: self.TAIL]!r} is no integer of at most {self.MAX_DIGITS} digits"
            )
        _, marker, answer = response[-self.TAIL :].strip().rpartition("#")
        if not marker:
            return Grade("unparsed", reason=f"no '#' in the last {self.TAIL} characters")
        value = self._integer(answer)
        if value is None:
            return Grade("unparsed", reason=f"{answer!r} after '#' is no integer of at most {self.MAX_DIGITS} digits")
        return Grade("correct" if value == right else "wrong", answer=str(value))

    def _integer(self, text: str) -> int | None:
        return int(text) if self._ANSWER.fullmatch(text) else None


def compare_quickly(answer: str, gold: str) -> Grade | None:
    """The verdict on a box's content where text alone decides: both plain integers, or the same text; else None."""
    right = clean(gold)
    ours, theirs = integer(answer), integer(right)
    if ours and theirs:
        return Grade("correct" if ours == theirs else "wrong", answer[:ANSWER_LENGTH])
    if answer == right:
        return Grade("correct", answer[:ANSWER_LENGTH])
    return None


class MathGrader:
    """math-verify on the last box (else on the whole text) behind a pool of worker processes.

    Equal texts and plain integers are judged here, in microseconds, as math-verify judges them. For the rest a call
    waits for a free worker, then gives it `timeout` seconds. A worker that is late is killed and replaced (state
    "timeout"); one that died without being killed by us is replaced and asked once more. `close()` ends the workers,
    and so does the end of this process.
    """

    name = "math"
    version = "2+math-verify.0.9.0"  # raise the first number whenever a verdict can change
    TAIL = 10_000  # characters of an answer, or of a response without a box, that the grader sees
    START_SECONDS = 120.0  # importing sympy on a busy machine

    def __init__(self, timeout: float = 5.0, workers: int = 2, fast: bool = True) -> None:
        if timeout <= 0 or workers < 1:
            raise ValueError(f"timeout is {timeout} and workers is {workers}; both must be positive")
        self.timeout, self.workers, self.fast = timeout, workers, fast
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: a place whose worker is not started
        for _ in range(workers):
            self._idle.put(None)

    def grade(self, response: str, gold: str) -> Grade:
        """Grade the last box of `response`, or its last 10,000 characters where it has none; from any thread."""
        found = boxed_answer(response)
        if found.problem:
            return Grade("unparsed", reason=found.problem)
        if found.text is None:
            return self._ask({"text": response[-self.TAIL :], "boxed": "", "gold": gold})
        return self.compare(found.text, gold)

    def compare(self, answer: str, gold: str) -> Grade:
        """Grade an answer that is already taken out of its box."""
        if self.fast and (quick := compare_quickly(answer, gold)):
            return quick
        if len(answer) > self.TAIL:
            return Grade("unparsed", answer[:ANSWER_LENGTH], f"the box holds {len(answer):,} characters")
        return self._ask({"text": answer, "boxed": "yes", "gold": gold})

    def reads(self, gold: str) -> bool:
        """Whether math-verify can read `gold`; one that it cannot is compared as text."""
        return self._ask({"text": "", "boxed": "read", "gold": gold}).state == "correct"

    def _ask(self, request: dict[str, str]) -> Grade:
        with self._place() as place:
            for attempt in ("first", "second"):
                try:
                    return place.worker(self.START_SECONDS).ask(request, self.timeout)
                except TimeoutError:
                    place.discard()
                    return Grade("timeout", reason=f"no verdict within {self.timeout} s")
                except (EOFError, OSError, json.JSONDecodeError) as problem:
                    code = place.discard()
                    reason = f"the worker ended (exit code {code}, {attempt} attempt): {problem}"
        return Grade("error", reason=reason)

    def worker_pids(self) -> list[int]:
        """Process ids of the idle started workers."""
        return [worker.process.pid for worker in list(self._idle.queue) if worker is not None]

    def close(self) -> None:
        """End all workers; waits for calls in progress. A later call starts new ones."""
        for _ in range(self.workers):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
        for _ in range(self.workers):
            self._idle.put(None)

    @contextmanager
    def _place(self) -> Iterator[_Place]:
        place = _Place(self._idle.get())
        try:
            yield place
        finally:
            self._idle.put(place.current)


class _Place:
    """One seat of the pool while a call holds it."""

    def __init__(self, worker: _Worker | None) -> None:
        self.current = worker

    def worker(self, start_seconds: float) -> _Worker:
        """The worker of this place, started when there is none."""
        if self.current is None:
            self.current = _Worker()
            try:
                self.current.receive(time.monotonic() + start_seconds)
            except TimeoutError:
                raise EOFError(f"it was not ready within {start_seconds} s") from None
        return self.current

    def discard(self) -> int | None:
        """Kill the worker; its exit code."""
        worker, self.current = self.current, None
        return worker.kill() if worker is not None else None


class _Worker:
    """One `steer_experiments.grading_worker` process, speaking JSON lines over pipes."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "steer_experiments.grading_worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._in, False)

    def ask(self, request: dict[str, str], timeout: float) -> Grade:
        """The verdict on `request`; TimeoutError, or EOFError/OSError when the worker has died."""
        deadline = time.monotonic() + timeout
        self._send(json.dumps(request | {"timeout": str(timeout)}).encode() + b"\n", deadline)
        reply = json.loads(self.receive(deadline))
        return Grade(reply["state"], reply["answer"], reply["reason"])

    def receive(self, deadline: float) -> bytes:
        """One line from the worker."""
        line = b""
        while not line.endswith(b"\n"):
            self._wait(self._out, selectors.EVENT_READ, deadline)
            part = os.read(self._out, 65536)
            if not part:
                raise EOFError("it closed its output")
            line += part
        return line

    def kill(self) -> int:
        """SIGKILL and reap; the exit code (negative: the signal it died of)."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return self.process.wait()

    def _send(self, data: bytes, deadline: float) -> None:
        while data:
            self._wait(self._in, selectors.EVENT_WRITE, deadline)
            data = data[os.write(self._in, data) :]

    @staticmethod
    def _wait(descriptor: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
