"""A trial that asks for its GPUs as OpenRLHF does, in two placement groups: ``executor_groups.py CONFIG RUN_DIR``.

It holds two GPUs when it asks for the third, and gives the other trial time to do the same.
"""

import sys
import time
from pathlib import Path

import psutil
import ray
import yaml
from executor_trial import note
from ray.util import placement_group
from steer_experiments.run_dir import RunDir, Status, now

OTHER_S, GIVE_UP_S = 4.0, 5.0


def main(config: Path, run: RunDir) -> int:
    ledger = Path(yaml.safe_load(config.read_text())["ledger"])
    me = psutil.Process()
    status = Status(state="running", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now())
    run.write_status(status)
    ray.init(log_to_driver=False)
    note(ledger, {"what": "start", "at": time.monotonic(), "pids": [me.pid]})
    first = placement_group([{"GPU": 1, "CPU": 1}] * 2, strategy="PACK")
    assert first.wait(60)
    note(ledger, {"what": "half", "at": time.monotonic()})
    end = time.monotonic() + OTHER_S
    while time.monotonic() < end and ledger.read_text().count('"half"') < 2:
        time.sleep(0.1)
    placed = placement_group([{"GPU": 1, "CPU": 1}], strategy="PACK").wait(GIVE_UP_S)
    note(ledger, {"what": "end", "at": time.monotonic(), "placed": placed})
    run.write_status(status.changed(state="finished" if placed else "failed"))
    return 0 if placed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), RunDir(sys.argv[2])))
