"""A small trial for `faults.py`: `fault_trial.py CONFIG RUN_DIR`. It honours the run directory's contract as `steer
train` does, with a worker in a session of its own, as Ray's are, which writes the metrics. The objective depends on
nothing but `steer.lambda_min`. Python's standard library only: it starts in 0.1 s.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

METRIC = "eval/eval_tiny_validation_pass1"
STEPS, STEP_S = 6, 0.4
LAST_S = 0.6
"""From the last line of the metrics to the end of the run."""
BEAT_S = 0.4
NO_SPACE = 28
"""The worker's exit code when it cannot write."""


def score(lambda_min: float, step: int) -> float:
    return round(1 - (lambda_min - 0.71) ** 2 - 0.1 * (STEPS - step), 12)


def worker(run_dir: Path, lambda_min: float) -> int:
    for step in range(1, STEPS + 1):
        time.sleep(STEP_S)
        row = {"step": step, "time": time.time(), METRIC: score(lambda_min, step)}
        try:
            with (run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            return NO_SPACE if error.errno == NO_SPACE else 1
    return 0


def write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def created() -> float:
    """When this process was created, in seconds since the epoch, as psutil has it."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    assert boot
    return int(boot[1]) + int(ticks) / os.sysconf("SC_CLK_TCK")


class Supervisor:
    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.began = run_dir, time.monotonic()
        self.facts: dict[str, Any] = {"pid": os.getpid(), "pid_created": created(), "total_steps": STEPS}
        self.facts["started"] = datetime.now(UTC).isoformat()
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def status(self, state: str, **more: Any) -> None:
        now = {"updated": datetime.now(UTC).isoformat(), "seconds": time.monotonic() - self.began}
        write(self.run_dir / "status.json", self.facts | {"state": state} | now | more)

    def run(self, lambda_min: float) -> int:
        write(self.run_dir / "host_args.json", {"steer": {"lambda_min": lambda_min}})
        words = [sys.executable, __file__, "--worker", str(self.run_dir), repr(lambda_min)]
        child = subprocess.Popen(words, start_new_session=True)
        self.facts["worker"] = child.pid
        beat = 0.0
        while (code := child.poll()) is None and not self.asked:
            if time.monotonic() - beat > BEAT_S:
                beat = time.monotonic()
                self.status("running", step=self._step())
            time.sleep(0.05)
        if code is None:
            child.terminate()
            child.wait()
            self.status("stopped", reason="asked to stop")
            return 0
        if code:
            why = "No space left on device" if code == NO_SPACE else f"worker died (exit code {code})"
            self.status("failed", reason=why, exit_code=1)
            return 1
        time.sleep(LAST_S)
        self.status("finished", step=STEPS, exit_code=0)
        return 0

    def _step(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> int:
    if sys.argv[1] == "--worker":
        return worker(Path(sys.argv[2]), float(sys.argv[3]))
    found = re.search(r"^ *lambda_min: (.+)$", Path(sys.argv[1]).read_text(), re.MULTILINE)
    assert found, "the config has no lambda_min"
    return Supervisor(Path(sys.argv[2])).run(float(found[1]))


if __name__ == "__main__":
    sys.exit(main())
