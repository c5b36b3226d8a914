"""Which evaluation items a training set asks too: the same question, or most of one's words in the same order.

Two signs. *exact*: the same words, numbers and operators. *overlap*: at least half of an item's 13-grams of words and
numbers stand in one training question. A single common 13-gram is no sign: "where m and n are relatively
prime positive integers, find m + n" is one. Items of fewer words are compared with n-grams of their whole length, from
:data:`FEWEST` words on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steer_experiments.data.questions import Problem, spelled, words

N = 13  # words, as in GPT-3's analysis (2005.14165, appendix C)
SHARE = 0.5  # ours
FEWEST = 8  # words; shorter questions are only compared exactly


@dataclass(frozen=True)
class Hit:
    """One evaluation item found in one training question. ``share``: of the item's n-grams, 1 for an exact one."""

    suite: str
    item: str
    training: str
    how: str
    share: float
    same_gold: bool


class Index:
    """The evaluation items, ready to be looked up; training questions pass by one at a time."""

    def __init__(self, suites: Mapping[str, Sequence[Problem]], share: float = SHARE) -> None:
        self.share = share
        self._exact: dict[str, list[tuple[str, str]]] = {}
        self._grams: dict[int, dict[tuple[str, ...], set[tuple[str, str]]]] = {}
        self._total: dict[tuple[str, str], int] = {}
        self._gold: dict[tuple[str, str], str] = {}
        for suite, problems in suites.items():
            for one in problems:
                self._add((suite, one.id), one)

    def _add(self, item: tuple[str, str], problem: Problem) -> None:
        text = words(problem.problem)
        self._exact.setdefault(spelled(problem.problem), []).append(item)
        self._gold[item] = problem.gold
        n = min(N, len(text))
        if n < FEWEST:
            return
        grams = _grams(text, n)
        self._total[item] = len(grams)
        table = self._grams.setdefault(n, {})
        for gram in grams:
            table.setdefault(gram, set()).add(item)

    def hits(self, training: Problem) -> list[Hit]:
        """The items this training question asks."""
        text = words(training.problem)
        same = self._exact.get(spelled(training.problem), [])
        found = [self._hit(key, training, "exact", 1.0) for key in same]
        common: Counter[tuple[str, str]] = Counter()
        for n, table in self._grams.items():
            for gram in _grams(text, n):
                common.update(table.get(gram, ()))
        for key, count in sorted(common.items()):
            part = count / self._total[key]
            if part >= self.share and key not in same:
                found.append(self._hit(key, training, "overlap", round(part, 3)))
        return found

    def _hit(self, key: tuple[str, str], training: Problem, how: str, share: float) -> Hit:
        return Hit(*key, training.id, how, share, self._gold[key] == training.gold)


def _grams(text: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(text[start : start + n]) for start in range(len(text) - n + 1)}


def report(hits: Sequence[Hit], suites: Mapping[str, Sequence[Problem]]) -> dict[str, dict[str, object]]:
    """For each suite: its items, how many were found exactly and by overlap alone, and every pair."""
    told: dict[str, dict[str, object]] = {}
    for suite, problems in suites.items():
        mine = [hit for hit in hits if hit.suite == suite]
        exact = {hit.item for hit in mine if hit.how == "exact"}
        overlap = {hit.item for hit in mine} - exact
        pairs = [
            {
                "item": hit.item,
                "training": hit.training,
                "how": hit.how,
                "share": hit.share,
                "same_gold": hit.same_gold,
            }
            for hit in sorted(mine, key=lambda hit: (hit.item, hit.training))
        ]
        told[suite] = {"items": len(problems), "exact": len(exact), "overlap": len(overlap), "found": pairs}
    return told
