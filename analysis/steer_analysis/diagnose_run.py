"""``steer diagnose`` from run directories to files: checks first, then one run after another."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from steer_openrlhf.errors import ConfigError

from .diagnose import JSON_NAME, PAGE_NAME, WIDTH, as_text, diagnose, write_numbers
from .diagnose_page import write_page
from .probes import probe_files


def diagnose_runs(runs: Sequence[Path], output: Path | None = None) -> None:
    """Print the tables of every run, and write its ``diagnose.json`` and page (``output`` for the page of one run).

    Raises:
        ConfigError: before anything is written, when a run has no probe files or ``output`` is given for several; at
            the end, for runs whose probe files are all damaged.
    """
    mistakes = _mistakes(lambda run: probe_files(run), runs)
    if output is not None and len(runs) > 1:
        mistakes.append(
            f"--output {output}: is for one run, {len(runs)} are given; each has its {PAGE_NAME} without it"
        )
    if mistakes:
        raise ConfigError(mistakes)
    if mistakes := _mistakes(lambda run: _diagnose_one(run, output or run / PAGE_NAME), runs):
        raise ConfigError(mistakes)


def _mistakes(work: Callable[[Path], object], runs: Sequence[Path]) -> list[str]:
    """Do the work for every run; what was wrong with those that could not."""
    found = []
    for run in runs:
        try:
            work(run)
        except ConfigError as error:
            found += error.mistakes
    return found


def _diagnose_one(run: Path, page: Path) -> None:
    found = diagnose(run)
    write_numbers(found, run / JSON_NAME)
    write_page(found, page)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(as_text(found))
    print(f"wrote {run / JSON_NAME}\nwrote {page}", flush=True)
