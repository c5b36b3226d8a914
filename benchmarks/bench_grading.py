"""Graded answers per second and core against a plain math-verify loop, in one run; prints Markdown.

    .venv/bin/python benchmarks/bench_grading.py [--answers N] [--rounds R]

Two kinds of answers, each a response of about 2,000 characters of working that ends in a box: integers as AIME asks
for, and expressions as MATH does (fractions, roots, intervals, matrices). The plain loop is what the math-verify
documentation shows: `verify(parse(gold), parse(response))` in this process. Ours is `MathGrader` with one worker,
called from one thread: this process and its worker take turns, so that both sides use one core at a time. The two are
timed in turns, so that a busy machine slows both; the ratio is that of the medians.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

from steer_experiments.grading import MathGrader

PAIRS = (
    (r"\frac{1}{2}", r"0.5"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"x^2+2x+1", r"(x+1)^2"),
    (r"\frac{\pi}{2}", r"\frac{\pi}{3}"),
    (r"50\%", r"\frac{1}{2}"),
    (r"\{1,2,3\}", r"\{3,2,1\}"),
)
WORKING = "Let $x_{%d}$ be the length, then $x^2 + %d = \\frac{a}{%d}$ and by symmetry $f(%d) = %d$. "
WORKING_LENGTH = 2000
Case = tuple[str, str]
Verdict = Callable[[str, str], bool]


def response(answer: str, noise: random.Random) -> str:
    """Working of about 2,000 characters and the answer in a box."""
    working = ""
    while len(working) < WORKING_LENGTH:
        working += WORKING % tuple(noise.randrange(1, 1000) for _ in range(5))
    return f"{working}Therefore, the answer is $\\boxed{{{answer}}}$."


def aime(count: int) -> list[Case]:
    """Half right, half wrong, integers from 0 to 999."""
    noise = random.Random(0)
    golds = [noise.randrange(1000) for _ in range(count)]
    return [(response(str(gold if noise.random() < 0.5 else gold + 1), noise), str(gold)) for gold in golds]


def expressions(count: int) -> list[Case]:
    """The pairs above, in turn, and each other time against another pair's gold."""
    noise = random.Random(1)
    return [(response(PAIRS[n % 8][0], noise), PAIRS[(n + n // 8 % 2) % 8][1]) for n in range(count)]


def plain(answer: str, gold: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(answer)))


def seconds(verdict: Verdict, cases: list[Case]) -> tuple[float, list[bool]]:
    started = time.perf_counter()
    found = [verdict(*case) for case in cases]
    return time.perf_counter() - started, found


def compare(name: str, cases: list[Case], grader: MathGrader, rounds: int) -> None:
    """One row of the table."""
    ours: Verdict = lambda answer, gold: grader.grade(answer, gold).state == "correct"  # noqa: E731
    seconds(plain, cases[:8]), seconds(ours, cases[:8])  # imports, worker start
    timed = [(seconds(plain, cases), seconds(ours, cases)) for _ in range(rounds)]
    theirs_s, ours_s = (statistics.median(pair[side][0] for pair in timed) for side in (0, 1))
    differ = sum(a != b for a, b in zip(timed[0][0][1], timed[0][1][1], strict=True))
    rates = f"{len(cases) / theirs_s:,.0f} | {len(cases) / ours_s:,.0f} | {theirs_s / ours_s:.1f}x"
    print(f"| {name} | {len(cases)} | {rates} | {differ} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    grader = MathGrader(workers=1)
    print("| answers | n | plain math-verify, 1/s | ours, 1/s | ratio | verdicts that differ |")
    print("|---|--:|--:|--:|--:|--:|")
    try:
        compare("AIME-like integers", aime(args.answers), grader, args.rounds)
        compare("expressions", expressions(args.answers), grader, args.rounds)
    finally:
        grader.close()


if __name__ == "__main__":
    main()
