"""The commands of this floor: ``steer eval|regrade|leaderboard|report|diagnose``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Options


def register(subparsers: Any) -> None:
    """Add this floor's commands to the ``steer`` parser; each sets ``func(args) -> exit code``."""
    _register_eval(subparsers)
    _register_regrade(subparsers)
    _register_leaderboard(subparsers)
    _register_report(subparsers)
    _register_diagnose(subparsers)


def _register_eval(subparsers: Any) -> None:
    text = "Generate and grade answers of final checkpoints, or of a model folder; continues what was interrupted."
    parser = subparsers.add_parser("eval", help="evaluate checkpoints with vLLM", description=text)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directory, or a study (all its trials)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model folder instead of a run")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the records of --model go")
    suite = "evaluation suite or group (math6), again for more; default: the one the run's config names"
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", help=suite)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the benchmark files are")
    n = "samples of each item; SUITE=N for one suite, again for more"
    parser.add_argument("--n", action="append", default=[], metavar="N", help=n)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--greedy", action="store_true", help="temperature 0, one sample")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--seed", type=int, help="every request's seed follows from it, the item and the sample")
    parser.add_argument("--template", choices=("chat", "plain"), help="default: as the run was trained")
    question = "how a benchmark's problems are put: a known way, or a text with {problem}; default: the suite's own"
    parser.add_argument("--question", metavar="NAME", help=question)
    parser.add_argument("--grader", metavar="NAME", help="integer, math, paper; default: the suite's own")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="engines that share the items, a GPU each")
    parser.add_argument("--redo", action="store_true", help="throw earlier records of these suites away")
    parser.set_defaults(func=_eval)


def _eval(args: argparse.Namespace) -> int:
    from .evaluate import evaluate_model, evaluate_runs
    from .runs import find_runs

    options = _options(args)
    if args.model:
        outcomes = evaluate_model(args.model, args.output, options, args.redo, args.gpus)
    else:
        outcomes = evaluate_runs(find_runs(args.runs), options, args.redo, args.gpus)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _options(args: argparse.Namespace) -> "Options":
    """The options of ``steer eval``, or a ``ConfigError`` with everything that is wrong with them."""
    from steer_openrlhf.errors import ConfigError

    from .plan import Options

    mistakes = []
    if bool(args.runs) == bool(args.model):
        mistakes.append("give run directories, or --model with a model folder")
    if bool(args.model) != bool(args.output):
        mistakes.append("--model and --output belong together: a model folder, and where its records go")
    if args.greedy and args.temperature:
        mistakes.append(f"--greedy is temperature 0; --temperature {args.temperature:g} is something else")
    if args.gpus < 1:
        mistakes.append(f"--gpus {args.gpus}: must be at least 1")
    numbers: dict[str, int] = {}
    for text in args.n:
        suite, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            mistakes.append(f"--n {text}: must be N or SUITE=N with N at least 1")
        else:
            numbers[suite] = int(number)
    if mistakes:
        raise ConfigError(mistakes)
    return Options(
        suites=args.suite,
        data_dir=args.data_dir,
        n_samples=numbers.pop("", None),
        n_of_suite=numbers,
        temperature=0.0 if args.greedy else args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        template=args.template,
        question=args.question,
        grader=args.grader,
    )


def _register_regrade(subparsers: Any) -> None:
    text = "Grade the answers of evaluated runs again without generating them; the change is recorded."
    parser = subparsers.add_parser("regrade", help="grade recorded answers again", description=text)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a study (all its trials)")
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", help="only this one, again for more")
    grader = "integer, math, paper; default: the grader of the records, as it is now"
    parser.add_argument("--grader", metavar="NAME", help=grader)
    parser.set_defaults(func=_regrade)


def _regrade(args: argparse.Namespace) -> int:
    from .regrade import regrade_runs
    from .runs import find_runs
    from .suites import suite_names

    suites = [one for name in args.suite for one in suite_names(name)]
    done = regrade_runs(find_runs(args.runs), suites, args.grader)
    return 1 if any(one.state == "failed" for one in done) else 0


def _register_leaderboard(subparsers: Any) -> None:
    text = "Rank evaluated runs, one table for each protocol; runs that failed are listed with their state."
    parser = subparsers.add_parser("leaderboard", help="rank evaluated runs", description=text)
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="run directory, or a study (all its trials)")
    parser.add_argument("--format", choices=FORMATS, help="default: by the output's suffix, else md")
    where = "write it there too; into a directory as leaderboard.md, .csv, .json and .html"
    parser.add_argument("--output", type=Path, metavar="FILE", help=where)
    parser.set_defaults(func=_leaderboard)


FORMATS = ("md", "csv", "json", "html")


def _leaderboard(args: argparse.Namespace) -> int:
    """Print the leaderboard in one format (but a page that is written to a file), and write what --output asks for."""
    from steer_experiments.run_dir import write_text

    from .board_json import to_json
    from .leaderboard import build_leaderboard
    from .report import render_leaderboard
    from .runs import read_runs
    from .tables import to_csv, to_markdown

    writers = {"md": to_markdown, "csv": to_csv, "json": to_json, "html": render_leaderboard}
    board = build_leaderboard(read_runs(args.dirs))
    output: Path | None = args.output
    named = output.suffix.removeprefix(".") if output and not output.is_dir() else ""
    kind = args.format or (named if named in FORMATS else "md")
    files = {}
    if output and output.is_dir():
        files = {output / f"leaderboard.{ending}": write(board) for ending, write in writers.items()}
    elif output:
        files = {output: writers[kind](board)}
    if kind != "html" or not files:
        print(writers[kind](board), end="")
    for path, text in files.items():
        write_text(path, text)
        print(f"wrote {path}")
    return 0


def _register_report(subparsers: Any) -> None:
    text = "Write one self-contained HTML page: leaderboard, curves, parameters, failures, items with their outputs."
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
