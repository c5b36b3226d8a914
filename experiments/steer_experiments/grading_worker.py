"""The process behind `MathGrader`: JSON lines {"response", "gold", "timeout"} in, {"state", "answer", "reason"} out.

It cannot outlive its use: end of input or another parent ends it when idle, and while it computes the kernel's own
timer does (default action of SIGALRM: also when C code holds the interpreter).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
import time

MEMORY_BYTES = 4 << 30
KILL_MARGIN_SECONDS = 5.0  # the parent kills at the deadline; the kernel's timer is for a parent that is gone
ANSWER_LENGTH = 200


def main() -> None:
    """Serve requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # parsers print to stdout
    _die_with_parent(os.getppid())
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if hard < 0 else min(MEMORY_BYTES, hard), hard))
    import math_verify  # noqa: F401  (seconds: before "ready", so that no request pays for it)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off: ours are not
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, float(request["timeout"]) + KILL_MARGIN_SECONDS)
        reply = json.dumps(grade(request["response"], request["gold"]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(reply + "\n")


def grade(response: str, gold: str) -> dict[str, str | None]:
    """The verdict of math-verify 0.9.0, its timeouts off (this process is killed from outside)."""
    from math_verify import parse, verify

    try:
        right = parse(f"\\boxed{{{gold}}}", parsing_timeout=None, raise_on_error=True)
        if not right:
            return {"state": "error", "answer": None, "reason": f"the label {gold[:ANSWER_LENGTH]!r} cannot be parsed"}
        answer = parse(response, parsing_timeout=None)
        if not answer:
            return {"state": "unparsed", "answer": None, "reason": "no mathematical answer found"}
        state = "correct" if verify(right, answer, timeout_seconds=None, raise_on_error=True) else "wrong"
        return {"state": state, "answer": str(answer[-1])[:ANSWER_LENGTH], "reason": None}
    except Exception as problem:  # noqa: BLE001  (any failure inside math-verify becomes the state "error", with its reason)
        return {"state": "error", "answer": None, "reason": f"{type(problem).__name__}: {problem}"[:ANSWER_LENGTH]}


def _die_with_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
