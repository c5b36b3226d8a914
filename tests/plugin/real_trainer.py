"""OpenRLHF's policy worker without Ray and vLLM: its real strategy, DeepSpeed engine, replay buffer, loss and trainer
on gloo ranks. In pytest's own process (one rank) or in spawned ones (:func:`rank_main`).

The policy is a tiny random Qwen2, and the samples are drawn from it. The learning rate is 0, so every case of a layout
meets the same weights; between old and present policy lies a change of temperature.
"""

import copy
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from steer_openrlhf import host, hostargs
from torch import Tensor

VOCABULARY = 19
OLD_TEMPERATURE, TEMPERATURE = 0.8, 0.7
COLLECTIVE_TIMEOUT = timedelta(seconds=300)
PROMPTS = (2, 4, 3, 2, 3, 4, 2, 3)
RESPONSES = (6, 3, 7, 1, 5, 4, 7, 0)
ADVANTAGES = (2.5, -1.3, 0.7, -0.4, 1.9, -2.2, 0.0, 0.9)
FLAGS: Mapping[str, Any] = {
    "actor.model_name_or_path": "tiny/policy", "ds.param_dtype": "fp32", "ds.attn_implementation": "sdpa",
    "actor.eps_clip_low_high": [0.2, 0.28], "actor.lr_scheduler": "constant", "actor.lr_warmup_ratio": 0.0,
    "actor.adam.lr": 0.0, "actor.max_norm": 0.0, "rollout.temperature": OLD_TEMPERATURE, "algo.kl.init_coef": 0.0,
    "rollout.batch_size": len(PROMPTS), "rollout.n_samples_per_prompt": 1, "train.batch_size": len(PROMPTS),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How the samples become one optimizer step: whose they are (``order``, rank after rank), how many make a
    micro-batch, what stands before the prompts, and ZeRO's stage. ``max_tokens``: OpenRLHF's dynamic batching."""

    ranks: int = 1
    micro: int = 8
    order: tuple[int, ...] = tuple(range(len(PROMPTS)))
    left: int = 0
    stage: int = 2
    max_tokens: int | None = None

    def flags(self) -> dict[str, Any]:
        dynamic = {"train.dynamic_batch_enable": True, "train.max_tokens_per_gpu": self.max_tokens}
        size = {"train.micro_batch_size": self.micro, "ds.zero_stage": self.stage}
        return size | (dynamic if self.max_tokens else {})


@dataclass(frozen=True)
class Case:
    """A loss with its flags; ``state`` is a controller's before the step."""

    loss: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Call:
    """One call of OpenRLHF's loss: the micro-batch with its metrics, what the plugin gave to the loss, and the gradient
    of the whole loss by log-prob (nothing else of it reaches the weights)."""

    experience: Any
    log_probs: Tensor
    advantages: Tensor
    clip: tuple[Any, Any]
    gradient: Tensor | None = None


@dataclass
class Recorded:
    """Of one rollout's updates: gradients by weight (one dict an optimizer step), calls of the loss, OpenRLHF's
    status, and the plugin's saved state."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Prompt and response, the response's log-probs when it was drawn, and its advantage (a token's, or of all)."""

    prompt: Tensor
    response: Tensor
    old_log_probs: Tensor
    advantage: Tensor | float


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What OpenRLHF's workers find in their environment."""
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "RANK": str(rank)}
    return here | {"LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@cache
def _parsed(argv: tuple[str, ...]) -> Any:
    return hostargs.host_parser().parse_args(list(argv))


def arguments(layout: Layout, loss: str, flags: Mapping[str, Any]) -> Any:
    """OpenRLHF's nested arguments, from its own parser; a case's own flags are put in as they are."""
    from openrlhf.utils.config import hierarchize

    namespace = copy.copy(_parsed(tuple(hostargs.to_argv(FLAGS))))
    for name, value in {**layout.flags(), "actor.policy_loss_type": loss, **flags}.items():
        assert hasattr(namespace, name), name
        setattr(namespace, name, value)
    return hierarchize(namespace)


def tiny_policy() -> Any:
    """A random Qwen2 whose states range from certain to open."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=False, attn_implementation="sdpa",
        use_cache=False, initializer_range=0.35,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


@torch.no_grad()
def draw_samples(model: Any) -> list[Sample]:
    """Responses from the policy; their old log-probs are off by what an earlier update would have changed."""
    generator = torch.Generator().manual_seed(7)
    samples = []
    for prompt_length, length, advantage in zip(PROMPTS, RESPONSES, ADVANTAGES, strict=True):
        sequence = torch.randint(1, VOCABULARY, (1, prompt_length), generator=generator)
        log_probs = [torch.zeros(0)]
        for _ in range(length):
            log_pi = (model(sequence).logits[:, -1].float() / OLD_TEMPERATURE).log_softmax(-1)
            token = torch.multinomial(log_pi.exp(), 1, generator=generator)
            log_probs.append(log_pi.gather(-1, token)[0])
            sequence = torch.cat([sequence, token], dim=-1)
        noise = 0.15 * torch.randn(length, generator=generator)
        old = torch.cat(log_probs) + noise
        samples.append(Sample(sequence[0, :prompt_length], sequence[0, prompt_length:], old, advantage))
    return samples


def experience_of(sample: Sample, left: int = 0, number: int = 0) -> Any:
    """One sample as OpenRLHF's experience of one row, ``left`` padding tokens before the prompt. Its reward, which no
    loss reads, is its number."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    before, length = left + len(sample.prompt), len(sample.response)
    sequence = torch.cat([torch.zeros(left, dtype=torch.long), sample.prompt, sample.response])
    mask = (torch.arange(len(sequence) - 1) >= before - 1).long()

    def on_response(values: Tensor | float) -> Tensor:
        whole = torch.zeros(len(sequence) - 1)
        whole[before - 1 :] = values
        return whole[None]

    return Experience(
        sequences=sequence[None], attention_mask=(torch.arange(len(sequence)) >= left).long()[None],
        action_mask=mask[None], action_log_probs=on_response(sample.old_log_probs),
        rollout_log_probs=on_response(sample.old_log_probs), advantages=on_response(sample.advantage),
        rewards=torch.tensor([float(number)]), response_length=torch.tensor([float(length)]),
        total_length=torch.tensor([float(before + length - left)]), info={"return": torch.zeros(1)},
    )  # fmt: skip


class Worker:
    """A policy worker of one layout: OpenRLHF's strategy and actor around a DeepSpeed engine. Every case gets a trainer
    of its own on it."""

    def __init__(self, layout: Layout, flags: Mapping[str, Any] | None = None) -> None:
        from openrlhf.models import Actor
        from openrlhf.utils import get_strategy

        self.layout, self.flags = layout, dict(flags or {})
        args = arguments(layout, "ppo", self.flags)
        self.strategy = get_strategy(args)
        self.strategy.setup_distributed(timeout=COLLECTIVE_TIMEOUT)
        model = tiny_policy()
        self.samples = draw_samples(model)
        actor = Actor(model, temperature=OLD_TEMPERATURE)
        actor.packing_samples = False
        names = ("optim", "lr_scheduler", "lr_warmup_ratio", "min_lr_ratio", "max_norm")
        config = {name: getattr(args.actor, name) for name in names}
        config |= {"muon": vars(args.actor.muon), "adam": vars(args.actor.adam), "scheduler_steps": 100}
        self.actor, self.optimizer, self.scheduler = self.strategy.prepare((actor, config))

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the engine."""
        return self.actor.model.module

    def trainer(self, case: Case) -> Any:
        """OpenRLHF's own trainer class, with whatever the plugin has made of it."""
        from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

        self.actor._forward_hooks.clear()  # of the trainer before this one
        self.actor.temperature = OLD_TEMPERATURE
        self.strategy.args = arguments(self.layout, case.loss, {**self.flags, **case.flags})
        trainer = ActorPPOTrainer(
            self.strategy, self.actor, ema_model=None, actor_optim=self.optimizer, actor_scheduler=self.scheduler,
            micro_train_batch_size=self.layout.micro, vllm_engines=None,
        )  # fmt: skip
        if case.state:
            trainer.actor_loss_fn.state = dict(case.state)
        return trainer

    def experiences(self, samples: Sequence[Sample] | None = None) -> list[Any]:
        """This rank's samples, one row each, in the layout's order."""
        rank, own = torch.distributed.get_rank(), len(self.layout.order) // self.layout.ranks
        chosen = self.layout.order[rank * own : (rank + 1) * own]
        return [experience_of((samples or self.samples)[index], self.layout.left, index) for index in chosen]

    def rollout(self, case: Case, samples: Sequence[Sample] | None = None, seed: int = 0) -> Recorded:
        """The updates of one rollout by the real ``ppo_train``."""
        return self.updates(self.trainer(case), samples, seed)

    def updates(
        self, trainer: Any, samples: Sequence[Sample] | None = None, seed: int = 0, learn: bool = True
    ) -> Recorded:
        """The same with a trainer there is. Without ``learn`` its losses go backward to the log-probs only."""
        trainer.replay_buffer.clear()
        for experience in self.experiences(samples):
            trainer.replay_buffer.append(experience)
        torch.manual_seed(seed)  # OpenRLHF shuffles
        with Recorder(trainer, learn) as found:
            found.status = trainer.ppo_train(0.0)
        found.state = trainer._state()
        return found

    def batches(self, samples: Sequence[Sample], size: int, trainer: Any = None) -> list[Any]:
        """Micro-batches of so many samples, in order, as OpenRLHF's replay buffer (the trainer's) collates them."""
        from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer

        buffer = trainer.replay_buffer if trainer else NaiveReplayBuffer(size)
        for number, sample in enumerate(samples):
            buffer.append(experience_of(sample, self.layout.left, number))
        if trainer and "old_entropy" in trainer._needs:
            trainer._attach_old_entropy()
        return [buffer.collate_fn(buffer.items[start : start + size]) for start in range(0, len(samples), size)]

    def one_step(self, case: Case, samples: Sequence[Sample], size: int) -> tuple[Recorded, Any]:
        """One optimizer step of micro-batches of so many samples, in order, with the calls ``ppo_train`` makes (which
        divides by a micro-batch's tokens: it cannot have one without any). Nothing is learnt. Also the summary."""
        from openrlhf.trainer.ray import ppo_actor

        trainer = self.trainer(case)
        batches = self.batches(samples, size, trainer)
        with Recorder(trainer, learn=False) as found:
            stream = ppo_actor.iter_grad_accum_global_norm(
                batches, self.strategy, len(batches), lambda batch: batch.action_mask
            )
            for step, (batch, norms) in enumerate(stream):
                trainer.training_step(batch, 0.0, step, norms)
        found.state = trainer._state()
        return found, getattr(trainer.actor_loss_fn, "summary", None)


class Recorder:
    """Watches a trainer from outside: a hook on the real loss, and wrappers that call what they wrap (without ``learn``
    the engine's backward and step are left out: what is not a number must not stay in its optimizer)."""

    def __init__(self, trainer: Any, learn: bool = True) -> None:
        self.trainer, self.learn, self.found = trainer, learn, Recorded()
        self.experience: Any = None
        self.log_probs: Tensor | None = None
        self.base = getattr(trainer.actor_loss_fn, "base", trainer.actor_loss_fn)

    def __enter__(self) -> Recorded:
        strategy = self.trainer.strategy
        self.begin, self.train, self.step = strategy.steer_window, self.trainer.training_step, strategy.optimizer_step
        self.backward = strategy.backward
        strategy.steer_window, strategy.optimizer_step = self._window, self._step
        strategy.backward = self._backward
        self.trainer._start_step = strategy.steer_window  # dynamic batching calls it there
        self.trainer.training_step = self._train
        self.hook = self.base.register_forward_pre_hook(self._loss_called, with_kwargs=True)
        return self.found

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()
        del self.trainer.strategy.optimizer_step, self.trainer.strategy.backward
        del self.trainer.training_step, self.trainer._start_step
        self.trainer.strategy.steer_window = self.begin
        self.trainer.actor.temperature = OLD_TEMPERATURE

    def _window(self, window: list[Any]) -> None:
        """The policy is no longer the one that was sampled from: an earlier update of the rollout, so to speak."""
        self.trainer.actor.temperature = TEMPERATURE
        self.begin(window)

    def _train(self, experience: Any, *args: Any) -> Any:
        self.experience = experience
        return self.train(experience, *args)

    def _loss_called(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clip = self.base.clip_eps_low, self.base.clip_eps_high
        self.log_probs = args[0]
        self.found.calls.append(Call(self.experience, args[0].detach().clone(), args[2].detach().clone(), clip))

    def _backward(self, loss: Tensor, actor: Any, optimizer: Any) -> None:
        assert self.log_probs is not None
        (gradient,) = torch.autograd.grad(loss, self.log_probs, retain_graph=self.learn)
        self.found.calls[-1].gradient = gradient
        if self.learn:
            self.backward(loss, actor, optimizer)

    def _step(self, optimizer: Any, actor: Any, scheduler: Any, name: str = "model") -> None:
        from deepspeed.utils import safe_get_full_grad

        if not self.learn:
            return
        if actor.model.is_gradient_accumulation_boundary():
            named = actor.model.module.named_parameters()
            self.found.gradients.append({key: safe_get_full_grad(weight).clone() for key, weight in named})
        self.step(optimizer, actor, scheduler, name=name)


def rank_main(rank: int, world: tuple[int, int, str], layouts: Mapping[str, Layout], cases: Mapping[str, Case]) -> None:
    """A spawned rank; ``world`` is the number of ranks, their port, and the folder for their records."""
    ranks, port, folder = world
    os.environ.update(environment(rank, ranks, port))
    torch.set_num_threads(1)
    host.install()
    torch.save(run_all(layouts, cases, Worker), Path(folder) / f"rank{rank}.pt")


def run_all(
    layouts: Mapping[str, Layout], cases: Mapping[str, Case], make: Callable[[Layout], Worker]
) -> dict[tuple[str, str], Recorded]:
    """By name of layout and of case. All cases of a layout share an engine, so an optimizer's moments too."""
    found = {}
    for place, (name, layout) in enumerate(layouts.items()):
        worker = make(layout)
        for one, case in cases.items():
            record = worker.rollout(case, seed=place)
            found[name, one] = Recorded(record.gradients, status=record.status, state=record.state)
    return found
