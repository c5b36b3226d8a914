"""A small program that honours the run directory's contract: ``executor_trial.py CONFIG RUN_DIR``.

``config.yaml`` says what it does: ``do`` is good, slow, hang, deaf, crash or vanish; ``ledger`` is a file that gets a
JSON line for its start and its end (machine-wide clock in seconds, processes, devices), whoever sees RUN_DIR.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from steer_experiments.run_dir import RunDir, Status, now, write_json

LASTS_S = {"good": 0.2, "slow": 1.0, "hang": 600.0, "deaf": 600.0}


def main(config: Path, run: RunDir) -> int:
    given = yaml.safe_load(config.read_text())
    do, ledger = given["do"], Path(given["ledger"])
    me = psutil.Process()
    status = Status(state="running", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now())
    signal.signal(signal.SIGTERM, signal.SIG_IGN if do == "deaf" else lambda *_: stop(run, status))
    pids = [me.pid]
    if do in ("hang", "deaf"):  # and something in a session of its own, which no process group finds
        pids.append(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    note(ledger, {"what": "start", "at": time.monotonic(), "pids": pids, "devices": devices, "argv": sys.argv,
                  "resume": os.environ.get("STEER_RESUME", "")})  # fmt: skip
    write_rows(run, [1])
    run.write_status(status)
    time.sleep(LASTS_S.get(do, 0.0))
    if do == "crash":
        run.write_status(status.changed(state="failed", reason="it crashed", exit_code=3))
        return 3
    if do == "vanish":
        os.kill(me.pid, signal.SIGKILL)
    write_rows(run, [2])
    write_json(run.host_args, {"steer": {"lambda_min": 0.7}})
    note(ledger, {"what": "end", "at": time.monotonic(), "pid": me.pid})
    run.write_status(status.changed(state="finished", step=2, exit_code=0))
    return 0


def stop(run: RunDir, status: Status) -> None:
    run.write_status(status.changed(state="stopped", reason="asked"))
    os._exit(130)


def write_rows(run: RunDir, steps: list[int]) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps({"step": step, "time": time.time(), "eval/score": 0.5}) + "\n" for step in steps)


def note(ledger: Path, line: dict[str, Any]) -> None:
    with ledger.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), RunDir(sys.argv[2])))
