"""``opefo``: tokens that raise and that lower entropy are weighted so that their flows cancel (arXiv 2605.11491)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..omega import ESTIMATORS
from ..tokens import Shaped, Tokens
from .common import columns, known, nonfinite, reweighted
from .configs import OpefoConfig


@dataclass(frozen=True)
class FlowSummary:
    """Of the step: summed entropy change of the tokens that lower entropy, as a positive number D, and of those that
    raise it, I (nats per unit step), and ``l = (D - I) / (D + I)``, 0 when both are 0. 0-d tensors."""

    falling: Tensor
    rising: Tensor
    coefficient: Tensor


def signal_opefo(tokens: Tokens, config: OpefoConfig) -> Tensor:
    """Omega of each response token, ``[N]``."""
    return columns(tokens, ESTIMATORS[config.estimator](tokens)).squeeze(-1)


def summarize_opefo(omega_N: Tensor, config: OpefoConfig) -> FlowSummary:
    """Both flows over the tokens whose Omega is finite."""
    omega_N = omega_N[omega_N.isfinite()]
    falling, rising = -omega_N.clamp(max=0).sum(), omega_N.clamp(min=0).sum()
    total = falling + rising
    coefficient = torch.where(total > 0, (falling - rising) / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
    return FlowSummary(falling, rising, coefficient)


def shape_opefo(tokens: Tokens, summary: FlowSummary, config: OpefoConfig) -> Shaped:
    """``(1 + l) A`` where Omega > 0, ``(1 - l) A`` where Omega < 0: then ``(1 + l) I = (1 - l) D``, the predicted
    change of entropy is 0 (arXiv 2605.11491, closed form of lambda). A token whose Omega is not finite keeps its
    weight.

    Deviations: the paper is strictly on-policy (one update a rollout) and estimates Omega for a tabular softmax;
    ``--opefo.estimator`` offers all of ours that are signed, ``exact`` by default, and I and r make it hold off-policy.
    Without a token that raises entropy l is 1: none that lowers it is then trained.
    """
    omega_BT = ESTIMATORS[config.estimator](tokens)
    sign_BT = torch.sign(torch.nan_to_num(omega_BT, nan=0.0, posinf=0.0, neginf=0.0))
    weights_BT = 1 + sign_BT * summary.coefficient.to(sign_BT.dtype)
    flow = summary.rising + summary.falling
    metrics = {
        "coefficient": summary.coefficient,
        "rising_share_of_flow": known(summary.rising / flow),
        "nonfinite_omega": nonfinite(omega_BT, tokens.mask_BT),
    }
    return reweighted(tokens, weights_BT, sign_BT != 0, **metrics)
