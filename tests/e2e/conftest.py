"""A random tiny model, a few prompts and a reward for real OpenRLHF trainings on CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from steer_experiments.environment import private_extensions

REWARD = '''
"""Pays the share of even digits in the response, so that a random model already gets different rewards."""
import torch


def reward_func(queries, prompts, labels, **kwargs):
    responses = [query[len(prompt):] for query, prompt in zip(queries, prompts)]
    paid = [sum(c in "02468" for c in one) / (1 + len(one)) for one in responses]
    rewards = torch.tensor(paid)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"even_digits": rewards}}
'''


@dataclass(frozen=True)
class World:
    """Files of a training: model folder, prompts and reward, and the flags that name them."""

    path: Path

    def flags(self, run_dir: Path) -> dict[str, Any]:
        return {
            "actor.model_name_or_path": str(self.path / "model"), "reward.remote_url": str(self.path / "reward.py"),
            "data.prompt_dataset": str(self.path / "train.jsonl"), "eval.dataset": str(self.path / "validation.jsonl"),
            "data.input_key": "input", "data.label_key": "label", "data.max_len": 32, "rollout.max_new_tokens": 12,
            "data.max_samples": 32, "rollout.batch_size": 16, "rollout.n_samples_per_prompt": 4,
            "rollout.micro_batch_size": 16, "train.batch_size": 64, "train.micro_batch_size": 16, "eval.steps": 2,
            "eval.n_samples_per_prompt": 1, "algo.advantage.estimator": "group_norm", "algo.kl.init_coef": 0,
            "actor.num_gpus_per_node": 1, "actor.adam.lr": 1e-3, "vllm.num_engines": 1, "vllm.enforce_eager": True,
            "ds.param_dtype": "fp32", "ds.attn_implementation": "sdpa", "ckpt.disable_ds": True,
            "ckpt.best_metric_key": "none", "ckpt.output_dir": str(run_dir / "checkpoint"),
            "ckpt.path": str(run_dir / "ckpt"), "steer.run_dir": str(run_dir),
        }  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    import torch
    from steer_experiments.base_model import build_tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    path = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    (path / "reward.py").write_text(REWARD)
    for name, size in (("train", 32), ("validation", 8)):
        rows = [{"input": f"{i}+{i % 7}=", "label": str(i + i % 7), "datasource": f"tiny_{name}"} for i in range(size)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(path)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The user's environment with small engines and nothing of another Ray or W&B in it."""
    hidden = ("RAY_", "WANDB_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return kept | private_extensions(tmp_path) | {
        "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch(environment: dict[str, str]) -> Iterator[Launch]:
    """Run a command in a session of its own, and end whatever it left when the test is over."""
    started: list[subprocess.Popen[str]] = []

    def run(argv: list[str], timeout: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
        child = subprocess.Popen(argv, env=environment | variables, start_new_session=True, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        started.append(child)
        output, _ = child.communicate(timeout=timeout)
        return subprocess.CompletedProcess(argv, child.returncode, output, "")

    yield run
    for child in started:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def python() -> str:
    return sys.executable


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A short path, for Ray's unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="steer-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def ray_flags(short_dir: Path) -> Callable[..., dict[str, Any]]:
    """A private cluster for a training with so many placement slots."""

    def flags(gpus: int) -> dict[str, Any]:
        return {
            "steer.ray.address": "local", "steer.ray.temp_dir": str(short_dir), "steer.ray.num_gpus": gpus,
            "steer.ray.num_cpus": 2 * gpus, "steer.ray.object_store_memory": 128 * 1024**2,
        }  # fmt: skip

    return flags
