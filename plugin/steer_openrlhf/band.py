"""The entropy band of STEER (METHODS section 3): the weakest damping that keeps the entropy change of a rollout in it.

Units. Omega, s_i = mean(lambda * Omega) over the tokens of optimizer step i, and its first-moment average M_i: nats per
token and unit step. gamma: unit steps; what learning rate, Adam and shared parameters make of one optimizer step.
gamma * M_i: the change of mean entropy that optimizer step i is predicted to make, nats per token.

    M_i   = beta M_{i-1} + (1 - beta) s_i, divided by 1 - beta^t: Adam's first moment (arXiv 1412.6980, algorithm 1)
    gamma = sum w x (y - b) / sum w x^2 over past rollouts, x = sum_i M_i, y = measured change, w = band_memory^age
    b     = sum w (y - gamma x) / sum w

The drift b is what the updates do to entropy beside their first-order effect (noise of the updates, curvature); without
it a prediction held at 0 would leave the entropy falling for ever. The band is of a whole rollout; each optimizer step
gets its share of what is left. An estimated gamma predicts with an error, so a step aims inside the band by
:func:`margin`; aiming at its very edge would miss it every other time.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .config import SteerConfig
from .tokens import RolloutChange

State = dict[str, float]

MARGIN_DEVIATIONS = 2.0  # standard deviations: 98 % of normal errors are smaller, a part of which goes to gamma's own
INFORMATIVE_DEVIATIONS = 2.0
WEAKEST_DECAY, FULL_DECAY = 1e-12, 1e30  # finite in float32; at the second every damped token is at lambda_min
BISECTIONS = 40  # of the logarithm: the decay is known to 1e-10 of itself


class Range(NamedTuple):
    """Closed interval; its ends may be infinite."""

    low: float
    high: float


@dataclass(frozen=True)
class Damping:
    """``lambda = max(lambda_min, exp(-decay |Omega| / norm))`` on the tokens of one side: -1 falling (Omega < 0), +1
    rising, 0 none. ``strength``: share, in [0, 1], of what the side can be damped by at most. ``reached``: whether the
    prediction lies where it was wanted."""

    side: int = 0
    decay: float = 0.0
    strength: float = 0.0
    reached: bool = True


@dataclass(frozen=True)
class BandSummary:
    """Of all tokens of an optimizer step: Omega ``[N]``, the normaliser of |Omega| (0-d, above 0) and the mean entropy
    (nats; None when not wanted, or when no token had one). :func:`control` fills in the rest: the damping, the mean
    weight over every token, and, once calibrated, ``gamma`` and the ``predicted`` change (nats per token)."""

    omega_N: Tensor
    norm: Tensor
    entropy: float | None = None
    damping: Damping = Damping()
    mean_weight: float = 1.0
    gamma: float | None = None
    predicted: float | None = None


def limits(config: SteerConfig, entropy: float | None) -> Range:
    """The allowed change of mean entropy per rollout (nats per token) when the mean entropy is ``entropy`` (None:
    unknown, floor and ceiling say nothing)."""
    low, high = config.band or (-math.inf, math.inf)
    if entropy is not None and config.entropy_floor is not None and entropy < config.entropy_floor:
        low = max(low, 0.0)
    if entropy is not None and config.entropy_ceiling is not None and entropy > config.entropy_ceiling:
        high = min(high, 0.0)
    return Range(low, high)


def calibration(state: State, config: SteerConfig) -> float | None:
    """gamma by weighted least squares through the origin; None while it cannot be trusted: fewer than ``band_warmup``
    measured rollouts, nothing predicted yet, or a gamma that is not a positive number."""
    assert config.band_warmup is not None
    xx = state.get("band_xx", 0.0)
    if state.get("band_rollouts", 0.0) < config.band_warmup or xx <= 0:
        return None
    gamma = state["band_xy"] / xx
    return gamma if math.isfinite(gamma) and gamma > 0 else None


def drift(state: State) -> float:
    """b: the change of a rollout (nats per token) that its predicted first-order effect leaves over, on average."""
    return state.get("band_over", 0.0) / max(state.get("band_weight", 0.0), 1.0)


def deviation(state: State) -> float:
    """Standard deviation (nats per token) of a rollout's change around gamma x + b; 0 after a single rollout, which
    says nothing about it."""
    freedom = state.get("band_weight", 0.0) - 1
    return math.sqrt(state["band_square"] / freedom) if freedom > 0 else 0.0


def margin(state: State, band: Range) -> float:
    """How far inside the band to aim (nats per token): two standard deviations, at most to the middle of the band."""
    return min(MARGIN_DEVIATIONS * deviation(state), (band.high - band.low) / 2)


def wanted(state: State, gamma: float, band: Range) -> Range:
    """Where s_i of this optimizer step must lie for gamma * M_i to be in its share of the band, less the drift: what
    the rollout has left of it, over the updates it has left."""
    beta, t = state["momentum"], state.get("band_t", 0.0) + 1
    left = max(state["updates"] - state["update"], 1.0)
    inside, b = margin(state, band), drift(state)

    def of_end(end: float) -> float:
        moment = ((end - b) / gamma - state["band_sum"]) / left
        return (moment * (1 - beta**t) - beta * state.get("band_moment", 0.0)) / (1 - beta)

    return Range(of_end(band.low + inside), of_end(band.high - inside))


def weakest_damping(omega_N: Tensor, norm: Tensor, want: Range, lambda_min: float) -> Damping:
    """The weakest one-sided damping that brings mean(lambda * Omega) into ``want``; all of the side at ``lambda_min``
    when nothing does. Tokens whose Omega is not finite are left out. The same result for any order of the tokens, up to
    the rounding of float64 sums."""
    finite_N = omega_N[omega_N.isfinite()].double()
    mean = finite_mean(finite_N)
    if want.low <= mean <= want.high:
        return Damping()
    side = -1 if mean < want.low else 1
    excess = (want.low - mean if side < 0 else mean - want.high) * max(finite_N.numel(), 1)
    magnitude_M = finite_N[finite_N * side > 0].abs()
    available = (1 - lambda_min) * float(magnitude_M.sum())
    if available < excess:
        return Damping(side, FULL_DECAY, 1.0, reached=False)
    decay = _weakest_decay(magnitude_M, norm.double(), excess, lambda_min)
    return Damping(side, decay, excess / available)


def _weakest_decay(magnitude_M: Tensor, norm: Tensor, excess: float, lambda_min: float) -> float:
    """Smallest decay that takes ``excess`` from the sum of the magnitudes, by bisection of its logarithm; the sum grows
    with the decay, and the returned end of the bracket always takes enough."""
    share_M = magnitude_M / norm
    low = torch.full_like(norm, math.log(WEAKEST_DECAY))
    high = torch.full_like(norm, math.log(FULL_DECAY))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        damped_M = torch.expm1(share_M * -middle.exp()).neg_().clamp_(max=1 - lambda_min)
        enough = torch.dot(damped_M, magnitude_M) >= excess
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return float(high.exp())


def band_weights(omega: Tensor, summary: BandSummary, config: SteerConfig) -> Tensor:
    """The weights of :class:`Damping`, of the shape of ``omega``; 1 on the other side and where Omega is not finite."""
    assert config.lambda_min is not None
    damping = summary.damping
    damped = (omega * damping.side > 0) & omega.isfinite()
    weights = torch.exp(omega.abs() / summary.norm * -damping.decay).clamp(min=config.lambda_min)
    return torch.where(damped, weights, torch.ones_like(omega))


def finite_mean(values: Tensor) -> float:
    """Mean of the finite values, in float64; 0, the empty sum, when there is none."""
    finite = values[values.isfinite()].double()
    return float(finite.sum()) / max(finite.numel(), 1)


def control(
    state: State, summary: BandSummary, config: SteerConfig, uniform: bool = False
) -> tuple[State, BandSummary]:
    """Once per optimizer step: find the damping and keep account of what it is predicted to do.

    ``state`` must hold ``updates``, ``update`` and ``momentum`` (:class:`.registry.Intervention`). ``uniform``: what is
    applied is the mean weight, so that is what the account is of.
    """
    assert config.lambda_min is not None
    state = _begin(state, summary) if state["update"] == 0 else dict(state)
    gamma = calibration(state, config)
    if gamma is not None:
        want = wanted(state, gamma, limits(config, state.get("band_entropy")))
        damping = weakest_damping(summary.omega_N, summary.norm, want, config.lambda_min)
        summary = replace(summary, damping=damping, gamma=gamma)
    weights_N = band_weights(summary.omega_N, summary, config)
    mean_weight = finite_mean(weights_N) if weights_N.numel() else 1.0
    weighted = finite_mean(summary.omega_N) * mean_weight if uniform else finite_mean(summary.omega_N * weights_N)
    moment = _advance(state, weighted)
    predicted = None if gamma is None else gamma * moment
    return state, replace(summary, mean_weight=mean_weight, predicted=predicted)


def _begin(state: State, summary: BandSummary) -> State:
    """A new rollout: nothing of its band is used; the entropy of its first step decides on floor and ceiling."""
    state = {name: value for name, value in state.items() if name != "band_entropy"} | {"band_sum": 0.0}
    return state if summary.entropy is None else state | {"band_entropy": summary.entropy}


def _advance(state: State, weighted: float) -> float:
    """Put s_i into the first moment and M_i into the rollout's sum, in place; returns M_i."""
    beta = state["momentum"]
    state["band_t"] = state.get("band_t", 0.0) + 1
    state["band_moment"] = beta * state.get("band_moment", 0.0) + (1 - beta) * weighted
    moment = state["band_moment"] / (1 - beta ** state["band_t"])
    state["band_sum"] = state.get("band_sum", 0.0) + moment
    return moment


def observe(state: State, change: RolloutChange, config: SteerConfig) -> tuple[State, dict[str, float]]:
    """Once per rollout: was it in the band, and what does it say about gamma. A change that is not finite is counted as
    unmeasured and says nothing. ``band_steps`` and ``band_steps_in_band`` count measured rollouts under control."""
    state, measured = dict(state), change.entropy_after - change.entropy_before
    expected, metrics = state.get("band_sum", 0.0), dict[str, float]()
    if math.isfinite(measured) and math.isfinite(expected * expected):
        low, high = limits(config, state.get("band_entropy"))
        inside = float(low <= measured <= high)
        metrics |= {"band_measured": measured, "band_in_band": inside}
        if calibration(state, config) is not None:
            _count(state, "band_steps", 1.0)
            _count(state, "band_steps_in_band", inside)
        _learn(state, expected, measured, config)
    else:
        _count(state, "band_unmeasured", 1.0)
    state["band_sum"] = 0.0
    names = ("band_steps", "band_steps_in_band", "band_unmeasured")
    metrics |= {name: state.get(name, 0.0) for name in names}
    gamma = calibration(state, config)
    return state, metrics if gamma is None else metrics | {"band_gamma": gamma, "band_drift": drift(state)}


def _count(state: State, name: str, more: float) -> None:
    state[name] = state.get(name, 0.0) + more


def _learn(state: State, x: float, y: float, config: SteerConfig) -> None:
    """One more rollout in the regression, in place: predicted ``x`` (nats per unit step), measured ``y`` (nats).

    Under control x is small, and a rollout whose effect does not stand out of the noise says nothing about gamma: that
    is learnt from, and forgets for, the others only; drift and noise are learnt from every one.
    """
    assert config.band_memory is not None
    memory, gamma = config.band_memory, calibration(state, config)
    b, noise = drift(state), deviation(state)
    if gamma is None or abs(gamma * x) > INFORMATIVE_DEVIATIONS * noise:
        _mix(state, memory, band_xx=x * x, band_xy=x * (y - b))
    _count(state, "band_rollouts", 1.0)
    if (gamma := calibration(state, config)) is not None:
        _mix(state, memory, band_weight=1.0, band_over=y - gamma * x, band_square=(y - gamma * x - b) ** 2)


def _mix(state: State, memory: float, **added: float) -> None:
    for name, more in added.items():
        state[name] = memory * state.get(name, 0.0) + more
