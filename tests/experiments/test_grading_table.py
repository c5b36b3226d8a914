"""The table of graded answers, the real golds, and the fast path against math-verify itself."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from steer_experiments.answers import boxed_answer, clean, integer
from steer_experiments.graders import COMPARED_AS_TEXT, GRADERS, make_grader
from steer_experiments.grading import IntegerGrader, MathGrader, compare_quickly
from steer_experiments.grading_paper import PaperGrader
from steer_openrlhf.errors import ConfigError

TABLE = yaml.safe_load((Path(__file__).parent / "graded_answers.yaml").read_text())
ROWS: list[dict[str, Any]] = [row for rows in TABLE.values() for row in rows]
DATA = Path(__file__).parents[3] / "shared" / "data"
SUITES = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva_math": 272, "olympiadbench": 675}


def written_out(row: dict[str, Any]) -> str:
    text, times = row.get("fill", ("", 0))
    return str(row["answer"]).replace("%s", text * times)


@pytest.fixture(scope="module")
def math() -> Iterator[MathGrader]:
    grader = MathGrader(timeout=20.0, workers=2)
    yield grader
    grader.close()


def test_every_row_gets_the_verdict_that_is_right_or_listed_as_a_limit(math: MathGrader) -> None:
    assert len(ROWS) >= 200
    with ThreadPoolExecutor(2) as pool:
        grades = list(pool.map(lambda row: math.grade(written_out(row), row["gold"]), ROWS))
    wrong = [
        f"{row['answer']!r} against {row['gold']!r}: {grade.state} ({grade.reason}), not {row['expect']}: {row['why']}"
        for row, grade in zip(ROWS, grades, strict=True)
        if grade.state != row.get("known_limit", row["expect"])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_is_honest() -> None:
    assert all(set(row) <= {"answer", "fill", "gold", "expect", "why", "known_limit"} for row in ROWS)
    assert all(row["expect"] in ("correct", "wrong", "unparsed") and row["why"] for row in ROWS)
    limits = [row for row in ROWS if "known_limit" in row]
    assert all(row["known_limit"] != row["expect"] for row in limits)
    assert len(limits) <= 12
    keys = [(row["answer"], row["gold"], str(row.get("fill"))) for row in ROWS]
    assert len(set(keys)) == len(keys)


def golds(suite: str) -> list[str]:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = DATA / f"{suite}.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = parquet.read_table(path).to_pylist()
    return list({row["prompt"][-1]["content"]: row["reward_model"]["ground_truth"] for row in rows}.values())


@pytest.mark.parametrize("suite", SUITES)
def test_every_real_gold_is_correct_against_itself(math: MathGrader, suite: str) -> None:
    """By math-verify, not by the fast path; and those it cannot read are exactly the listed ones."""
    asked = golds(suite)
    assert len(asked) == SUITES[suite]
    slow = MathGrader(timeout=20.0, workers=2, fast=False)
    try:
        with ThreadPoolExecutor(2) as pool:
            grades = list(pool.map(lambda gold: slow.grade(rf"So it is $\boxed{{{gold}}}$.", gold), asked))
    finally:
        slow.close()
    assert [gold for gold, grade in zip(asked, grades, strict=True) if grade.state != "correct"] == []
    unread = {gold for gold, grade in zip(asked, grades, strict=True) if "compared as text" in (grade.reason or "")}
    assert unread == {gold for gold, of in COMPARED_AS_TEXT.items() if of == suite}


# --- the fast path ---------------------------------------------------------------------------------------------------


def aime_like(noise: random.Random) -> tuple[str, str]:
    """A response that ends in a boxed integer in one of the ways models write it, and a gold."""
    right = noise.randrange(1000)
    given_ = right if noise.random() < 0.5 else noise.choice([right + 1, right * 10, noise.randrange(1000), -right])
    spelled = noise.choice([f"{given_}", f" {given_} ", f"{given_:03d}", f"{given_:,}"])
    work = f"We have $x^2 + {noise.randrange(99)} = \\frac{{a}}{{{noise.randrange(1, 99)}}}$, so $x = {given_}$. "
    boxed = f"\\boxed{{{spelled}}}"
    shown = noise.choice([f"${boxed}$.", f"\\[ {boxed} \\]", boxed, f"$x = {boxed}$", f"The answer is {boxed}"])
    return work * noise.randrange(3) + shown, noise.choice([f"{right}", f"{right:03d}"])


def test_the_fast_path_says_what_plain_math_verify_says() -> None:
    """Against math-verify called as its documentation does: on the whole response, with its own extraction."""
    verify = pytest.importorskip("math_verify")
    noise = random.Random(0)
    states = []
    for _ in range(300):
        response, gold = aime_like(noise)
        found = boxed_answer(response).text
        quick = compare_quickly(found or "", gold)
        assert quick is not None, response
        plain = verify.verify(verify.parse(f"\\boxed{{{gold}}}"), verify.parse(response))
        assert (quick.state == "correct") == plain, (response, gold)
        states.append(quick.state)
    assert 60 < states.count("correct") < 240


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
@settings(max_examples=200)
def test_integers_are_equal_exactly_when_they_are(one: int, other: int) -> None:
    quick = compare_quickly(str(one), f"{other:+05d}")
    assert quick is not None
    assert (quick.state == "correct") == (one == other)


def test_the_fast_path_needs_no_worker() -> None:
    grader = MathGrader(workers=1)
    assert grader.grade(r"\boxed{204}", "204").state == "correct"
    assert grader.grade(r"\boxed{\frac{x}{2}}", r"\frac{x}{2}").state == "correct"
    assert grader.worker_pids() == []


@pytest.mark.parametrize("text", ["1/2", "", "-", "1.0", "5x", "١", "1_0", "1e3"])
def test_what_is_no_plain_integer(text: str) -> None:
    assert integer(text) is None


# --- boxes -----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=r"\{}$,5 boxed", max_size=200))
def test_any_text_gets_an_answer_or_a_reason(text: str) -> None:
    found = boxed_answer(text)
    assert found.text is None or (found.text and found.problem is None)
    assert boxed_answer(text + r" \boxed{17}").text in ("17", None) or text.rstrip().endswith((",", "$", "}"))


@given(st.text(alphabet=r"{}ab\ ", max_size=60))
def test_a_balanced_content_comes_back_whole(content: str) -> None:
    depth, escaped = 0, False
    for letter in content:
        if escaped or letter == "\\":
            escaped = not escaped
            continue
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return
    if depth or escaped or not clean(content):
        return
    assert boxed_answer(f"so \\boxed{{{content}}}").text == clean(content)


# --- limits of time and memory ---------------------------------------------------------------------------------------


def test_a_worker_has_a_limit_of_memory(math: MathGrader) -> None:
    math.grade(r"\boxed{\frac24}", "0.5")
    for pid in math.worker_pids():
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (line,) = (line for line in limits if line.startswith("Max address space"))
        assert int(line.split()[3]) <= 2 << 30


@pytest.mark.parametrize("answer", [r"\boxed{10^{10^{10}}-10^{10^{10}}}", r"\boxed{\binom{10^{9}}{10^{8}}}"])
def test_what_cannot_be_computed_is_a_timeout_and_never_a_verdict(answer: str) -> None:
    grader = MathGrader(timeout=1.0, workers=1)
    try:
        grader.grade(r"\boxed{\frac24}", "0.5")  # the start of the worker is not part of the second
        assert grader.grade(answer, "2").state in ("timeout", "error")
    finally:
        grader.close()


def test_an_empty_gold_is_an_error_and_not_a_wrong_answer(math: MathGrader) -> None:
    assert math.grade(r"\boxed{5}", "").state == "error"
    assert math.reads(r"\frac{1}{2}")
    assert not math.reads("np.arcsin(10/13)")


# --- the paper's rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "gold", "state"),
    [
        (r"\boxed{5}", "5", "correct"),
        (r"\boxed{5" + " " * 50, "5", "correct"),  # an unclosed box reaches to the end
        (r"\boxed{5}" + " x" * 100, "5", "correct"),  # not in the last 100 characters, but the last box
        (r"\boxed{5}" + " x" * 150, "5", "unparsed"),  # not in the last 300
        (r"\boxed{5}" + " x" * 150 + " 5", "5", "correct"),  # the last number
        (r"\boxed{5.0003}", "5", "correct"),  # relative 1e-4
        (r"\boxed{5.001}", "5", "wrong"),
        (r"\boxed{0.5}", "50", "correct"),  # also as a percentage
        (r"\boxed{50\%}", "50", "correct"),
        (r"\boxed{1,234}", "1234", "correct"),
        ("The answer is 5.", "5", "correct"),
        ("we get 3 + 4 = 7", "7", "correct"),
        (r"\boxed{3} or \boxed{4}", "4", "correct"),  # a hedge pays
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", "correct"),  # symbolic
        (r"\boxed{\frac{3}{4}}", r"\frac{1}{2}", "wrong"),
        (r"\boxed{Yes}", "yes", "correct"),
        ("I do not know", "5", "unparsed"),
        ("", "5", "unparsed"),
    ],
)
def test_the_papers_rule_worked_by_hand(math: MathGrader, response: str, gold: str, state: str) -> None:
    assert PaperGrader(math).grade(response, gold).state == state


def test_graders_are_found_by_name_and_tell_their_version() -> None:
    graders = {name: make_grader(name) for name in GRADERS}
    assert {name: grader.name for name, grader in graders.items()} == {name: name for name in GRADERS}
    assert all(grader.version for grader in graders.values())
    assert isinstance(graders["integer"], IntegerGrader)
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        make_grader("maths")
