"""A study in a real PostgreSQL: several controllers, kills, and a database that goes away in the middle."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres import Postgres, programs
from steer_openrlhf.errors import ConfigError
from steer_sweeps.study import open_study, read_study
from study_helpers import (
    LONG_S,
    assert_nothing_lost_or_repeated,
    behave,
    controller_program,
    lines_of,
    outcomes,
    started,
)

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="the PostgreSQL driver psycopg is not installed")
    try:
        programs()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    found = Postgres()
    try:
        found.start()
        yield found
    finally:
        found.remove()


def test_controllers_killed_at_random_times(cluster: Postgres, sweep_file: Make, tmp_path: Path) -> None:
    path, draw = sweep_file(name="killed", n_trials=4, slots=2, storage=cluster.url), random.Random(0)
    programs = list[subprocess.Popen[str]]()
    for _ in range(3):
        programs = [one for one in programs if one.poll() is None]
        programs += [controller_program(path, tmp_path / "study") for _ in range(2 - len(programs))]
        time.sleep(draw.uniform(1.0, 3.0))
        victim = draw.choice(programs)
        victim.kill()
        victim.wait()
    output, _ = controller_program(path, tmp_path / "study").communicate(timeout=LONG_S)
    assert output.endswith("nothing left\n"), output
    for program in programs:
        program.communicate(timeout=LONG_S)
    assert_nothing_lost_or_repeated(tmp_path, 5)
    assert not (tmp_path / "study" / "journal.log").exists()


def test_the_database_restarts_in_the_middle(cluster: Postgres, sweep_file: Make, tmp_path: Path) -> None:
    """Its trials go on meanwhile, and what ended meanwhile is told when it is back."""
    behave(tmp_path, ppo="slow")
    program = controller_program(
        sweep_file(name="restart", n_trials=3, slots=2, storage=cluster.url), tmp_path / "study"
    )
    ppo = started(tmp_path, "ppo")
    cluster.stop()
    try:
        end = time.monotonic() + LONG_S
        while (status := ppo.read_status()) is None or not status.ended:
            assert time.monotonic() < end, "the trial did not go on"
            time.sleep(0.1)
        assert program.poll() is None
    finally:
        cluster.start()
    output, _ = program.communicate(timeout=LONG_S)
    assert "the study's storage does not answer, trying again" in output, output
    assert "the study's storage is back" in output
    assert output.endswith("nothing left\n")
    assert_nothing_lost_or_repeated(tmp_path, 4)
    assert lines_of(tmp_path / "starts.log").count("ppo") == 1
    assert set(outcomes(read_study(tmp_path / "study")).values()) == {"complete"}


def test_a_database_that_is_away_at_the_start_is_a_message(
    cluster: Postgres, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    found = sweep(name="away", storage=cluster.url.replace(str(cluster.path), "/nowhere"))
    with pytest.raises(ConfigError, match="cannot be used"):
        open_study(tmp_path / "study", found)
