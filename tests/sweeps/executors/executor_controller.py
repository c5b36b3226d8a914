"""A controller that is killed the moment it has submitted: ``executor_controller.py CONFIG_JSON FOLDER NAME DO``."""

import os
import signal
import sys
from pathlib import Path

from executor_places import Place
from pydantic import TypeAdapter
from steer_sweeps.executors.config import ExecutorConfig

if __name__ == "__main__":
    config, folder, name, do = sys.argv[1:]
    place = Place(TypeAdapter(ExecutorConfig).validate_json(config), Path(folder))
    place.executor().submit(place.job(name, do))
    os.kill(os.getpid(), signal.SIGKILL)
