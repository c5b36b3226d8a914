"""maj@k: how often the most frequent of ``k`` answers is right. Exact, over every draw of ``k`` from ``n`` samples."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MOST_SAMPLES = 1_000  # C(n, n/2) still fits a float of 64 bits


@dataclass(frozen=True)
class Ballot:
    """An item's ``n`` samples as votes. ``others`` are the votes of each different wrong answer, most first.

    All right answers are one candidate, however they are written: each was found equal to the gold. Wrong answers are
    the same candidate when their extracted texts are equal. ``silent`` samples have no answer to count (not parsed,
    truncated): they are drawn as the rest, and do not vote.
    """

    right: int
    others: tuple[int, ...]
    silent: int

    @property
    def n(self) -> int:
        return self.right + sum(self.others) + self.silent


def ballot(answers: Iterable[tuple[str, str | None]]) -> Ballot:
    """The ballot of an item from (verdict, extracted answer) of its samples."""
    right = silent = 0
    others: Counter[str] = Counter()
    for verdict, answer in answers:
        if verdict == "correct":
            right += 1
        elif verdict == "wrong" and answer is not None:
            others[" ".join(answer.split())] += 1
        else:
            silent += 1
    return Ballot(right, tuple(sorted(others.values(), reverse=True)), silent)


def majority_at_k(votes: Ballot, k: int) -> float:
    """Chance that the right answer wins among ``k`` of the ``n`` samples; a tie of t candidates is won 1 time in t.

    A draw in which nobody votes is lost. k = 1 gives the share of right samples.

    Raises:
        ValueError: not 1 <= k <= n, or more than 1000 samples.
    """
    if not 1 <= k <= votes.n:
        raise ValueError(f"k = {k} with n = {votes.n} samples: k must be from 1 to n")
    if votes.n > MOST_SAMPLES:
        raise ValueError(f"n = {votes.n} samples: maj@k is computed for at most {MOST_SAMPLES}")
    return _curve(votes)[k - 1]


@lru_cache(maxsize=50_000)  # items of few samples share few ballots
def _curve(votes: Ballot) -> tuple[float, ...]:
    """maj@k for every k from 1 to n, by counting draws in which right has j votes and no other more."""
    n = votes.n
    won_K = np.zeros(n + 1)
    for j in range(1, votes.right + 1):
        ways_TK = _others_up_to(votes, j)
        shares = 1.0 / np.arange(1, ways_TK.shape[0] + 1)
        total_K = shares @ ways_TK
        won_K[j:] += math.comb(votes.right, j) * total_K[: n + 1 - j]
    return tuple(min(1.0, float(won_K[k]) / math.comb(n, k)) for k in range(1, n + 1))


def _others_up_to(votes: Ballot, j: int) -> NDArray[np.float64]:
    """Ways to draw from the other answers with no candidate above ``j`` votes, by (candidates at j, samples drawn)."""
    n = votes.n
    able = sum(size >= j for size in votes.others)
    ways_TK = np.zeros((able + 1, n + 1))
    ways_TK[0, : votes.silent + 1] = [math.comb(votes.silent, drawn) for drawn in range(votes.silent + 1)]
    for size in votes.others:
        after = np.zeros_like(ways_TK)
        for drawn in range(min(size, j) + 1):
            moved = math.comb(size, drawn) * ways_TK[:, : n + 1 - drawn]
            if drawn == j:
                after[1:, drawn:] += moved[:-1]
            else:
                after[:, drawn:] += moved
        ways_TK = after
    return ways_TK
