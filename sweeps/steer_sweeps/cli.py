"""The command ``steer``: every floor's commands under one name. Light: a command imports what it needs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import steer_analysis.cli
import steer_experiments.cli

from . import doctor

STUDIES = Path("runs")
FAILED, STOPPED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``steer``; returns the exit code (2 for bad input, with every mistake on stderr)."""
    parser = argparse.ArgumentParser(prog="steer", description="Entropy control for OpenRLHF: train, sweep, evaluate.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    steer_experiments.cli.register(subparsers)
    register(subparsers)
    steer_analysis.cli.register(subparsers)
    doctor.register(subparsers)
    return steer_experiments.cli.run(parser, argv)


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount ``sweep run|status|best``."""
    commands = subparsers.add_parser("sweep", help="a study of many runs").add_subparsers(required=True)
    run = commands.add_parser("run", help="run or continue a study", description=_run.__doc__)
    run.add_argument("file", type=Path, help="for example experiments/recipes/tiny/sweep.yaml")
    run.add_argument("--study-dir", type=Path, help=f"default: {STUDIES}/<name of the sweep>")
    run.add_argument("--dry-run", action="store_true", help="check everything, print what would run, and stop")
    run.set_defaults(func=_run)
    for name, function in (("status", _status), ("best", _best)):
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.add_argument("study", type=Path, help="study directory")
        command.set_defaults(func=function)


def _run(args: argparse.Namespace) -> int:
    """Run a study, or continue it: the same command again repeats no finished trial."""
    from .spec import load_sweep

    sweep = load_sweep(args.file)
    path = (args.study_dir or STUDIES / sweep.name).absolute()
    if args.dry_run:
        from .display import describe_plan

        print(describe_plan(sweep, path))
        return 0
    from .controller import Controller
    from .display import screen
    from .results import write_results
    from .study import only_controller, open_study

    with only_controller(path):
        study = open_study(path, sweep)
        with screen(study) as shown:
            finished = Controller(study, shown.tell).run(shown.watch)
        if not finished:
            return STOPPED
        code = write_results(study, print)
    incomplete = [one for one in study.configurations() if not one.complete]
    for one in incomplete:
        print(f"{one.name}: no result after {len(one.tries)} tries; {one.reason()}")
    if incomplete:
        print(f"to try these again, mend the cause and raise retries (now {sweep.retries}) in {args.file}")
    return code or (FAILED if incomplete else 0)


def _status(args: argparse.Namespace) -> int:
    """The trials of a study, as they stand."""
    from .display import print_table
    from .study import read_study

    print_table(read_study(args.study))
    return 0


def _best(args: argparse.Namespace) -> int:
    """The best searched trial of a study."""
    from .display import describe_best
    from .study import read_study

    print(describe_best(read_study(args.study)))
    return 0
