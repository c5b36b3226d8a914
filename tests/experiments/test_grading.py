"""Graders and rewards: hand-worked verdicts, hangs, deaths, threads, and what OpenRLHF receives."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_experiments.grading import Grade, IntegerGrader, MathGrader
from steer_experiments.rewarding import FAILURE_FILE, FailureGuard, GraderBroken, make_reward_func, response_of

HANGS = r"$\boxed{10^{10^{10}}-10^{10^{10}}}$"  # sympy writes out ten billion digits, inside C code
REWARD_FILES = Path(__file__).parents[2] / "experiments" / "steer_experiments"


@pytest.mark.parametrize(
    ("response", "gold", "state", "answer"),
    [
        ("19#16", "16", "correct", "16"),
        ("#16", "16", "correct", "16"),
        ("19,21#-16", "-16", "correct", "-16"),
        ("#0016", "16", "correct", "16"),
        ("#+16", "16", "correct", "16"),
        ("#-0", "0", "correct", "0"),
        ("3#4#16", "16", "correct", "16"),
        (" #16 \n", "16", "correct", "16"),
        ("19#17", "16", "wrong", "17"),
        ("16#1", "16", "wrong", "1"),
        ("#-16", "16", "wrong", "-16"),
        ("", "16", "unparsed", None),
        ("16", "16", "unparsed", None),
        ("#", "16", "unparsed", None),
        ("#16#", "16", "unparsed", None),
        ("#16,", "16", "unparsed", None),
        ("#1 6", "16", "unparsed", None),
        ("#--16", "16", "unparsed", None),
        ("#16.0", "16", "unparsed", None),
        ("#1e1", "10", "unparsed", None),
        ("#１６", "16", "unparsed", None),  # full-width digits: int() would take them
        ("#1_6", "16", "unparsed", None),
        ("#" + "9" * 19, "9" * 18, "wrong", "9" * 19),
        ("#" + "9" * 20, "9" * 18, "unparsed", None),
        ("#16" + " " * 200, "16", "unparsed", None),
        ("#" + "9" * 1_000_000, "16", "unparsed", None),
        ("#16", "sixteen", "error", None),
        ("#16", "", "error", None),
        ("#16", "9" * 1_000_000, "error", None),
    ],
)
def test_integer_verdicts_worked_by_hand(response: str, gold: str, state: str, answer: str | None) -> None:
    grade = IntegerGrader().grade(response, gold)
    assert (grade.state, grade.answer) == (state, answer)
    assert (grade.reason is None) == (state in ("correct", "wrong"))


@given(st.text())
def test_any_text_gets_a_verdict_and_only_the_tail_counts(text: str) -> None:
    grader = IntegerGrader()
    assert grader.grade(text, "16").state in ("correct", "wrong", "unparsed")
    assert grader.grade("x" * 500 + text, "16") == grader.grade("x" * 500 + "x" * 500 + text, "16")


@given(st.integers(-(10**18) + 1, 10**18 - 1), st.text(alphabet="0123456789,-+*=", max_size=30))
def test_every_integer_answer_is_recognised(value: int, working: str) -> None:
    assert IntegerGrader().grade(f"{working}#{value}", str(value)) == Grade("correct", str(value))


# --- math-verify behind processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def math() -> Iterator[MathGrader]:
    grader = MathGrader(timeout=20.0, workers=2)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("response", "gold", "state"),
    [
        (r"so $\boxed{\frac12}$", "0.5", "correct"),
        (r"so $\boxed{\frac{2}{4}}$", r"\frac{1}{2}", "correct"),
        (r"$\boxed{(1,2)}$", "(1,2)", "correct"),
        (r"the answer is 3", "4", "wrong"),
        (r"$\boxed{x+1}$", "x+2", "wrong"),
        ("I do not know.", "4", "unparsed"),
        ("", "4", "unparsed"),
    ],
)
def test_math_verdicts_worked_by_hand(math: MathGrader, response: str, gold: str, state: str) -> None:
    assert math.grade(response, gold).state == state


def test_only_the_tail_of_a_long_response_travels(math: MathGrader) -> None:
    assert math.grade("7 " * 600_000 + r"$\boxed{5}$", "5").state == "correct"


def test_a_hanging_answer_is_killed_and_the_next_one_is_graded() -> None:
    grader = MathGrader(timeout=1.5, workers=1)
    try:
        assert grader.grade("$2$", "2").state == "correct"
        (before,) = grader.worker_pids()
        grade = grader.grade(HANGS, "2")
        assert grade.state == "timeout"
        assert "1.5 s" in (grade.reason or "")
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        grader.timeout = 20.0
        assert grader.grade("$2$", "2").state == "correct"
    finally:
        grader.close()


def test_eight_threads_share_two_workers(math: MathGrader) -> None:
    cases = [
        (rf"$\boxed{{\frac{{{2 * n}}}{{2}}}}$", str(n + n % 2), "wrong" if n % 2 else "correct") for n in range(48)
    ]
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda case: math.grade(case[0], case[1]).state, cases))
    assert states == [state for _, _, state in cases]
    assert 1 <= len(math.worker_pids()) <= 2


def test_a_worker_killed_in_the_middle_is_replaced_and_asked_again() -> None:
    grader = MathGrader(timeout=20.0, workers=1)
    try:
        grader.grade("$2$", "2")
        (pid,) = grader.worker_pids()
        os.kill(pid, signal.SIGSTOP)  # the request will be waiting in a worker that does nothing
        with ThreadPoolExecutor(1) as pool:
            verdict = pool.submit(grader.grade, r"$\boxed{\frac{14}{2}}$", "7")
            while grader.worker_pids():  # until the request has taken the worker
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            assert verdict.result().state == "correct"
        assert grader.worker_pids() != [pid]
    finally:
        grader.close()


def test_a_worker_that_cannot_live_is_an_error_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    grade = MathGrader(timeout=5.0, workers=1).grade("$2$", "2")
    assert grade.state == "error"
    assert "exit code 1, second attempt" in (grade.reason or "")


def test_a_worker_that_never_gets_ready_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = MathGrader(timeout=5.0, workers=1)
    monkeypatch.setattr(grader, "START_SECONDS", 0.01)
    grade = grader.grade("$2$", "2")
    assert grade.state == "error"
    assert "not ready within 0.01 s" in (grade.reason or "")


PARENT = """
import sys, threading
from steer_experiments.grading import MathGrader
grader = MathGrader(timeout=2.0, workers=1)
grader.grade("$2$", "2")
print(grader.worker_pids()[0], flush=True)
threading.Thread(target=grader.grade, args=(sys.argv[1], "2")).start()
"""


@pytest.mark.parametrize("work", ["$2$", HANGS], ids=["idle", "computing"])
def test_the_worker_dies_with_its_parent(work: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT + "import time; time.sleep(60)", work], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    for _ in range(600):  # the kernel's timer of the worker: its deadline and 5 seconds
        if not running(worker):
            return
        time.sleep(0.1)
    pytest.fail(f"worker {worker} outlived its parent")


def running(pid: int) -> bool:
    """Alive and not a zombie (nobody may be there to reap an orphan)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "response"),
    [
        ("1+1=#2<eos>", "#2"),
        ("1+1=#2<pad><eos>", "#2"),
        ("1+1=#2", "#2"),
        ("1+1=<eos>#2", ""),
        ("1+1=", ""),
        ("1+2=#3<eos>", None),
    ],
)
def test_the_response_is_cut_out_of_the_query(query: str, response: str | None) -> None:
    assert response_of(query, "1+1=", ("<pad>", "<eos>")) == response


def load(name: str) -> ModuleType:
    """Load a reward file the way OpenRLHF does (utils/agent.py)."""
    spec = importlib.util.spec_from_file_location("reward_func", str(REWARD_FILES / name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_openrlhf_reads(result: dict[str, object], key: str) -> list[float]:
    """`torch.tensor([reward_val])` of trainer/ppo_utils/samples_generator.py, 0.11.2."""
    torch = pytest.importorskip("torch")
    values: list[float] = torch.tensor([result[key]]).tolist()
    return values


@pytest.mark.parametrize(
    ("name", "query", "prompt", "label", "reward", "logs"),
    [
        ("reward_tiny.py", "1+1=#2<eos>", "1+1=", "2", 1.0, (1.0, 0.0, 0.0)),
        ("reward_tiny.py", "1+1=#3<eos>", "1+1=", "2", 0.0, (0.0, 0.0, 0.0)),
        ("reward_tiny.py", "1+1=2<eos>", "1+1=", "2", 0.0, (0.0, 1.0, 0.0)),
        ("reward_tiny.py", "1+1=#2<eos>", "1+1=", "two", 0.0, (0.0, 0.0, 1.0)),
        ("reward_math.py", "What? It is $\\boxed{\\frac12}$<|im_end|>", "What?", "0.5", 1.0, (1.0, 0.0, 0.0)),
    ],
)
def test_reward_files_as_openrlhf_calls_them(
    name: str, query: str, prompt: str, label: str, reward: float, logs: tuple[float, float, float]
) -> None:
    reward_func = load(name).reward_func
    with ThreadPoolExecutor(1) as pool:  # off the main thread, as asyncio.to_thread does
        result = pool.submit(reward_func, [query], [prompt], [label]).result()
    assert as_openrlhf_reads(result, "rewards") == as_openrlhf_reads(result, "scores") == [reward]
    extra = {key: float(value.flatten()[0]) for key, value in result["extra_logs"].items()}
    assert extra == dict(zip(("grade_correct", "grade_unparsed", "grade_failed"), logs, strict=True))


def test_a_few_failures_among_many_calls_go_on_but_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    guard = FailureGuard("integer@1", max_failures=20)
    for number in range(1000):
        guard.count(Grade("timeout", reason="slow") if number % 100 == 99 else Grade("wrong", "1"))
    assert (guard.calls, guard.failures, guard.broken) == (1000, 10, None)
    assert capsys.readouterr().err.count("timeout: slow") == 10


@pytest.mark.parametrize(("every", "stops_at_failure"), [(1, 3), (10, 3), (50, 20)])
def test_too_many_failures_stop_the_run(
    every: int, stops_at_failure: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_RUN_DIR", str(tmp_path))
    guard = FailureGuard("integer@1", max_failures=20)

    def grade_on() -> None:
        for number in range(1, 5000):
            guard.count(Grade("error", reason="boom") if number % every == 0 else Grade("correct", "1"))

    with pytest.raises(GraderBroken, match="boom"):
        grade_on()
    assert guard.failures == stops_at_failure
    report = json.loads((tmp_path / FAILURE_FILE).read_text())
    assert (report["failures"], report["calls"]) == (stops_at_failure, stops_at_failure * every)
    assert "boom" in report["reason"]
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE_FILE]
    with pytest.raises(GraderBroken):
        guard.count(Grade("correct", "1"))  # it stays broken: no reward is given any more


def test_a_reward_function_whose_labels_are_broken_stops_paying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEER_RUN_DIR", raising=False)
    reward_func = make_reward_func(IntegerGrader(), ("<eos>",))
    row = (["1+1=#2<eos>"], ["1+1="], ["two"])
    assert [reward_func(*row)["rewards"].tolist() for _ in range(2)] == [[0.0], [0.0]]
    with pytest.raises(GraderBroken):
        reward_func(*row)


def test_the_guard_counts_right_from_many_threads() -> None:
    guard = FailureGuard("integer@1")
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(500):
            guard.count(Grade("correct", "1"))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
    assert guard.calls == 4000
