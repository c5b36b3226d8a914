"""maj@k against every draw and against chance; scores by item against counting."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steer_analysis.majority import Ballot, ballot, majority_at_k
from steer_analysis.metrics import accuracy, ladder, majority_curve, pass_curve, scores_of
from steer_analysis.records import Evaluation, Meta, Protocol, Record

votes = st.lists(st.sampled_from(["right", "a", "b", "c", None]), min_size=1, max_size=8)


def won(drawn: Sequence[str | None]) -> Fraction:
    """The slow definition: 1/t where the right answer is among the t most frequent, else 0."""
    counts = Counter(one for one in drawn if one is not None)
    if not counts or counts["right"] < max(counts.values()):
        return Fraction(0)
    return Fraction(1, sum(count == counts["right"] for count in counts.values()))


def as_ballot(answers: Sequence[str | None]) -> Ballot:
    verdicts = {"right": "correct", None: "unparsed"}
    return ballot((verdicts.get(one, "wrong"), one) for one in answers)


@given(votes, st.data())
@settings(max_examples=150)
def test_majority_counts_every_draw(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    draws = [won(drawn) for drawn in combinations(answers, k)]
    assert majority_at_k(as_ballot(answers), k) == pytest.approx(float(sum(draws) / len(draws)), abs=1e-12)


def test_majority_of_many_samples_agrees_with_drawing() -> None:
    answers = ["right"] * 9 + ["a"] * 8 + ["b"] * 5 + ["c"] * 4 + [None] * 6
    noise = random.Random(0)
    drawn = [float(won(noise.sample(answers, 7))) for _ in range(40_000)]
    assert majority_at_k(as_ballot(answers), 7) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 200)


def test_majority_by_hand() -> None:
    assert majority_at_k(Ballot(3, (2,), 0), 5) == 1.0
    assert majority_at_k(Ballot(2, (2, 2), 0), 6) == pytest.approx(1 / 3)  # a tie of three
    assert majority_at_k(Ballot(1, (1,), 2), 4) == 0.5  # who is silent does not vote
    assert majority_at_k(Ballot(0, (1,), 0), 1) == 0.0
    assert majority_at_k(Ballot(0, (), 3), 2) == 0.0  # nobody votes: lost


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_majority_of_one_is_the_accuracy(right: int, wrong: int, silent: int) -> None:
    n = right + wrong + silent
    if n:
        assert majority_at_k(Ballot(right, (wrong,) if wrong else (), silent), 1) == pytest.approx(right / n)


def test_majority_of_a_thousand_samples_is_a_number() -> None:
    value = majority_at_k(Ballot(300, (250, 250, 100), 100), 500)
    assert math.isfinite(value)
    assert 0.9 < value <= 1


@pytest.mark.parametrize(("case", "k"), [(Ballot(1, (), 0), 2), (Ballot(1, (), 0), 0), (Ballot(1001, (), 0), 5)])
def test_majority_refuses(case: Ballot, k: int) -> None:
    with pytest.raises(ValueError, match=r"must be from|at most 1000"):
        majority_at_k(case, k)


def test_right_answers_are_one_candidate_however_written() -> None:
    found = ballot([("correct", "1/2"), ("correct", "0.5"), ("wrong", "2 "), ("wrong", " 2"), ("truncated", "1/2")])
    assert found == Ballot(2, (2,), 1)


def evaluation(verdicts: Sequence[Sequence[str]]) -> Evaluation:
    """Items i00, i01, ... with these verdicts, in any order."""
    n = max(map(len, verdicts))
    protocol = Protocol("s", "0", len(verdicts), n, 1.0, 1.0, 8, 0, "g", "plain")
    records = [
        record(f"i{item:02d}", sample, verdict)
        for item, row in enumerate(verdicts)
        for sample, verdict in enumerate(row)
    ]
    random.Random(1).shuffle(records)
    return Evaluation(Meta(protocol, "", "", True, {}), records)


def record(item: str, sample: int, verdict: Any) -> Record:
    found: dict[str, Any] = {"item": item, "level": "", "sample": sample, "seed": 0, "prompt": "", "output": ""}
    found |= {"answer": "1", "gold": "1", "verdict": verdict, "reason": None, "grader": "g"}
    return Record(**found)


def test_scores_by_hand() -> None:
    scores = scores_of(evaluation([["correct", "wrong"], ["unparsed", "truncated"], ["correct", "correct"]]))
    assert scores.items == ("i00", "i01", "i02")
    assert scores.accuracy_I.tolist() == [0.5, 0.0, 1.0]
    assert (scores.share("unparsed"), scores.share("truncated")) == (1 / 6, 1 / 6)
    assert sum(scores.verdicts.values()) == 6
    assert accuracy([scores, scores]).mean == 0.5
    curve = pass_curve([scores])
    assert {k: sample.mean for k, sample in curve.items()} == {1: 0.5, 2: pytest.approx(2 / 3)}
    assert majority_curve([scores])[1].mean == 0.5


def test_items_need_equally_many_samples() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] samples"):
        scores_of(evaluation([["correct"], ["correct", "wrong"]]))
    with pytest.raises(ValueError, match="no items"):
        scores_of(Evaluation(evaluation([["correct"]]).meta, []))


@pytest.mark.parametrize(("n", "ks"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])])
def test_ladder(n: int, ks: list[int]) -> None:
    assert ladder(n) == ks
