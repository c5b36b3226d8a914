"""What a Slurm job of ours runs: ``python -m steer_sweeps.executors.slurm_entry MARK STOP_S COMMAND...``.

Slurm's own requests to end (a preemption, a requeue, ``scancel``) reach every process of the job; then this one only
waits. Two signals come to it alone: USR1, to stop the trial, and USR2, that the time limit is near: the trial is
stopped and the job put back into the queue. A job that starts again goes on from its checkpoint (``STEER_RESUME``).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from steer_experiments import processes
from steer_experiments.run_dir import write_text

from .records import JOB_VARIABLE, Record, end_marked

POLL_S = 0.2
STOP, TIME_IS_UP = signal.SIGUSR1, signal.SIGUSR2


def main(mark: Path, stop_s: float, command: list[str]) -> int:
    record, received = Record(mark), _signals()
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    (mark / "exit").unlink(missing_ok=True)
    write_text(record.started, os.environ.get("SLURM_JOB_ID", ""))
    processes.adopt_orphans()
    variables = os.environ | {JOB_VARIABLE: str(mark)} | ({"STEER_RESUME": "1"} if again else {})
    child = processes.spawn(command, sys.stdout.buffer, variables)
    code = _wait(child, received, stop_s)
    end_marked(mark, stop_s)
    if TIME_IS_UP in received and _requeued():
        return code
    write_text(mark / "exit", f"{code}\n")
    return code


def _signals() -> list[int]:
    """Receives the signals instead of this process."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGCONT, STOP, TIME_IS_UP):
        signal.signal(number, lambda got, frame: received.append(got))
    return received


def _wait(child: "subprocess.Popen[bytes]", received: list[int], stop_s: float) -> int:
    asked, told = 0.0, False
    while child.poll() is None:
        time.sleep(POLL_S)
        alone = STOP in received or TIME_IS_UP in received
        if alone and not told and signal.SIGTERM not in received:
            child.terminate()
        told = told or alone
        asked = asked or (time.monotonic() if alone or signal.SIGTERM in received else 0.0)
        if asked and time.monotonic() - asked > stop_s:
            child.kill()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _requeued() -> bool:
    """Back into the queue, which ends this job. False: Slurm does not want it."""
    return subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]).returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
