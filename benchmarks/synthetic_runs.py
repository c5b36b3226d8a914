"""Run directories as a finished sweep leaves them, made up: for timing the report and looking at its pages.

python benchmarks/synthetic_runs.py DIR [--trials 1000]     a study of one suite, with Optuna's journal
python benchmarks/synthetic_runs.py DIR --arms              six arms x three seeds x the six suites of math6
"""

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from steer_analysis.records import Meta, Protocol
from steer_experiments.run_dir import write_json, write_yaml

ARMS: Mapping[str, tuple[float, float]] = {
    "grpo": (0.00, 0.12),
    "clip-higher": (0.01, 0.42),
    "clip-cov": (0.02, 0.35),
    "kl-cov": (0.015, 0.4),
    "steer": (0.05, 0.45),
    "steer-band": (0.045, 0.5),
}
"""Arm -> what it adds to the accuracy, and the entropy it ends at."""
SUITES: Mapping[str, tuple[int, int, float]] = {
    "aime24": (30, 32, 0.28),
    "aime25": (30, 32, 0.14),
    "amc23": (40, 32, 0.66),
    "math500": (500, 1, 0.78),
    "minerva_math": (272, 1, 0.37),
    "olympiadbench": (674, 1, 0.41),
}
"""Suite -> items, samples, accuracy."""
METHODS = {"grpo": "ppo", "clip-higher": "ppo", "steer-band": "steer"}
GRADER = "math-verify@0.9.0"
SENTENCES = (
    "Let us first write the condition as an equation in one unknown.",
    "Substituting the second relation gives $x^2 - 5x + 6 = 0$, so $x \\in \\{2, 3\\}$.",
    "By symmetry we may assume that $a \\le b \\le c$ and count the remaining cases.",
    "The sum telescopes, and only the first and the last term are left.",
    "Wait, this does not hold for $n = 1$, so we check that case by itself.",
)


def write_run(
    path: Path,
    method: str,
    seed: int,
    gain: float,
    entropy: float,
    steer: Mapping[str, Any],
    suites: Mapping[str, tuple[int, int, float]],
    steps: int = 60,
    long: bool = True,
) -> float:
    """One finished run with its evaluations; returns its last validation accuracy."""
    noise = random.Random(f"{path.name} {seed} {method}")
    path.mkdir(parents=True)
    config = {
        "name": path.name,
        "seed": seed,
        "task": {"name": "math"},
        "model": {"path": "Qwen2.5-Math-7B"},
        "openrlhf": {"actor": {"policy_loss_type": method, "adam": {"lr": 1e-6}}},
        "steer": dict(steer),
        "eval": {"suite": next(iter(suites)), "n_samples": 32},
    }
    write_yaml(path / "config.yaml", config)
    versions = {"openrlhf": "0.11.2", "vllm": "0.29.0", "torch": "2.13.0", "math-verify": "0.9.0"}
    git = {"commit": "4c6a90bb52a890b351bfa39156d91198019a0c5e", "dirty": False}
    write_json(path / "env.json", {"python": "3.11.7", "gpu": True, "cpus": 96, "packages": versions, "git": git})
    times = {"started": "2026-11-23T10:00:00+00:00", "updated": "2026-11-23T19:12:00+00:00"}
    state = {"state": "finished", "pid": 1, "pid_created": 1.0, "step": steps, "total_steps": steps, "exit_code": 0}
    write_json(path / "status.json", state | times)
    flags = {"actor": {"num_nodes": 1, "num_gpus_per_node": 8}, "vllm": {"num_engines": 8, "tensor_parallel_size": 1}}
    write_json(path / "host_args.json", flags | {"train": {"colocate_all": True, "async_enable": False}})
    rows = list(_metrics(noise, steps, 0.3 + gain, entropy, method))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for suite, shape in suites.items():
        _write_evaluation(path, suite, shape, gain + noise.gauss(0, 0.012), noise, long)
    return float(rows[-1]["eval/eval_math_validation_pass1"])


def _metrics(noise: random.Random, steps: int, top: float, floor: float, method: str) -> Iterator[dict[str, Any]]:
    wobble = noise.gauss(0, 0.02)
    for step in range(1, steps + 1):
        risen = 1 - math.exp(-4 * step / steps)
        entropy = floor + (1.1 - floor) * math.exp(-6 * step / steps) + wobble + noise.gauss(0, 0.012)
        row = {
            "step": step,
            "time": 1764000000.0 + step,
            "train/rollout/reward_mean": 0.2 + (top - 0.1) * risen + wobble + noise.gauss(0, 0.012),
            "train/steer/entropy": max(0.01, entropy),
            "train/steer/entropy_change": -0.02 * math.exp(-6 * step / steps) + noise.gauss(0, 0.01),
        }
        if method != "ppo":
            row["train/steer/weight_mean"] = 0.95 + noise.gauss(0, 0.004)
            row["train/steer/weight_at_min"] = 0.02 + abs(noise.gauss(0, 0.004))
            row["train/steer/omega_abs_p90"] = 0.1 * entropy + noise.gauss(0, 0.003)
        yield row
        if step % max(1, steps // 6) == 0:
            yield {"step": step, "eval/eval_math_validation_pass1": top * risen + noise.gauss(0, 0.01)}


def _write_evaluation(
    run: Path, suite: str, shape: tuple[int, int, float], gain: float, noise: random.Random, long: bool
) -> None:
    items, samples, level = shape
    tokens = 3072 if long else 24
    protocol = Protocol(suite, "ba92" * 16, items, samples, 1.0, 0.7, tokens, 0, GRADER, "chat template")
    lines = []
    for item in range(items):
        hard = random.Random(f"{suite} {item}").gauss(0, 1.3)
        odds = math.log(level / (1 - level)) + hard + 4.5 * gain
        chance = 1 / (1 + math.exp(-odds))
        for sample in range(samples):
            lines.append(json.dumps(_record(noise, suite, item, sample, chance, long)))
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    (folder / f"{suite}.jsonl").write_text("\n".join(lines) + "\n")
    context = {"versions": {"vllm": "0.29.0", "math-verify": "0.9.0"}, "git": {"commit": "c3cb822", "dirty": False}}
    Meta(protocol, str(run / "checkpoint"), f"{noise.getrandbits(256):064x}", True, context).write(
        folder / f"{suite}.meta.json"
    )


def _record(noise: random.Random, suite: str, item: int, sample: int, chance: float, long: bool) -> dict[str, Any]:
    gold = str(random.Random(f"gold {suite} {item}").randrange(1000))
    verdict = "correct" if noise.random() < chance else noise.choice(["wrong"] * 8 + ["unparsed", "truncated"])
    answer = gold if verdict == "correct" else str(noise.randrange(12)) if verdict == "wrong" else None
    words = " ".join(noise.choice(SENTENCES) for _ in range(noise.randrange(3, 40) if long else 0))
    prompt = "Let $ABC$ be a triangle with integer sides. " * (3 if long else 1) + f"Find item {item}."
    return {
        "item": f"{suite}-{item:03d}",
        "level": "all",
        "sample": sample,
        "seed": item * 1000 + sample,
        "prompt": prompt,
        "output": f"{words} \\boxed{{{answer}}}" if answer else words or "…",
        "answer": answer,
        "gold": gold,
        "verdict": verdict,
        "reason": "cut at 3072 tokens" if verdict == "truncated" else None,
        "grader": GRADER,
    }


def write_arms(folder: Path, seeds: int = 3) -> list[Path]:
    """Six arms with their seeds on the six suites."""
    runs = []
    for arm, (gain, entropy) in ARMS.items():
        for seed in range(seeds):
            path = folder / f"{arm}-{seed}"
            steer = {"lambda_min": 0.7} if arm == "steer" else {"band": {"low": 0.4}} if arm == "steer-band" else {}
            method = METHODS.get(arm, arm.replace("-", "_"))
            write_run(path, method, seed, gain, entropy, steer, SUITES)
            if arm == "clip-higher":
                _set_clip(path)
            runs.append(path)
    return runs


def _set_clip(path: Path) -> None:
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config.replace("actor:\n", "actor:\n    eps_clip_low_high: [0.2, 0.28]\n", 1))


def write_study(folder: Path, trials: int, items: int = 200, samples: int = 4, steps: int = 60) -> Path:
    """A study of ``trials`` searched trials and two baselines on one suite, with its journal."""
    suites = {"tiny_test": (items, samples, 0.5)}
    folder.mkdir(parents=True)
    write_yaml(folder / "study.yaml", {"name": "synthetic", "n_trials": trials, "direction": "maximize"})
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(study_name="synthetic", storage=storage, direction="maximize")
    for name, method in (("ppo", "ppo"), ("uniform", "uniform")):
        write_run(folder / "trials" / name, method, 0, 0.0, 0.2, {}, suites, steps, long=False)
    draw = random.Random(0)
    for number in range(trials):
        steer = {"lambda_min": draw.uniform(0.5, 0.95), "k": draw.uniform(1, 20)}
        gain = 0.1 - (steer["lambda_min"] - 0.7) ** 2 + draw.gauss(0, 0.01)
        entropy = 0.2 + 0.4 * (1 - steer["lambda_min"])
        path = folder / "trials" / str(number)
        value = write_run(path, "steer", 0, gain, entropy, steer, suites, steps, long=False)
        limits = {"lambda_min": (0.5, 0.95), "k": (1.0, 20.0)}
        space = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in limits.items()}
        study.add_trial(optuna.create_trial(params=steer, distributions=space, value=value))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--arms", action="store_true")
    args = parser.parse_args()
    if args.arms:
        write_arms(args.folder)
    else:
        write_study(args.folder, args.trials)


if __name__ == "__main__":
    main()
