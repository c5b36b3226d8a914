"""OpenRLHF's actor as the estimators see it: response-token rows, the trained weights, their gradients and moments.

What knows DeepSpeed, padding, packing or ranks is here, so that :mod:`.tokens` and :mod:`.influence` need not.
"""

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .influence import EntropySum, HeadRows, gradients, head_influence, network_scores, precondition
from .tokens import RowStatistics, TokenStatistics, masked_rows, masked_statistics

Reduce = Callable[[Tensor], Tensor]
"""Sum over the data-parallel ranks (identity for one rank)."""
BLOCK_LOGITS = {"cpu": 2**18, "cuda": 2**26}
"""How many logits (of all the tokens of a rank's step) the head's influence works on at once: a block of the vocabulary
of this many, of at least :data:`FEWEST_WORDS` words and at most :data:`MOST_WORDS`."""
FEWEST_WORDS, MOST_WORDS = 256, 4096


class HeadTokens(NamedTuple):
    """A micro-batch's response tokens for the head's influence: the sound ones, their places (row, column), and which
    tokens of ``[B, T]`` are response tokens without an entropy."""

    rows: HeadRows
    at: tuple[Tensor, Tensor]
    broken_BT: Tensor


class Network:
    """Args: OpenRLHF's ``Actor`` around a DeepSpeed engine, its strategy, how many vocabulary rows are held at once."""

    def __init__(self, actor: Any, strategy: Any, chunk: int, reduce: Reduce) -> None:
        self.actor, self.strategy, self.chunk, self.reduce = actor, strategy, chunk, reduce
        self.hidden_BSD: Tensor | None = None
        self._wants_hidden = False
        self._seen: RowStatistics | None = None
        self._logits: Callable[[], Tensor | None] = lambda: None

    # -- rows --------------------------------------------------------------------------------------------------------

    def statistics(self, experience: Any, logits: Tensor) -> TokenStatistics:
        """Statistics of the response tokens ``[B, T]`` from the logits of the actor's forward on the experience."""
        sequences, mask_BT = experience.sequences, experience.action_mask
        if not self.actor.packing_samples:
            window = response_window(experience)
            labels = torch.roll(sequences, shifts=-1, dims=1)
            found = masked_rows(logits[:, window], labels[:, window], mask_BT, self.chunk)
            self._seen, self._logits = found, weakref.ref(logits)  # weakly: they must not live longer for it
            return found.of_tokens()
        from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor

        group = self.strategy.ring_attn_group
        _, _, labels, pad, indices = unpad_and_slice_tensor(sequences, experience.attention_mask, group)
        packed = masked_statistics(logits, labels, torch.ones_like(labels), self.chunk)
        size = sequences.shape
        whole = (gather_and_pad_tensor(part, group, pad, indices, *size)[:, :-1] for part in packed)
        return TokenStatistics(*(part[:, -mask_BT.shape[1] :] for part in whole))

    @torch.no_grad()
    def measure(self, experience: Any) -> TokenStatistics:
        """Statistics under the present weights, by a forward of its own without graph."""
        output = self.actor(
            experience.sequences,
            attention_mask=experience.attention_mask,
            return_output=True,
            ring_attn_group=self.strategy.ring_attn_group,
        )
        return self.statistics(experience, output["logits"])

    # -- the head ----------------------------------------------------------------------------------------------------

    @property
    def head(self) -> Any:
        """The language-model head (``nn.Linear``)."""
        return self.strategy._unwrap_model(self.actor).get_output_embeddings()

    def capture_hidden(self) -> None:
        """From now on keep the head's input of the last forward in :attr:`hidden_BSD`, while :meth:`hidden` asks."""

        def keep(_: Any, args: tuple[Any, ...]) -> None:
            if self._wants_hidden:
                self.hidden_BSD = args[0].detach()

        self.head.register_forward_pre_hook(keep)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Forwards inside keep the head's input."""
        self._wants_hidden = True
        try:
            yield
        finally:
            self._wants_hidden = False

    def head_inputs(self, experience: Any) -> HeadTokens:
        """The response tokens of the last forward, whose statistics were the last; gives their memory back.

        A token without an advantage needs no score. The logits are those of that forward where its caller still has
        them, else they are made anew from the head's input.
        """
        assert self.hidden_BSD is not None, "the head's input was not kept"
        assert self._seen is not None, "no statistics since the last head_inputs"
        hidden_BSD, seen, logits_BSV = self.hidden_BSD, self._seen, self._logits()
        self.hidden_BSD = self._seen = None
        window, mask_BT = response_window(experience), experience.action_mask.bool()
        sound_BT = mask_BT & seen.entropy.isfinite()
        scored_BT = sound_BT & (experience.advantages != 0)
        parts = [part_BT.nonzero(as_tuple=True) for part_BT in (scored_BT, sound_BT & ~scored_BT)]
        rows_N, columns_N = (torch.cat(both) for both in zip(*parts, strict=True))
        hidden_ND = hidden_BSD[:, window][rows_N, columns_N]

        def logits(start: int, stop: int) -> Tensor:
            if logits_BSV is None:
                return self._logits_from(hidden_ND, start, stop)
            return logits_BSV[:, window, start:stop][rows_N, columns_N]

        per_token = (response_labels(experience), seen.log_total, seen.entropy)
        labels_N, log_total_N, entropy_N = (one_BT[rows_N, columns_N] for one_BT in per_token)
        rows = HeadRows(hidden_ND, labels_N, log_total_N, entropy_N, logits, len(parts[0][0]))
        return HeadTokens(rows, (rows_N, columns_N), mask_BT & ~sound_BT)

    def _logits_from(self, hidden_ND: Tensor, start: int, stop: int) -> Tensor:
        logits = (hidden_ND @ self.head.weight[start:stop].detach().T).float()
        return logits.div_(float(self.actor.temperature))

    def head_influence(self, batches: Sequence[Any], tokens: Sequence[HeadTokens], _: Any = None) -> list[Tensor]:
        """Scores ``[B, T]`` of every batch of an optimizer step when only the head moves: NaN where a response token
        has no entropy, 0 where it has no advantage. The third argument has no use any more."""
        weight, count = self.head.weight, self._tokens(batches)
        move = self._direction(weight)
        words = self._words(count)
        with self._whole(weight):
            scores = head_influence(
                [one.rows for one in tokens], shape_of(weight), float(self.actor.temperature),
                lambda block, total_vD: move(block, self.reduce(total_vD) / count), words,
            )  # fmt: skip
        return [_placed(score_n, one) for score_n, one in zip(scores, tokens, strict=True)]

    def _words(self, tokens: Tensor) -> int:
        """Of a block; from the tokens of all ranks, because their blocks are added up."""
        each = int(tokens) // int(self.reduce(torch.ones_like(tokens)))
        logits = BLOCK_LOGITS.get(tokens.device.type, BLOCK_LOGITS["cuda"])
        return min(max(logits // max(each, 1), FEWEST_WORDS), MOST_WORDS)

    def head_influence_of(self, batches: Sequence[Any]) -> list[Tensor]:
        """:meth:`head_influence` with a forward of its own for each batch; logits are made anew from hidden states."""
        tokens = []
        for batch in batches:
            with self.hidden():
                self.measure(batch)
            tokens.append(self.head_inputs(batch))
        return self.head_influence(batches, tokens)

    # -- the whole network -------------------------------------------------------------------------------------------

    def influence_of(self, batches: Sequence[Any]) -> list[Tensor]:
        """Scores ``[B, T]`` of every batch of an optimizer step, through the whole network (ZeRO up to stage 2)."""
        plain = self._plain()
        self.actor.train()  # where gradient checkpointing saves memory
        weights = {name: one for name, one in plain.named_parameters() if one.requires_grad}
        total = [torch.zeros_like(one, dtype=torch.float32) for one in weights.values()]
        for batch in batches:
            rows_NV = self._sound_rows(plain, batch)
            if not len(rows_NV):
                continue
            entropy = EntropySum.apply(rows_NV, self.chunk)
            for sum_, one in zip(total, gradients(entropy, list(weights.values())), strict=True):
                sum_ += one
        count = self._tokens(batches)
        direction = {
            name: self._direction(weight)(slice(None), self.reduce(one) / count).to(weight.dtype)
            for (name, weight), one in zip(weights.items(), total, strict=True)
        }
        self.actor.eval()
        with torch_attention(plain.model):
            scores = [network_scores(plain, direction, self._log_probs(batch)) for batch in batches]
        return [scatter(one, batch.action_mask) for one, batch in zip(scores, batches, strict=True)]

    def _plain(self) -> Any:
        """The actor without DeepSpeed's engine and without hooks, sharing its weights."""
        plain = copy.copy(self.actor)
        plain._modules = {"model": self.strategy._unwrap_model(self.actor)}
        plain._forward_hooks = OrderedDict()
        return plain

    def _response_rows(self, call: Callable[..., Any], batch: Any) -> Tensor:
        output = call(batch.sequences, attention_mask=batch.attention_mask, return_output=True)
        rows_NV: Tensor = output["logits"][:, response_window(batch)][batch.action_mask.bool()]
        return rows_NV

    def _sound_rows(self, plain: Any, batch: Any) -> Tensor:
        """The response rows of those sequences that are finite throughout. A broken one has no gradient to give: in a
        backward through its activations even 0 times NaN is NaN."""
        rows_NV = self._response_rows(plain, batch)
        broken_N = ~rows_NV.detach().amax(-1).isfinite()  # NaN, +inf, or nothing but -inf
        if not broken_N.any():
            return rows_NV
        sound_B = ~scatter(broken_N, batch.action_mask).any(-1)
        if not sound_B.any():
            return rows_NV.detach()[:0]
        parts = {name: getattr(batch, name)[sound_B] for name in ("sequences", "attention_mask", "action_mask")}
        return self._response_rows(plain, SimpleNamespace(**parts))

    def _log_probs(self, batch: Any) -> Callable[[Callable[..., Any]], Tensor]:
        labels_N = response_labels(batch)[batch.action_mask.bool()]

        def log_probs(call: Callable[..., Any]) -> Tensor:
            rows_NV = self._response_rows(call, batch)
            parts = [
                part.log_softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)
                for part, label in zip(rows_NV.split(self.chunk), labels_N.split(self.chunk), strict=True)
            ]
            return torch.cat(parts)

        return log_probs

    # -- optimizer and ranks -----------------------------------------------------------------------------------------

    def _direction(self, weight: Tensor) -> Callable[[slice, Tensor], Tensor]:
        """Makes of a gradient (of some rows of the weight) the direction in which the optimizer moves them."""
        adam, steps = self.strategy.args.actor.adam, int(self.actor.model.global_steps)
        moment = self._second_moment(weight) if steps else None

        def move(rows: slice, gradient: Tensor) -> Tensor:
            part = None if moment is None else moment[rows].to(gradient.device)
            return precondition(gradient, part, float(adam.eps), float(adam.betas[1]) ** steps)

        return move

    def _second_moment(self, weight: Tensor) -> Tensor | None:
        """Adam's, whole; gathered from the ranks under ZeRO (every rank must ask for the same weights in turn)."""
        from deepspeed.utils import safe_get_full_optimizer_state

        optimizer = self.actor.model.optimizer
        if not hasattr(optimizer, "optimizer"):  # no ZeRO: a plain optimizer
            plain: Tensor | None = optimizer.state[weight].get("exp_avg_sq")
            return plain
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            # DeepSpeed 0.19.6 links moments to weights once, in the first group's first step: the others have none yet
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        found: Tensor | None = safe_get_full_optimizer_state(weight, "exp_avg_sq")
        return found

    def _tokens(self, batches: Sequence[Any]) -> Tensor:
        count = sum(batch.action_mask.sum() for batch in batches)
        return self.reduce(torch.as_tensor(count, dtype=torch.float32)).clamp(min=1)

    @contextmanager
    def _whole(self, weight: Tensor) -> Iterator[Tensor]:
        """The weight, gathered from its ranks under ZeRO-3."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight], enabled=self.strategy.args.ds.zero_stage == 3):
            yield weight.detach()


@contextmanager
def torch_attention(model: Any) -> Iterator[None]:
    """Attention by torch's own functions inside: flash-attn has no forward-mode derivative."""
    kept = model.config._attn_implementation
    model.config._attn_implementation = kept if kept in ("sdpa", "eager") else "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = kept


def shape_of(weight: Any) -> tuple[int, ...]:
    """The whole weight's shape, also where ZeRO-3 holds a part of it."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def response_window(experience: Any) -> slice:
    """Which positions' logits predict the response tokens."""
    stop = experience.sequences.shape[1] - 1
    return slice(stop - experience.action_mask.shape[1], stop)


def response_labels(experience: Any) -> Tensor:
    """The response tokens, ``[B, T]``."""
    labels: Tensor = torch.roll(experience.sequences, shifts=-1, dims=1)[:, response_window(experience)]
    return labels


def _placed(score_n: Tensor, tokens: HeadTokens) -> Tensor:
    whole_BT = torch.where(tokens.broken_BT, torch.nan, torch.zeros_like(tokens.broken_BT, dtype=torch.float32))
    rows_N, columns_N = tokens.at
    whole_BT[rows_N[: len(score_n)], columns_N[: len(score_n)]] = score_n
    return whole_BT


def scatter(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of the tokens under the mask back in their places, 0 elsewhere, ``[B, T]``."""
    whole = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
    whole[mask_BT.bool()] = values_N
    return whole
