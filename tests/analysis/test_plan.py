"""What an evaluation means is decided, and every mistake said, before any engine starts."""

import json
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from steer_analysis import evaluate
from steer_analysis.engines import share
from steer_analysis.generate import Completion, Request, Sampling
from steer_analysis.plan import CHAT, PLAIN, Options, plan_model, plan_run
from steer_analysis.progress import Progress, duration
from steer_analysis.records import RecordFile
from steer_analysis.suites import Item
from steer_experiments.config import load_recipe
from steer_experiments.grading import Grade
from steer_experiments.run_dir import write_yaml
from steer_openrlhf.errors import ConfigError

RECIPE = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny" / "steer.yaml"


def checkpoint(folder: Path, chat: bool = False) -> Path:
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"} if chat else {}))
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    checkpoint(folder / "checkpoint")
    small = ["task.test_size=8", "task.validation_size=4", "task.train_size=8", "eval.n_samples=4"]
    write_yaml(folder / "config.yaml", load_recipe(RECIPE, small).resolved())
    return folder


def test_a_run_is_evaluated_as_its_config_says(run: Path) -> None:
    (plan,) = plan_run(run, Options())
    assert (plan.suite.name, len(plan.suite.items)) == ("tiny_test", 8)
    assert (plan.protocol.n_samples, plan.protocol.grader, plan.protocol.prompt) == (4, "integer@1", PLAIN)


def test_the_command_line_changes_what_it_names_and_nothing_else(run: Path) -> None:
    options = Options(suites=["tiny_test", "tiny_validation"], n_of_suite={"tiny_validation": 9}, top_p=0.5, seed=7)
    first, second = plan_run(run, options)
    assert (first.protocol.n_samples, second.protocol.n_samples) == (4, 9)
    assert (first.protocol.top_p, first.protocol.seed, first.protocol.temperature) == (0.5, 7, 1.0)
    (paper,) = plan_run(run, Options(grader="paper"))
    assert paper.protocol.grader.startswith("paper@")


def test_greedy_means_one_sample(run: Path) -> None:
    (plan,) = plan_run(run, Options(temperature=0.0))
    assert (plan.protocol.temperature, plan.protocol.n_samples) == (0.0, 1)
    with pytest.raises(ConfigError, match="makes 4 equal samples"):
        plan_run(run, Options(temperature=0.0, n_samples=4))


def test_every_mistake_of_every_suite_at_once(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_run(run, Options(suites=["tiny_test"], grader="maths", n_of_suite={"aime": 3}))
    assert "--n names aime" in str(caught.value)
    assert "did you mean 'math'" in str(caught.value)


def test_a_model_folder_needs_no_run(tmp_path: Path) -> None:
    plain, chat = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "chat", chat=True)
    with pytest.raises(ConfigError, match="asks for task tiny_arithmetic"):
        plan_model(plain, tmp_path / "out", Options(suites=["tiny_test"]))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        plan_model(tmp_path / "none", tmp_path / "out", Options())
    data = Path(__file__).parents[3] / "shared" / "data"
    if not (data / "aime24.parquet").is_file():
        pytest.skip(f"{data} is not there")
    options = Options(suites=["aime24"], data_dir=data)
    (one,), (other,) = plan_model(plain, tmp_path / "out", options), plan_model(chat, tmp_path / "out", options)
    assert (one.protocol.prompt, other.protocol.prompt) == (PLAIN, CHAT)
    assert one.protocol != other.protocol
    assert one.records_path == tmp_path / "out" / "eval" / "aime24.jsonl"
    with pytest.raises(ConfigError, match="has no chat template"):
        plan_model(plain, tmp_path / "out", Options(suites=["aime24"], data_dir=data, template="chat"))


def test_all_samples_of_a_question_go_to_one_engine_and_no_engine_is_idle() -> None:
    requests = [Request(f"q{n % 5}", n, Sampling(1.0, 1.0, 8)) for n in range(20)]
    shares = share(requests, 2)
    assert sorted(place for one in shares for place in one) == list(range(20))
    asked = [{requests[place].prompt for place in one} for one in shares]
    assert asked[0].isdisjoint(asked[1])
    assert len(share(requests[:1], 4)) == 1


def test_the_time_left_is_that_of_the_rate_since_the_first_answer() -> None:
    said: list[str] = []
    now = [0.0]
    progress = Progress("run", total=110, kept=10, say=said.append, clock=lambda: now[0])
    for second, answers in ((60, 10), (65, 10), (75, 20), (76, 0)):  # a minute of start-up is not part of the rate
        now[0] = second
        progress.add(answers)
    assert said[0] == "run: 20 of 110 answers"
    assert said[1] == "run: 50 of 110 answers, 2 a second, 30 s left"
    assert len(said) == 2


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3900, "1 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_verdict_that_comes_while_answers_are_saved_is_not_lost(tmp_path: Path) -> None:
    """A future that is not done when it is first asked and done when it is asked again."""
    plan = SimpleNamespace(protocol=SimpleNamespace(max_new_tokens=8, grader="g@1"), text=lambda item: item.prompt)
    item = Item("i", "easy", "1+1=", "2")
    with RecordFile(tmp_path / "a.jsonl") as file:
        job = evaluate._Job(cast(Any, SimpleNamespace(plan=plan, file=file)), item, 0, 1)
        waiting = deque([evaluate._Answered(job, Completion("2", False, 1), LateFuture())])
        saved = evaluate._save(waiting)
        assert saved + len(waiting) == 1
        assert saved + evaluate._save(waiting) == 1
        assert len(file.records) == 1


class LateFuture(Future[Grade]):
    """Done from the second time it is asked."""

    def done(self) -> bool:
        was, self.asked = getattr(self, "asked", False), True
        if was and not super().done():
            self.set_result(Grade("correct", "2"))
        return super().done()
