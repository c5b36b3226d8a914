"""A program that honours the run directory's contract in a fraction of a second: ``trial_program.py CONFIG RUN_DIR``.

``behaviour.json`` beside the study says what it does: {"<loss>" or "<run>": "crash"}, or memory, vanish, nan, mismatch,
slow, hang, deaf (hangs, and does not hear SIGTERM), torn, fill (writes until the disk is full), curve, slow-curve; all
else ends well. ``starts.log`` and ``ends.log`` beside it get a line for every start and every good end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from steer_experiments.run_dir import RunDir, Status, now, write_json

CURVE = (0.01, 0.02, 0.03, 0.015, 0.0)
"""What a run that evaluates often adds to its score at steps 1, 2, ..."""
PAUSES_S = {"slow": 3.0, "hang": 600.0, "deaf": 600.0}


def main(config: Path, run: RunDir) -> int:
    trials = next(one for one in run.path.parents if one.name == "trials")
    home, name = trials.parents[1], str(run.path.relative_to(trials))
    experiment = yaml.safe_load(config.read_text())
    loss = experiment["openrlhf"]["actor"]["policy_loss_type"]
    behaviours = json.loads((home / "behaviour.json").read_text()) if (home / "behaviour.json").exists() else {}
    behaviour = behaviours.get(name, behaviours.get(loss, "good"))
    append(home / "starts.log", name)
    me = psutil.Process()
    status = Status(
        state="running", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now(), total_steps=2
    )
    signal.signal(
        signal.SIGTERM, lambda *_: (run.write_status(status.changed(state="stopped", reason="asked")), os._exit(0))
    )
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run.write_status(status)
    if (code := misbehave(behaviour, run, status)) is not None:
        return code
    steer = dict(experiment["steer"])
    score = quality(steer.get("lambda_min", 0.0), experiment["seed"])
    if behaviour == "mismatch":
        steer["lambda_min"] = 0.123
    write_json(run.host_args, {"steer": steer, "train": {"seed": experiment["seed"]}, **experiment["openrlhf"]})
    write_metrics(run, behaviour, score)
    run.write_status(status.changed(state="finished", step=2, exit_code=0))
    append(home / "ends.log", name)
    return 0


def quality(lambda_min: float, seed: int) -> float:
    """The score of a run, which a test knows too."""
    return 0.5 + lambda_min / 10 + 0.003 * (seed % 3)


def misbehave(behaviour: str, run: RunDir, status: Status) -> int | None:
    time.sleep(PAUSES_S.get(behaviour, 0.2))
    if behaviour == "crash":
        run.write_status(status.changed(state="failed", reason="it crashed\nlast lines", exit_code=1))
        return 1
    if behaviour == "memory":
        run.log.write_text("step 1\ntorch.OutOfMemoryError: CUDA out of memory\n")
        run.write_status(status.changed(state="failed", reason="the process ended with exit code 1", exit_code=1))
        return 1
    if behaviour == "vanish":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "fill":
        with run.log.open("wb") as file:
            while True:
                file.write(b"x" * 65536)
                file.flush()
    return None


def write_metrics(run: RunDir, behaviour: str, score: float) -> None:
    values: list[Any] = [None] if behaviour == "nan" else [score]
    if behaviour.endswith("curve"):
        values = [score + added for added in CURVE]
    with run.metrics.open("a") as file:
        for step, value in enumerate(values, start=1):
            row = {"step": step, "time": time.time(), "eval/score": value, "eval/second": -value if value else None}
            file.write(json.dumps(row | {"train/steer/entropy": 0.3 + step / 100}) + "\n")
            file.flush()
            time.sleep({"curve": 0.1, "slow-curve": 1.0}.get(behaviour, 0.0))
        if behaviour == "torn":
            file.write('{"step": 9, "eval/sc')


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), RunDir(sys.argv[2])))
