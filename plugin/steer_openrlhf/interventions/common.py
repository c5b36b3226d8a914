"""What the interventions share: statistics over response tokens that no NaN enters, thresholds, and the core metrics.

Statistics of a step are taken in float64, and a selection of k tokens is a threshold on a value of the token itself, so
neither the order of the tokens nor how the step was cut into micro-batches matters. Tokens of equal value are selected
together.
"""

import math

import torch
from torch import Tensor

from ..tokens import Shaped, Tokens

STEP_STATISTICS = frozenset(
    {"cov_threshold", "entropy_threshold", "rising_share_of_flow", "step_entropy", "entropy_error", "deviation_std"}
)
"""The metrics that :func:`known` makes; all others are finite whatever a step has."""
ROUNDING = 1e-9  # 0.1 * 30 is a little above 3 in binary; a share must not select a token more for it


def columns(tokens: Tokens, *parts_BT: Tensor) -> Tensor:
    """The response tokens of each part, side by side: float64 ``[N, F]``."""
    mask_BT = tokens.mask_BT.bool()
    return torch.stack([part_BT[mask_BT].double() for part_BT in parts_BT], dim=-1)


def finite_mean(values_N: Tensor) -> Tensor:
    """Mean of the finite values; NaN when there are none, which every comparison then answers with no."""
    return values_N[values_N.isfinite()].mean()


def nonfinite_share(values_N: Tensor) -> Tensor:
    """Share of values that are not finite; 0 of none."""
    return (~values_N.isfinite()).to(values_N.dtype).sum() / max(values_N.numel(), 1)


def largest(values_N: Tensor, count: int) -> Tensor:
    """A threshold for ``>=`` that the ``count`` largest finite values reach; +inf when there is none, -inf when all do.

    Half-way to the next smaller value: a second forward of the same tokens, whose last bits differ, selects the same.
    """
    values_N = values_N[values_N.isfinite()]
    if not values_N.numel():
        return values_N.new_full((), math.inf)
    last = values_N.topk(min(count, values_N.numel())).values[-1]
    below_M = values_N[values_N < last]
    if not below_M.numel():
        return values_N.new_full((), -math.inf)
    middle = (last + below_M.max()) / 2
    return torch.where(middle > below_M.max(), middle, last)


def smallest(values_N: Tensor, count: int) -> Tensor:
    """A threshold for ``<=`` that the ``count`` smallest finite values keep; -inf when there is none, +inf for all."""
    return -largest(-values_N, count)


def ceil_share(share: float, total: int) -> int:
    """``ceil(share * total)``, at least 1."""
    return max(1, math.ceil(share * total - ROUNDING))


def floor_share(share: float, total: int) -> int:
    """``floor(share * total)``, at least 1: how the released Cov methods count."""
    return max(1, math.floor(share * total + ROUNDING))


def mean_over(values_BT: Tensor, mask_BT: Tensor, empty: float = 0.0) -> Tensor:
    """Mean over the response tokens of a micro-batch that are finite; ``empty`` when there are none."""
    values_N = values_BT[mask_BT.bool()]
    values_N = values_N[values_N.isfinite()]
    return values_N.mean() if values_N.numel() else values_BT.new_full((), empty)


def share(chosen_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Share of the response tokens of a micro-batch that are chosen; 0 of none."""
    return mean_over(chosen_BT.to(mask_BT.dtype), mask_BT)


def nonfinite(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Share of the response tokens of a micro-batch whose value is not finite."""
    return share(~values_BT.isfinite(), mask_BT)


def known(statistic: Tensor) -> Tensor:
    """A statistic of the step as a metric: NaN where the step has none (a threshold that all or no tokens reach, a mean
    of nothing), which ``metrics.jsonl`` has as null. No number stands for it, and it enters no weight."""
    return torch.where(statistic.isfinite(), statistic, torch.nan)


def reweighted(tokens: Tokens, weights_BT: Tensor, chosen_BT: Tensor, **metrics: Tensor) -> Shaped:
    """Advantages times weights (finite, without gradient), with the metrics every reweighting has."""
    weights_BT = weights_BT.to(tokens.advantages_BT.dtype)
    core = {
        "weight_mean": mean_over(weights_BT, tokens.mask_BT, empty=1.0),
        "share_selected": share(chosen_BT, tokens.mask_BT),
    }
    return Shaped(tokens.advantages_BT * weights_BT, core | metrics)


def masked_out(tokens: Tokens, chosen_BT: Tensor, **metrics: Tensor) -> Shaped:
    """Weight 0 on the chosen tokens, 1 elsewhere; the loss's denominator keeps counting them."""
    return reweighted(tokens, (~chosen_BT).to(tokens.advantages_BT.dtype), chosen_BT, **metrics)
