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
    Sample,
    bootstrap_mean,
    bootstrap_means,
    count_verdicts,
    difference,
    item_means,
    paired_difference,
    pass_at_k,
    resampled_means,
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
    monkeypatch.setattr("steer_analysis.statistics._WEIGHTS_AT_ONCE", 777)
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


@pytest.mark.parametrize(("n", "correct", "k"), [(100, 7, 10), (200, 1, 100), (164, 40, 1), (32, 3, 8)])
def test_pass_at_k_is_the_estimator_of_the_codex_paper(n: int, correct: int, k: int) -> None:
    """Its own numerically stable form, arXiv 2107.03374, Figure 3."""
    theirs = 1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1))
    assert pass_at_k(n, correct, k) == pytest.approx(theirs, abs=1e-12)


def test_pass_at_k_of_very_many_samples_does_not_overflow() -> None:
    exact = 1 - Fraction(math.comb(99_990, 5_000), math.comb(100_000, 5_000))
    assert pass_at_k(100_000, 10, 5_000) == pytest.approx(float(exact), abs=1e-9)


def test_one_seed_is_the_bootstrap_over_items() -> None:
    data = np.random.default_rng(3).random(60)
    alone = bootstrap_mean(data, seed=4)
    assert bootstrap_means([Sample(np.sort(data)[None, :])], seed=4) == [alone]
    assert alone.n_seeds == 1


def test_variance_over_items_and_seeds_is_that_of_two_independent_means() -> None:
    """Values a_s + b_i: the mean's variance is var(a) / S + var(b) / I, with the unbiased var(a)."""
    noise = np.random.default_rng(0)
    a, b = noise.normal(0, 1, 4), noise.normal(0, 2, 50)
    draws = resampled_means([Sample(a[:, None] + b[None, :])], seed=1, resamples=40_000)[0]
    assert draws.mean() == pytest.approx(a.mean() + b.mean(), abs=0.02)
    assert draws.var() == pytest.approx(a.var(ddof=1) / 4 + b.var() / 50, rel=0.03)


def test_seeds_are_resampled_by_hand() -> None:
    """Two seeds, one always right and one always wrong: one of them is drawn, so half of the means are 0 and half 1."""
    draws = resampled_means([Sample(np.array([[1.0] * 5, [0.0] * 5]))], seed=0)[0]
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert draws.mean() == pytest.approx(0.5, abs=0.02)


def test_intervals_cover_another_training_only_with_seeds_resampled() -> None:
    """Three trainings of one method, drawn 300 times: how often the interval has the method's true mean."""
    noise = np.random.default_rng(5)
    covered = {"seeds and items": 0, "items alone": 0}
    for trial in range(300):
        scores = 0.5 + noise.normal(0, 0.1, 3)[:, None] + noise.normal(0, 0.3, 40)[None, :]
        two = bootstrap_means([Sample(scores)], seed=trial, resamples=2000)[0]
        one = bootstrap_mean(scores.mean(axis=0), seed=trial, resamples=2000)
        covered["seeds and items"] += two.low <= 0.5 <= two.high
        covered["items alone"] += one.low <= 0.5 <= one.high
    assert covered["seeds and items"] / 300 > 0.88
    assert covered["items alone"] / 300 < 0.85


def test_an_interval_does_not_depend_on_other_rows() -> None:
    noise = np.random.default_rng(0)
    first, second = Sample(noise.random((3, 30))), Sample(noise.random((1, 30)))
    assert bootstrap_means([first, second], seed=0)[0] == bootstrap_means([first], seed=0)[0]


def test_two_suites_do_not_share_their_draws() -> None:
    sample = Sample(np.random.default_rng(0).random((1, 30)))
    one = resampled_means([sample], seed=0, items_of="aime24")[0]
    other = resampled_means([sample], seed=0, items_of="aime25")[0]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05


def test_a_difference_pairs_items_and_not_seeds() -> None:
    """Same items, both with one training: only the difference item by item varies. With two trainings each, those vary
    independently even though the two sides have the same numbers."""
    items = np.random.default_rng(0).random(40)
    ours, base = Sample((items + 0.1)[None, :]), Sample(items[None, :])
    sides = [resampled_means([one], 0, stream=stream)[0] for stream, one in enumerate((ours, base))]
    found = difference(ours, base, *sides)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    seeds = Sample(np.stack([items, items + 0.2]))
    same = [resampled_means([seeds], 0, stream=stream)[0] for stream in (0, 1)]
    apart = difference(seeds, seeds, *same)
    assert apart.mean == 0
    assert (apart.low, apart.high) == pytest.approx((-0.2, 0.2))


@pytest.mark.parametrize("values", [np.empty((0, 3)), np.empty((2, 0)), np.array([[0.5, np.nan]])])
def test_a_sample_without_values_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"empty|not finite"):
        Sample(values)


def test_samples_of_other_items_are_not_drawn_together() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\] items"):
        bootstrap_means([Sample(np.zeros((1, 3))), Sample(np.zeros((1, 4)))], seed=0)
