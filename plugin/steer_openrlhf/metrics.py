"""``metrics.jsonl`` and ``host_args.json``: what OpenRLHF's trainer logs, in a file. Runs in the trainer's process."""

import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .hostargs import from_nested, nested

SECRET_WORDS = ("key", "token", "secret", "password")
NOT_SECRET = ("input_key", "label_key", "image_key", "best_metric_key", "max_tokens_per_gpu", "disable_fast_tokenizer")


class MetricsLogger:
    """Has the interface of OpenRLHF's loggers and stands before its W&B logger.

    Writes ``<run_dir>/host_args.json`` once and appends one JSON object a line to ``<run_dir>/metrics.jsonl`` (nothing
    without ``--steer.run_dir``). A line is written in one call and flushed, so a reader or a crash sees whole lines,
    but for a torn last one. NaN and infinity are written as null and named under ``nonfinite``.
    """

    def __init__(self, args: SimpleNamespace, wandb_logger: Any = None) -> None:
        run_dir = from_nested(args).launch.run_dir
        self.path = Path(run_dir) / "metrics.jsonl" if run_dir else None
        self.wandb_logger = wandb_logger
        self.entropy: float | None = None
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write_json(self.path.with_name("host_args.json"), without_secrets(nested(args)))

    def log_train(self, global_step: int, logs_dict: dict[str, Any]) -> None:
        """Called by OpenRLHF after each step with its status, which is completed for the loggers after this one."""
        self._complete(global_step, logs_dict)
        self._write(global_step, "train/", logs_dict)
        if self.wandb_logger:
            self.wandb_logger.log_train(global_step, logs_dict)

    def log_eval(self, global_step: int, logs_dict: dict[str, Any]) -> None:
        """Called by OpenRLHF after each evaluation."""
        self._write(global_step, "eval/", logs_dict)
        if self.wandb_logger:
            self.wandb_logger.log_eval(global_step, logs_dict)

    def close(self) -> None:
        """Called by OpenRLHF at the end."""
        if self.wandb_logger:
            self.wandb_logger.close()

    def _complete(self, step: int, status: dict[str, Any]) -> None:
        """Add ``steer/entropy_change``, and stop a run whose actor shows no sign of the plugin.

        The change is the difference of mean entropy (nats per token) to the step before: other prompts, so a noisy view
        of the curve's slope, not the ground truth of one update.
        """
        if "policy_loss" not in status:
            return  # the actor is frozen while the critic warms up
        if status.get("steer/active") != 1.0:
            active = status.get("steer/active")
            raise RuntimeError(f"step {step} was trained without steer_openrlhf: steer/active is {active}, not 1")
        entropy = float(status["steer/entropy"])
        if self.entropy is not None:
            status["steer/entropy_change"] = entropy - self.entropy
        self.entropy = entropy

    def _write(self, step: int, prefix: str, values: dict[str, Any]) -> None:
        if not self.path:
            return
        line: dict[str, Any] = {"step": step, "time": time.time()}
        numbers = {prefix + name: value for name, value in values.items() if isinstance(value, bool | int | float)}
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if broken := [name for name in numbers if line[name] is None]:
            line["nonfinite"] = broken
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """The same nested dict with every key, token, secret and password replaced."""
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            clean[name] = without_secrets(value)
        elif value and name not in NOT_SECRET and any(word in name.split("_") for word in SECRET_WORDS):
            clean[name] = "(not written)"
        else:
            clean[name] = value
    return clean


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")
    os.replace(temporary, path)
