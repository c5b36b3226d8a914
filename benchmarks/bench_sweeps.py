"""What a sweep's controller costs: slot time kept busy, CPU per event, memory, and the time to resume a large study.

    make bench                                         # 320 runs, resume of 2,000 trials
    .venv/bin/python benchmarks/bench_sweeps.py --full # 2,000 runs, resume of 10,000 trials

The runs are real processes on 16 slots that honour the run directory's contract: a POSIX shell and one `sed`, which
write a status, sleep for a second, and write metrics and status again. Each costs a few ms of CPU, so that 16 of them
leave two cores to the controller. (A Python that imports what `steer train` does would use both cores and measure
itself.) A slot is *busy* from the moment the shell has started (`jobs/*/started`) to its end (`jobs/*/exit`); its share
is of 16 slots from the first start to the last end, so the beginning and the tail count. *Events*: starts and ends.
The controller is a process of its own; its CPU seconds are user + system of that process, without its children.

The large study is written through the controller's own functions (begin, draw, complete), with one more trial due.
*Resume* is from the start of the interpreter to the start of that trial's process.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

REPO = Path(__file__).resolve().parent.parent
SLOTS, RUN_S, AIM = 16, 1.0, 0.95
SIZES = {False: (320, 2_000), True: (2_000, 10_000)}
METRIC = "eval/score"
PROGRAM = r"""
run=$2
now=$(sed -n 's/^ *lambda_min: //p' "$1")
status() {
  echo "{\"state\": \"$1\", \"pid\": $$, \"pid_created\": 0, \"started\": \"\", \"updated\": \"\"}" > "$run/status.tmp"
  mv "$run/status.tmp" "$run/status.json"
}
status running
sleep SECONDS
echo "{\"steer\": {\"lambda_min\": $now}}" > "$run/host_args.json"
echo "{\"step\": 1, \"eval/score\": $now}" > "$run/metrics.jsonl"
status finished
"""


def sweep_file(folder: Path, n: int, sampler: str, slots: int = SLOTS) -> Path:
    path = folder / "sweep.yaml"
    tree = {
        "name": "bench",
        "recipe": str(REPO / "experiments/recipes/tiny/steer.yaml"),
        "n_trials": n,
        "sampler": {"name": sampler, "seed": 0},
        "direction": "maximize",
        "objective": {"metric": METRIC},
        "space": {"steer.lambda_min": {"float": [0.5, 0.95]}},
        "slots": slots,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


# -- in processes of their own -----------------------------------------------------------------------------------------


def control(folder: Path, profile: bool) -> dict[str, Any]:
    """Run the study of ``folder`` to its end; what it cost this process."""
    from steer_sweeps.controller import Controller
    from steer_sweeps.spec import load_sweep
    from steer_sweeps.study import open_study

    program = folder / "trial.sh"
    program.write_text(PROGRAM.replace("SECONDS", str(RUN_S)))
    study = open_study(folder / "study", load_sweep(folder / "sweep.yaml"))
    opened, me = _cpu_s(), psutil.Process()
    seen: list[int] = []
    controller = Controller(
        study, lambda line: seen.append(me.memory_info().rss), ("/bin/sh", str(program), "{config}", "{run_dir}")
    )
    profiler = cProfile.Profile() if profile else None
    if profiler:
        profiler.enable()
    finished = controller.run()
    if profiler:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    assert finished
    return {
        "cpu_s": _cpu_s() - opened,
        "events": len(seen),
        "first_mb": seen[0] / 1e6,
        "last_mb": seen[-1] / 1e6,
        "results": len(study.completed_runs()),
    }


def resume(folder: Path) -> dict[str, Any]:
    """Continue the study of ``folder`` until its next trial has been started."""
    from steer_sweeps.controller import Controller
    from steer_sweeps.spec import load_sweep
    from steer_sweeps.study import open_study

    began = psutil.Process().create_time()
    imported = time.time()
    study = open_study(folder / "study", load_sweep(folder / "sweep.yaml"))
    opened, started = time.time(), list[float]()

    def tell(line: str) -> None:
        if ": started" in line:
            started.append(time.time())

    Controller(study, tell, ("/bin/sh", str(folder / "trial.sh"), "{config}", "{run_dir}")).run()
    return {
        "resume_s": started[0] - began,
        "import_s": imported - began,
        "open_s": opened - imported,
        "rss_mb": psutil.Process().memory_info().rss / 1e6,
    }


def fill(folder: Path, n: int) -> dict[str, Any]:
    """Write ``n`` finished trials as a controller does, run directories left out."""
    from steer_sweeps.claims import begin
    from steer_sweeps.spec import load_sweep
    from steer_sweeps.study import open_study

    study = open_study(folder / "study", load_sweep(folder / "sweep.yaml"))
    began = time.monotonic()
    for index in range(n):
        executor = study.sweep.executor.model_dump(mode="json")
        trial = begin(study, study.searched.configuration(index, str(index)), "bench", executor, True)
        assert trial is not None
        value = study.draw(study.searched, trial)["steer.lambda_min"]
        done = {"gpu_hours": 0.0, "value/0": [value], "hours/0": 0.5}
        study.complete(study.searched, trial, [value], **done)
    return {"fill_s": time.monotonic() - began}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def apart(task: str, folder: Path, *words: str) -> dict[str, Any]:
    """The result of one of the functions above in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- what is measured --------------------------------------------------------------------------------------------------


def busy(study: Path) -> dict[str, float]:
    """Share of slot time in use, over all, and from the first end to the last start (steady), with the median run."""
    spans = []
    for job in (study / "jobs").iterdir():
        started, ended = ((job / name).stat().st_mtime for name in ("started", "exit"))
        spans.append((started, ended))
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    took = sorted(end - start for start, end in spans)
    left, right = min(end for _, end in spans), max(start for start, _ in spans)
    steady = sum(max(0.0, min(end, right) - max(start, left)) for start, end in spans)
    return {
        "share": sum(took) / SLOTS / (last - first),
        "steady": steady / SLOTS / (right - left) if right > left else float("nan"),
        "wall_s": last - first,
        "median_s": took[len(took) // 2],
    }


def slots_row(sampler: str, n: int, profile: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="steer-bench-") as name:
        folder = Path(name)
        sweep_file(folder, n, sampler)
        load = os.getloadavg()[0]
        cost = apart("control", folder, *(["--profile"] if profile else []))
        used = busy(folder / "study")
    assert cost["results"] == n
    print(
        f"| {sampler} | {n} | {used['wall_s']:.0f} | {used['median_s']:.2f} | {used['share']:.1%} "
        f"| {used['steady']:.1%} | {1000 * cost['cpu_s'] / cost['events']:.1f} | {cost['cpu_s'] / used['wall_s']:.0%} "
        f"| {cost['first_mb']:.0f} / {cost['last_mb']:.0f} | {load:.1f} |",
        flush=True,
    )
    return used["share"]


def resume_rows(samplers: list[str], n: int) -> None:
    """One study, continued with each sampler. It is written with the random one: drawing 10,000 times takes hours."""
    with tempfile.TemporaryDirectory(prefix="steer-bench-") as name:
        written = Path(name) / "written"
        written.mkdir()
        (written / "trial.sh").write_text(PROGRAM.replace("SECONDS", "0"))
        sweep_file(written, n + 1, "RandomSampler")
        filled = apart("fill", written, "--n", str(n))
        size = (written / "study/journal.log").stat().st_size / 1e6
        for sampler in samplers:
            folder = Path(shutil.copytree(written, Path(name) / sampler))
            sweep_file(folder, n + 1, sampler)
            record = folder / "study/study.yaml"
            record.write_text(record.read_text().replace("RandomSampler", sampler))
            found = apart("resume", folder)
            print(
                f"| {sampler} | {n} | {size:.1f} | {filled['fill_s']:.0f} | {found['resume_s']:.1f} "
                f"| {found['import_s']:.1f} | {found['open_s']:.1f} | {found['rss_mb']:.0f} |",
                flush=True,
            )


def tables(full: bool, samplers: list[str], profile: bool) -> None:
    runs, trials = SIZES[full]
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {platform.machine()}, Linux {platform.release()}; {SLOTS} slots, runs of {RUN_S:g} s\n")
    print(
        "| sampler | runs | wall, s | median run, s | slot time busy | busy while all slots are wanted "
        "| CPU ms per event | of a core | memory of the controller, first / last event, MB | load before |"
    )
    print("|---|" + "--:|" * 9, flush=True)
    shares = [slots_row(sampler, runs, profile) for sampler in samplers]
    print("\n| sampler | trials | journal, MB | writing them, s | resume, s | of it imports | open | memory, MB |")
    print("|---|" + "--:|" * 7, flush=True)
    resume_rows(samplers, trials)
    reached = ", ".join(f"{share:.1%} {'reached' if share >= AIM else 'missed'}" for share in shares)
    print(f"\nslot time busy, aim {AIM:.0%}: {reached}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="2,000 runs, resume of 10,000 trials")
    parser.add_argument("--sampler", nargs="+", default=["RandomSampler", "TPESampler"])
    parser.add_argument("--profile", action="store_true", help="where the controller's time goes, on standard error")
    parser.add_argument("--task", choices=("control", "resume", "fill"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task is None:
        tables(args.full, args.sampler, args.profile)
        return
    if args.task == "control":
        found = control(args.folder, args.profile)
    else:
        found = resume(args.folder) if args.task == "resume" else fill(args.folder, args.n)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
