"""Answers from a checkpoint with vLLM's offline engine; vLLM is imported here and nowhere else, and only when called.

On CPU the engine gets a key-value cache of the size it needs: touching vLLM's usual gigabyte took 4 of the 5 seconds an
engine needs to start. Without CUDA it runs inside this process, so that many checkpoints pay for one import.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SEQUENCES = 256  # answered at once on CPU
_KV_FLOOR, _KV_CEILING = 64 * 2**20, 4 * 2**30  # bytes
_FLOAT32 = 4
_BLOCK = 128  # tokens in a block of vLLM's CPU cache: a sequence takes whole blocks
_QUIET_CPU_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; lengths in tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Completion:
    """One answer. ``truncated``: it ran into ``max_new_tokens`` instead of ending by itself."""

    text: str
    truncated: bool


class Engine:
    """vLLM holding one checkpoint. Close it before the next is opened: it gives back its memory only then.

    Args:
        prompts: every text that will be asked; the longest decides the engine's context.
        chat: put each prompt through the tokenizer's chat template as the user's turn, as OpenRLHF does.

    Raises:
        ValueError: the longest prompt and ``max_new_tokens`` exceed the model's context.
        OSError, RuntimeError: what vLLM says about a checkpoint it cannot load.
    """

    def __init__(self, checkpoint: Path, prompts: Sequence[str], sampling: Sampling, chat: bool = False) -> None:
        on_gpu = _prepare_environment()
        from transformers import AutoTokenizer
        from vllm import LLM

        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
        self._tokens = {prompt: _tokenize(tokenizer, prompt, chat) for prompt in prompts}
        self._sampling = sampling
        length = max(map(len, self._tokens.values())) + sampling.max_new_tokens
        self._llm: Any = None
        try:
            self._llm = LLM(model=str(checkpoint), max_model_len=length, **_engine_options(checkpoint, length, on_gpu))
        except BaseException:
            self.close()
            raise

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Completion]:
        """One completion for each prompt, drawn with the seed of the same place; in order."""
        from vllm import SamplingParams, TokensPrompt

        chosen = self._sampling
        parameters = [
            SamplingParams(
                temperature=chosen.temperature, top_p=chosen.top_p, max_tokens=chosen.max_new_tokens, seed=seed
            )
            for seed in seeds
        ]
        inputs = [TokensPrompt(prompt_token_ids=self._tokens[prompt]) for prompt in prompts]
        outputs = [result.outputs[0] for result in self._llm.generate(inputs, parameters, use_tqdm=False)]
        return [Completion(output.text, output.finish_reason == "length") for output in outputs]

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()


def _prepare_environment() -> bool:
    """Settings vLLM reads when it is imported; returns whether CUDA is there. What the user has set stays."""
    import torch

    on_gpu = bool(torch.cuda.is_available())
    if not on_gpu:
        for name, value in _QUIET_CPU_ENV.items():
            os.environ.setdefault(name, value)
    return on_gpu


def _tokenize(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """Token ids as OpenRLHF's rollout makes them: the template's text, then no special tokens added."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids


def _engine_options(checkpoint: Path, length: int, on_gpu: bool) -> dict[str, Any]:
    """vLLM's options per device. On CPU: float32 (bf16 is emulated there), eager, a cache for all sequences at once."""
    quiet = {"disable_log_stats": True, "use_tqdm_on_load": False, "seed": 0}
    if on_gpu:
        return quiet
    one = _kv_bytes(checkpoint, length)
    cache = max(_KV_FLOOR, one, min(_KV_CEILING, _SEQUENCES * one))
    cpu = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": _SEQUENCES, "kv_cache_memory_bytes": cache}
    return quiet | cpu


def _kv_bytes(checkpoint: Path, length: int) -> int:
    """Bytes of keys and values of one sequence of ``length`` tokens, in float32."""
    config = json.loads((checkpoint / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * width * _FLOAT32
    return int(per_token * -(-length // _BLOCK) * _BLOCK)
