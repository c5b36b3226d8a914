"""An evaluation as numbers by item: accuracy, pass@k, maj@k, shares of verdicts. No interval is computed here."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from .majority import MOST_SAMPLES, Ballot, ballot, majority_at_k
from .records import VERDICTS, Evaluation
from .statistics import Floats, Sample, count_verdicts, pass_at_k


@dataclass(frozen=True)
class Scores:
    """One run on one suite, its items in alphabetical order. ``n`` samples of every item."""

    items: tuple[str, ...]
    ballots: tuple[Ballot, ...]
    n: int
    verdicts: Mapping[str, int]

    @cached_property
    def accuracy_I(self) -> Floats:
        """Share of right samples of each item: avg@n is its mean."""
        return np.array([votes.right / self.n for votes in self.ballots])

    def share(self, verdict: str) -> float:
        """Share of the samples with this verdict."""
        return self.verdicts[verdict] / (self.n * len(self.items))


def scores_of(evaluation: Evaluation) -> Scores:
    """The scores of a complete evaluation.

    Raises:
        ValueError: no records, or items with unequal numbers of samples.
    """
    by_item: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for record in evaluation.records:
        by_item[record.item].append((record.verdict, record.answer))
    if not by_item:
        raise ValueError("no items to average: an empty evaluation has no accuracy, it is not 0")
    sizes = {len(samples) for samples in by_item.values()}
    if len(sizes) != 1:
        raise ValueError(f"items have {sorted(sizes)} samples; every item needs the same number, at least 1")
    items = tuple(sorted(by_item))
    counts = count_verdicts((record.verdict for record in evaluation.records), VERDICTS)
    return Scores(items, tuple(ballot(by_item[item]) for item in items), sizes.pop(), counts)


def accuracy(seeds: Sequence[Scores]) -> Sample:
    """avg@n of a row: its training seeds by items."""
    return Sample(np.stack([one.accuracy_I for one in seeds]))


def ladder(n: int) -> list[int]:
    """The k of a curve: powers of two up to ``n``, and ``n``."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


def pass_curve(seeds: Sequence[Scores], ks: Sequence[int] = ()) -> dict[int, Sample]:
    """pass@k of a row for each of ``ks``, by default the :func:`ladder`."""
    return _curve(seeds, ks, _pass)


def majority_curve(seeds: Sequence[Scores], ks: Sequence[int] = ()) -> dict[int, Sample]:
    """maj@k of a row for each of ``ks``, by default the :func:`ladder`; empty for more samples than it is computed
    for."""
    return {} if seeds[0].n > MOST_SAMPLES else _curve(seeds, ks, majority_at_k)


@lru_cache(maxsize=50_000)
def _pass(votes: Ballot, k: int) -> float:
    return pass_at_k(votes.n, votes.right, k)


def _curve(seeds: Sequence[Scores], ks: Sequence[int], value: Callable[[Ballot, int], float]) -> dict[int, Sample]:
    return {
        k: Sample(np.array([[value(votes, k) for votes in one.ballots] for one in seeds]))
        for k in ks or ladder(seeds[0].n)
    }
