"""Statistics of the leaderboard: pure functions of arrays, every random draw from an explicit seed.

An **item** is one question; a question sampled many times is still one item. Items are the unit that is resampled,
so that 32 answers to one question do not pass for 32 questions (*A Sober Look*, arXiv 2504.07086).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # indices held at once by the bootstrap: 32 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its percentile-bootstrap interval [``low``, ``high``] at 95 %, over ``n_items`` items."""

    mean: float
    low: float
    high: float
    n_items: int

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


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
    """Mean of ``values`` (one per item) and its percentile bootstrap interval over items.

    Values are sorted first, so the interval does not depend on the order of the items.

    Raises:
        ValueError: no values, a value that is not finite, or fewer than 2000 resamples.
    """
    data: Floats = np.sort(np.asarray(list(values), dtype=np.float64))
    if data.size == 0:
        raise ValueError("no values to average: an empty evaluation has no mean, it is not 0")
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).sum())} of {data.size} values are not finite: leave failures out")
    if resamples < 2000:
        raise ValueError(f"resamples = {resamples}: at least 2000 are needed for a 95 % interval that holds still")
    means = _resampled_means(data, resamples, np.random.default_rng(seed))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))


def _resampled_means(data: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means of ``resamples`` draws with replacement, in blocks of bounded memory."""
    block = max(1, _DRAWS_AT_ONCE // data.size)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([data[generator.integers(0, data.size, (rows, data.size))].mean(axis=1) for rows in sizes])


def paired_difference(
    ours: Mapping[str, float], baseline: Mapping[str, float], seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of ``ours - baseline`` item by item with its interval: what is hard for both cancels.

    Raises:
        ValueError: the two were not measured on the same items.
    """
    if odd := sorted(ours.keys() ^ baseline.keys()):
        shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        raise ValueError(f"{len(odd)} items are on one side only ({shown}): a paired difference needs the same items")
    return bootstrap_mean((ours[item] - baseline[item] for item in sorted(ours)), seed, resamples)


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
