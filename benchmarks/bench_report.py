"""What the leaderboard and the report of 1,000 trials take, and how large the page is.

    make bench

The study is made up (`synthetic_runs.py`): 1,002 runs of 60 steps, 200 items x 4 samples each. Times are wall seconds
of one process, imports left out, files in the page cache. `reading` is common to all formats. Aim: the page opens
within a second and stays under 10 MB; the browser's time is its own `loadEventEnd`, where there is a Chromium.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from steer_analysis.board_json import to_json
from steer_analysis.leaderboard import build_leaderboard
from steer_analysis.report import render_leaderboard, render_report
from steer_analysis.runs import read_runs
from steer_analysis.tables import to_csv, to_markdown
from synthetic_runs import write_study

T = TypeVar("T")
TRIALS = 1_000
MOST_MB = 10.0


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def open_seconds(page: Path) -> float | None:
    """Seconds until a headless Chromium has loaded the page; None without one."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        return None
    probe = page.with_name("probe.html")
    text = page.read_text().replace("</main>", '</main><i id="loaded"></i>', 1)
    script = "addEventListener('load', () => setTimeout(() => { document.getElementById('loaded').textContent = "
    script += "performance.getEntriesByType('navigation')[0].loadEventEnd }))"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text, count=1)
    probe.write_text(text.replace("</body>", f"<script>{script}</script></body>", 1))
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
        command = [program, *flags, "--virtual-time-budget=20000", probe.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<i id="loaded">([\d.]+)</i>', dom)
    return float(found[1]) / 1000 if found else None


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder) / "study", trials)
        runs, reading = timed(lambda: read_runs([study]))
        board, ranking = timed(lambda: build_leaderboard(runs))
        result: dict[str, object] = {"trials": trials, "reading_s": reading, "ranking_s": ranking}
        for name, write in (("md", to_markdown), ("csv", to_csv), ("json", to_json), ("html", render_leaderboard)):
            text, seconds = timed(lambda write=write: write(board))  # type: ignore[misc]
            result |= {f"{name}_s": seconds, f"{name}_mb": len(text.encode()) / 1e6}
        page, whole = timed(lambda: render_report(study))
        (study / "report.html").write_text(page)
        size = len(page.encode()) / 1e6
        result |= {"report_s": whole, "report_mb": size, "report_opens_s": open_seconds(study / "report.html")}
    print(json.dumps({key: round(one, 2) if isinstance(one, float) else one for key, one in result.items()}, indent=1))
    if size > MOST_MB:
        sys.exit(f"the report has {size:.1f} MB; at most {MOST_MB:g} are wanted")


if __name__ == "__main__":
    main()
