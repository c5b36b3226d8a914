"""Whether the grader can read a gold answer. What it cannot read must be listed by name with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from steer_experiments.answers import clean, integer
from steer_experiments.data.questions import Problem
from steer_experiments.graders import COMPARED_AS_TEXT
from steer_experiments.grading import MathGrader

REASON = "math-verify 0.9.0 cannot read it"


def known_exceptions(source: str) -> dict[str, str]:
    """Golds of a suite that only the same spelling answers, with the reason."""
    return {gold: REASON for gold, suite in COMPARED_AS_TEXT.items() if suite == source}


def unreadable(problems: Sequence[Problem], exceptions: Mapping[str, str], workers: int = 2) -> list[Problem]:
    """The problems whose gold math-verify cannot read and ``exceptions`` does not name, in order.

    Plain integers are not asked about. The rest is read in ``workers`` killable processes; a gold that takes longer
    than the grader's timeout counts as unreadable.
    """
    doubtful = [one for one in problems if not integer(clean(one.gold)) and one.gold not in exceptions]
    if not doubtful:
        return []
    grader = MathGrader(workers=workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            return [one for one, read in zip(doubtful, pool.map(_reads(grader), doubtful), strict=True) if not read]
    finally:
        grader.close()


def _reads(grader: MathGrader) -> Callable[[Problem], bool]:
    return lambda problem: grader.reads(problem.gold)


def sentences(problems: Iterable[Problem], where: str) -> list[str]:
    """The mistakes, with the item and what to do."""
    return [
        f"{where}:{one.row}: item {one.id}: the gold {one.gold[:80]!r} cannot be read by math-verify; mend it, or name "
        "it under compared_as_text with the reason"
        for one in problems
    ]
