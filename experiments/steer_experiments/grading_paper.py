r"""The grader rule of the paper's released evaluation, so that our rows can stand beside the paper's.

Source: github zz-haooo/STEER, `verl/utils/reward_score/multi_datasets_eval.py` with eval_method "both", commit b31df71,
and the `qwen_math_eval_toolkit` it calls. Only the last 300 characters count. Correct is (a) a box in the last 100 of
them that holds exactly the gold, or (b) an answer (last box, else what follows "the answer is", else the last number)
that equals the gold as text, numerically (relative 1e-4, also when one is the other's percentage), or symbolically.

Deviations: (b)'s symbolic comparison is math-verify's instead of the toolkit's own use of sympy, and the toolkit's long
list of unit words is the short one of `answers.clean`. Where the released rule answers "wrong" because nothing was
found or a process was late, the states here are unparsed and timeout.
"""

from __future__ import annotations

import math
import re

from steer_experiments.answers import clean
from steer_experiments.grading import ANSWER_LENGTH, Grade, MathGrader

_TAIL, _BOX_TAIL = 300, 100
_RELATIVE = 1e-4
_PERCENT = 100.0
_BOX = "\\boxed{"
_NUMBER = re.compile(r"-?\d*\.?\d+")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_MARKERS = ("he answer is", "final answer is")


class PaperGrader:
    """The released rule; see the module. ``math`` judges what is neither equal text nor a number."""

    name = "paper"
    version = "1+math-verify.0.9.0"

    def __init__(self, math: MathGrader | None = None) -> None:
        self._math = math or MathGrader()
        self.workers = self._math.workers

    def grade(self, response: str, gold: str) -> Grade:
        """Grade the last 300 characters of `response`; from any thread."""
        tail = response[-_TAIL:]
        if _strict_box(tail[-_BOX_TAIL:]) == gold:
            return Grade("correct", gold[:ANSWER_LENGTH])
        answer = _extract(tail)
        if not answer:
            return Grade("unparsed", reason=f"no answer in the last {_TAIL} characters")
        shown = answer[:ANSWER_LENGTH]
        if answer.lower() == gold.strip().lower():
            return Grade("correct", shown)
        ours, theirs = _number(answer), _number(gold)
        if ours is not None and theirs is not None:
            return Grade("correct" if _numerically_equal(ours, theirs) else "wrong", shown)
        return self._math.compare(answer, gold)

    def close(self) -> None:
        """End the worker processes."""
        self._math.close()


def _strict_box(text: str) -> str | None:
    """The content of the last box when it is closed; braces are counted without regard to escapes, as released."""
    begin = text.rfind(_BOX)
    return None if begin < 0 else _balanced(text[begin + len(_BOX) :])


def _balanced(text: str) -> str | None:
    """`text` up to the brace that closes one more than it opens; None when there is none."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:place]
    return None


def _extract(text: str) -> str:
    """The answer as the toolkit finds it: an unclosed box reaches to the end of the text."""
    if "boxed" in text:
        rest = text.rsplit("boxed", 1)[1]
        if rest.startswith("{"):
            closed = _balanced(rest[1:])
            found = rest[1:] if closed is None else closed
        else:
            found = rest.split("$")[0]
    elif marker := next((one for one in _MARKERS if one in text), None):
        found = text.rsplit(marker, 1)[1]
    else:
        numbers = _NUMBER.findall(text.replace(",", ""))
        found = numbers[-1] if numbers else ""
    return clean(re.sub(r"\n\s*", "", found).removeprefix(":").removesuffix("/"))


def _number(text: str) -> float | None:
    """A plain number, commas removed; with a per cent sign a hundredth of it. None for other text."""
    text = text.replace(",", "").strip()
    plain = text.removesuffix("%").removesuffix("\\") if text.endswith("%") else text
    if len(plain) > ANSWER_LENGTH or not _FLOAT.fullmatch(plain):
        return None
    return float(plain) / (_PERCENT if plain != text else 1.0)


def _numerically_equal(answer: float, gold: float) -> bool:
    return any(math.isclose(answer, one, rel_tol=_RELATIVE) for one in (gold / _PERCENT, gold, gold * _PERCENT))
