"""The command ``steer``: every floor's commands under one name. Light: a command imports what it needs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import steer_analysis.cli
import steer_experiments.cli

from . import doctor

STUDIES = Path("runs")
FAILED, STOPPED = 1, 130
FORMATS = ("csv", "json")
EVALUATORS = ("ped-anova", "fanova", "mdi")


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
    """Mount ``sweep run|status|best|importance|export|stop|retry``."""
    commands = subparsers.add_parser("sweep", help="a study of many runs").add_subparsers(required=True)
    run = commands.add_parser("run", help="run or continue a study", description=_run.__doc__)
    run.add_argument("file", type=Path, help="for example experiments/recipes/tiny/sweep.yaml")
    run.add_argument("--study-dir", type=Path, help=f"default: {STUDIES}/<name of the sweep>")
    run.add_argument("--dry-run", action="store_true", help="check everything, print what would run, and stop")
    run.set_defaults(func=_run)
    added = {}
    for function in (_status, _best, _importance, _export, _stop, _retry):
        name = function.__name__.removeprefix("_")
        added[name] = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        added[name].add_argument("study", type=Path, help="study directory")
        added[name].set_defaults(func=function)
    added["status"].add_argument("--all", action="store_true", help="every trial, also of a large study")
    added["status"].add_argument("--watch", action="store_true", help="keep it up to date until Ctrl-C")
    added["importance"].add_argument(
        "--evaluator", choices=EVALUATORS, default=EVALUATORS[0], help="default: %(default)s"
    )
    added["export"].add_argument("--format", choices=FORMATS, help="default: by the ending of --output, else csv")
    where = "default: <study>/trials.<format>; - for standard output"
    added["export"].add_argument("--output", type=Path, metavar="FILE", help=where)
    added["stop"].add_argument("--now", action="store_true", help="end running trials by force")
    trials = "by the names that status shows; default: all that failed"
    added["retry"].add_argument("trials", nargs="*", metavar="TRIAL", help=trials)


def _run(args: argparse.Namespace) -> int:
    """Run a study, or continue it: the same command again repeats no finished trial."""
    from .spec import load_sweep

    sweep = load_sweep(args.file)
    path = (args.study_dir or STUDIES / sweep.name).absolute()
    if args.dry_run:
        from .plan import plan_lines

        print("\n".join(plan_lines(sweep, path)))
        return 0
    from .controller import Controller
    from .display import screen
    from .executors.locks import locked
    from .results import unfinished_lines, write_results
    from .study import open_study

    study = open_study(path, sweep)
    with screen(study) as shown:
        finished = Controller(study, shown.tell).run(shown.watch)
    if not finished:
        return STOPPED
    with locked(path / "results.lock"):  # several controllers end at once; what one has evaluated the next skips
        code = write_results(study, print)
    lines, failed = unfinished_lines(study)
    if lines:
        print("\n".join(lines))
    return code or (FAILED if failed else 0)


def _status(args: argparse.Namespace) -> int:
    """The trials of a study, as they stand."""
    from .display import print_table, watch_study
    from .study import read_study

    study = read_study(args.study)
    if args.watch:
        watch_study(study, every=args.all)
    else:
        print_table(study, every=args.all)
    return 0


def _best(args: argparse.Namespace) -> int:
    """The best trial that keeps to the constraints; of several objectives the Pareto front."""
    from .display import describe_best
    from .study import read_study

    print(describe_best(read_study(args.study)))
    return 0


def _importance(args: argparse.Namespace) -> int:
    """How much each searched parameter mattered."""
    from .importance import importance_lines
    from .study import read_study

    print("\n".join(importance_lines(read_study(args.study), args.evaluator)))
    return 0


def _export(args: argparse.Namespace) -> int:
    """The trials as a file, a row each."""
    from steer_experiments.run_dir import write_text
    from steer_openrlhf.errors import ConfigError

    from .export import exported
    from .study import read_study

    output: Path | None = args.output
    if output is not None and output.is_dir():
        raise ConfigError([f"--output {output}: is a folder; give a file in it, as in {output / 'trials.csv'}"])
    ending = output.suffix.removeprefix(".") if output else ""
    kind = args.format or (ending if ending in FORMATS else FORMATS[0])
    text = exported(read_study(args.study), kind)
    if output == Path("-"):
        print(text, end="")
        return 0
    output = output or args.study / f"trials.{kind}"
    write_text(output, text)
    print(f"wrote {output}")
    return 0


def _stop(args: argparse.Namespace) -> int:
    """Ask every controller of a study, on any host, to start nothing new and to end its trials."""
    from .commands import ask_to_stop
    from .study import read_study

    print("\n".join(ask_to_stop(read_study(args.study), args.now)))
    return 0


def _retry(args: argparse.Namespace) -> int:
    """Forget failures: a controller at work, or the next sweep run, tries these trials again."""
    from .commands import retry
    from .study import read_study

    print("\n".join(retry(read_study(args.study), args.trials) or ["no trial has failed"]))
    return 0
