"""The process behind `MathGrader`: one JSON object a line, {"text", "boxed", "gold", "timeout"} in, {"state", "answer",
"reason"} out.

It cannot outlive its use: end of input or another parent ends it when idle, and while it computes the kernel's own
timer does (default action of SIGALRM: also when C code holds the interpreter). Its memory is limited by the kernel.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from steer_experiments.answers import clean, same_text
from steer_experiments.processes import die_with_parent

MEMORY_BYTES = 2 << 30
KILL_MARGIN_SECONDS = 5.0  # the parent kills at the deadline; the kernel's timer is for a parent that is gone
ANSWER_LENGTH = 200
Reply = dict[str, str | None]


def main() -> None:
    """Serve requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # parsers print to stdout
    die_with_parent()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if hard < 0 else min(MEMORY_BYTES, hard), hard))
    import math_verify  # noqa: F401  (seconds: before "ready", so that no request pays for it)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off: ours are not
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, float(request["timeout"]) + KILL_MARGIN_SECONDS)
        reply = json.dumps(grade(request["text"], request["boxed"], request["gold"]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(reply + "\n")


def grade(text: str, boxed: str, gold: str) -> Reply:
    """The verdict of math-verify 0.9.0, its timeouts off (this process is killed from outside).

    `boxed`: "yes" when `text` is a box's content, "" when it is a response without a box, "read" to try the gold alone.
    """
    try:
        if boxed == "read":
            return _reply("correct" if _read_gold(gold) else "unparsed")
        return _grade(text, bool(boxed), gold)
    except Exception as problem:  # noqa: BLE001  (any failure inside math-verify becomes the state "error", with its reason)
        return _reply("error", None, f"{type(problem).__name__}: {problem}")


def _grade(text: str, boxed: bool, gold: str) -> Reply:
    from math_verify import verify

    right = _read_gold(gold)
    if not right:
        return _as_text(text, boxed, gold)
    found = _read_box(text) if boxed else _read(text)
    if not found:
        if boxed:
            return _reply("unparsed", text, "math-verify cannot read what the box holds")
        return _reply("unparsed", None, "no mathematical answer found")
    shown = text if boxed else str(found[-1])[:ANSWER_LENGTH]
    if _is_far_larger(found[0], right[0]):
        return _reply("wrong", shown)
    same = verify(right, found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return _reply("correct" if same else "wrong", shown)


def _as_text(text: str, boxed: bool, gold: str) -> Reply:
    """A gold that math-verify cannot read has only its spelling."""
    why = f"compared as text: math-verify cannot read the label {gold[:ANSWER_LENGTH]!r}"
    if not clean(gold):
        return _reply("error", None, "the label is empty")
    if not boxed:
        return _reply("unparsed", None, f"no box; to be {why}")
    return _reply("correct" if same_text(text, clean(gold)) else "wrong", text, why)


@lru_cache(maxsize=256)
def _read_gold(gold: str) -> list[Any]:
    return _read_box(clean(gold))


def _read_box(text: str) -> list[Any]:
    """What a box holds; where that cannot be read as a whole, what stands behind its last equals sign."""
    found = _read(f"\\boxed{{{text}}}")
    return found if found or "=" not in text else _read(f"\\boxed{{{text.rsplit('=', 1)[1]}}}")


def _read(text: str) -> list[Any]:
    """Expressions found in `text`, without math-verify's fallback to a piece of it (which may be cut anywhere)."""
    from math_verify import parse

    found: list[Any] = parse(text, fallback_mode="no_fallback", parsing_timeout=None)
    return found


LARGE = 20_000.0  # decimal digits: sympy writes smaller integers out in milliseconds


def _is_far_larger(answer: Any, gold: Any) -> bool:
    """Whether `answer` is a number of more than LARGE digits and `gold` a much smaller one: they differ, and to write
    the first one out would take forever."""
    return _digits(answer) > LARGE and _digits(gold) <= LARGE / 2


def _digits(value: Any) -> float:
    """The decimal logarithm of |value| for rational numbers, and for their powers, factorials, products, and sums with
    one dominant term; NaN for everything else. Towers that exceed a float have infinitely many digits here."""
    from sympy import Add, Mul, Pow, Rational, factorial

    if isinstance(value, Rational):
        return math.log10(abs(int(value.p))) - math.log10(int(value.q)) if value.p else -math.inf
    if isinstance(value, Mul):
        return sum(_digits(factor) for factor in value.args)
    if isinstance(value, Add):
        *rest, largest = sorted(map(_digits, value.args), key=lambda digits: (math.isnan(digits), digits))
        return largest if rest[-1] < largest - 1 - math.log10(len(rest)) else math.nan
    if isinstance(value, Pow):
        exponent = value.exp
        small = isinstance(exponent, Rational) and abs(exponent) < 1e300
        return _digits(value.base) * (float(exponent) if small else _magnitude(exponent))
    if isinstance(value, factorial):
        n = _magnitude(value.args[0])
        return math.lgamma(n + 1) / math.log(10) if n < 1e300 else n
    return math.nan


def _magnitude(value: Any) -> float:
    """A positive number as a float, infinite when it has more than 300 digits; NaN when it is not known to be one."""
    digits = _digits(value) if getattr(value, "is_positive", False) else math.nan
    return 10.0**digits if digits < 300 else digits if math.isnan(digits) else math.inf


def _reply(state: str, answer: str | None = None, reason: str | None = None) -> Reply:
    return {"state": state, "answer": answer and answer[:ANSWER_LENGTH], "reason": reason and reason[:ANSWER_LENGTH]}


if __name__ == "__main__":
    main()
