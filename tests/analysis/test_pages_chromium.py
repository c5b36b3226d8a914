"""The pages in a real browser: sorting, filtering, opening an item, by mouse and by keyboard; and nothing complains.

The browser is driven over a pipe by its DevTools protocol, with nothing but the standard library.
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from steer_analysis.leaderboard import build_leaderboard
from steer_analysis.report import render_leaderboard, render_report
from steer_analysis.runs import read_runs

PATIENCE_S = 60  # for one answer of the browser, on a machine that does other things
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def find_chromium() -> str | None:
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


class Browser:
    """One tab. ``complaints`` are everything the page wrote to the console, threw, or had refused."""

    def __init__(self, program: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="steer-chromium-", ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]

        def place() -> None:  # the browser reads from 3 and writes to 4
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [program, *_FLAGS, f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=place, pass_fds=(3, 4), **quiet)
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._event(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, page: Path) -> None:
        """Load a page and wait until it has loaded."""
        self._loaded = False
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not self._loaded:
            self._event(self._next())
        self.run("new Promise(done => setTimeout(() => setTimeout(done)))")  # what the page does after loading

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page. The page's own content policy does not bind this."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """One key down and up, as a person presses it."""
        for kind in ("rawKeyDown", "char", "keyUp"):
            more = {"text": "\r"} if kind == "char" and key == "Enter" else {}
            if kind != "char" or more:
                self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._read, 1 << 20)
            assert more, "the browser has ended"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _event(self, message: dict[str, Any]) -> None:
        name, found = message.get("method"), message.get("params", {})
        if name == "Page.loadEventFired":
            self._loaded = True
        elif name in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(found)[:400])
        elif name == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)  # the browser ends when its pipe does
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        self._profile.cleanup()


CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'><!-- \u2028 &lt; ${1}"
CELLS = "(column) => [...document.querySelectorAll('#table-0 tbody tr')].map(row => row.cells[column].dataset.v)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM
    with Browser(CHROMIUM) as found:
        yield found


@pytest.fixture
def page(study: Path, browser: Browser, tmp_path: Path) -> Browser:
    """The report of a study in which a model wrote what it must not be able to do."""
    records = study / "trials" / "0" / "eval" / "tiny_test.jsonl"
    lines = records.read_text().replace('"output": "4"', f'"output": {json.dumps(HOSTILE)}')
    records.write_text(lines)
    (tmp_path / "report.html").write_text(render_report(study))
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(tmp_path / "report.html")
    return browser


def cells(page: Browser, column: int) -> list[Any]:
    return list(page.run(f"({CELLS})({column})"))


def shown(page: Browser) -> int:
    return int(page.run("[...document.querySelectorAll('#table-0 tbody tr')].filter(row => !row.hidden).length"))


def head(column: int) -> str:
    return f"document.querySelectorAll('#table-0 thead th')[{column}]"


def type_in(page: Browser, field: str, text: str) -> None:
    page.run(f"(() => {{ const f = document.getElementById('{field}'); f.value = {json.dumps(text)};"
             " f.dispatchEvent(new Event('input', {bubbles: true})) })()")  # fmt: skip


def test_a_click_sorts_and_says_so(page: Browser) -> None:
    accuracy = [float(value) for value in cells(page, 4)]
    assert accuracy == sorted(accuracy, reverse=True)
    page.run(f"{head(4)}.querySelector('button').click()")  # largest first
    page.run(f"{head(4)}.querySelector('button').click()")  # and back
    assert [float(value) for value in cells(page, 4)] == sorted(accuracy)
    assert page.run(f"{head(4)}.getAttribute('aria-sort')") == "ascending"
    page.run(f"{head(1)}.querySelector('button').click()")
    assert cells(page, 1) == ["ppo", *(f"trial {number}" for number in range(6)), "uniform"]
    assert page.run(f"{head(4)}.getAttribute('aria-sort')") is None


def test_what_is_missing_comes_last_either_way(page: Browser) -> None:
    for _ in range(2):
        page.run(f"{head(6)}.querySelector('button').click()")
        assert cells(page, 6)[-1] is None  # ppo has no difference to itself
        assert None not in cells(page, 6)[:-1]


def test_a_filter_shows_rows_with_every_word(page: Browser) -> None:
    type_in(page, "filter-table-0", "STEER 0.7")
    found = page.run("document.querySelector('output[for=filter-table-0]').value")
    assert found == f"{shown(page)} of 8 rows"
    assert 0 < shown(page) < 8
    type_in(page, "filter-table-0", "no such row")
    assert shown(page) == 0
    type_in(page, "filter-table-0", "")
    assert shown(page) == 8


def test_by_keyboard_alone(page: Browser) -> None:
    page.run(f"{head(8)}.querySelector('button').focus()")
    page.press("Enter", 13)
    assert page.run(f"{head(8)}.getAttribute('aria-sort')") == "descending"
    page.press("Tab", 9)
    assert page.run("document.activeElement.textContent") == "steps"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"  # the focus can be seen


def test_an_item_opens_its_raw_outputs_as_text(page: Browser) -> None:
    opener = "document.querySelector('#items-table tbody button.open')"
    page.run(f"{opener}.click()")
    assert page.run(f"{opener}.getAttribute('aria-expanded')") == "true"
    texts = page.run("[...document.querySelectorAll('tr.detail details pre')].map(one => one.textContent)")
    assert len(texts) == 8 * 4
    assert HOSTILE in texts
    assert page.run("document.querySelectorAll('tr.detail img, tr.detail script').length") == 0
    assert page.run("window.broken") is None
    page.run(f"{opener}.click()")
    assert page.run("document.querySelectorAll('tr.detail').length") == 0


def test_items_are_found_and_sorted(page: Browser) -> None:
    type_in(page, "items-filter", "i007")
    assert page.run("document.getElementById('items-count').value") == "1 of 40 items"
    type_in(page, "items-filter", "")
    counts = "[...document.querySelectorAll('#items-table tbody tr')].map(row => Number(row.cells[3].textContent))"
    page.run("document.querySelectorAll('#items-table thead button')[3].click()")
    assert page.run(counts) == sorted(page.run(counts), reverse=True)


def test_a_curve_can_be_hidden(page: Browser) -> None:
    seen = "getComputedStyle(document.querySelector('.charts .line.run-0')).display"
    assert page.run(seen) != "none"
    page.run("document.getElementById('show-0').click()")
    assert page.run(seen) == "none"


def test_nothing_is_fetched_and_nothing_complains(page: Browser) -> None:
    page.run("document.querySelector('#items-table tbody button.open').click()")
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert page.complaints == []


def test_the_policy_holds_even_for_markup_that_got_in(page: Browser) -> None:
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 3\">')")
    page.run("new Promise(done => setTimeout(done, 200))")
    assert page.run("window.broken") is None
    assert page.complaints  # the browser says that it refused


@pytest.mark.parametrize("width", [1400, 400])
def test_no_page_is_wider_than_its_window(page: Browser, width: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.call("Emulation.clearDeviceMetricsOverride")


def test_dark_is_dark(page: Browser) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    ground, ink = page.run("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    page.call("Emulation.setEmulatedMedia", features=[])
    assert ground == "rgb(21, 21, 19)"
    assert ink == "rgb(240, 238, 232)"


def test_the_leaderboard_page_works_as_well(study: Path, browser: Browser, tmp_path: Path) -> None:
    browser.complaints.clear()
    (tmp_path / "board.html").write_text(render_leaderboard(build_leaderboard(read_runs([study]))))
    browser.open(tmp_path / "board.html")
    assert len(cells(browser, 4)) == 8
    assert browser.run("document.getElementById('items').hidden") is False
    assert browser.complaints == []
