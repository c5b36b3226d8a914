"""The faults. Each is made for real and says what was done and which configurations were struck."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from fault_study import HERE, Running, StudyUnderTest
from fault_trial import STEPS
from steer_sweeps.storage import JOURNAL

CLOCK = HERE.parent / "tests" / "sweeps" / "jumping_clock.py"
TORN_METRICS, TORN_JOURNAL = '{"step": 9, "eval/ev', '{"op_code": 4, "work'
STOPPED = 130
FULL_S = 5.0
"""How long the disk stays full."""


class Blow(NamedTuple):
    """What a fault did, and the configurations it struck: they must have a result before the next fault."""

    what: str
    struck: list[str]


class Skipped(Exception):
    """The fault cannot be made here; the message says why."""


class Fault(NamedTuple):
    name: str
    strike: Callable[[StudyUnderTest], Blow]


def kill_controller(study: StudyUnderTest) -> Blow:
    study.victim()
    study.kill_controllers()
    before = study.at_work(0)
    time.sleep(1.0)
    went_on = sum(_ended(one) or psutil.pid_exists(one.status.pid) for one in before)
    study.start()
    what = f"{went_on} of {len(before)} trials went on without it; the next took them up"
    return Blow(what, _names(before) if study.trials == "small" else [])


def kill_supervisor(study: StudyUnderTest) -> Blow:
    victim = study.victim()
    os.kill(victim.status.pid, signal.SIGKILL)
    return Blow("noticed; its children ended", [victim.name])


def kill_worker(study: StudyUnderTest) -> Blow:
    victim: Running = study.wait("a worker is at work", lambda: _killed_worker(study.at_work(1)))
    return Blow("noticed by its supervisor", [victim.name])


def _killed_worker(running: list[Running]) -> Running | None:
    for one in running:
        with suppress(ProcessLookupError):  # it has ended well just now
            if one.status.step < STEPS - 1:
                os.kill(one.facts["worker"], signal.SIGKILL)
                return one
    return None


def kill_controller_and_trial(study: StudyUnderTest) -> Blow:
    """As when the power is cut."""
    victim = study.victim()
    study.signal(signal.SIGKILL)
    os.kill(victim.status.pid, signal.SIGKILL)
    study.ends()
    study.start()
    return Blow("the next controller found it dead", [victim.name])


def kill_process(word: str) -> Callable[[StudyUnderTest], Blow]:
    """Of a real training the process with this word in its name or its program's."""

    def strike(study: StudyUnderTest) -> Blow:
        victim, process = study.wait(f"a trial has a {word}", lambda: _process_of(study.at_work(1), word))
        name = process.name()
        process.kill()
        return Blow(f"{name} killed at step {victim.status.step} of {victim.status.total_steps}", [victim.name])

    return strike


def _process_of(running: list[Running], word: str) -> tuple[Running, psutil.Process] | None:
    for one in running:
        for process in psutil.Process(one.status.pid).children(recursive=True):
            try:
                if word in process.name() or word in " ".join(process.cmdline()[:1]):
                    return one, process
            except psutil.NoSuchProcess:
                continue
    return None


def fill_disk(study: StudyUnderTest) -> Blow:
    """The file system of the whole study: run directories, journal, leases."""
    if not os.path.ismount(study.path):
        raise Skipped("this user may not mount a small file system")
    study.victim()
    filler = study.path / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            struck = study.at_work(0)
    time.sleep(FULL_S)
    filler.unlink()
    return Blow(f"full for {FULL_S:.0f} s; the controller waited, trials could not write", _names(struck))


def tear_metrics(study: StudyUnderTest) -> Blow:
    def torn() -> Running | None:
        for one in study.at_work(0):
            if one.run.metrics.exists() and one.run.metrics.read_bytes().count(b"\n") == STEPS:
                with one.run.metrics.open("a") as file:
                    file.write(TORN_METRICS)
                if (status := one.run.read_status()) is not None and not status.ended:
                    return one
        return None

    victim: Running = study.wait("a trial is at its last line", torn)
    return Blow("the torn line was left out, the result accepted", [victim.name])


def tear_journal(study: StudyUnderTest) -> Blow:
    study.victim()
    study.kill_controllers()
    struck = study.at_work(0)
    with (study.path / JOURNAL).open("a") as file:
        file.write(TORN_JOURNAL)
    study.start()
    return Blow("the next writer cut it", _names(struck))


def hang(study: StudyUnderTest) -> Blow:
    victim = study.victim()
    _freeze(victim)
    return Blow("stopped in all its processes (SIGSTOP); ended as hung", [victim.name])


def jump_clock(study: StudyUnderTest) -> Blow:
    site = study.home / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(CLOCK.read_text())
    before = set(study.results())
    study.kill_controllers()
    study.start(PYTHONPATH=os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    study.wait("six trials ended under it", lambda: len(set(study.results()) - before) >= 6)
    jumped = sum(
        abs(row["time"] - run.metrics.stat().st_mtime) > 1800
        for run in study.study.completed_runs()
        for row in run.read_metrics()
    )
    study.kill_controllers()
    struck = study.at_work(0)
    study.start()
    return Blow(f"controller and trials, hours back and forth; {jumped} lines of metrics show it", _names(struck))


def two_controllers(study: StudyUnderTest) -> Blow:
    study.kill_controllers()
    before = set(study.results())
    study.start(2)
    study.wait("five trials ended under both", lambda: len(set(study.results()) - before) >= 5)
    if len(study.alive()) != 2:
        raise study.failed("one of two controllers ended by itself")
    study.alive()[0].kill()
    struck = study.at_work(0)
    return Blow("shared the work; then one was killed and the other went on", _names(struck))


def stop_once(study: StudyUnderTest) -> Blow:
    study.victim()
    struck = study.at_work(0)
    study.signal(signal.SIGINT)
    return _stopped(study, "ended cleanly, exit code 130; the same command went on", struck)


def stop_twice(study: StudyUnderTest) -> Blow:
    victim = study.victim()
    _freeze(victim)  # it does not listen to the first
    struck = study.at_work(0)
    study.signal(signal.SIGINT)
    time.sleep(0.5)
    study.signal(signal.SIGINT)
    return _stopped(study, "with a trial that did not listen: ended at once, exit code 130", struck)


def _stopped(study: StudyUnderTest, what: str, struck: list[Running]) -> Blow:
    codes = [code for code in study.ends() if code != -signal.SIGKILL]  # of two controllers one was killed before
    if set(codes) != {STOPPED}:
        raise study.failed(f"asked to stop, the controllers ended with {codes}")
    if left := study.left():
        raise study.failed(f"asked to stop, it left {', '.join(left)}")
    study.start()
    return Blow(what, _names(struck))


def restart_database(study: StudyUnderTest) -> Blow:
    study.victim()
    running = study.at_work(0)
    cluster = _postgres[study.storage or ""]
    cluster.stop()
    began = time.monotonic()
    study.wait("the trials ended without it", lambda: all(_ended(one) for one in running))
    cluster.start()
    away_s = time.monotonic() - began
    what = f"away for {away_s:.0f} s; {len(running)} trials ended meanwhile, and were told when it was back"
    return Blow(what, _names(running))


def _ended(one: Running) -> bool:
    status = one.run.read_status()
    return status is not None and status.ended


def postgres_study(home: Path, n: int) -> StudyUnderTest:
    """A study in a PostgreSQL of its own. Raises :class:`Skipped`."""
    sys.path.insert(0, str(CLOCK.parent))
    from postgres import Postgres, programs

    try:
        programs()
        import psycopg  # noqa: F401
    except (FileNotFoundError, ImportError) as error:
        raise Skipped(str(error)) from None
    cluster = Postgres()
    cluster.start()
    _postgres[cluster.url] = cluster
    return StudyUnderTest(home, "small", n, storage=cluster.url)


def remove_postgres() -> None:
    for cluster in _postgres.values():
        cluster.remove()
    _postgres.clear()


_postgres: dict[str, "Postgres"] = {}  # type: ignore[name-defined]  # noqa: F821


def _freeze(victim: Running) -> None:
    for pid in victim.processes:
        with suppress(ProcessLookupError):  # a worker that has ended just now
            os.kill(pid, signal.SIGSTOP)


def _names(running: list[Running]) -> list[str]:
    return [one.name for one in running]


SMALL = (
    Fault("kill -9 of the controller", kill_controller),
    Fault("kill -9 of a trial's supervisor", kill_supervisor),
    Fault("kill -9 of a trial's worker", kill_worker),
    Fault("kill -9 of controller and trial together", kill_controller_and_trial),
    Fault("disk full", fill_disk),
    Fault("torn last line in the metrics", tear_metrics),
    Fault("torn last line in the journal", tear_journal),
    Fault("a trial hangs without output", hang),
    Fault("a clock that jumps", jump_clock),
    Fault("two controllers started together", two_controllers),
    Fault("Ctrl-C once", stop_once),
    Fault("Ctrl-C twice", stop_twice),
)
DATABASE = (Fault("PostgreSQL restarted in the middle", restart_database),)
REAL = (
    Fault("kill -9 of the Ray head (gcs_server)", kill_process("gcs_server")),
    Fault("kill -9 of the raylet", kill_process("raylet")),
    Fault("kill -9 of the vLLM engine", kill_process("VLLM::Engine")),
    Fault("kill -9 of the controller", kill_controller),
    Fault("kill -9 of a trial's supervisor", kill_supervisor),
)
