"""How far a training that was killed and resumed is from one that was not, beside how far two equal ones are apart.

    .venv/bin/python benchmarks/resume.py runs/resume          # again: goes on; --table: only the table

Every arm is run three times from one recipe and seed: ``a`` and ``b`` undisturbed, ``resumed`` killed with SIGKILL
after its checkpoint and continued by ``steer train --resume``. The table has the largest difference over the steps
after the X ``ppo`` is
OpenRLHF's own loss.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from steer_experiments.run_dir import RunDir

RECIPE = Path(__file__).parents[1] / "experiments" / "recipes" / "tiny" / "collapse.yaml"
STEPS, SAVED = 6, 3
COMMON = ["seed=0", f"openrlhf.ckpt.save_steps={SAVED}", "openrlhf.ckpt.disable_ds=false", "openrlhf.eval.steps=-1"]
COMMON += [f"openrlhf.data.max_samples={64 * STEPS}"]  # 64 prompts a step
ARMS = {
    "ppo": ["openrlhf.actor.policy_loss_type=ppo", "steer=null"],
    "band": ["openrlhf.actor.policy_loss_type=steer", "steer.estimator=influence_head", "steer.band=[-0.02, 0.02]"],
}
METRICS = ("train/rollout/reward_mean", "train/policy_loss", "train/steer/entropy", "train/steer/band_measured")


def command(arm: str, run: RunDir, *words: str) -> list[str]:
    train = [sys.executable, "-m", "steer_sweeps", "train", str(RECIPE), *COMMON, *ARMS[arm]]
    return [*train, "--run-dir", str(run.path), *words]


def state(run: RunDir) -> str:
    status = run.read_status()
    return status.state if status else "not started"


def whole(arm: str, run: RunDir) -> None:
    if state(run) != "finished":
        subprocess.run(command(arm, run), check=True)


def killed_and_resumed(arm: str, run: RunDir) -> None:
    """SIGKILL once a step after the checkpoint is in the metrics."""
    if state(run) == "finished":
        return
    training = subprocess.Popen(command(arm, run))
    while last_step(run) <= SAVED:
        if training.poll() is not None:
            raise SystemExit(f"{run.path}: ended with {training.returncode} before it could be killed")
        time.sleep(0.05)
    training.kill()
    training.wait()
    subprocess.run(command(arm, run, "--resume"), check=True)


def last_step(run: RunDir) -> int:
    return max((row["step"] for row in run.read_metrics() if "train/policy_loss" in row), default=0)


def difference(one: RunDir, other: RunDir, metric: str) -> float | None:
    """The largest over the steps after the checkpoint; None where the metric is not recorded."""
    a, b = ({row["step"]: row[metric] for row in run.read_metrics() if metric in row} for run in (one, other))
    steps = range(SAVED + 1, STEPS + 1)
    return max(abs(a[step] - b[step]) for step in steps) if a and b else None


def table(folder: Path, arms: Sequence[str]) -> str:
    lines = ["| arm | metric | b from a | resumed from a | resumed from b |", "|---|---|---|---|---|"]
    for arm in arms:
        a, b, resumed = (RunDir(folder / f"{arm}-{name}") for name in ("a", "b", "resumed"))
        for metric in METRICS:
            found = difference(a, b, metric), difference(a, resumed, metric), difference(b, resumed, metric)
            numbers = [f"{one:.3g}" for one in found if one is not None]
            if len(numbers) == len(found):
                lines.append(f"| {arm} | {metric} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    for arm in () if args.table else args.arms:
        for name, run in (("a", whole), ("b", whole), ("resumed", killed_and_resumed)):
            run(arm, RunDir(args.folder / f"{arm}-{name}"))
    print(table(args.folder, args.arms))


if __name__ == "__main__":
    main()
