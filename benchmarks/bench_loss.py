"""What each intervention and each estimator adds to a training step, beside stock PPO on the same batch, on CPU.

    make bench

A training step is OpenRLHF's own Actor around a small Qwen2 and its own PolicyLoss: forward and backward of the whole
model. What an arm adds is what the plugin does in a training: statistics of the sampled tokens, what the intervention
`needs` (:data:`steer_openrlhf.registry.NEEDS`; `old_entropy` is one forward a rollout, so one a step), its loss. Every
step is made right after a stock step, both in CPU seconds of one thread: `time_ratio` is the quotient of the two, with
the noise of both; `added_share` is what the added calls themselves take (the stock loss inside them included), by the
stock step. Peak memory is that of a process of its own. Shares depend on how many weights the body has for each word of
the vocabulary, so some arms are timed a second time with a large body and few tokens.
"""

import ctypes
import json
import multiprocessing
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from steer_openrlhf import host
from steer_openrlhf.network import Network, response_window
from steer_openrlhf.omega import ESTIMATORS
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import token_uniforms
from torch import Tensor

VOCABULARY, CHUNK, PROMPT, RESPONSE = 8_192, 128, 8, 40
PAIRS = 5
TABULAR_AIM, HEAD_AIM = 0.01, 0.05
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


class Size(NamedTuple):
    """Of the model, and how many answers its batch has."""

    hidden: int
    layers: int
    rows: int

    def describe(self, parameters: int) -> str:
        each = parameters / VOCABULARY
        tokens = f"{self.rows} x ({PROMPT} + {RESPONSE}) tokens, vocabulary {VOCABULARY}"
        return f"{tokens}, hidden {self.hidden}, {self.layers} layers: {each:.0f} weights a word"


SMALL, LARGE = Size(256, 4, 16), Size(768, 6, 4)
AGAIN = ("ppo + statistics", "steer exact", "steer influence_head", "steer influence")
BUFFER_MB = SMALL.rows * (PROMPT + RESPONSE) * VOCABULARY * 4 / 2**20
"""One float32 buffer of B*T*V, in MiB: as large as the logits."""
Step = Callable[[], float]
"""A training step; returns the CPU seconds of what is not stock in it."""
Arm = tuple[str, Mapping[str, Any]] | None
"""Intervention and its settings; None is stock PPO with the statistics the plugin always makes."""


def arms() -> dict[str, Arm]:
    """Stock PPO as the plugin leaves it, every estimator of STEER, every intervention with its defaults."""
    found: dict[str, Arm] = {"ppo + statistics": None}
    found |= {f"steer {estimator}": ("steer", {"estimator": estimator}) for estimator in ESTIMATORS}
    found["steer quantile"] = ("steer", {"normalizer": "quantile"})
    return found | {name: (name, {}) for name in INTERVENTIONS if name != "steer"}


# -- one training step -------------------------------------------------------------------------------------------------


def network(size: Size) -> Network:
    """OpenRLHF's actor around an untaught model that has made one Adam step, so that the influences have moments."""
    from openrlhf.models.actor import Actor
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    architecture: Any = Qwen2Config  # its own signature lacks what every config takes
    config = architecture(
        vocab_size=VOCABULARY, hidden_size=size.hidden, intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        tie_word_embeddings=False, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = Qwen2ForCausalLM(config)
    actor: Any = Actor(model)
    actor.packing_samples, actor.is_vlm = False, False
    model.global_steps, model.optimizer = 1, torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95))
    adam = SimpleNamespace(eps=1e-8, betas=(0.9, 0.95))
    flags = SimpleNamespace(actor=SimpleNamespace(adam=adam), ds=SimpleNamespace(zero_stage=0))
    strategy = SimpleNamespace(ring_attn_group=None, args=flags, _unwrap_model=lambda wrapped: wrapped.model)
    return Network(actor, strategy, CHUNK, reduce=lambda total: total)


def experience(actor: Any, rows: int) -> Any:
    """Random sequences without padding, old log-probs a little off the present ones."""
    generator = torch.Generator().manual_seed(0)
    sequences_BS = torch.randint(0, VOCABULARY, (rows, PROMPT + RESPONSE), generator=generator)
    mask_BT, attention_BS = torch.ones(rows, RESPONSE, dtype=torch.bool), torch.ones_like(sequences_BS)
    with torch.no_grad():
        log_probs_BT = actor(sequences_BS, mask_BT, attention_BS)
    return SimpleNamespace(
        sequences=sequences_BS,
        attention_mask=attention_BS,
        action_mask=mask_BT,
        action_log_probs=log_probs_BT + 0.05 * torch.randn(rows, RESPONSE, generator=generator),
        advantages=torch.randn(rows, 1, generator=generator).expand(rows, RESPONSE),
    )


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


def arm_step(net: Network, batch: Any, arm: Arm) -> Step:
    """The same, with what the plugin adds for the arm, in the order of :class:`steer_openrlhf.actor_trainer`."""
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
        added = Stopwatch()
        with added:
            shaped.extras = before_forward(net, batch, needs)
        with keep():
            log_probs, output = net.actor(batch.sequences, batch.action_mask, batch.attention_mask, return_output=True)
        with added:
            logits_BSV = output["logits"].detach()
            shaped.statistics = net.statistics(batch, logits_BSV)
            if "influence_head" in needs:
                shaped.extras["influence_BT"] = head_influence(net, batch, logits_BSV)
            found = loss(log_probs, batch.action_log_probs, batch.advantages, action_mask=batch.action_mask)[0]
        found.backward()
        return added.seconds

    return step


class Stopwatch:
    """Adds up the CPU seconds of this process inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self.started


def before_forward(net: Network, batch: Any, needs: frozenset[str]) -> dict[str, Tensor]:
    extras = {}
    if "old_entropy" in needs:
        extras["old_entropy_BT"] = net.measure(batch).entropy
    if "random" in needs:
        extras["random_BT"] = token_uniforms(batch.sequences, batch.attention_mask, RESPONSE, seed=0)
    if "influence" in needs:
        extras["influence_BT"] = net.influence_of([batch])[0]
    return extras


def head_influence(net: Network, batch: Any, logits_BSV: Tensor) -> Tensor:
    """From the logits and the head's input at hand."""
    window = logits_BSV[:, response_window(batch)]
    rows, columns = batch.action_mask.nonzero(as_tuple=True)
    hidden_ND = net.head_inputs(batch)
    return net.head_influence([batch], [hidden_ND], [lambda a, b: window[rows[a:b], columns[a:b]]])[0]


# -- measurements ------------------------------------------------------------------------------------------------------


def ready(size: Size) -> tuple[Network, Any, Step]:
    """A network, a batch and the stock step, of which one has been made."""
    net = network(size)
    batch = experience(net.actor, size.rows)
    stock = stock_step(net, batch)
    stock()
    net.actor.model.optimizer.step()  # at rate 0: only its moments are wanted
    net.capture_hidden()
    return net, batch, stock


def timed(stock: Step, step: Step) -> tuple[list[float], list[float]]:
    """Of pairs of a stock step and the arm's: the quotient of their CPU times, and the added share of the stock step.
    The first pair warms up."""
    ratios, shares = [], []
    for _ in range(PAIRS + 1):
        base, whole = Stopwatch(), Stopwatch()
        with base:
            stock()
        with whole:
            added = step()
        ratios.append(whole.seconds / base.seconds)
        shares.append(added / base.seconds)
    return ratios[1:], shares[1:]


def peak_mb(arm: Arm, stock: bool = False) -> float:
    """Peak resident memory (MiB) of a forked process that makes a stock step, then the arm's."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(arm, stock, send))
    child.start()
    send.close()
    peak: float = receive.recv()
    child.join()
    return peak


def _send_peak(arm: Arm, stock: bool, send: Any) -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # freed tensors go back at once, so the peak is of live ones
    net, batch, plain = ready(SMALL)
    (plain if stock else arm_step(net, batch, arm))()
    send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(name: str, stock: Step, step: Step) -> dict[str, Any]:
    ratios, shares = timed(stock, step)
    return {
        "arm": name,
        "time_ratio": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "added_share": round(statistics.median(shares), 4),
        "share_min": round(min(shares), 4),
        "share_max": round(max(shares), 4),
    }


def memory(added_mb: float) -> dict[str, float]:
    return {"added_peak_mb": round(added_mb, 1), "added_peak_btv": round(added_mb / BUFFER_MB, 2)}


def table(size: Size, added_mb: Mapping[str, float], chosen: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    """Prints a line for each arm and returns them; peak memory where it was measured."""
    net, batch, stock = ready(size)
    print(size.describe(sum(weight.numel() for weight in net.actor.parameters())), flush=True)
    rows = {}
    for name, arm in chosen.items():
        rows[name] = measured(name, stock, arm_step(net, batch, arm))
        rows[name] |= memory(added_mb[name]) if name in added_mb else {}
        print(json.dumps(rows[name]), flush=True)
    return rows


def aims(rows: Mapping[str, Mapping[str, Any]], large: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is aimed at, the arm that is furthest from it, and whether that reached it here."""

    def verdict(found: Mapping[str, Mapping[str, Any]], key: str, limit: float, *names: str) -> dict[str, Any]:
        worst = max(names, key=lambda name: found[name][key])
        return {"worst": worst, "value": found[worst][key], "reached": found[worst][key] < limit}

    share, peak, others = "added_share", "added_peak_btv", [name for name in rows if name != "steer influence"]
    return {
        "tabular, under 1 % of a step": verdict(rows, share, TABULAR_AIM, "steer exact", "steer paper"),
        "tabular, large body": verdict(large, share, TABULAR_AIM, "steer exact"),
        "reference, with its forward for old entropies": verdict(rows, share, TABULAR_AIM, "steer reference"),
        "influence_head, under 5 % of a step": verdict(rows, share, HEAD_AIM, "steer influence_head"),
        "influence_head, large body": verdict(large, share, HEAD_AIM, "steer influence_head"),
        "no buffer of B*T*V": verdict(rows, peak, 1.0, *others),
        "no buffer of B*T*V, the whole influence": verdict(rows, peak, 1.0, "steer influence"),
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    host.install()
    import openrlhf.models  # noqa: F401  # before the forks, once

    every = arms()
    base = peak_mb(None, stock=True)  # all forks come before the first backward of this process
    added = {name: peak_mb(arm) - base for name, arm in every.items()}
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread"
    print(f"B*T*V float32 = {BUFFER_MB:.0f} MiB; stock peak {base:.0f} MiB; {PAIRS} pairs; {machine}")
    rows = table(SMALL, added, every)
    large = table(LARGE, {}, {name: every[name] for name in AGAIN})
    print(json.dumps({"aims": aims(rows, large)}))


if __name__ == "__main__":
    main()
