"""One training step with and without the plugin: what `bench_loss.py` measures on CPU and `gpu_cost.py` on a GPU.

OpenRLHF's own Actor around a Qwen2 of any size with random weights, its own PolicyLoss, and the plugin's calls in the
order of :class:`steer_openrlhf.actor_trainer.SteerTrainer`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from steer_openrlhf.network import HeadTokens, Network
from steer_openrlhf.omega import ESTIMATORS
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import token_uniforms
from torch import Tensor

Step = Callable[[], float]
"""A training step; returns the seconds of what is not stock in it."""
Arm = tuple[str, Mapping[str, Any]] | None
"""Intervention and its settings; None is stock PPO with the statistics the plugin always makes."""
Clock = Callable[[], float]
"""Seconds; on a GPU it waits for it first."""


class Size(NamedTuple):
    """Of the model, and of its batch."""

    vocabulary: int
    hidden: int
    layers: int
    rows: int
    prompt: int = 8
    response: int = 40

    @property
    def body(self) -> int:
        """Weights of the layers: attention 4 D^2, three products of D x 4 D."""
        return 16 * self.hidden**2 * self.layers

    @property
    def logits(self) -> int:
        """B*T*V: those of all positions."""
        return self.rows * (self.prompt + self.response) * self.vocabulary

    def describe(self) -> str:
        tokens = f"{self.rows} x ({self.prompt} + {self.response}) tokens, vocabulary {self.vocabulary}"
        each = self.body / self.vocabulary
        return f"{tokens}, hidden {self.hidden}, {self.layers} layers: {each:.0f} weights of the body a word"


class Place(NamedTuple):
    """Where and how the model runs, and how many vocabulary rows the plugin holds at once."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    chunk: int = 128
    clock: Clock = time.process_time


def arms() -> dict[str, Arm]:
    """Stock PPO as the plugin leaves it, every estimator of STEER, every intervention with its defaults."""
    found: dict[str, Arm] = {"ppo + statistics": None}
    found |= {f"steer {estimator}": ("steer", {"estimator": estimator}) for estimator in ESTIMATORS}
    found["steer quantile"] = ("steer", {"normalizer": "quantile"})
    return found | {name: (name, {}) for name in INTERVENTIONS if name != "steer"}


def network(size: Size, place: Place) -> Network:
    """OpenRLHF's actor around an untaught model."""
    from openrlhf.models.actor import Actor
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    architecture: Any = Qwen2Config  # its own signature lacks what every config takes
    config = architecture(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=size.prompt + size.response, tie_word_embeddings=False, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(place.device):
        model: Any = Qwen2ForCausalLM(config)
    model = model.to(place.dtype)
    actor: Any = Actor(model)
    actor.packing_samples, actor.is_vlm = False, False
    model.global_steps, model.optimizer = 1, torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95))
    adam = SimpleNamespace(eps=1e-8, betas=(0.9, 0.95))
    flags = SimpleNamespace(actor=SimpleNamespace(adam=adam), ds=SimpleNamespace(zero_stage=0))
    strategy = SimpleNamespace(ring_attn_group=None, args=flags, _unwrap_model=lambda wrapped: wrapped.model)
    return Network(actor, strategy, place.chunk, reduce=lambda total: total)


def experience(actor: Any, size: Size, place: Place) -> Any:
    """Random sequences without padding, old log-probs a little off the present ones."""
    generator = torch.Generator().manual_seed(0)
    sequences_BS = torch.randint(0, size.vocabulary, (size.rows, size.prompt + size.response), generator=generator)
    noise_BT = 0.05 * torch.randn(size.rows, size.response, generator=generator)
    advantages_B1 = torch.randn(size.rows, 1, generator=generator)
    sequences_BS = sequences_BS.to(place.device)
    mask_BT = torch.ones(size.rows, size.response, dtype=torch.bool, device=place.device)
    with torch.no_grad():
        log_probs_BT = actor(sequences_BS, mask_BT, torch.ones_like(sequences_BS))
    return SimpleNamespace(
        sequences=sequences_BS,
        attention_mask=torch.ones_like(sequences_BS),
        action_mask=mask_BT,
        action_log_probs=log_probs_BT + noise_BT.to(place.device),
        advantages=advantages_B1.expand(size.rows, size.response).to(place.device),
    )


def ready(size: Size, place: Place) -> tuple[Network, Any, Step]:
    """A network, a batch and the stock step, of which one has been made, so that the influences have Adam's moments."""
    net = network(size, place)
    batch = experience(net.actor, size, place)
    stock = stock_step(net, batch)
    stock()
    net.actor.model.optimizer.step()  # at rate 0: only its moments are wanted
    net.capture_hidden()
    return net, batch, stock


def stock_step(net: Network, batch: Any) -> Step:
    """Forward and backward of the whole model with OpenRLHF's own loss."""
    from openrlhf.models import PolicyLoss

    loss = PolicyLoss()

    def step() -> float:
        net.actor.zero_grad()
        log_probs, _ = net.actor(batch.sequences, batch.action_mask, batch.attention_mask, return_output=True)
        loss(log_probs, batch.action_log_probs, batch.advantages, action_mask=batch.action_mask)[0].backward()
        return 0.0

    return step


def arm_step(net: Network, batch: Any, arm: Arm, clock: Clock) -> Step:
    """The same, with what the plugin adds for the arm."""
    from openrlhf.models import PolicyLoss
    from steer_openrlhf.loss import InterventionLoss

    name, fields = arm or ("steer", {})
    intervention = INTERVENTIONS[name]
    config = intervention.config.model_validate(fields)
    needs = intervention.needs(config) if arm else frozenset()
    shaped = InterventionLoss(PolicyLoss(), intervention, config, gather=lambda signal: signal)
    shaped.state |= {"updates": 4.0, "update": 0.0, "momentum": 0.9}
    loss = shaped if arm else shaped.base
    keep = net.hidden if "influence_head" in needs else nullcontext

    def step() -> float:
        net.actor.zero_grad()
        added = Stopwatch(clock)
        with added:
            shaped.extras = before_forward(net, batch, needs)
        with keep():
            log_probs, output = net.actor(batch.sequences, batch.action_mask, batch.attention_mask, return_output=True)
        with added:
            logits_BSV = output["logits"].detach()
            shaped.statistics = net.statistics(batch, logits_BSV)
            if "influence_head" in needs:
                shaped.extras["influence_BT"] = head_influence(net, batch)
            found = loss(log_probs, batch.action_log_probs, batch.advantages, action_mask=batch.action_mask)[0]
        found.backward()
        return added.seconds

    return step


class Stopwatch:
    """Adds up the seconds of a clock inside its ``with`` blocks."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds = clock, 0.0

    def __enter__(self) -> None:
        self.started = self.clock()

    def __exit__(self, *_: object) -> None:
        self.seconds += self.clock() - self.started


def before_forward(net: Network, batch: Any, needs: frozenset[str]) -> dict[str, Tensor]:
    extras = {}
    if "old_entropy" in needs:
        extras["old_entropy_BT"] = net.measure(batch).entropy
    if "random" in needs:
        actions = batch.action_mask.shape[1]
        extras["random_BT"] = token_uniforms(batch.sequences, batch.attention_mask, actions, seed=0)
    if "influence" in needs:
        extras["influence_BT"] = net.influence_of([batch])[0]
    return extras


def head_influence(net: Network, batch: Any) -> Tensor:
    """From the logits and the head's input at hand."""
    tokens: HeadTokens = net.head_inputs(batch)
    return net.head_influence([batch], [tokens])[0]


def paired(stock: Step, step: Step, clock: Clock, pairs: int) -> tuple[list[float], list[float]]:
    """Of pairs of a stock step and the arm's: the quotient of their times, and the added share of the stock step. The
    first pair warms up."""
    ratios, shares = [], []
    for _ in range(pairs + 1):
        base, whole = Stopwatch(clock), Stopwatch(clock)
        with base:
            stock()
        with whole:
            added = step()
        ratios.append(whole.seconds / base.seconds)
        shares.append(added / base.seconds)
    return ratios[1:], shares[1:]
