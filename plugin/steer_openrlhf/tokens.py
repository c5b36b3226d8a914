"""Statistics of the sampled tokens, from the same temperature-scaled logits as the loss. Everything here is detached.

Shape letters: B sequences, T response tokens, N tokens of any kind, V vocabulary. Entropies and log-probs in nats.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

SWITCH = "STEER_OPENRLHF_KERNEL"
CACHED_LOGITS = 2**18
"""Of a chunk on CPU: a MiB in float32, so the three temporaries of its size stay in a core's caches."""
_NEVER = -1e30  # in place of -inf: 0 times it is 0
MAX_LOG_RATIO = 20.0  # OpenRLHF clamps the log-ratio here before exp; the ratio of the estimators is the loss's own


class TokenStatistics(NamedTuple):
    """Of each token: ``log_prob`` (nats), ``entropy`` H (nats) and ``collision`` S = sum_v pi_v^2 (log pi_v + H)."""

    log_prob: Tensor
    entropy: Tensor
    collision: Tensor


class RowStatistics(NamedTuple):
    """:class:`TokenStatistics` and ``log_total``, the log of the softmax's denominator: log pi_v = z_v - log_total."""

    log_prob: Tensor
    entropy: Tensor
    collision: Tensor
    log_total: Tensor

    def of_tokens(self) -> TokenStatistics:
        return TokenStatistics(self.log_prob, self.entropy, self.collision)


@torch.no_grad()
def row_statistics(logits_NV: Tensor, labels_N: Tensor, temperature: float = 1.0) -> RowStatistics:
    """Statistics of N rows of logits, in float32 (float64 stays). Holds a few temporaries of the size of its input.

    With t = z - max z and E = sum pi t: H = log Z - E and S = sum pi^2 t - E sum pi^2, where log Z = -log max pi, so
    one softmax is all the exponentials there are. A logit of -inf is a token of probability 0. A row with NaN, +inf or
    only -inf gives NaN, which callers count.
    """
    rows_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    rows_NV = rows_NV if temperature == 1.0 else rows_NV / temperature
    top_N1, pi_NV = rows_NV.amax(-1, keepdim=True), torch.softmax(rows_NV, dim=-1)
    log_z_N, chosen_N = -pi_NV.amax(-1).log(), rows_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    moment_NV = (rows_NV - top_N1).clamp_(min=_NEVER).mul_(pi_NV)
    mean_N, top_N = moment_NV.sum(-1), top_N1.squeeze(-1)
    second_N, square_N = torch.linalg.vecdot(moment_NV, pi_NV), torch.linalg.vecdot(pi_NV, pi_NV)
    return RowStatistics(chosen_N - top_N - log_z_N, log_z_N - mean_N, second_N - mean_N * square_N, top_N + log_z_N)


def token_statistics(logits_NV: Tensor, labels_N: Tensor) -> TokenStatistics:
    """:func:`row_statistics` without the last."""
    return row_statistics(logits_NV, labels_N).of_tokens()


@torch.no_grad()
def masked_rows(logits_BTV: Tensor, labels_BT: Tensor, mask_BT: Tensor, chunk_tokens: int) -> RowStatistics:
    """:func:`row_statistics` of the tokens under the mask, at most ``chunk_tokens`` at a time; 0 elsewhere.
    All ``[B, T]``.

    No buffer of size B*T*V is made: at most ``chunk_tokens`` vocabulary rows live beside the logits themselves. On CPU
    a chunk is no larger than what stays in a core's cache. On a GPU :mod:`.kernels` makes no copy of a row at all;
    it needs Triton, and the environment variable :data:`SWITCH` at 0 turns it off.
    """
    dtype = torch.float64 if logits_BTV.dtype == torch.float64 else torch.float32
    out = [torch.zeros(labels_BT.shape, dtype=dtype, device=logits_BTV.device) for _ in RowStatistics._fields]
    at = mask_BT.bool().nonzero(as_tuple=True)
    labels_N = labels_BT[at]
    for start, parts in _chunks(logits_BTV, at, labels_N, chunk_tokens):
        chosen = tuple(index[start : start + len(parts[0])] for index in at)
        for whole, part in zip(out, parts, strict=True):
            whole[chosen] = part
    return RowStatistics(*out)


def _chunks(
    logits_BTV: Tensor, at: tuple[Tensor, ...], labels_N: Tensor, chunk_tokens: int
) -> Iterator[tuple[int, Sequence[Tensor]]]:
    """The first row's number and the four statistics of a chunk of rows."""
    if kernels := _kernels(logits_BTV):
        yield 0, kernels.fused_rows(logits_BTV, at, labels_N)
        return
    if not logits_BTV.is_cuda:
        chunk_tokens = min(chunk_tokens, max(1, CACHED_LOGITS // logits_BTV.shape[-1]))
    rows_RV, where_N = _as_rows(logits_BTV, *at)
    for start in range(0, len(labels_N), chunk_tokens):
        chosen = slice(start, start + chunk_tokens)
        yield start, row_statistics(_pick(rows_RV, where_N[chosen]), labels_N[chosen])


def _as_rows(logits_BTV: Tensor, rows_N: Tensor, columns_N: Tensor) -> tuple[Tensor, Tensor]:
    """The same memory as rows ``[R, V]``, and which of them are asked for: whole rows are copied five times faster
    than what an index of pairs picks."""
    (size, length, vocabulary), (over, along, inner) = logits_BTV.shape, logits_BTV.stride()
    if not logits_BTV.numel() or not along or over % along:
        return logits_BTV.flatten(0, 1), rows_N * length + columns_N
    each = over // along
    return logits_BTV.as_strided(((size - 1) * each + length, vocabulary), (along, inner)), rows_N * each + columns_N


def _pick(rows_RV: Tensor, where_N: Tensor) -> Tensor:
    """These rows (in ascending order); neighbours on CPU without a copy."""
    if not rows_RV.is_cuda and int(where_N[-1]) - int(where_N[0]) == len(where_N) - 1:
        return rows_RV[int(where_N[0]) : int(where_N[-1]) + 1]
    return rows_RV.index_select(0, where_N)


def masked_statistics(logits_BTV: Tensor, labels_BT: Tensor, mask_BT: Tensor, chunk_tokens: int) -> TokenStatistics:
    """:func:`masked_rows` without the last."""
    return masked_rows(logits_BTV, labels_BT, mask_BT, chunk_tokens).of_tokens()


def _kernels(logits: Tensor) -> Any:
    """The module with the fused kernel, None where it cannot be used: its numbers are the same to float32 rounding."""
    if not logits.is_cuda or logits.stride(-1) != 1 or os.environ.get(SWITCH) == "0" or not find_spec("triton"):
        return None
    from . import kernels

    return kernels if logits.dtype in kernels.DTYPES else None


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
