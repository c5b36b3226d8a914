"""What is added to OpenRLHF's ``ActorPPOTrainer``: token statistics and, when an intervention is chosen, its loss.

A mixin that :mod:`.host` puts in front of the host's class. It decides *when*: what is measured is in :mod:`.network`,
what follows from it in the intervention's own mathematics.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from . import __version__, entropy_bonus, probe
from .hostargs import Resolved, from_nested
from .loss import InterventionLoss
from .network import Network, response_window
from .rules import unsupported
from .tokens import token_uniforms

OLD_ENTROPY = "steer_old_entropy"
"""Key of ``experience.info`` under which a sample's old entropies travel through the replay buffer."""
STATE = "steer_openrlhf"
"""Key of our state in the client state of OpenRLHF's checkpoints."""


class SteerTrainer:
    """Adds to the host: a forward hook that measures the sampled tokens, an :class:`InterventionLoss` around the stock
    loss, one summary per optimizer step, measurements around a rollout's updates where they are asked for, and scalars
    in ``experience.info["steer/..."]``. With OpenRLHF's own losses only the measuring remains: loss and gradients are
    the host's, bit for bit.
    """

    args: Any
    strategy: Any
    actor: Any
    actor_loss_fn: Any
    replay_buffer: Any
    max_epochs: int

    def __init__(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.resolved: Resolved = from_nested(strategy.args)
        flags = strategy.args.actor
        chosen = flags.policy_loss_type
        flags.policy_loss_type = self.resolved.launch.base_loss if self.resolved.intervention else chosen
        try:
            super().__init__(strategy, *args, **kwargs)  # type: ignore[call-arg]  # the host's class comes next
        finally:
            flags.policy_loss_type = chosen
        self.network = Network(self.actor, strategy, self.resolved.launch.chunk_tokens, self._sum)
        self._needs: frozenset[str] = frozenset()
        if self.resolved.intervention:
            assert self.resolved.config is not None
            self.actor_loss_fn = InterventionLoss(
                self.actor_loss_fn, self.resolved.intervention, self.resolved.config, self._gather
            )
            self._needs = self.resolved.intervention.needs(self.resolved.config)
        self._estimators = self._probe_estimators()
        if "influence_head" in {*self._needs, *self._estimators}:
            self.network.capture_hidden()
        self._measured: Any = None  # the experience whose forward is being measured
        self._prepared: deque[dict[str, Tensor]] = deque()  # extras of the micro-batches of this optimizer step
        self._entropy = torch.zeros(2, dtype=torch.float64)  # sum and number of entropies of this optimizer step
        self._update = self._rollouts = 0
        self._bonus = float(flags.entropy_coef or 0.0)
        self._restore(getattr(strategy, "steer_restored", None))
        self.actor.register_forward_hook(self._measure, with_kwargs=True)
        strategy.steer_window, strategy.steer_state = self._start_step, self._state
        if dist.get_rank() == 0:
            print(
                f"[steer_openrlhf] live: version {__version__}, loss {chosen}, config {self.resolved.config!r}",
                flush=True,
            )

    @property
    def _loss(self) -> InterventionLoss | None:
        return self.actor_loss_fn if isinstance(self.actor_loss_fn, InterventionLoss) else None

    # -- state, kept in OpenRLHF's checkpoints -------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        """The same on every rank; all of them must ask."""
        loss = self._loss
        entropy = self._sum(self._entropy.to(torch.cuda.current_device())).tolist()
        state = {"rollouts": self._rollouts, "entropy_bonus": self._bonus, "entropy": entropy}
        return state | {"loss": dict(loss.state) if loss else {}}

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self._rollouts, self._bonus = int(state["rollouts"]), float(state["entropy_bonus"])
        if dist.get_rank(self._group()) == 0:  # it is a sum over the ranks
            self._entropy = torch.tensor(state["entropy"], dtype=torch.float64)
        if self._loss:
            self._loss.state = dict(state["loss"])

    # -- one rollout ---------------------------------------------------------------------------------------------------

    def ppo_train(self, kl_ctl: float) -> dict[str, Any]:
        """The host's updates of one rollout, with what is measured around them."""
        self._update = 0
        if "old_entropy" in self._needs:
            self._attach_old_entropy()
        before = self._measure_before()
        status: dict[str, Any] = super().ppo_train(kl_ctl)  # type: ignore[misc]
        if before is not None:
            status |= self._measure_after(before)
        self._rollouts += 1
        return status

    def _attach_old_entropy(self) -> None:
        """One forward of the whole rollout before its first update; the entropies travel with their samples."""
        self.actor.eval()
        for items, batch in self._batches(len(self.replay_buffer.items)):
            entropy_BT = self.network.measure(batch).entropy.cpu()
            for item, entropy_T in zip(items, entropy_BT, strict=True):
                item.info[OLD_ENTROPY] = entropy_T[: len(item.action_mask)]

    def _batches(self, samples: int) -> Iterator[tuple[list[Any], Any]]:
        """The first samples of the replay buffer in micro-batches, on the device."""
        size, buffer = int(self.args.train.micro_batch_size), self.replay_buffer
        from openrlhf.trainer.ppo_utils.experience import make_experience_batch

        for start in range(0, min(samples, len(buffer.items)), size):
            items = buffer.items[start : min(start + size, samples)]
            batch = make_experience_batch(items, self.args.ds.packing_samples)
            yield items, batch.to_device(torch.cuda.current_device())

    def _probe_due(self) -> bool:
        every = self.resolved.launch.probe.every
        return every > 0 and self._step() % every == 0

    def _step(self) -> int:
        """The number OpenRLHF will give to this rollout's metrics; the actor sleeps while a critic warms up."""
        return self._rollouts + int(self.args.critic.freezing_steps) + 2

    def _probe_estimators(self) -> list[str]:
        """Those this run can have: a network-wide one may be out of reach here though nobody needs it."""
        if not self.resolved.launch.probe.every:
            return []
        flags = self.resolved.flags
        return [*("exact", "paper", "reference"), *(name for name in probe.NETWORK if not unsupported(name, flags))]

    def _measure_before(self) -> probe.Before | None:
        loss, due = self._loss, self._probe_due()
        if not due and not (loss and loss.observes):
            return None
        batches = [batch for _, batch in self._batches(self.resolved.launch.probe.sequences)]
        return probe.measure_before(self.network, batches, self._clip(), self._estimators if due else ())

    def _measure_after(self, before: probe.Before) -> dict[str, float]:
        after = probe.measure_after(self.network, before)
        change = probe.change_of(self.network, before, after, self._update)
        metrics = {"entropy_before": change.entropy_before, "entropy_after": change.entropy_after}
        loss, run_dir = self._loss, self.resolved.launch.run_dir
        if loss and loss.observes:
            metrics |= loss.observe(change)
        if self._probe_due() and run_dir:
            name = f"step{self._step():06d}.rank{dist.get_rank()}.npz"
            numbers = {"step": self._step(), "updates": change.updates, "learning_rate": self._learning_rate()}
            probe.write(Path(run_dir) / probe.FOLDER / name, before, after, self._clip(), numbers)
        return {f"steer/{name}": value for name, value in metrics.items()}

    def _clip(self) -> Any:
        base: Any = self._loss.base if self._loss else self.actor_loss_fn
        return probe.Clip(base.clip_eps_low, base.clip_eps_high, base.dual_clip, base.policy_loss_type == "gspo")

    def _learning_rate(self) -> float:
        return float(self.actor_scheduler.get_last_lr()[0])  # type: ignore[attr-defined]

    # -- one optimizer step --------------------------------------------------------------------------------------------

    def _start_step(self, window: list[Any]) -> None:
        """Before the first micro-batch of an optimizer step: what all its tokens decide together.

        One micro-batch a step needs no extra pass for the summary: the loss summarises what it is given. Several need
        the whole step's tokens first, at the price of one more forward without graph, unless no weight depends on them.
        """
        self._adapt_entropy_bonus()
        update, loss = self._update, self._loss
        self._update += 1
        if loss is None:
            return
        loss.summary = None
        loss.state |= {"updates": self._updates(), "update": update, "momentum": self._momentum()}
        several = len(window) > 1
        network_wide = "influence" in self._needs or ("influence_head" in self._needs and several)
        if not network_wide and not (several and loss.needs_step):
            return
        window = [experience.to_device(torch.cuda.current_device()) for experience in window]
        self._prepared = deque(self._extras_of(window))
        if several and loss.needs_step:
            tokens = [self._tokens_now(one, extras) for one, extras in zip(window, self._prepared, strict=True)]
            signals = [loss.signal(one) for one in tokens]
            loss.summary = loss.summarize(torch.cat([one for one in signals if one is not None]))

    def _extras_of(self, window: list[Any]) -> list[dict[str, Tensor]]:
        scores: list[Tensor] = []
        if "influence" in self._needs:
            scores = self.network.influence_of(window)
        elif "influence_head" in self._needs:
            scores = self.network.head_influence_of(window)
        return [{"influence_BT": score} for score in scores] if scores else [{} for _ in window]

    def _tokens_now(self, experience: Any, extras: dict[str, Tensor]) -> Any:
        """The micro-batch under the present weights, as the loss will see it."""
        loss = self._loss
        assert loss is not None
        loss.statistics = self.network.measure(experience)
        loss.extras = extras | self._cheap_extras(experience)
        old_BT, rollout_BT = experience.action_log_probs, experience.rollout_log_probs
        mask_BT = experience.action_mask
        return loss.tokens(loss.statistics.log_prob, old_BT, experience.advantages, mask_BT, rollout_BT)

    def _cheap_extras(self, experience: Any) -> dict[str, Tensor]:
        extras = {}
        if "random" in self._needs:
            seed = int(self.args.train.seed) * 1_000_003 + int(self.actor.model.global_steps)
            actions = experience.action_mask.shape[1]
            extras["random_BT"] = token_uniforms(experience.sequences, experience.attention_mask, actions, seed)
        if OLD_ENTROPY in experience.info:
            padded = pad_sequence(experience.info[OLD_ENTROPY], batch_first=True)
            extras["old_entropy_BT"] = padded.to(experience.action_mask.device)
        return extras

    def _updates(self) -> int:
        """Optimizer steps of this rollout."""
        buffer = self.replay_buffer
        if self.args.train.dynamic_batch_enable:
            return sum(buffer.dynamic_optimizer_step) * self.max_epochs
        micro_batches = len(buffer) // buffer.sample_batch_size
        return -(-micro_batches // max(int(self.strategy.accumulated_gradient), 1)) * self.max_epochs

    def _momentum(self) -> float:
        """The optimizer's first-moment decay."""
        flags = self.args.actor
        return float(flags.muon.momentum if flags.optim == "muon" else flags.adam.betas[0])

    def _adapt_entropy_bonus(self) -> None:
        config = self.resolved.launch.entropy_bonus
        if config.target is None:
            return
        total, count = self._sum(self._entropy.to(torch.cuda.current_device())).tolist()
        self._entropy.zero_()
        if not count:  # before the first step, or no response tokens at all
            return
        self._bonus = entropy_bonus.adapted(self._bonus, total / count, config)
        self.args.actor.entropy_coef = entropy_bonus.applied(self._bonus, total / count, config)

    # -- one micro-batch -----------------------------------------------------------------------------------------------

    def training_step(self, experience: Any, kl_ctl: float, step: int, loss_batch_info: Any = None) -> Any:
        if self.args.train.dynamic_batch_enable:
            self._start_dynamic_step(step)
        self._measured = experience
        if self._loss:
            self._loss.info = experience.info
            prepared = self._prepared.popleft() if self._prepared else {}
            self._loss.extras = prepared | self._cheap_extras(experience)
        experience.info.pop(OLD_ENTROPY, None)  # the host would log it
        if self.resolved.launch.entropy_bonus.target is not None:
            experience.info["steer/entropy_coef"] = torch.tensor(float(self.args.actor.entropy_coef))
        with self.network.hidden():
            return super().training_step(experience, kl_ctl, step, loss_batch_info)  # type: ignore[misc]

    def _start_dynamic_step(self, step: int) -> None:
        """Dynamic batching: the optimizer steps are marked in the replay buffer, and are not shuffled."""
        buffer = self.replay_buffer
        if step > 0 and not buffer.dynamic_optimizer_step[step - 1]:
            return
        end = next(i for i in range(step, len(buffer)) if buffer.dynamic_optimizer_step[i]) + 1
        self._start_step([buffer.collate_fn([buffer[i]]) for i in range(step, end)])

    def _measure(self, actor: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook on ``Actor``: statistics of the response tokens, without graph, from the logits of the loss."""
        if self._measured is None or not isinstance(output, tuple):
            return
        experience, self._measured = self._measured, None
        logits = output[1]["logits"].detach()
        statistics = self.network.statistics(experience, logits)
        if self._loss:
            self._loss.statistics = statistics
            if "influence_head" in self._needs and "influence_BT" not in self._loss.extras:
                self._loss.extras["influence_BT"] = self._head_influence(experience, logits)
        self._record_entropy(experience, statistics.entropy[experience.action_mask.bool()])

    def _record_entropy(self, experience: Any, entropy_N: Tensor) -> None:
        finite_N = entropy_N[entropy_N.isfinite()]
        if self.resolved.launch.entropy_bonus.target is not None:
            self._entropy += torch.stack([finite_N.double().sum(), finite_N.new_tensor(len(finite_N)).double()]).cpu()
        tokens = max(entropy_N.numel(), 1)
        nothing = entropy_N.numel() > 0 and finite_N.numel() == 0  # then it is not a number, and no 0
        experience.info["steer/active"] = entropy_N.new_ones(())
        experience.info["steer/entropy"] = finite_N.sum() / (0 if nothing else max(finite_N.numel(), 1))
        experience.info["steer/nonfinite_entropy"] = (~entropy_N.isfinite()).float().sum() / tokens

    def _head_influence(self, experience: Any, logits: Tensor) -> Tensor:
        """From the logits at hand, where one micro-batch is the whole step: no product is made twice."""
        window = logits[:, response_window(experience)]
        rows, columns = experience.action_mask.bool().nonzero(as_tuple=True)

        def provide(start: int, stop: int) -> Tensor:
            return window[rows[start:stop], columns[start:stop]]

        hidden = self.network.head_inputs(experience)
        return self.network.head_influence([experience], [hidden], [provide])[0]

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def _group(self) -> Any:
        return self.strategy.ds_device_mesh["dp"].get_group()

    def _sum(self, value: Tensor) -> Tensor:
        """The sum over the data-parallel ranks."""
        if dist.get_world_size(self._group()) > 1:
            value = value.clone()
            dist.all_reduce(value, group=self._group())
        return value

    def _gather(self, signal: Tensor) -> Tensor:
        """All-gather ``[N]`` or ``[N, F]`` over the data-parallel ranks, whose N differ."""
        group = self._group()
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
