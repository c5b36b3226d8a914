"""What is added to OpenRLHF's ``ActorPPOTrainer``: token statistics and, when an intervention is chosen, its loss.

A mixin that :mod:`.host` puts in front of the host's class; it imports nothing of OpenRLHF until packing needs it.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import __version__
from .hostargs import Resolved, from_nested
from .loss import InterventionLoss
from .tokens import TokenStatistics, masked_statistics


class SteerTrainer:
    """Adds to the host: a forward hook that measures the sampled tokens, an :class:`InterventionLoss` around the stock
    loss, one summary per optimizer step, and scalars in ``experience.info["steer/..."]``. With OpenRLHF's own losses
    only the measuring remains: loss and gradients are the host's, bit for bit.
    """

    args: Any
    strategy: Any
    actor: Any
    actor_loss_fn: Any
    replay_buffer: Any

    def __init__(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.resolved: Resolved = from_nested(strategy.args)
        flags = strategy.args.actor
        chosen = flags.policy_loss_type
        flags.policy_loss_type = self.resolved.launch.base_loss if self.resolved.intervention else chosen
        try:
            super().__init__(strategy, *args, **kwargs)  # type: ignore[call-arg]  # the host's class comes next
        finally:
            flags.policy_loss_type = chosen
        if self.resolved.intervention:
            assert self.resolved.config is not None
            self.actor_loss_fn = InterventionLoss(
                self.actor_loss_fn, self.resolved.intervention, self.resolved.config, self._gather
            )
        self._measured: Any = None  # the experience whose forward is being measured
        self.actor.register_forward_hook(self._measure, with_kwargs=True)
        strategy.steer_window = self._summarize_window
        if dist.get_rank() == 0:
            print(
                f"[steer_openrlhf] live: version {__version__}, loss {chosen}, config {self.resolved.config!r}",
                flush=True,
            )

    @property
    def _loss(self) -> InterventionLoss | None:
        return self.actor_loss_fn if isinstance(self.actor_loss_fn, InterventionLoss) else None

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self, actor: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook on ``Actor``: statistics of the response tokens, without graph, from the logits of the loss."""
        if self._measured is None or not isinstance(output, tuple):
            return
        experience, self._measured = self._measured, None
        statistics = self._statistics(actor, experience, output[1]["logits"].detach())
        if self._loss:
            self._loss.statistics = statistics
        mask_BT = experience.action_mask.bool()
        entropy_N = statistics.entropy[mask_BT]
        finite_N = entropy_N[entropy_N.isfinite()]
        tokens = max(entropy_N.numel(), 1)
        nothing = entropy_N.numel() > 0 and finite_N.numel() == 0  # then it is not a number, and no 0
        experience.info["steer/active"] = entropy_N.new_ones(())
        experience.info["steer/entropy"] = finite_N.sum() / (0 if nothing else max(finite_N.numel(), 1))
        experience.info["steer/nonfinite_entropy"] = (~entropy_N.isfinite()).float().sum() / tokens

    def _statistics(self, actor: Any, experience: Any, logits: Tensor) -> TokenStatistics:
        chunk = self.resolved.launch.chunk_tokens
        sequences, mask_BT = experience.sequences, experience.action_mask
        if not actor.packing_samples:
            labels = torch.roll(sequences, shifts=-1, dims=1)
            start = sequences.shape[1] - 1 - mask_BT.shape[1]
            window = slice(start, sequences.shape[1] - 1)
            return masked_statistics(logits[:, window], labels[:, window], mask_BT, chunk)
        from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor

        group = self.strategy.ring_attn_group
        _, _, labels, pad, indices = unpad_and_slice_tensor(sequences, experience.attention_mask, group)
        packed = masked_statistics(logits, labels, torch.ones_like(labels), chunk)
        size = sequences.shape
        whole = (gather_and_pad_tensor(part, group, pad, indices, *size)[:, :-1] for part in packed)
        return TokenStatistics(*(part[:, -mask_BT.shape[1] :] for part in whole))

    # -- one micro-batch, one optimizer step ---------------------------------------------------------------------------

    def training_step(self, experience: Any, kl_ctl: float, step: int, loss_batch_info: Any = None) -> Any:
        if self.args.train.dynamic_batch_enable:
            self._start_dynamic_window(step)
        self._measured = experience
        if self._loss:
            self._loss.info = experience.info
        return super().training_step(experience, kl_ctl, step, loss_batch_info)  # type: ignore[misc]

    def _summarize_window(self, window: list[Any]) -> None:
        """Fix the summary of an optimizer step before its first micro-batch.

        One micro-batch a step needs no extra pass: the loss summarises what it is given. Several need the whole step's
        tokens first, at the price of one more forward without graph, unless no weight depends on them.
        """
        loss = self._loss
        if loss is None:
            return
        loss.summary = None
        if len(window) == 1 or not loss.needs_step:
            return
        signals = [loss.signal(self._tokens_now(experience)) for experience in window]
        if signals[0] is not None:
            loss.summary = loss.summarize(torch.cat([one for one in signals if one is not None]))

    @torch.no_grad()
    def _tokens_now(self, experience: Any) -> Any:
        """The micro-batch under the present weights, as the loss will see it."""
        assert self._loss is not None
        experience.to_device(torch.cuda.current_device())
        self._measured = experience
        log_probs_BT, _ = self.actor(
            experience.sequences,
            experience.action_mask,
            attention_mask=experience.attention_mask,
            return_output=True,
            ring_attn_group=self.strategy.ring_attn_group,
        )
        old_BT, rollout_BT = experience.action_log_probs, experience.rollout_log_probs
        return self._loss.tokens(log_probs_BT, old_BT, experience.advantages, experience.action_mask, rollout_BT)

    def _start_dynamic_window(self, step: int) -> None:
        """Dynamic batching: the optimizer steps are marked in the replay buffer, and are not shuffled."""
        buffer = self.replay_buffer
        if step > 0 and not buffer.dynamic_optimizer_step[step - 1]:
            return
        end = next(i for i in range(step, len(buffer)) if buffer.dynamic_optimizer_step[i]) + 1
        self._summarize_window([buffer.collate_fn([buffer[i]]) for i in range(step, end)])

    def _gather(self, signal: Tensor) -> Tensor:
        """All-gather ``[N]`` or ``[N, F]`` over the data-parallel ranks, whose N differ."""
        group = self.strategy.ds_device_mesh["dp"].get_group()
        ranks = dist.get_world_size(group)
        if ranks == 1:
            return signal
        sizes = [torch.zeros(1, dtype=torch.long, device=signal.device) for _ in range(ranks)]
        dist.all_gather(sizes, torch.tensor([signal.shape[0]], device=signal.device), group=group)
        longest = max(int(size) for size in sizes)
        padded = signal.new_zeros((longest, *signal.shape[1:]))
        padded[: signal.shape[0]] = signal
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def windows(host_iterator: Iterable[Any], strategy: Any, accumulated_gradient: int) -> Iterator[Any]:
    """OpenRLHF's ``(experience, loss_batch_info)`` stream, with ``strategy.steer_window`` called before each step."""
    stream, size = iter(host_iterator), max(int(accumulated_gradient), 1)
    while window := list(islice(stream, size)):
        strategy.steer_window([experience for experience, _ in window])
        yield from window


def prove_live(worker: Any) -> str:
    """Run inside a policy worker after its model is ready: the plugin's description of itself, or an error.

    Raises:
        RuntimeError: the worker trains with OpenRLHF's own trainer, so the chosen loss would silently not be used.
    """
    trainer = getattr(worker, "trainer", None)
    if not isinstance(trainer, SteerTrainer):
        raise RuntimeError(
            f"steer_openrlhf {__version__} is not live in the policy worker (its trainer is {type(trainer).__name__}): "
            "Ray's worker_process_setup_hook did not run there; install steer-openrlhf on every node"
        )
    return f"{__version__} {trainer.resolved.loss} {trainer.resolved.config!r}"
