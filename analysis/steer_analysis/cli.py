"""The commands of this floor: ``steer eval``, ``steer leaderboard``, ``steer report``, ``steer diagnose``."""

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add this floor's commands to the ``steer`` parser; each sets ``func(args) -> exit code``."""
    _register_eval(subparsers)
    _register_leaderboard(subparsers)
    _register_report(subparsers)
    _register_diagnose(subparsers)


def _register_eval(subparsers: Any) -> None:
    text = "Generate and grade answers of final checkpoints; continues what was interrupted."
    parser = subparsers.add_parser("eval", help="evaluate final checkpoints with vLLM", description=text)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a study (all its trials)")
    parser.add_argument("--suite", help="evaluation suite; default: the one the run's config names")
    parser.add_argument("--redo", action="store_true", help="throw earlier records of these runs and this suite away")
    parser.set_defaults(func=_eval)


def _eval(args: argparse.Namespace) -> int:
    from .evaluate import evaluate_runs
    from .runs import find_runs

    outcomes = evaluate_runs(find_runs(args.runs), args.suite, args.redo)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _register_leaderboard(subparsers: Any) -> None:
    text = "Rank evaluated runs, one table for each protocol; runs that failed are listed with their state."
    parser = subparsers.add_parser("leaderboard", help="rank evaluated runs", description=text)
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="run directory, or a study (all its trials)")
    parser.add_argument("--format", choices=("md", "csv"), help="default: by the output's suffix, else md")
    where = "write it there too; into a directory as leaderboard.md and leaderboard.csv"
    parser.add_argument("--output", type=Path, metavar="FILE", help=where)
    parser.set_defaults(func=_leaderboard)


def _leaderboard(args: argparse.Namespace) -> int:
    from steer_experiments.run_dir import write_text

    from .leaderboard import build_leaderboard
    from .runs import read_runs
    from .tables import to_csv, to_markdown

    board = build_leaderboard(read_runs(args.dirs))
    output: Path | None = args.output
    texts = {"md": to_markdown(board), "csv": to_csv(board)}
    kind = args.format or ("csv" if output and output.suffix == ".csv" else "md")
    files = {}
    if output and output.is_dir():
        files = {output / f"leaderboard.{ending}": text for ending, text in texts.items()}
    elif output:
        files = {output: texts[kind]}
    print(texts[kind], end="")
    for path, text in files.items():
        write_text(path, text)
        print(f"wrote {path}")
    return 0


def _register_report(subparsers: Any) -> None:
    text = "Write one self-contained HTML page: leaderboard, curves, parameters, failures, protocol."
    parser = subparsers.add_parser("report", help="write the HTML report of a study or run", description=text)
    parser.add_argument("dir", type=Path, metavar="DIR", help="study directory, or one run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: DIR/report.html")
    parser.set_defaults(func=_report)


def _report(args: argparse.Namespace) -> int:
    from .report import write_report

    print(f"wrote {write_report(args.dir, args.output or args.dir / 'report.html')}")
    return 0


def _register_diagnose(subparsers: Any) -> None:
    text = "How accurate the entropy-change estimators were, from the probe files of a training."
    parser = subparsers.add_parser("diagnose", help="judge the entropy-change estimators", description=text)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a study (all its trials)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page of one run; default: RUN/diagnose.html")
    parser.set_defaults(func=_diagnose)


def _diagnose(args: argparse.Namespace) -> int:
    from .diagnose_run import diagnose_runs
    from .runs import find_runs

    diagnose_runs(find_runs(args.runs), args.output)
    return 0
