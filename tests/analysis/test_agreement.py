"""Agreement statistics against scipy, closed forms, a slow bootstrap and values worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from steer_analysis.agreement import Value, agreement, cluster_sums, dense_ranks, midranks, ratio

Floats = NDArray[np.float64]
few_values = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40)


def made(n: int = 400, clusters: int = 20, seed: int = 0) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Pairs that agree partly, heavy-tailed, with a common shift in each cluster."""
    noise = np.random.default_rng(seed)
    cluster = np.sort(noise.integers(0, clusters, n))
    shift = noise.normal(size=clusters)[cluster]
    x = noise.normal(size=n) ** 3 + shift
    return x, 0.5 * x + noise.normal(size=n) + shift, cluster


def slow_bootstrap(x: Floats, y: Floats, cluster: NDArray[np.int64], resamples: int) -> dict[str, Floats]:
    """Whole clusters drawn with replacement, everything computed anew from the drawn pairs."""
    noise, groups = np.random.default_rng(5), [np.flatnonzero(cluster == name) for name in np.unique(cluster)]
    found: dict[str, list[float]] = {"pcc": [], "srcc": [], "sign": [], "scale": [], "mse": []}
    for _ in range(resamples):
        drawn = np.concatenate([groups[index] for index in noise.integers(0, len(groups), len(groups))])
        a, b = x[drawn], y[drawn]
        scale = (a @ b) / (a @ a)
        found["pcc"].append(np.corrcoef(a, b)[0, 1])
        found["srcc"].append(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
        found["sign"].append(float(np.mean(np.sign(a) == np.sign(b))))
        found["scale"].append(scale)
        found["mse"].append(float(np.mean((b - scale * a) ** 2)))
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in found.items()}


def test_values_agree_with_scipy() -> None:
    x, y, cluster = made()
    x, y = np.round(x, 1), np.round(y, 1)  # ties, and zeros
    found = agreement(x, y, cluster)
    assert found.pcc.value == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert found.srcc.value == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    assert found.srcc_magnitude.value == pytest.approx(stats.spearmanr(np.abs(x), np.abs(y))[0], abs=1e-12)
    assert found.scale.value == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], rel=1e-12)
    assert found.pcc.n == 400
    assert found.clusters == 20


@given(few_values)
def test_correlations_agree_with_scipy_whatever_the_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    found = agreement(x, y, np.arange(x.size), resamples=10)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found.pcc.value is None
        assert found.srcc.value is None
    else:
        assert found.pcc.value == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
        assert found.srcc.value == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)


def test_everything_by_hand() -> None:
    """x y: (1, 2) (2, 2) (-1, 1) (0, 3): scale = (2+4-1+0)/(1+4+1) = 5/6; squares of y 18; mse = (18 - 25/6)/4."""
    found = agreement(np.array([1.0, 2, -1, 0]), np.array([2.0, 2, 1, 3]), np.arange(4))
    assert found.scale.value == pytest.approx(5 / 6)
    assert found.mse.value == pytest.approx((18 - 25 / 6) / 4)
    assert found.mse_zero.value == pytest.approx(4.5)
    assert (found.sign.value, found.sign.n) == (pytest.approx(2 / 3), 3)  # the pair with a 0 has no sign
    assert found.pcc.value == pytest.approx(1 / np.sqrt(5 * 2))  # centred: x .5 1.5 -1.5 -.5, y 0 0 -1 1
    assert found.srcc.value == pytest.approx(0.316227766)  # ranks 3 4 1 2 and 2.5 2.5 1 4: 1.5/sqrt(5 * 4.5)


def test_midranks_by_hand() -> None:
    assert midranks(dense_ranks(np.array([3.0, 1, 3, 7]))).tolist() == [0.5, 0.125, 0.5, 0.875]


def test_proportional_columns_agree_perfectly() -> None:
    y = np.random.default_rng(0).normal(size=300)
    found = agreement(-0.25 * y, y, np.arange(300) // 10)
    for value in (found.pcc, found.srcc):
        assert (value.value, value.low, value.high) == pytest.approx((-1, -1, -1), abs=1e-9)
    assert (found.scale.value, found.scale.low, found.scale.high) == pytest.approx((-4, -4, -4))
    assert (found.sign.value, found.srcc_magnitude.value) == pytest.approx((0, 1))
    assert found.mse.value == pytest.approx(0, abs=1e-12)


def test_intervals_are_those_of_a_bootstrap_that_ranks_every_resample_anew() -> None:
    x, y, cluster = made(n=1600, clusters=80)
    ours = agreement(x, y, cluster, resamples=20_000)
    for name, (low, high) in slow_bootstrap(x, y, cluster, 2000).items():
        value: Value = getattr(ours, name)
        assert value.low is not None
        assert value.high is not None
        assert value.low == pytest.approx(low, abs=0.15 * (high - low)), name
        assert value.high == pytest.approx(high, abs=0.15 * (high - low)), name


def test_pairs_of_one_cluster_do_not_pass_for_independent_ones() -> None:
    """Sixteen copies of every pair change nothing but n."""
    x, y, _ = made(n=30)
    once = agreement(x, y, np.arange(30))
    copied = agreement(np.repeat(x, 16), np.repeat(y, 16), np.repeat(np.arange(30), 16))
    naive = agreement(np.repeat(x, 16), np.repeat(y, 16), np.arange(480))
    assert (copied.srcc.low, copied.srcc.high) == pytest.approx((once.srcc.low, once.srcc.high))
    assert copied.pcc.n == 480
    assert width(copied.pcc) > 3 * width(naive.pcc)


def width(value: Value) -> float:
    assert value.low is not None
    assert value.high is not None
    return value.high - value.low


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 samples of 40 clusters whose true correlation is 0.6: about 95 in 100 intervals hold it."""
    noise = np.random.default_rng(1)
    hits = {"pcc": 0, "srcc": 0}
    truth = {"pcc": 0.6, "srcc": 6 / np.pi * np.arcsin(0.3)}  # Pearson 1907, for the bivariate normal
    for _ in range(200):
        x, rest = noise.normal(size=(2, 200))
        found = agreement(x, 0.6 * x + 0.8 * rest, np.arange(200) // 5, resamples=400)
        for name, value in truth.items():
            one: Value = getattr(found, name)
            assert one.low is not None
            assert one.high is not None
            hits[name] += one.low <= value <= one.high
    assert 0.87 * 200 <= hits["pcc"] <= 199
    assert 0.87 * 200 <= hits["srcc"] <= 199


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    x, y, cluster = made()
    holes = x.copy(), y.copy()
    holes[0][:3], holes[1][2:7] = np.nan, np.inf
    found, kept = agreement(*holes, cluster), agreement(x[7:], y[7:], cluster[7:])
    assert (found.left_out, found.pcc.n) == (7, 393)
    assert found.srcc == kept.srcc


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([np.nan], [1.0]), ([0.0, 0, 0], [1.0, 2, 3]), ([0.1] * 5, [1.0, 2, 3, 4, 5])]
)
def test_undefined_is_none_and_never_a_number(x: list[float], y: list[float]) -> None:
    found = agreement(np.array(x), np.array(y), np.arange(len(x)))
    assert found.pcc.value is found.srcc.value is found.pcc.low is None
    if not np.nansum(x):
        assert found.scale.value is found.sign.value is None


def test_two_pairs_are_no_correlation() -> None:
    assert agreement(np.array([1.0, 2]), np.array([3.0, 9]), np.arange(2)).pcc.value is None


def test_one_cluster_has_a_value_and_no_interval() -> None:
    found = agreement(np.array([1.0, 2, 3]), np.array([2.0, 4, 6.5]), np.zeros(3, dtype=np.int64))
    assert found.pcc.value is not None
    assert (found.pcc.low, found.pcc.high) == (None, None)


def test_order_of_pairs_and_clusters_names_do_not_matter() -> None:
    x, y, cluster = made()
    order = np.random.default_rng(2).permutation(x.size)
    one, other = agreement(x, y, cluster), agreement(x[order], y[order], 7 * cluster[order] + 3)
    assert (one.srcc.low, one.pcc.high) == pytest.approx((other.srcc.low, other.pcc.high))


def test_cluster_sums_by_hand() -> None:
    terms = np.array([[1.0, 2, 3], [10, 20, 30]])
    assert cluster_sums(terms, np.array([4, 9, 4])).tolist() == [[4, 40], [2, 20]]


def test_ratio_of_a_share_is_the_binomials() -> None:
    """Every token its own cluster: resampling n with r ones gives Binomial(n, r/n) / n."""
    found = ratio(np.arange(100) < 30, np.ones(100), np.arange(100), resamples=50_000)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.3) / 100
    assert (found.value, found.n) == (pytest.approx(0.3), 100)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0101)


def test_ratio_over_nothing_is_not_defined() -> None:
    assert ratio(np.zeros(3), np.zeros(3), np.arange(3)) == Value(None, None, None, 0)
