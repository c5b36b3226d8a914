"""How well one column of numbers predicts another: correlations, one scale factor, signs, ratios of sums.

Every statistic is a function of sums over **clusters** (training steps, or sequences), and its interval is the
percentile bootstrap over clusters: tokens of one step share their update and are no independent observations. Values
that are not finite are counted and left out. Undefined (no tokens, no spread) is None, never 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .statistics import CONFIDENCE

Floats = NDArray[np.float64]
Clusters = NDArray[np.int64]

RESAMPLES = 2_000
BOOTSTRAP_SEED = 0
FEWEST = 3  # pairs behind a correlation: two points always lie on a line
_NO_SPREAD = 1e-12  # a variance this small beside the second moment is rounding
_MOST_UNDEFINED = 0.05  # share of resamples without a value from which there is no interval


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval and the count it is of. None: not defined (or one cluster only: no interval)."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Agreement:
    """How well ``x`` predicts ``y``, pair by pair.

    ``scale`` is the least-squares factor c of y = c x, ``mse`` the mean squared error it leaves and ``mse_zero`` that
    of predicting 0. ``sign`` is the share of equal signs among pairs of which neither is 0. ``srcc_magnitude`` compares
    absolute values. ``left_out`` pairs were not finite, or not stored.
    """

    pcc: Value
    srcc: Value
    srcc_magnitude: Value
    sign: Value
    scale: Value
    mse: Value
    mse_zero: Value
    left_out: int
    clusters: int


def agreement(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    cluster: Clusters,
    seed: int = BOOTSTRAP_SEED,
    resamples: int = RESAMPLES,
) -> Agreement:
    """Every statistic of :class:`Agreement` for N pairs; ``cluster`` names the cluster of each pair."""
    finite = np.isfinite(x) & np.isfinite(y)
    a, b = x[finite].astype(np.float64), y[finite].astype(np.float64)
    signed = (a != 0) & (b != 0)
    terms = np.stack([*_moments(a, b), *_rank_moments(a, b), *_rank_moments(np.abs(a), np.abs(b))])
    signs = np.stack([signed, signed & (np.sign(a) == np.sign(b))])
    sums = cluster_sums(np.concatenate([np.ones((1, a.size)), signs, terms]), cluster[finite])
    found = bootstrap(sums, _statistics, seed, resamples)
    pairs, counts = a.size, {"sign": int(signed.sum())}
    values = {name: Value(*found[name], counts.get(name, pairs)) for name in found}
    return Agreement(**values, left_out=int((~finite).sum()), clusters=sums.shape[0])


def _moments(x: Floats, y: Floats) -> list[Floats]:
    """Per pair: raw products for the scale factor, centred ones for the correlation (raw ones would cancel)."""
    u, v = _centred(x), _centred(y)
    return [x * x, x * y, y * y, u, v, u * v, u * u, v * v]


def _centred(x: Floats) -> Floats:
    return x - x.mean() if x.size and np.ptp(x) > 0 else np.zeros_like(x)


def _rank_moments(x: Floats, y: Floats) -> list[Floats]:
    """Per pair, what its weight adds to the covariance and the two variances of the ranks, to first order.

    Ranks depend on all pairs, so a resample would have to be ranked anew. Their moments are smooth functionals of the
    weights (V-statistics of degree 3 with k(a, b) = 1(a < b) + 1(a = b)/2), so the mean of these columns is the moment
    itself, and their weighted mean is a resample's moment up to terms of second order. (With few clusters this interval
    covers better than the one of resamples ranked anew, which is pulled to 0 by the ties that drawing twice makes.)
    """
    group_x, group_y = dense_ranks(x), dense_ranks(y)
    u, v = midranks(group_x) - 0.5, midranks(group_y) - 0.5
    return [
        _first_order(u * v, _mean_above(group_x, v), _mean_above(group_y, u)),
        _first_order(u * u, *[_mean_above(group_x, u)] * 2),
        _first_order(v * v, *[_mean_above(group_y, v)] * 2),
    ]


def _first_order(product: Floats, *through_ranks: Floats) -> Floats:
    moment = product.mean() if product.size else 0.0
    return product + sum(through_ranks) - len(through_ranks) * moment


def dense_ranks(x: Floats) -> NDArray[np.int64]:
    """The place of each value among the different values, from 0."""
    return np.unique(x, return_inverse=True)[1].astype(np.int64)


def midranks(group: NDArray[np.int64]) -> Floats:
    """Of each value (by :func:`dense_ranks`) the share of values below it and half of those equal: ties averaged."""
    counts = np.bincount(group)
    return ((np.cumsum(counts) - counts / 2) / max(group.size, 1))[group]


def _mean_above(group: NDArray[np.int64], values: Floats) -> Floats:
    """For each i, the mean over j of k(x_i, x_j) values_j: the values of those above it, half of those equal."""
    sums = np.bincount(group, weights=values)
    return ((sums.sum() - np.cumsum(sums) + sums / 2) / max(group.size, 1))[group]


def _statistics(sums: Floats) -> dict[str, Floats]:
    """The statistics of ``[..., 17]`` sums, for the data itself and for every resample alike."""
    columns = np.moveaxis(sums, -1, 0)
    n, signed, agree, xx, xy, yy, u, v, uv, uu, vv = columns[:11]
    ranks, few = columns[11:], n < FEWEST
    scale = xy / np.where(xx > 0, xx, np.nan)
    return {
        "pcc": _correlation(uv / n - u * v / n**2, _variance(uu, u, n), _variance(vv, v, n), few),
        "srcc": _rank_correlation(ranks[:3] / n, few),
        "srcc_magnitude": _rank_correlation(ranks[3:] / n, few),
        "sign": agree / np.where(signed > 0, signed, np.nan),
        "scale": scale,
        "mse": np.maximum(yy - scale * xy, 0) / n,
        "mse_zero": yy / n,
    }


def _variance(squares: Floats, total: Floats, n: Floats) -> Floats:
    variance = squares / n - (total / n) ** 2
    return np.where(variance > _NO_SPREAD * squares / n, variance, np.nan)


def _correlation(covariance: Floats, variance_x: Floats, variance_y: Floats, few: NDArray[np.bool_]) -> Floats:
    usable = ~few & (variance_x > 0) & (variance_y > 0)
    product = np.where(usable, variance_x, np.nan) * np.where(usable, variance_y, np.nan)
    return np.clip(covariance / np.sqrt(product), -1, 1)


def _rank_correlation(moments: Floats, few: NDArray[np.bool_]) -> Floats:
    covariance, variance_x, variance_y = moments
    return _correlation(covariance, variance_x, variance_y, few)


def cluster_sums(terms: NDArray[np.floating], cluster: Clusters) -> Floats:
    """Sums of ``[K, N]`` terms over each cluster: ``[G, K]``. Clusters without a term do not count."""
    names, group = np.unique(cluster, return_inverse=True)
    return np.stack([np.bincount(group, weights=row, minlength=names.size) for row in terms], axis=1)


def bootstrap(
    sums: Floats,
    statistics: Callable[[Floats], Mapping[str, Floats]],
    seed: int = BOOTSTRAP_SEED,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Value, low and high of every statistic of the ``[G, K]`` cluster sums, G clusters drawn with replacement."""
    clusters, width = sums.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = statistics(sums.sum(axis=0) if clusters else np.zeros(width))
        if clusters < 2:
            return {name: (_defined(value), None, None) for name, value in whole.items()}
        drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
        again = statistics(drawn.astype(np.float64) @ sums)
    return {name: (_defined(value), *_interval(again[name], _defined(value))) for name, value in whole.items()}


def _defined(value: Floats) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(values: Floats, value: float | None) -> tuple[float | None, float | None]:
    finite = values[np.isfinite(values)]
    if value is None or finite.size < (1 - _MOST_UNDEFINED) * values.size:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def ratio(
    numerator: NDArray[np.generic],
    denominator: NDArray[np.generic],
    cluster: Clusters,
    seed: int = BOOTSTRAP_SEED,
    resamples: int = RESAMPLES,
) -> Value:
    """Sum of ``numerator`` over sum of ``denominator`` (a mean, a share, a mass); n counts non-zero denominators."""
    sums = cluster_sums(np.stack([numerator, denominator]).astype(np.float64), cluster)

    def divide(totals: Floats) -> dict[str, Floats]:
        return {"ratio": totals[..., 0] / np.where(totals[..., 1] > 0, totals[..., 1], np.nan)}

    return Value(*bootstrap(sums, divide, seed, resamples)["ratio"], int(np.count_nonzero(denominator)))
