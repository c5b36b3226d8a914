"""Leases: one owner at a time, told apart by the kernel's locks and, between machines, by a counter that moves."""

import subprocess
import sys
from pathlib import Path

from steer_sweeps.leases import BEAT_S, LEASE_S, Leases


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_holder_at_a_time_and_none_after_a_release(tmp_path: Path) -> None:
    first, second = Leases(tmp_path), Leases(tmp_path)
    assert first.take("t0")
    assert first.take("t0")  # ours stays ours
    assert not second.take("t0")
    assert second.take("t1")
    first.release("t0")
    assert second.take("t0")
    first.release("t0")  # not ours any more: nothing happens
    assert not first.take("t0")


def test_the_kernel_frees_the_lease_of_a_killed_process(tmp_path: Path) -> None:
    holder = (
        "import sys, pathlib\nfrom steer_sweeps.leases import Leases\n"
        "leases = Leases(pathlib.Path(sys.argv[1]))\nprint(leases.take('t0'), flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        leases = Leases(tmp_path)
        assert not leases.take("t0")
        process.kill()
        process.wait()
        assert leases.take("t0")


def test_a_lease_of_another_machine_is_taken_only_when_its_counter_stands_still(tmp_path: Path) -> None:
    """Its lock may not be seen here: the file is copied, as a file system without locks between hosts shows it."""
    clock, theirs = Clock(), Clock()
    other = Leases(tmp_path / "theirs", kernel="another", clock=theirs)
    assert other.take("t0")
    ours = Leases(tmp_path / "ours", kernel="this", clock=clock)
    (tmp_path / "ours").mkdir()

    def seen() -> bool:
        (tmp_path / "ours" / "t0").write_bytes((tmp_path / "theirs" / "t0").read_bytes())
        return ours.take("t0")

    for _ in range(5):  # it beats: however long we look, it is theirs
        assert not seen()
        theirs.now += BEAT_S
        clock.now += LEASE_S - 1
        assert other.beat() == []
    assert not seen()
    clock.now += LEASE_S - 1
    assert not seen()
    clock.now += 1
    assert seen()


def test_who_stood_still_too_long_learns_that_it_lost(tmp_path: Path) -> None:
    clock = Clock()
    leases = Leases(tmp_path, clock=clock)
    assert leases.take("t0")
    assert leases.take("t1")
    content = (tmp_path / "t0").read_text()
    (tmp_path / "t0").write_text(content.replace(leases.owner, "somebody"))  # in place: the same file
    assert leases.beat() == []  # not time yet
    clock.now += BEAT_S
    assert leases.beat() == ["t0"]
    leases.release("t0")
    assert (tmp_path / "t0").exists()  # it is theirs
    leases.release_all()
    assert not (tmp_path / "t1").exists()
