"""This floor's command lines: ``steer train``, ``steer data``. Light: what a command needs is imported when it runs."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from steer_openrlhf.errors import ConfigError

from .data import command

RUNS = Path("runs")
MISTAKE = 2
"""Exit code for bad input, as argparse's own."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount ``train`` and ``data``."""
    command.register(subparsers)
    parser = subparsers.add_parser("train", help="one run from a recipe", description=_train.__doc__)
    parser.add_argument("recipe", type=Path, help="YAML file, for example experiments/recipes/tiny/steer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value|LAYER.yaml", help="for example steer.lambda_min=0.8")
    parser.add_argument("--run-dir", type=Path, help=f"default: {RUNS}/<name>-<time>")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint, if there is one")
    parser.add_argument("--dry-run", action="store_true", help="print the training's command and stop")
    parser.set_defaults(func=_train)


def _train(args: argparse.Namespace) -> int:
    """Train once from a recipe, watch it, and judge what it left in the run directory."""
    from .config import load_recipe

    experiment = load_recipe(args.recipe, args.overrides)
    run_dir = args.run_dir or RUNS / f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if args.dry_run:
        from .dry_run import describe

        print(describe(experiment, run_dir))
        return 0
    from .train import run_experiment

    return run_experiment(experiment, run_dir, args.overwrite, args.resume)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse and run: mistakes in one message without a traceback, exit code 2. Overrides may stand anywhere."""
    args, rest = parser.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if late and hasattr(args, "overrides"):
        args.overrides, rest = [*args.overrides, *late], [word for word in rest if word not in late]
    if rest:
        parser.error(f"unrecognized arguments: {shlex.join(rest)}")
    try:
        return int(args.func(args))
    except ConfigError as error:
        print(f"steer: {error}", file=sys.stderr)
        return MISTAKE


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m steer_experiments.train RECIPE ...`` is ``steer train RECIPE ...``."""
    parser = argparse.ArgumentParser(prog="steer")
    register(parser.add_subparsers(required=True))
    return run(parser, ["train", *(sys.argv[1:] if argv is None else argv)])
