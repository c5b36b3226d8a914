"""A controller to be killed: ``controller_program.py SWEEP STUDY [N]``. With N it kills itself with SIGKILL at the N-th
of the moments that matter: before (odd) or after (even) a write to the journal, a trial's
start, and the telling of a result."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steer_sweeps.controller import Controller
from steer_sweeps.executors.local import LocalExecutor
from steer_sweeps.spec import load_sweep
from steer_sweeps.storage import Journal
from steer_sweeps.study import Study, open_study

TRIAL = (sys.executable, str(Path(__file__).with_name("trial_program.py")), "{config}", "{run_dir}")
moments = 0


def moment() -> None:
    global moments
    moments += 1
    if len(sys.argv) > 3 and moments == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)


def dangerous(owner: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        moment()
        result = original(*args, **named)
        moment()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    sweep, path = load_sweep(Path(sys.argv[1])), Path(sys.argv[2])
    dangerous(Journal, "_write")
    dangerous(LocalExecutor, "submit")
    dangerous(Study, "complete")
    study = open_study(path, sweep)
    controller = Controller(study, lambda line: print(line, flush=True), TRIAL, poll_s=0.05)
    print("at work", flush=True)
    finished = controller.run()
    print("nothing left" if finished else "stopped", flush=True)
