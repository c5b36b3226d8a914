"""The graders by the name one gives on a command line: one dict literal."""

from __future__ import annotations

import os
from collections.abc import Callable

from steer_openrlhf.errors import ConfigError, suggest

from steer_experiments.grading import Grader, IntegerGrader, MathGrader
from steer_experiments.grading_paper import PaperGrader

MOST_WORKERS = 16


def _math() -> MathGrader:
    return MathGrader(workers=min(MOST_WORKERS, max(1, os.cpu_count() or 1)))


GRADERS: dict[str, Callable[[], Grader]] = {
    "integer": IntegerGrader,
    "math": _math,
    "paper": lambda: PaperGrader(_math()),
}


def make_grader(name: str) -> Grader:
    """The grader called `name`. Starts no process; `ConfigError` lists the known names."""
    if name not in GRADERS:
        hint = suggest(name, GRADERS)
        raise ConfigError([f"grader {name!r} is unknown; known: {', '.join(GRADERS)}" + (f"; {hint}" if hint else "")])
    return GRADERS[name]()


COMPARED_AS_TEXT: dict[str, str] = {
    r"np.arcsin(10/13)": "minerva_math",
    r"\frac{dM}{dt}=\frac{10^{5}L_{\odot}}{0.007c^{2}M_{\odot}^{6}}M^{6}": "minerva_math",
    r"\lambda_{\text{red}}/\sqrt{2}": "minerva_math",
    r"\hbar\omega(v+1/2)-\frac{E_{0}^{2}e^{2}}{2m\omega^{2}}": "minerva_math",
    r"E_{1},E_{2}": "minerva_math",
    r"t(0,4]": "olympiadbench",
}
"""Golds of the six suites that math-verify 0.9.0 cannot read, with their suite: only the same spelling is correct."""
