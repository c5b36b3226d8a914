"""A study that everything happens to, beside one that nothing happens to; prints a Markdown table.

    .venv/bin/python benchmarks/faults.py                  # small trials, every fault: some minutes
    .venv/bin/python benchmarks/faults.py --trials real    # real trainings: Ray head, raylet, vLLM engine, ...

Three slots. Each fault is made for real while trials run, and the next one comes when everything it struck has a
result (of real trials: when the study knows of its end). At the end the disturbed study must have what an undisturbed
one with the same seeds has: the same finished trials, the same parameters, the same values (so the same best one), each
once, and nothing may be left: no process, no directory of a Ray. Exit code 1 when anything was lost, doubled, left
over, or differs.

Small trials (`fault_trial.py`) are two processes that train nothing; their objective depends on their parameter only.
Real ones are OpenRLHF trainings of four steps on CPU, whose rollouts are not reproducible from run to run there, with
stock OpenRLHF as well: of those the finished trials and their parameters are compared, not the values.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_kinds import DATABASE, REAL, SMALL, Fault, Skipped, postgres_study, remove_postgres
from fault_study import StudyFailedError, StudyUnderTest

TRIALS = {"small": 72, "real": 6}
DATABASE_TRIALS = 9
DISK = "24m"
HEADER = ("fault", "what happened", "begun again", "lost", "processes left", "took, s")


@dataclass
class Report:
    rows: list[tuple[str, ...]]
    mistakes: list[str]

    def add(self, *cells: str) -> None:
        self.rows.append(cells)
        print(f"  {cells[0]}: {' | '.join(cells[1:])}", file=sys.stderr, flush=True)

    def table(self) -> str:
        lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in self.rows])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def strike(study: StudyUnderTest, fault: Fault, report: Report) -> None:
    """One fault, and a row about it. Raises :class:`StudyFailedError` for a study that does not go on."""
    before, failed = study.results(), study.failures()
    try:
        began = time.monotonic()
        blow = fault.strike(study)
    except Skipped as error:
        report.add(fault.name, f"skipped: {error}", *["-"] * 4)
        return
    study.wait(f"trials {blow.struck} are mended", lambda: set(blow.struck) <= _mended(study, set(failed)))
    took_s = time.monotonic() - began
    after = study.results()
    lost = [name for name, value in before.items() if after.get(name) != value] + study.doubled()
    again = [kind for key, (kind, _) in study.failures().items() if key not in failed]
    leaked = study.leaked()
    report.mistakes += [f"{fault.name}: the result of trial {name} changed" for name in lost]
    report.mistakes += [f"{fault.name}: left {one}" for one in leaked]
    kinds = ", ".join(f"{again.count(kind)} {kind}" for kind in sorted(set(again))) or "none"
    all_the_same = study.trials == "real" and blow.struck
    what = blow.what + ("; tried again" if again else "; it ended well all the same" if all_the_same else "")
    report.add(fault.name, what, kinds, ", ".join(lost) or "nothing", str(len(leaked) or "none"), f"{took_s:.0f}")


def _mended(study: StudyUnderTest, failed: set[tuple[str, int]]) -> set[str]:
    """Trials with a result; real ones count from when their failure is known: they take minutes to repeat."""
    known = {name for name, _ in set(study.failures()) - failed} if study.trials == "real" else set()
    return set(study.results()) | known


def disturbed(study: StudyUnderTest, faults: Sequence[Fault], report: Report) -> None:
    """The whole study under all faults, to its end."""
    study.start()
    for fault in faults:
        strike(study, fault, report)
    finish(study)


def finish(study: StudyUnderTest) -> None:
    codes = study.ends()
    if any(code not in (0, -9) for code in codes) or 0 not in codes:
        raise study.failed(f"the controllers ended with {codes}")


def compare(study: StudyUnderTest, calm: dict[str, tuple[float, float]], values: bool, report: Report) -> None:
    """Against the undisturbed study: the same results, each once; and nothing left."""
    found = study.results()
    wanted = {name: pair for name, pair in calm.items() if int(name) < study.n}
    here = study.home.name
    for name in sorted(set(found) ^ set(wanted), key=int):
        report.mistakes.append(f"{here}: trial {name} has a result in one of the two studies only")
    for name in sorted(set(found) & set(wanted), key=int):
        if found[name][: 1 + values] != wanted[name][: 1 + values]:
            report.mistakes.append(f"{here}: trial {name} is {found[name]}, undisturbed {wanted[name]}")
    report.mistakes += [f"{here}: trial {name} has several results" for name in study.doubled()]
    report.mistakes += [f"{here}: left {one}" for one in study.left()]
    say(f"{here}: {len(found)} results, {len(study.failures())} tries without one")
    if values and found:
        best, calm_best = (max(one.items(), key=lambda pair: pair[1][1]) for one in (found, wanted))
        say(f"{here}: the best one {best}; undisturbed {calm_best}")


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A small file system at ``path`` where this user may mount one."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(path)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)


def small(home: Path, n: int, report: Report) -> None:
    calm = StudyUnderTest(home / "undisturbed", "small", n)
    say(f"the undisturbed study of {n} trials")
    calm.start()
    finish(calm)
    wanted = calm.results()
    with small_disk(home / "disturbed" / "study"):
        study = StudyUnderTest(home / "disturbed", "small", n)
        guarded(study, SMALL, wanted, report, values=True)
    try:
        study = postgres_study(home / "database", min(n, DATABASE_TRIALS))
    except Skipped as error:
        report.add(DATABASE[0].name, f"skipped: {error}", *["-"] * 4)
        return
    guarded(study, DATABASE, wanted, report, values=True)


def real(home: Path, n: int, slots: int, report: Report) -> None:
    """The undisturbed study draws the same parameters with small trials: only these are compared."""
    calm = StudyUnderTest(home / "undisturbed", "small", n)
    calm.start()
    finish(calm)
    guarded(StudyUnderTest(home / "disturbed", "real", n, slots), REAL, calm.results(), report, values=False)


def guarded(
    study: StudyUnderTest,
    faults: Sequence[Fault],
    wanted: dict[str, tuple[float, float]],
    report: Report,
    values: bool,
) -> None:
    try:
        disturbed(study, faults, report)
        compare(study, wanted, values, report)
    except StudyFailedError as error:
        report.mistakes.append(f"{study.home.name}: {error}")
    finally:
        for one in study.alive():
            one.kill()
            one.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", choices=list(TRIALS), default="small")
    parser.add_argument("--n", type=int, help=f"trials of the study; default {TRIALS}")
    parser.add_argument("--slots", type=int, default=3, help="of a study of real trainings, by the memory there is")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the studies here (must be new)")
    args = parser.parse_args()
    report, n = Report([], []), args.n or TRIALS[args.trials]
    with tempfile.TemporaryDirectory(prefix="steer-faults-", ignore_cleanup_errors=True) as folder:
        home = (args.keep or Path(folder)).absolute()
        try:
            if args.trials == "small":
                small(home, n, report)
            else:
                real(home, n, args.slots, report)
        finally:
            remove_postgres()
    print(report.table())
    for one in report.mistakes:
        print(f"MISTAKE: {one}")
    print(f"{n} {args.trials} trials: " + ("nothing lost, nothing left" if not report.mistakes else "see above"))
    return 1 if report.mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
