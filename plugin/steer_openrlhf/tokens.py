"""Statistics of the sampled tokens, from the same temperature-scaled logits as the loss. Everything here is detached.

Shape letters: B sequences, T response tokens, N tokens of any kind, V vocabulary. Entropies and log-probs in nats.
"""

from collections.abc import Callable
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

    The last three are there when the intervention's ``needs`` name them: ``old_entropy_BT`` (nats, of the policy before
    the first update of this rollout), ``random_BT`` (:func:`token_uniforms`), ``influence_BT`` (score of a token's own
    gradient in the direction that raises the mean entropy, :mod:`.influence`; nats per unit step and unit advantage).
    """

    log_probs_BT: Tensor
    old_log_probs_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor
    entropy_BT: Tensor
    collision_BT: Tensor
    clip: Clip
    old_entropy_BT: Tensor | None = None
    random_BT: Tensor | None = None
    influence_BT: Tensor | None = None

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
class RolloutChange:
    """What the updates of one rollout did, measured on the same tokens before and after (mean entropy, nats per token,
    over the measured sequences of all ranks)."""

    entropy_before: float
    entropy_after: float
    updates: int


@dataclass(frozen=True)
class Shaped:
    """An intervention's answer, for OpenRLHF's loss of the micro-batch.

    - ``advantages_BT``: what the base loss is called with.
    - ``metrics``: 0-d tensors by name (without ``steer/``).
    - ``clip``: low and high epsilon in place of OpenRLHF's ``eps_clip_low_high``, numbers or ``[B, T]``; None keeps it.
    - ``extra_loss``: from the present log-probs ``[B, T]`` (with graph) to a per-token loss ``[B, T]``, added
      to the base loss, aggregated as that is (same mask and denominator); None for most.
    """

    advantages_BT: Tensor
    metrics: dict[str, Tensor]
    clip: tuple[Tensor | float, Tensor | float] | None = None
    extra_loss: Callable[[Tensor], Tensor] | None = None


NO_CLIP = (1e9, 1e9)
"""A :attr:`Shaped.clip` no ratio reaches: OpenRLHF's ratio is at most exp(20) = 4.9e8."""


@torch.no_grad()
def token_uniforms(sequences_BS: Tensor, attention_BS: Tensor, actions: int, seed: int) -> Tensor:
    """A pseudo-random number in [0, 1) for each of the last ``actions`` tokens; float64 ``[B, actions]``.

    It depends on the seed and on the token's whole prefix (itself included), and on nothing else: not on padding, the
    order of the samples, or the rank. Equal prefixes, as in equal answers to one prompt, share their number.
    """
    present_BS = attention_BS.long()
    place_BS = present_BS.cumsum(-1)
    terms_BS = _mix(sequences_BS.long() * _ODD + place_BS) * present_BS
    hashed_BS = _mix(terms_BS.cumsum(-1) + _mix(torch.full_like(place_BS[:1, :1], seed)))
    return ((hashed_BS >> 11) & _MANTISSA).double()[:, -actions:] / (_MANTISSA + 1)


_ODD = -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio in 64 bits, as a signed number
_MANTISSA = 2**53 - 1


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea, Flood 2014) in wrapping int64 arithmetic."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x
