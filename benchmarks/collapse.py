"""What each intervention does to entropy and accuracy where plain GRPO collapses: real trainings, several seeds.

    .venv/bin/python benchmarks/collapse.py runs/collapse --seeds 0 1 2       # again: goes on; --table: only the table

Every arm of collapse-arms.yaml, beside this file, is ``steer train experiments/recipes/tiny/collapse.yaml`` with
its overrides and a seed, in ``<folder>/<arm>-<seed>``. A finished run is not repeated; one that failed is a state in
the table, never a number.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from steer_experiments.recipes import read_yaml
from steer_experiments.run_dir import RunDir

TINY = Path(__file__).parents[1] / "experiments" / "recipes" / "tiny"
ENTROPY, VALIDATION = "train/steer/entropy", "eval/eval_tiny_validation_pass1"
IN_BAND, STEPS = "train/steer/band_steps_in_band", "train/steer/band_steps"
HEAD = ("arm", "seeds", "entropy, first step", "last step", "last/first, %", "validation, mean of last 2, %", "in band")


def train(folder: Path, arm: str, overrides: Mapping[str, Any], seed: int) -> None:
    """One run, unless it is finished already."""
    run = RunDir(folder / f"{arm}-{seed}")
    status = run.read_status()
    if status and status.state == "finished":
        return
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "steer_sweeps", "train", str(TINY / "collapse.yaml"), *words, f"seed={seed}"]
    run.path.parent.mkdir(parents=True, exist_ok=True)
    with (run.path.parent / f"{run.path.name}.txt").open("wb") as output:
        done = subprocess.run([*command, "--run-dir", str(run.path)], stdout=output, stderr=output, check=False)
    print(f"{run.path}: {'finished' if done.returncode == 0 else f'exit code {done.returncode}'}", flush=True)


def numbers(run: RunDir) -> dict[str, float]:
    """What the table needs of a finished run; entropies in nats, rates in per cent."""
    rows = run.read_metrics()
    entropy = [row[ENTROPY] for row in rows if ENTROPY in row]
    accuracy = [row[VALIDATION] for row in rows if VALIDATION in row]
    found = {"first": entropy[0], "last": entropy[-1], "ratio": 100 * entropy[-1] / entropy[0]}
    found["accuracy"] = 100 * float(np.mean(accuracy[-2:]))
    steps = [row for row in rows if STEPS in row]
    if steps and steps[-1][STEPS]:
        found["in_band"] = 100 * steps[-1][IN_BAND] / steps[-1][STEPS]
    return found


def interval(values: Sequence[float], digits: int) -> str:
    """Mean and 95 % t interval over seeds."""
    if len(values) < 2:
        return " ".join(f"{one:.{digits}f}" for one in values) or "-"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def table(folder: Path, arms: Sequence[str]) -> str:
    """Markdown: an arm a row, mean ± half of the 95 % t interval over its finished seeds."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for arm in arms:
        runs = [RunDir(path) for path in sorted(folder.glob(f"{arm}-[0-9]*")) if path.is_dir()]
        states = [status.state if (status := run.read_status()) else "not started" for run in runs]
        good = [numbers(run) for run, state in zip(runs, states, strict=True) if state == "finished"]
        lost = "".join(f", {states.count(state)} {state}" for state in sorted(set(states) - {"finished"}))
        columns = [("first", 2), ("last", 3), ("ratio", 0), ("accuracy", 1), ("in_band", 0)]
        cells = [interval([one[name] for one in good if name in one], digits) for name, digits in columns]
        lines.append("| " + " | ".join([arm, f"{len(good)}{lost}", *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", help="default: all")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    arms = read_yaml(Path(__file__).with_name("collapse-arms.yaml"))
    chosen = args.arms or list(arms)
    if not args.table:
        with ThreadPoolExecutor(args.slots) as pool:
            waiting = [pool.submit(train, args.folder, arm, arms[arm], seed) for seed in args.seeds for arm in chosen]
            for one in waiting:
                one.result()
    print(table(args.folder, chosen))


if __name__ == "__main__":
    main()
