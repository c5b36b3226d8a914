"""Statistics of the sampled tokens, from the same temperature-scaled logits as the loss. Everything here is detached.

Shape letters: B sequences, T response tokens, N tokens of any kind, V vocabulary. Entropies and log-probs in nats.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # OpenRLHF clamps the log-ratio here before exp; the ratio of the estimators is the loss's own


class TokenStatistics(NamedTuple):
    """Of each token: ``log_prob`` (nats), ``entropy`` H (nats) and ``collision`` S = sum_v pi_v^2 (log pi_v + H)."""

    log_prob: Tensor
    entropy: Tensor
    collision: Tensor


@torch.no_grad()
def token_statistics(logits_NV: Tensor, labels_N: Tensor) -> TokenStatistics:
    """Statistics of N rows of logits, in float32 (float64 stays). Holds a few temporaries of the size of its input.

    A logit of -inf is a token of probability 0. A row with NaN, +inf or only -inf gives NaN, which callers count.
    """
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    log_pi_NV = torch.log_softmax(logits_NV, dim=-1)
    log_prob_N = log_pi_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    pi_NV = log_pi_NV.exp()
    log_pi_NV = log_pi_NV.clamp_(min=torch.finfo(log_pi_NV.dtype).min)  # 0 * -inf is NaN; 0 * -3e38 is 0
    entropy_N = -(pi_NV * log_pi_NV).sum(-1)
    collision_N = (pi_NV.square() * (log_pi_NV + entropy_N.unsqueeze(-1))).sum(-1)
    return TokenStatistics(log_prob_N, entropy_N, collision_N)


@torch.no_grad()
def masked_statistics(logits_BTV: Tensor, labels_BT: Tensor, mask_BT: Tensor, chunk_tokens: int) -> TokenStatistics:
    """:func:`token_statistics` of the tokens under the mask, ``chunk_tokens`` at a time; 0 elsewhere. All ``[B, T]``.

    No buffer of size B*T*V is made: at most ``chunk_tokens`` vocabulary rows live beside the logits themselves.
    """
    dtype = torch.float64 if logits_BTV.dtype == torch.float64 else torch.float32
    out = [torch.zeros(labels_BT.shape, dtype=dtype, device=logits_BTV.device) for _ in TokenStatistics._fields]
    rows, columns = mask_BT.bool().nonzero(as_tuple=True)
    for start in range(0, rows.numel(), chunk_tokens):
        at = (rows[start : start + chunk_tokens], columns[start : start + chunk_tokens])
        for whole, part in zip(out, token_statistics(logits_BTV[at], labels_BT[at]), strict=True):
            whole[at] = part
    return TokenStatistics(*out)


@dataclass(frozen=True)
class Clip:
    """Where OpenRLHF's clipping stops the gradient; ``sequence_level`` for gspo, whose ratio is the sequence's mean."""

    low: float
    high: float
    dual: float | None = None
    sequence_level: bool = False


@dataclass(frozen=True)
class Tokens:
    """What an intervention sees of a micro-batch; every tensor ``[B, T]``, float, without graph.

    ``mask_BT`` is 1 on response tokens; entries outside it are meaningless and must not influence a result.
    """

    log_probs_BT: Tensor
    old_log_probs_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor
    entropy_BT: Tensor
    collision_BT: Tensor
    clip: Clip

    def ratio_BT(self) -> Tensor:
        """Importance ratio r as the base loss uses it."""
        log_ratio_BT = self.log_probs_BT - self.old_log_probs_BT
        if self.clip.sequence_level:
            mean_B = (log_ratio_BT * self.mask_BT).sum(-1) / self.mask_BT.sum(-1).clamp(min=1)
            log_ratio_BT = mean_B.unsqueeze(-1).expand_as(log_ratio_BT)
        return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()

    def gradient_BT(self) -> Tensor:
        """The indicator I: 1 where the clipped loss still has a gradient, else 0 (METHODS, head of the page)."""
        ratio_BT, positive_BT = self.ratio_BT(), self.advantages_BT > 0
        stopped_BT = torch.where(positive_BT, ratio_BT > 1 + self.clip.high, ratio_BT < 1 - self.clip.low)
        if self.clip.dual is not None:
            stopped_BT = stopped_BT | (~positive_BT & (ratio_BT > self.clip.dual))
        return (~stopped_BT).to(self.log_probs_BT.dtype)


@dataclass(frozen=True)
class Shaped:
    """An intervention's answer: advantages for OpenRLHF's loss, and scalars for the metrics (without ``steer/``)."""

    advantages_BT: Tensor
    metrics: dict[str, Tensor]
