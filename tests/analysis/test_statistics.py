"""Statistics against closed forms, scipy, slow references and values worked by hand."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from steer_analysis.statistics import (
    bootstrap_mean,
    count_verdicts,
    item_means,
    paired_difference,
    pass_at_k,
)

accuracies = st.lists(st.integers(0, 4).map(lambda right: right / 4), min_size=1, max_size=60)


def test_mean_is_over_items_not_over_samples() -> None:
    assert item_means({"a": [1, 1, 1, 0], "b": [0, 0, 0, 0]}) == {"a": 0.75, "b": 0.0}


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [1, 0], "b": [1]}])
def test_missing_samples_are_an_error_and_not_a_zero(scores: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"no items|samples"):
        item_means(scores)


def test_interval_agrees_with_scipy() -> None:
    data = np.random.default_rng(3).integers(0, 5, 80) / 4
    ours = bootstrap_mean(data, seed=1, resamples=40_000)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=40_000, method="percentile", rng=np.random.default_rng(9))
    assert ours.mean == pytest.approx(data.mean(), abs=1e-12)
    spread = ours.high - ours.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * spread)


def test_interval_of_zeros_and_ones_is_the_binomials() -> None:
    """Resampling n values with r ones gives exactly Binomial(n, r/n) / n."""
    ours = bootstrap_mean([1.0] * 30 + [0.0] * 70, seed=0, resamples=50_000)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert ours.low == pytest.approx(low, abs=0.0101)
    assert ours.high == pytest.approx(high, abs=0.0101)


def test_resampling_samples_instead_of_items_would_look_too_sure() -> None:
    """Ten items sampled 32 times with the same answer are ten items: the interval is that of ten."""
    clustered = item_means({str(item): [item % 2] * 32 for item in range(10)})
    ours = bootstrap_mean(clustered.values(), seed=0)
    naive = bootstrap_mean([item % 2 for item in range(10) for _ in range(32)], seed=0)
    assert ours.high - ours.low > 4 * (naive.high - naive.low)


def test_many_items_in_blocks_give_the_same_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).random(50)
    whole = bootstrap_mean(data, seed=5)
    monkeypatch.setattr("steer_analysis.statistics._DRAWS_AT_ONCE", 777)
    assert bootstrap_mean(data, seed=5) == whole


@given(accuracies, st.integers(0, 2**32 - 1), st.randoms())
@settings(max_examples=40)
def test_interval_contains_the_mean_and_ignores_order(values: list[float], seed: int, random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    estimate = bootstrap_mean(values, seed, resamples=2000)
    assert bootstrap_mean(shuffled, seed, resamples=2000) == estimate
    assert estimate.low - 1e-12 <= estimate.mean <= estimate.high + 1e-12
    assert min(values) - 1e-12 <= estimate.low <= estimate.high <= max(values) + 1e-12


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_equal_has_an_interval_of_no_width(value: float) -> None:
    estimate = bootstrap_mean([value] * 20, seed=0)
    assert (estimate.mean, estimate.low, estimate.high, estimate.n_items) == (value, value, value, 20)


@pytest.mark.parametrize(
    ("values", "resamples", "message"),
    [([], 2000, "empty"), ([0.5, math.nan], 2000, "not finite"), ([1.0], 100, "at least 2000")],
)
def test_bootstrap_refuses(values: list[float], resamples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, 0, resamples)


def test_paired_difference_by_hand() -> None:
    estimate = paired_difference({"a": 1.0, "b": 0.5, "c": 0.0}, {"c": 0.0, "b": 0.0, "a": 1.0}, seed=0)
    assert estimate.mean == pytest.approx(0.5 / 3)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    generator = np.random.default_rng(0)
    hardness = {str(i): float(generator.random()) for i in range(100)}
    better = {item: value + 0.05 for item, value in hardness.items()}
    estimate = paired_difference(better, hardness, seed=0)
    assert estimate.low == pytest.approx(0.05)
    assert estimate.high == pytest.approx(0.05)


def test_difference_to_itself_is_exactly_nothing() -> None:
    scores = {str(i): i / 10 for i in range(10)}
    estimate = paired_difference(scores, scores, seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_pairing_needs_the_same_items() -> None:
    with pytest.raises(ValueError, match=r"2 items .*a, b"):
        paired_difference({"a": 1.0, "x": 0.0}, {"b": 1.0, "x": 0.0}, seed=0)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_every_draw(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))), abs=1e-12)


def test_pass_at_k_closed_form_of_many_samples() -> None:
    assert pass_at_k(1000, 3, 100) == pytest.approx(1 - math.comb(997, 100) / math.comb(1000, 100), abs=1e-12)
    assert pass_at_k(4, 1, 1) == 0.25


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be from"):
        pass_at_k(n, correct, k)


@given(st.lists(st.sampled_from(["correct", "wrong"])))
def test_counts_add_up(verdicts: list[str]) -> None:
    counts = count_verdicts(verdicts, ("correct", "wrong", "error"))
    assert sum(counts.values()) == len(verdicts)
    assert counts["error"] == 0


def test_unknown_verdict_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'maybe' is unknown; known: correct, wrong"):
        count_verdicts(["correct", "maybe"], ("correct", "wrong"))
