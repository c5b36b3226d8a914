"""The first-order effect of each token's own update on the mean entropy, across the whole network (METHODS 1b).

For token j of a policy-gradient step, with P the optimizer's diagonal (1 for SGD, 1/(sqrt(v)+eps) for Adam):

    omega_j = r_j A_j <grad log pi_j, P grad(mean_i H_i)> = r_j A_j q_j

The scores q_j of all tokens cost one backward (the gradient of the mean entropy) and one directional derivative of the
log-probs along P times it. With only the language-model head's weight W moving (z = h W^T / temperature),

    grad_W(sum_i H_i) = sum_i g_i h_i^T / temperature,  g = dH/dz = -pi (log pi + H),
    q_j = (u_j[a_j] - sum_v pi_jv u_jv) / temperature,  u = h (P grad_W)^T,

which needs no backward, and one pass over blocks of the vocabulary (:func:`head_influence`). Everything here is torch
only and detached; units: nats per unit step of the optimizer's direction (multiply by the learning rate). Shapes: N
tokens, V vocabulary, D hidden.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Rows = Callable[[int, int], Tensor]
"""Temperature-scaled logits ``[n, V]`` of tokens ``start`` to ``stop``."""
_NEVER = -1e30  # in place of -inf: 0 times it is 0


class EntropySum(torch.autograd.Function):
    """``EntropySum.apply(logits_NV, chunk)``: the summed entropy (nats, 0-d) of N rows of logits, differentiable.

    Keeps the logits and nothing else of their size; rows are worked on ``chunk`` at a time. A row without an entropy
    (NaN or inf among its logits) adds nothing, and its gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(logits_NV)
        ctx.chunk = chunk
        entropies = [-(pi * log_pi).sum(-1) for pi, log_pi in _softmax_chunks(logits_NV, chunk)]
        parts = [one.masked_fill(~one.isfinite(), 0.0).sum() for one in entropies]
        return torch.stack([*parts, logits_NV.new_zeros(())]).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (logits_NV,) = ctx.saved_tensors
        gradient_NV, start = torch.empty_like(logits_NV), 0
        for pi, log_pi in _softmax_chunks(logits_NV, ctx.chunk):
            gradient_NV[start : start + len(pi)] = entropy_gradient(pi, log_pi) * upstream[0]
            start += len(pi)
        return gradient_NV, None


def _softmax_chunks(logits_NV: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    for part in logits_NV.split(chunk) if len(logits_NV) else ():
        yield _softmax(part)


def _softmax(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """pi and log pi, the latter finite also where a logit is -inf (0 times it is then 0)."""
    log_pi = torch.log_softmax(logits_nV, dim=-1)
    return log_pi.exp(), log_pi.clamp(min=torch.finfo(log_pi.dtype).min)


def entropy_gradient(pi_nV: Tensor, log_pi_nV: Tensor) -> Tensor:
    """dH/dz = -pi (log pi + H), per row; 0 for a row without an entropy."""
    entropy_n1 = -(pi_nV * log_pi_nV).sum(-1, keepdim=True)
    return (-pi_nV * (log_pi_nV + entropy_n1)).masked_fill_(~entropy_n1.isfinite(), 0.0)


def precondition(gradient: Tensor, second_moment: Tensor | None, eps: float, decay_power: float) -> Tensor:
    """``P grad`` for Adam: ``grad / (sqrt(v / (1 - decay_power)) + eps)``, ``decay_power = beta2^t``. A weight whose
    second moment is 0 was never moved, so nothing is known of its step: 0 there. Without moments P is 1."""
    if second_moment is None:
        return gradient
    root = second_moment.to(gradient.dtype).sqrt()
    step = (root * (1 - decay_power) ** -0.5).add_(max(eps, torch.finfo(root.dtype).tiny))
    return gradient / step.div_(root.sign_())  # by 0 where the moment is 0: then the step is 0


def network_scores(
    module: nn.Module, direction: Mapping[str, Tensor], log_probs: Callable[[Callable[..., Any]], Tensor]
) -> Tensor:
    """``d/de log pi(theta + e direction)`` at e = 0, by forward-mode differentiation; no graph is kept.

    Args:
        module: the network; ``direction`` maps its parameter names to ``P grad(mean H)`` (absent: 0).
        log_probs: is given a callable with ``module``'s signature and returns the log-probs whose derivative is wanted.

    Anything else of a token can be differentiated so: its entropy (:func:`.tokens.token_statistics`) along a step of
    the optimizer is what that step does to it, to first order and per unit learning rate.
    """
    weights = dict(module.named_parameters())

    def with_tangents(*args: Any, **kwargs: Any) -> Any:
        dual = {name: forward_ad.make_dual(weights[name].detach(), direction[name]) for name in direction}
        return torch.func.functional_call(module, dual, args, kwargs)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        primal_or_dual = log_probs(with_tangents)
        tangent = forward_ad.unpack_dual(primal_or_dual).tangent
    return torch.zeros_like(primal_or_dual) if tangent is None else tangent


class HeadRows(NamedTuple):
    """The N tokens of a micro-batch as the head sees them, none of them broken.

    ``logits(start, stop)`` are the temperature-scaled logits of these words of the vocabulary, ``[N, stop - start]``
    and the caller's to change; ``log_total_N`` and ``entropy_N`` are of the whole rows, as in
    :class:`.tokens.RowStatistics`. Scores are wanted of the first ``scored`` tokens only; all have their part in the
    gradient.
    """

    hidden_ND: Tensor
    labels_N: Tensor
    log_total_N: Tensor
    entropy_N: Tensor
    logits: Callable[[int, int], Tensor]
    scored: int

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """pi and -dH/dz = pi (log pi + H) of these words."""
        log_pi = self.logits(start, stop).float().sub_(self.log_total_N.unsqueeze(-1))
        pi = log_pi.exp()
        return pi, log_pi.clamp_(min=_NEVER).add_(self.entropy_N.unsqueeze(-1)).mul_(pi)


@torch.no_grad()
def head_influence(
    batches: Sequence[HeadRows],
    shape_VD: Sequence[int],
    temperature: float,
    move: Callable[[slice, Tensor], Tensor],
    words: int,
) -> list[Tensor]:
    """Scores q of each micro-batch's first ``scored`` tokens when only the head moves; float32.

    Of ``words`` words at a time: the gradient of the summed entropy from all tokens, ``move`` makes of it the direction
    in which these rows of the weight go (``P grad_W mean H``), and that moves the scored tokens' logits. The same
    probabilities serve both, and nothing of the weight's size is made. Products are in the hidden states' own type, as
    in the head's backward, sums in float32.

    Args:
        batches: of one optimizer step; ``move(slice, block_vD)`` is called for each block in turn, also with none.
        shape_VD: of the head's weight.
    """
    scores = [one.hidden_ND.new_zeros(one.scored, dtype=torch.float32) for one in batches]
    vocabulary, hidden = shape_VD
    for start in range(0, vocabulary, words):
        stop = min(start + words, vocabulary)
        blocks = [one.block(start, stop) for one in batches]
        total = torch.zeros((stop - start, hidden), device=batches[0].hidden_ND.device)
        for one, (_, falling) in zip(batches, blocks, strict=True):
            total -= falling.to(one.hidden_ND.dtype).T @ one.hidden_ND
        direction_vD = move(slice(start, stop), total.div_(temperature))
        for score_n, one, (pi, _) in zip(scores, batches, blocks, strict=True):
            score_n += _moved(one, pi, direction_vD, start)
    return [score_n / temperature for score_n in scores]


def _moved(rows: HeadRows, pi_Nv: Tensor, direction_vD: Tensor, start: int) -> Tensor:
    """What a block of words adds to ``u[a] - sum_v pi_v u_v`` of the scored tokens."""
    hidden = rows.hidden_ND[: rows.scored]
    moved = (hidden @ direction_vD.to(hidden.dtype).T).float()
    place = rows.labels_N[: rows.scored] - start
    inside = (place >= 0) & (place < len(direction_vD))
    at_label = moved.gather(-1, place.clamp(0, len(direction_vD) - 1).unsqueeze(-1)).squeeze(-1)
    return at_label * inside - torch.linalg.vecdot(pi_Nv[: rows.scored], moved)


@torch.no_grad()
def head_gradient(hidden_ND: Tensor, rows: Rows, temperature: float, chunk: int) -> Tensor:
    """Gradient of the summed entropy with respect to the head's weight, ``[V, D]`` float32, by chunks of tokens. A row
    that is not finite adds nothing to it. With :func:`head_scores` the plain way to :func:`head_influence`."""
    total: Tensor | None = None
    for start in range(0, len(hidden_ND), chunk):
        hidden = hidden_ND[start : start + chunk].float()
        upstream = entropy_gradient(*_softmax(rows(start, start + len(hidden)).float()))
        part = upstream.T @ hidden.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # where upstream is 0 too
        total = part if total is None else total.add_(part)
    assert total is not None, "no tokens: the caller leaves empty micro-batches out"
    return total / temperature


@torch.no_grad()
def head_scores(
    hidden_ND: Tensor, rows: Rows, labels_N: Tensor, direction_VD: Tensor, temperature: float, chunk: int
) -> Tensor:
    """q of N tokens when only the head moves along ``direction_VD`` (``P grad_W mean H``). Float32 ``[N]``."""
    scores = [hidden_ND.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(hidden_ND), chunk):
        hidden = hidden_ND[start : start + chunk].float()
        pi, _ = _softmax(rows(start, start + len(hidden)).float())
        moved = hidden @ direction_VD.T
        at_label = moved.gather(-1, labels_N[start : start + len(hidden), None]).squeeze(-1)
        scores.append((at_label - (pi * moved).sum(-1)) / temperature)
    return torch.cat(scores)


def gradients(total: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """``autograd.grad`` in float32, zeros for parameters that are not used; leaves ``.grad`` and its hooks alone."""
    found = torch.autograd.grad(total, list(parameters), allow_unused=True)
    return [
        torch.zeros_like(weight, dtype=torch.float32) if one is None else one.float()
        for one, weight in zip(found, parameters, strict=True)
    ]
