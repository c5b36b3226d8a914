"""Statistics of the leaderboard: pure functions of arrays, every random draw from an explicit seed.

An **item** is one question; a question sampled many times is still one item. Items are the unit that is resampled,
so that 32 answers to one question do not pass for 32 questions (*A Sober Look*, arXiv 2504.07086). A **row** may have
several training seeds; they answered the same items, so items and seeds are crossed, and both are resampled.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_FEWEST_RESAMPLES = 2_000
_WEIGHTS_AT_ONCE = 4_000_000  # weights held at once by the bootstrap: 32 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its percentile-bootstrap interval [``low``, ``high``] at 95 %, over ``n_items`` items.

    With ``n_seeds`` = 1 the interval holds the trained model fixed; with more it speaks of another training too.
    """

    mean: float
    low: float
    high: float
    n_items: int
    n_seeds: int = 1

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Sample:
    """What a row scored: one value for each training seed and item, S x I, items in one agreed order."""

    values_SI: Floats

    def __post_init__(self) -> None:
        if self.values_SI.ndim != 2 or 0 in self.values_SI.shape:
            raise ValueError("no values to average: an empty evaluation has no mean, it is not 0")
        if lost := int((~np.isfinite(self.values_SI)).sum()):
            raise ValueError(f"{lost} of {self.values_SI.size} values are not finite: leave failures out")

    @property
    def n_seeds(self) -> int:
        return int(self.values_SI.shape[0])

    @property
    def n_items(self) -> int:
        return int(self.values_SI.shape[1])

    @property
    def mean(self) -> float:
        return float(self.values_SI.mean())


def item_means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each item's mean over its samples. Items must have equally many samples, or their means are not comparable.

    Raises:
        ValueError: no items, an item without samples, or unequal numbers of samples.
    """
    if not scores:
        raise ValueError("no items to average: an empty evaluation has no accuracy, it is not 0")
    sizes = {len(samples) for samples in scores.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"items have {sorted(sizes)} samples; every item needs the same number, at least 1")
    return {item: float(np.mean(samples)) for item, samples in scores.items()}


def bootstrap_mean(values: Iterable[float], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of ``values`` (one per item, one trained model) and its percentile bootstrap interval over items.

    Values are sorted first, so the interval does not depend on the order of the items.

    Raises:
        ValueError: no values, a value that is not finite, or fewer than 2000 resamples.
    """
    data: Floats = np.sort(np.asarray(list(values), dtype=np.float64))
    return bootstrap_means([Sample(data[None, :])], seed, resamples)[0]


def bootstrap_means(samples: Sequence[Sample], seed: int, resamples: int = RESAMPLES) -> list[Estimate]:
    """Each sample's mean and interval, all from the same draws of items (so differences of two are paired).

    Raises:
        ValueError: samples of unequally many items, or fewer than 2000 resamples.
    """
    draws = resampled_means(samples, seed, resamples)
    return [estimate(sample, row) for sample, row in zip(samples, draws, strict=True)]


def difference(ours: Sample, baseline: Sample, ours_R: Floats, baseline_R: Floats) -> Estimate:
    """Mean of ``ours - baseline`` with its interval from their draws: of the same items, of seeds by themselves.

    ``n_seeds`` is the smaller of the two numbers: with one on either side another training is not spoken of.
    """
    low, high = interval(ours_R - baseline_R)
    return Estimate(ours.mean - baseline.mean, low, high, ours.n_items, min(ours.n_seeds, baseline.n_seeds))


def resampled_means(
    samples: Sequence[Sample], seed: int, resamples: int = RESAMPLES, stream: int = 0, items_of: str = ""
) -> Floats:
    """Bootstrap means, one row of ``resamples`` for each sample; they do not depend on which other samples there are.

    Two levels, crossed: items are drawn with replacement, by ``seed`` and ``items_of`` (the suite: two suites must not
    share their draws); of S > 1 training seeds S - 1 are drawn with replacement, by ``seed`` and ``stream``. S - 1
    because S of S would make the variance between seeds too small by (S - 1)/S, a third with three seeds (McCarthy and
    Snowden 1985, *The bootstrap and finite population sampling*).
    A difference takes the same items and another stream: its two sides are other trainings.
    """
    if resamples < _FEWEST_RESAMPLES:
        raise ValueError(f"resamples = {resamples}: at least 2000 are needed for a 95 % interval that holds still")
    sizes = {sample.n_items for sample in samples}
    if len(sizes) > 1:
        raise ValueError(f"samples of {sorted(sizes)} items: only the same items can be drawn together")
    if not samples:
        return np.empty((0, resamples))
    generator = np.random.default_rng([seed, zlib.crc32(items_of.encode())])
    by_seed = _drawn_items(np.concatenate([sample.values_SI for sample in samples]), resamples, generator)
    means, start = np.empty((len(samples), resamples)), 0
    for place, sample in enumerate(samples):
        block = by_seed[start : start + sample.n_seeds]
        means[place] = block[0] if sample.n_seeds == 1 else _drawn_seeds(block, [seed, stream])
        start += sample.n_seeds
    return means


def _drawn_items(values_NI: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means of each row over ``resamples`` draws of items with replacement, N x R, in blocks of bounded memory."""
    items = values_NI.shape[1]
    block = max(1, _WEIGHTS_AT_ONCE // items)
    parts = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, items, (rows, items)) + items * np.arange(rows)[:, None]
        weights_RI = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)
        parts.append(values_NI @ weights_RI.T.astype(np.float64) / items)
    return np.concatenate(parts, axis=1)


def _drawn_seeds(by_seed_SR: Floats, seed: Sequence[int]) -> Floats:
    """The mean of S - 1 of S rows drawn with replacement, anew for each column."""
    seeds, resamples = by_seed_SR.shape
    drawn = np.random.default_rng([*seed, seeds]).integers(0, seeds, (seeds - 1, resamples))
    return np.asarray(np.take_along_axis(by_seed_SR, drawn, axis=0).mean(axis=0))


def estimate(sample: Sample, draws: Floats) -> Estimate:
    """The mean of a sample with the percentile interval of its ``draws``."""
    return Estimate(sample.mean, *interval(draws), sample.n_items, sample.n_seeds)


def interval(draws: Floats) -> tuple[float, float]:
    """The percentile interval at 95 %."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    ours: Mapping[str, float], baseline: Mapping[str, float], seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of ``ours - baseline`` item by item with its interval: what is hard for both cancels.

    Raises:
        ValueError: the two were not measured on the same items.
    """
    require_same_items(ours, baseline)
    return bootstrap_mean((ours[item] - baseline[item] for item in sorted(ours)), seed, resamples)


def require_same_items(ours: Iterable[str], baseline: Iterable[str]) -> None:
    """Raises ``ValueError`` that names items which are on one side only."""
    if odd := sorted(set(ours) ^ set(baseline)):
        shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        raise ValueError(f"{len(odd)} items are on one side only ({shown}): a paired difference needs the same items")


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of ``k`` of ``n`` samples is right: 1 - C(n-c, k) / C(n, k).

    Codex, arXiv 2107.03374, Eq. 1; computed as a product, which does not overflow.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= correct <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} with n = {n} samples: k must be from 1 to n")
    if not 0 <= correct <= n:
        raise ValueError(f"correct = {correct} of n = {n} samples: must be from 0 to n")
    wrong = n - correct
    if wrong < k:
        return 1.0
    return float(1.0 - np.prod((wrong - np.arange(k)) / (n - np.arange(k))))


def count_verdicts(verdicts: Iterable[str], known: Sequence[str]) -> dict[str, int]:
    """How many of each ``known`` verdict, zeros included; the counts add up to the number of verdicts.

    Raises:
        ValueError: a verdict that is not known, with the known ones.
    """
    counts = dict.fromkeys(known, 0)
    total = 0
    for verdict in verdicts:
        if verdict not in counts:
            raise ValueError(f"verdict {verdict!r} is unknown; known: {', '.join(known)}")
        counts[verdict] += 1
        total += 1
    assert sum(counts.values()) == total
    return counts
