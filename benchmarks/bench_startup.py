"""Where the time goes from the start of `steer train` to the first rollout and the first step of a tiny trial on CPU.

    make bench

One real run (Ray, DeepSpeed, vLLM, OpenRLHF; two steps) as it is, and one in which every process imports the stack for
itself (`STEER_OPENRLHF_FORK=0`, see `steer_openrlhf.fork_server`). A phase ends when its mark appears in the run
directory: a file, or a line of the log, which Ray brings up to half a second late. The task and the model are built
before; the system's file cache is as it is found.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

REPO = Path(__file__).resolve().parent.parent
RECIPE = REPO / "experiments/recipes/tiny/steer.yaml"
STEPS = ("openrlhf.data.max_samples=128",)  # two steps of 64 prompts
POLL_S, LONGEST_S = 0.02, 600
AIM_S = 35


class Phase(NamedTuple):
    """What happens, and the file of the run directory and the words in it that end it (empty: the file is there)."""

    name: str
    file: str
    mark: str


PHASES = (
    Phase("supervisor: check the recipe, find task and model", "prepared.json", ""),
    Phase("launcher: check the command line, start Ray", "log.txt", "Started a local Ray instance"),
    Phase("import torch, DeepSpeed, vLLM, OpenRLHF; start the actors", "log.txt", "Loading custom `reward_func"),
    Phase("vLLM: engine started, cache of keys and values", "log.txt", r"init engine \(profile"),
    Phase("policy: DeepSpeed, weight synchronisation set up, proof", "log.txt", r"\[steer_openrlhf\] live"),
    Phase("first rollout started", "log.txt", "Generate samples:   0%"),
    Phase("first answers: vLLM's sampler compiled or read from cache", "log.txt", "prompts_consumed"),
    Phase("first step trained, its metrics written", "metrics.jsonl", "train/policy_loss"),
)
STARTED, ANSWERED = 5, 6
"""Places in PHASES of the two ends of a start-up."""


def marks(run: Path, process: subprocess.Popen[bytes], started: float) -> list[float]:
    """Seconds from the start to the end of each phase. Raises RuntimeError for a run that fails or hangs."""
    found: list[float] = [float("nan")] * len(PHASES)
    waiting = set(range(len(PHASES)))
    while waiting:
        time.sleep(POLL_S)
        texts = {phase.file: _text(run / phase.file) for phase in PHASES}
        for index in sorted(waiting):
            text = texts[PHASES[index].file]
            if text is not None and re.search(PHASES[index].mark, text):
                found[index] = time.monotonic() - started
                waiting.discard(index)
        if waiting and (process.poll() is not None or time.monotonic() - started > LONGEST_S):
            raise RuntimeError(
                f"no mark of {PHASES[min(waiting)].name!r}; the end of the log:\n{texts['log.txt']}"[-4000:]
            )
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def trial(folder: Path, **variables: str) -> tuple[list[float], float]:
    """The marks of one run, and the seconds it took in all."""
    command = [sys.executable, "-m", "steer_experiments.train", str(RECIPE), "--run-dir", str(folder), *STEPS]
    started = time.monotonic()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=os.environ | variables, stdout=quiet, stderr=quiet)
    try:
        found = marks(folder, process, started)
        if code := process.wait(LONGEST_S):
            raise RuntimeError(f"the run ended with exit code {code}: {_text(folder / 'status.json')}")
    finally:
        process.terminate()
        process.wait()
    return found, time.monotonic() - started


def table(found: list[float], alone: list[float]) -> str:
    """A row a phase, in the order their marks came: two processes work at a time, so the order may change."""
    lines = ["| phase ends | at, s | takes, s | share | each imports for itself: at, s |", "|---|---|---|---|---|"]
    before = 0.0
    for index in sorted(range(len(PHASES)), key=found.__getitem__):
        took, whole = found[index] - before, max(found)
        lines.append(
            f"| {PHASES[index].name} | {found[index]:.1f} | {took:.1f} | {took / whole:.0%} | {alone[index]:.1f} |"
        )
        before = found[index]
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="steer-startup-") as name:
        folder = Path(name)
        prepare = [sys.executable, "-m", "steer_experiments.prepare", str(RECIPE), str(folder / "prepared.json")]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
        load = os.getloadavg()[0]
        found, whole = trial(folder / "run")
        alone, whole_alone = trial(folder / "alone", STEER_OPENRLHF_FORK="0")
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {platform.machine()}, torch {torch.__version__}, load before {load:.1f}")
    print(table(found, alone))
    print(f"whole run of two steps: {whole:.1f} s; each process importing for itself: {whole_alone:.1f} s")
    ends = f"started {found[STARTED]:.1f} s, answered {found[ANSWERED]:.1f} s"
    print(f"first rollout: {ends}; aim {AIM_S} s: {'reached' if found[ANSWERED] < AIM_S else 'missed'}")


if __name__ == "__main__":
    main()
