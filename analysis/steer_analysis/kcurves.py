"""pass@k and maj@k of rows with their intervals, for the pictures and the files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .leaderboard import Row, suite_draws
from .metrics import Scores, majority_curve, pass_curve
from .records import Protocol
from .statistics import Estimate, Sample, estimate

Curve = Mapping[int, Estimate]


@dataclass(frozen=True)
class KCurves:
    """A row's pass@k and maj@k by k. pass@1 and maj@1 are avg@n."""

    row: Row
    passed: Curve
    majority: Curve


def k_curves(protocol: Protocol, rows: Sequence[Row], ks: Sequence[int] = ()) -> list[KCurves]:
    """The curves of ``rows`` at ``ks`` (default: powers of two up to n, and n), all from the same draws of items."""
    passed, majority = _curves(protocol, rows, ks, pass_curve), _curves(protocol, rows, ks, majority_curve)
    return [KCurves(row, *both) for row, *both in zip(rows, passed, majority, strict=True)]


def _curves(
    protocol: Protocol,
    rows: Sequence[Row],
    ks: Sequence[int],
    curve: Callable[[Sequence[Scores], Sequence[int]], dict[int, Sample]],
) -> list[Curve]:
    samples = [curve(row.scores, ks) for row in rows]
    flat = [sample for one in samples for sample in one.values()]
    draws = iter(suite_draws(protocol, flat))
    return [{k: estimate(sample, next(draws)) for k, sample in one.items()} for one in samples]
