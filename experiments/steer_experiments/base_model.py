"""The tiny base model: a small Qwen2-architecture network that can already calculate a little.

It is taught by plain supervised learning, the same way every time: running results, then the answer ("12+7-3=" ->
"19#16"), and sometimes the answer at once ("#16"), which is harder. Then its logits are divided by `flattening`, so
that it *knows* more than it *samples*: greedy decoding is as good as taught, sampling at temperature 1 is much worse
and has a healthy entropy, and a few tens of policy-gradient steps can both raise the accuracy and collapse the entropy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from steer_experiments.cache import cached_folder
from steer_experiments.grading import IntegerGrader
from steer_experiments.tasks.prepared import PreparedTask
from steer_experiments.tasks.tiny_arithmetic import TinyArithmeticConfig, teaching_questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

NAME: Literal["tiny_qwen2"] = "tiny_qwen2"
VERSION = 2  # raise it when the same config would give another model
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNK)
CHARACTERS = "0123456789+-*=,#"
MARKER = "#"  # the final answer follows it
IGNORE = -100  # the label of tokens that carry no loss (prompt and padding)
ACCURACY_BOUNDS = (0.15, 0.55)  # sampled at temperature 1; outside, the base is no use for the tiny study
REPORT_SECONDS = 5.0
PARTS = 3


class TinyQwen2Config(BaseModel):
    """Architecture, teaching and checking of the tiny base model. Same config, same machine: same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builder: Literal["tiny_qwen2"] = NAME
    hidden_size: int = Field(default=96, ge=32, multiple_of=32)
    layers: int = Field(default=3, ge=1, le=8)
    head_dim: Literal[32, 64] = 32
    intermediate_size: int = Field(default=256, ge=32)
    max_position: int = Field(default=128, ge=64)
    steps: int = Field(default=650, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    direct_share: float = Field(default=0.15, ge=0, le=1)  # answers given at once, without the working
    flattening: float = Field(default=2.2, ge=1)  # the taught logits are divided by it: sampling is that much hotter
    head_shrink: float = Field(default=32.0, ge=1)  # head / this, final norm * this: see `flatten`
    threads: int = Field(default=2, ge=1)  # part of the identity: another count may round differently
    seed: int = Field(default=7, ge=0)
    check_samples: int = Field(default=4, ge=1)  # sampled answers per validation item when the result is measured
    max_new_tokens: int = Field(default=24, ge=8)


def build(config: TinyQwen2Config, task: PreparedTask, cache: Path) -> Path:
    """The HF folder of the taught model, from the cache or built now (about a minute on two cores).

    Raises ValueError when the task is another one, and RuntimeError when the measured accuracy is out of bounds.
    """
    if not isinstance(task.config, TinyArithmeticConfig):
        raise ValueError(f"model.builder {NAME} teaches tiny_arithmetic only, not {type(task.config).__name__}")
    task_config = task.config

    def build_into(folder: Path) -> None:
        model, tokenizer, seconds = teach(config, task_config)
        measured = measure(model, tokenizer, task.rows("validation"), config)
        print(f"[{NAME}] taught in {seconds:.0f} s: {json.dumps(measured)}", flush=True)
        require_useful(measured["sampled_accuracy"])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")

    return cached_folder(cache, NAME, identity(config, task), build_into)


def identity(config: TinyQwen2Config, task: PreparedTask) -> dict[str, Any]:
    """What a taught model depends on: its place in the cache follows from it."""
    return {"model": config.model_dump(mode="json"), "task": task.content_hash, "version": VERSION}


def require_useful(accuracy: float) -> None:
    """RuntimeError unless the sampled accuracy leaves room to learn and something to learn from."""
    low, high = ACCURACY_BOUNDS
    if not low <= accuracy <= high:
        raise RuntimeError(
            f"the tiny base model answers {accuracy:.1%} of the validation items when sampled; {low:.0%}-{high:.0%} is "
            "allowed. Change model.steps (too low: more) or model.flattening (too high: more)"
        )


def worked_answer(question: str, direct: bool) -> str:
    """The right response to "12+7-3=": "19#16", or "#16" when `direct`. Operators apply from left to right."""
    first, *operations = re.findall(r"[-+*]?\d+", question)
    results = [int(first)]
    for operator, operand in ((operation[0], int(operation[1:])) for operation in operations):
        value = results[-1]
        results.append({"+": value + operand, "-": value - operand, "*": value * operand}[operator])
    working = "" if direct else ",".join(map(str, results[1:-1]))
    return f"{working}{MARKER}{results[-1]}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, no merges; decoding joins characters without spaces."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_network(config: TinyQwen2Config, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untaught network in float32, initialised from torch's global generator."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    heads = config.hidden_size // config.head_dim
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    architecture = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=False,
        dtype="float32",
        **ids,
    )
    model = Qwen2ForCausalLM(architecture)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **ids)
    return model


def teach(
    config: TinyQwen2Config, task: TinyArithmeticConfig
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, float]:
    """Build and teach the model; returns it with its tokenizer and the seconds it took."""
    started = time.monotonic()
    with deterministic(config):
        import torch

        tokenizer = build_tokenizer()
        model = build_network(config, tokenizer)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
        )
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=0.1
        )
        reported = started
        for step, lesson in enumerate(_lessons(config, task, tokenizer), start=1):
            loss = _backward(model, lesson)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            if step == config.steps or time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                done = f"step {step}/{config.steps}, loss {loss:.3f}, {reported - started:.0f} s"
                print(f"[{NAME}] teaching the base model: {done}", flush=True)
        flatten(model, config)
    return model.eval(), tokenizer, time.monotonic() - started


def flatten(model: Qwen2ForCausalLM, config: TinyQwen2Config) -> None:
    """Divide the logits by `flattening`, and make the head small and the final norm large by the same factor.

    The second leaves the function as it is and makes it trainable in a few steps: Adam moves every weight by about the
    learning rate, so a small head can be sharpened by steps that are too small to damage what the layers know.
    (24 rollouts, rate 5e-5 or 2e-4: reward .36 -> .50 with a shrink of 32, .36 -> .40 without.)
    """
    import torch

    with torch.no_grad():
        model.lm_head.weight.div_(config.flattening * config.head_shrink)
        model.model.norm.weight.mul_(config.head_shrink)


@contextlib.contextmanager
def deterministic(config: TinyQwen2Config) -> Iterator[None]:
    """Fixed seed, thread count and kernels inside; the caller's own settings again outside."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads; spinning stalls on a busy machine
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


Row = tuple[list[int], list[int]]  # token ids of prompt and response; labels, IGNORE over the prompt


def _lessons(
    config: TinyQwen2Config, task: TinyArithmeticConfig, tokenizer: PreTrainedTokenizerFast
) -> Iterator[list[Row]]:
    """`config.steps` batches of `config.batch_size` rows, shortest first."""
    ids = tokenizer.get_vocab()
    rng = random.Random(config.seed)
    questions = [question for question, _ in teaching_questions(task, config.steps * config.batch_size)]
    rng.shuffle(questions)
    for step in range(config.steps):
        rows: list[Row] = []
        for question in questions[step * config.batch_size : (step + 1) * config.batch_size]:
            prompt = [ids[character] for character in question]
            answer = worked_answer(question, rng.random() < config.direct_share)
            response = [*(ids[character] for character in answer), ids[EOS]]
            rows.append((prompt + response, [IGNORE] * len(prompt) + response))
        yield sorted(rows, key=lambda row: len(row[0]))


def _backward(model: Qwen2ForCausalLM, lesson: list[Row]) -> float:
    """Accumulate the gradient of the mean loss per response token; returns that loss. Rows are right-padded.

    The rows are cut into `PARTS` passes of like length: a third less padding than one pass.
    """
    import torch

    total = sum(label != IGNORE for _, labels in lesson for label in labels)
    loss_sum = 0.0
    size = math.ceil(len(lesson) / PARTS)
    for part in (lesson[start : start + size] for start in range(0, len(lesson), size)):
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
        labels = torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in part])
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / total
        loss.backward()
        loss_sum += loss.item()
    return loss_sum


def measure(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]], config: TinyQwen2Config
) -> dict[str, Any]:
    """Accuracy sampled at temperature 1 and greedy, mean token entropy (nats, sampled responses), and their n."""
    grader = IntegerGrader()

    def accuracy(answers: list[str], repeats: int) -> dict[str, float]:
        by_level: dict[str, list[bool]] = {"": []}
        for index, answer in enumerate(answers):
            row = rows[index // repeats]
            right = grader.grade(answer, row["label"]).state == "correct"
            by_level[""].append(right)
            by_level.setdefault(row["level"], []).append(right)
        return {level: round(sum(rights) / len(rights), 4) for level, rights in by_level.items()}

    with deterministic(config):
        sampled, entropy, length = respond(model, tokenizer, rows, config.check_samples, True, config.max_new_tokens)
        greedy, _, _ = respond(model, tokenizer, rows, 1, False, config.max_new_tokens)
    of_samples, of_greedy = accuracy(sampled, config.check_samples), accuracy(greedy, 1)
    return {
        "sampled_accuracy": of_samples.pop(""),
        "sampled_by_level": of_samples,
        "greedy_accuracy": of_greedy.pop(""),
        "greedy_by_level": of_greedy,
        "entropy_nats": round(entropy, 4),
        "response_tokens": round(length, 2),
        "n_items": len(rows),
        "n_samples": config.check_samples,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def respond(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, str]],
    samples: int,
    sample: bool,
    max_new_tokens: int,
) -> tuple[list[str], float, float]:
    """Answers (items in order, `samples` of each in a row), mean token entropy in nats, mean tokens per response."""
    import torch

    prompts = [row["input"] for row in rows for _ in range(samples)]
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    generate = cast(Any, model).generate  # its type hints do not fit its own classes
    with torch.no_grad():
        out = generate(
            **batch, do_sample=sample, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True
        )
    tokens = out.sequences[:, batch["input_ids"].shape[1] :]
    ended = (tokens == tokenizer.eos_token_id).long()
    mask = (ended.cumsum(dim=1) - ended == 0).float()  # up to and including the first end token
    log_probs = torch.stack(out.logits, dim=1).log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts, float((entropy * mask).sum() / mask.sum()), float(mask.sum(dim=1).mean())
