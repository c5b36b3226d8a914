"""Answers from a checkpoint with vLLM's offline engine; vLLM is imported here and nowhere else, and only when called.

Every request is in the engine's queue as soon as there is room and is given out the moment it is finished: no batch
waits for its longest answer. On CPU the engine gets a key-value cache of the size it needs: touching vLLM's usual
gigabyte took 4 of the 5 seconds an engine needs to start. Without CUDA it runs inside this process, so that many
checkpoints pay for one import.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

AT_ONCE = 4096  # requests in the engine's queue
_SEQUENCES = 256  # answered at once on CPU
_KV_FLOOR, _KV_CEILING = 64 * 2**20, 4 * 2**30  # bytes
_FLOAT32 = 4
_STEP_TOKENS = 4096  # in one step on CPU
_BLOCK = 128  # tokens in a block of vLLM's CPU cache: a sequence takes whole blocks
_SHOWN = 3
_QUIET_CPU_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; lengths in tokens. Temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Request:
    """One answer that is wanted. ``chat``: put the prompt through the tokenizer's chat template as the user's turn, as
    OpenRLHF does."""

    prompt: str
    seed: int
    sampling: Sampling
    chat: bool = False


@dataclass(frozen=True)
class Completion:
    """One answer. ``truncated``: it ran into ``max_new_tokens`` instead of ending by itself. ``tokens``: its length."""

    text: str
    truncated: bool
    tokens: int


Answers = Iterator[list[tuple[int, Completion]]]
"""What has been finished since the last time, with the request's place; may be empty (a chance to save)."""


class Engine:
    """vLLM holding one checkpoint. Close it before the next is opened: it gives back its memory only then.

    Raises:
        ValueError: the longest prompt and its new tokens exceed the model's context.
        OSError, RuntimeError: what vLLM says about a checkpoint it cannot load.
    """

    def __init__(self, checkpoint: Path, requests: Sequence[Request]) -> None:
        self.device = _prepare_environment()
        from transformers import AutoTokenizer
        from vllm import LLM

        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
        texts = dict.fromkeys((request.prompt, request.chat) for request in requests)
        self._tokens = {text: _tokenize(tokenizer, *text) for text in texts}
        self._requests = requests
        length = self._longest(checkpoint)
        self._llm: Any = None
        try:
            options = _engine_options(checkpoint, length, self.device != "cpu")
            self._llm = LLM(model=str(checkpoint), max_model_len=length, **options)
        except BaseException:
            self.close()
            raise

    def answers(self) -> Answers:
        """Every request's answer, each the moment it is finished, drawn with the request's own seed."""
        engine = self._llm.llm_engine
        waiting = iter(enumerate(self._requests))
        while True:
            room = AT_ONCE - engine.get_num_unfinished_requests()
            for place, request in islice(waiting, room):
                self._add(engine, place, request)
            if not engine.has_unfinished_requests():
                return
            done = [output for output in engine.step() if output.finished]
            yield [(int(output.request_id), _completion(output)) for output in done]

    def _add(self, engine: Any, place: int, request: Request) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        how = request.sampling
        parameters = SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            max_tokens=how.max_new_tokens,
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=self._tokens[request.prompt, request.chat])
        engine.add_request(str(place), prompt, parameters)

    def _longest(self, checkpoint: Path) -> int:
        """Tokens of the longest prompt with its answer; ``ValueError`` names prompts the model has no room for."""
        lengths = [len(self._tokens[one.prompt, one.chat]) + one.sampling.max_new_tokens for one in self._requests]
        room = json.loads((checkpoint / "config.json").read_text()).get("max_position_embeddings")
        long = [place for place, length in enumerate(lengths) if room and length > room]
        if not long:
            return max(lengths)
        named = "; ".join(f"{lengths[place]} for {self._requests[place].prompt[:60]!r}" for place in long[:_SHOWN])
        raise ValueError(
            f"{checkpoint}: the context is {room} tokens, but {len(long)} of {len(lengths)} requests need more with "
            f"their new tokens ({named}): give fewer --max-new-tokens"
        )

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()


def _completion(output: Any) -> Completion:
    only = output.outputs[0]
    return Completion(only.text, only.finish_reason == "length", len(only.token_ids))


def _prepare_environment() -> str:
    """Settings vLLM reads when it is imported; returns the device's name, or "cpu". What the user has set stays."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    for name, value in _QUIET_CPU_ENV.items():
        os.environ.setdefault(name, value)
    return "cpu"


def _tokenize(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """Token ids as OpenRLHF's rollout makes them: the template's text, then no special tokens added. A prompt without a
    token the model knows gets its first special token, as vLLM wants one."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids or [tokenizer.bos_token_id or 0]


def _engine_options(checkpoint: Path, length: int, on_gpu: bool) -> dict[str, Any]:
    """vLLM's options per device. On CPU: float32 (bf16 is emulated there), eager, a cache for all sequences, and
    no prompt in pieces: for those vLLM 0.29 rewinds a request's own random numbers, as only CUDA's can be."""
    quiet = {"disable_log_stats": True, "use_tqdm_on_load": False, "seed": 0}
    if on_gpu:
        return quiet
    one = _kv_bytes(checkpoint, length)
    cache = max(_KV_FLOOR, one, min(_KV_CEILING, _SEQUENCES * one))
    cpu = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": _SEQUENCES, "kv_cache_memory_bytes": cache}
    return quiet | cpu | {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_STEP_TOKENS, length)}


def _kv_bytes(checkpoint: Path, length: int) -> int:
    """Bytes of keys and values of one sequence of ``length`` tokens, in float32."""
    config = json.loads((checkpoint / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * width * _FLOAT32
    return int(per_token * -(-length // _BLOCK) * _BLOCK)
