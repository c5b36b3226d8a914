"""A controller for `faults.py`: `fault_controller.py small|real SWEEP STUDY`; ends as `steer sweep run` does (0; 130
when it was asked to stop), without the evaluation at the end."""

import sys
from pathlib import Path

from steer_sweeps.controller import TRIAL_COMMAND, Controller
from steer_sweeps.spec import load_sweep
from steer_sweeps.study import open_study

TRIAL = (sys.executable, str(Path(__file__).with_name("fault_trial.py")), "{config}", "{run_dir}")
SMALL_SILENCE_S, SMALL_PATIENCE_S = 10.0, 2.0
"""How long a small trial may write nothing (it beats every 0.4 s), and has to end when it is asked to."""
STOPPED = 130


def main() -> int:
    trials, sweep, path = sys.argv[1], load_sweep(Path(sys.argv[2])), Path(sys.argv[3])
    command = TRIAL if trials == "small" else TRIAL_COMMAND
    controller = Controller(open_study(path, sweep), lambda line: print(line, flush=True), command)
    if trials == "small":
        controller.poll_s, controller.pause_s = 0.2, 1.0
        controller.attendant.silence_s, controller.attendant.patience_s = SMALL_SILENCE_S, SMALL_PATIENCE_S
    return 0 if controller.run() else STOPPED


if __name__ == "__main__":
    sys.exit(main())
