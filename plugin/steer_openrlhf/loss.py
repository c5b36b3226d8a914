"""The adapter between OpenRLHF's ``PolicyLoss`` and an intervention: shape the advantages, call the stock loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import Config
from .registry import Intervention
from .tokens import Clip, RolloutChange, Shaped, Tokens, TokenStatistics

Gather = Callable[[Tensor], Tensor]
"""All-gather along dim 0 over the data-parallel ranks (identity for one rank)."""


class InterventionLoss(nn.Module):
    """Stands where OpenRLHF's ``PolicyLoss`` stands and takes and returns whatever that takes and returns.

    Args:
        base: the stock loss, built by OpenRLHF for ``ppo`` or ``gspo``.
        intervention, config: what shapes the advantages.
        gather: see :data:`Gather`; used for ``scope: global``.

    Before each forward the owner sets :attr:`statistics` (of the same micro-batch, ``[B, T]``), :attr:`extras` (the
    fields of :class:`.tokens.Tokens` the intervention ``needs``) and, when a step has several micro-batches and the
    scope is global, :attr:`summary` of the whole optimizer step. A controller's :attr:`state` moves once per optimizer
    step. The intervention's metrics (0-d tensors) go to :attr:`info` as ``steer/<name>``. Only the stock loss, and an
    intervention's own extra loss, have a gradient.
    """

    def __init__(self, base: nn.Module, intervention: Intervention, config: Config, gather: Gather) -> None:
        super().__init__()
        self.base = base
        self.intervention, self.config, self.gather = intervention, config, gather
        self.statistics: TokenStatistics | None = None
        self.summary: Any = None
        self.state: dict[str, float] = {}
        self.extras: dict[str, Tensor] = {}
        self.info: dict[str, Any] = {}
        self._signal = intervention.function("signal")
        self._summarize = intervention.function("summarize")
        self._control = intervention.function("control")
        self._observe = intervention.function("observe")
        shape = intervention.function("shape")
        assert shape is not None, f"{intervention.maths} has no function shape"
        self._shape = shape

    @property
    def scope_is_global(self) -> bool:
        return getattr(self.config, "scope", "global") == "global"

    @property
    def needs_step(self) -> bool:
        """Whether the tokens of the whole optimizer step must be seen before its first micro-batch."""
        return self._signal is not None and self.scope_is_global and self.intervention.stepwise(self.config)

    @property
    def observes(self) -> bool:
        """Whether the intervention wants to know what each rollout's updates did."""
        return self._observe is not None and self.intervention.observes(self.config)

    def observe(self, change: RolloutChange) -> dict[str, float]:
        """Tell it; its metrics. Once a rollout, the same on every rank."""
        assert self._observe is not None
        self.state, metrics = self._observe(self.state, change, self.config)
        return dict(metrics)

    def tokens(
        self,
        log_probs_BT: Tensor,
        old_log_probs_BT: Tensor,
        advantages_BT: Tensor,
        mask_BT: Tensor,
        rollout_log_probs_BT: Tensor | None = None,
    ) -> Tokens:
        """The detached view of a micro-batch an intervention gets; masked entries are zeroed. The old log-probs are
        those of the base loss's ratio: vLLM's own for gspo with an IS correction, else the actor's."""
        assert self.statistics is not None, "the actor's forward hook did not run before the loss"
        base: Any = self.base
        if base.policy_loss_type == "gspo" and base.is_correction_level != "off":
            assert rollout_log_probs_BT is not None, "an IS correction needs the rollout's log-probs"
            old_log_probs_BT = rollout_log_probs_BT
        clip = Clip(base.clip_eps_low, base.clip_eps_high, base.dual_clip, base.policy_loss_type == "gspo")
        mask_BT = mask_BT.to(log_probs_BT.dtype)
        log_probs, old_log_probs, advantages = (
            torch.where(mask_BT.bool(), part.detach().float(), 0.0)
            for part in (log_probs_BT, old_log_probs_BT, advantages_BT)
        )
        entropy, collision = self.statistics.entropy, self.statistics.collision
        return Tokens(log_probs, old_log_probs, advantages, mask_BT.float(), entropy, collision, clip, **self.extras)

    def signal(self, tokens: Tokens) -> Tensor | None:
        """This micro-batch's contribution to the step's summary; None when the intervention has no summary."""
        return self._signal(tokens, self.config) if self._signal else None

    def summarize(self, signal: Tensor | None) -> Any:
        """The summary in the config's scope, from the signal of this rank's tokens; a controller has its say in it.
        Once per optimizer step for a controller."""
        if signal is not None and self.scope_is_global:
            signal = self.gather(signal)
        summary = self._summarize(signal, self.config) if self._summarize else None
        if self._control:
            self.state, summary = self._control(self.state, summary, self.config)
        return summary

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        *args: Any,
        action_mask: Tensor,
        **kwargs: Any,
    ) -> Any:
        tokens = self.tokens(log_probs, old_log_probs, advantages, action_mask, kwargs.get("rollout_log_probs"))
        summary = self.summary if self.summary is not None else self.summarize(self.signal(tokens))
        shaped: Shaped = self._shape(tokens, summary, self.config)
        self.info.update({f"steer/{name}": value for name, value in shaped.metrics.items()})
        kept = torch.where(action_mask.bool(), shaped.advantages_BT.to(advantages.dtype), advantages)
        with self._clipped(shaped):
            loss, *rest = self.base(log_probs, old_log_probs, kept, *args, action_mask=action_mask, **kwargs)
        if shaped.extra_loss is not None:
            loss = loss + self._aggregate(shaped.extra_loss(log_probs), action_mask, kwargs)
        return (loss, *rest)

    @contextmanager
    def _clipped(self, shaped: Shaped) -> Iterator[None]:
        base: Any = self.base
        kept = base.clip_eps_low, base.clip_eps_high
        if shaped.clip is not None:
            base.clip_eps_low, base.clip_eps_high = shaped.clip
        try:
            yield
        finally:
            base.clip_eps_low, base.clip_eps_high = kept

    def _aggregate(self, loss_BT: Tensor, mask_BT: Tensor, kwargs: dict[str, Any]) -> Any:
        """OpenRLHF's own aggregation, with the normalisers this micro-batch's loss got."""
        from openrlhf.models import aggregate_loss

        norms = {name: kwargs[name] for name in ("dp_size", "batch_num_tokens", "global_batch_size") if name in kwargs}
        loss_BT = torch.where(mask_BT.bool(), loss_BT, 0.0)
        return aggregate_loss(loss_BT, mask_BT, token_level_loss=self.base.token_level_loss, **norms)
