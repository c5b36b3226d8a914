"""A program that honours the run directory's contract in a fraction of a second: ``trial_program.py CONFIG RUN_DIR``.

``behaviour.json`` beside the study says what it does: {"<loss>" or "<run>": "crash"}, or vanish, nan, mismatch, slow,
hang; all else ends well. ``starts.log`` and ``ends.log`` beside it get a line for every start and every good end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import yaml
from steer_experiments.run_dir import RunDir, Status, now, write_json


def main(config: Path, run: RunDir) -> int:
    home = run.path.parents[2]
    experiment = yaml.safe_load(config.read_text())
    loss = experiment["openrlhf"]["actor"]["policy_loss_type"]
    behaviours = json.loads((home / "behaviour.json").read_text()) if (home / "behaviour.json").exists() else {}
    behaviour = behaviours.get(run.path.name, behaviours.get(loss, "good"))
    append(home / "starts.log", run.path.name)
    me = psutil.Process()
    status = Status(
        state="running", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now(), total_steps=2
    )
    signal.signal(
        signal.SIGTERM, lambda *_: (run.write_status(status.changed(state="stopped", reason="asked")), os._exit(0))
    )
    run.write_status(status)
    time.sleep({"slow": 3.0, "hang": 600.0}.get(behaviour, 0.2))
    if behaviour == "crash":
        run.write_status(status.changed(state="failed", reason="it crashed\nlast lines", exit_code=1))
        return 1
    if behaviour == "vanish":
        os.kill(me.pid, signal.SIGKILL)
    steer = dict(experiment["steer"])
    if behaviour == "mismatch":
        steer["lambda_min"] = 0.123
    write_json(run.host_args, {"steer": steer, **experiment["openrlhf"]})
    value = None if behaviour == "nan" else 0.5 + steer.get("lambda_min", 0.0) / 10
    rows = [{"step": step, "time": time.time(), "eval/score": value} for step in (1, 2)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_status(status.changed(state="finished", step=2, exit_code=0))
    append(home / "ends.log", run.path.name)
    return 0


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), RunDir(sys.argv[2])))
