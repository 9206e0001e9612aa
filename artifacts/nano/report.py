"""The report that the documentation shows: `python -m artifacts.nano.report [SWEEP]`.

Sweeps 75 settings of the embedded model (a sweep that was interrupted goes on), writes docs/report.html, and where
chromium is found, its picture docs/report.png. SWEEP: a finished sweep to report instead.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from artifacts.nano.data import PICTURES, write
from artifacts.nano.data import TARGET as DATA
from export.report.write import write_report

DOCS = Path(__file__).parents[2] / "docs"
SWEEP = Path(__file__).parents[1] / "nano-sweep"
GRID = "k=1,2,4,6,8 blocks=8,10,12,14,16 tokens=288,432,1008"
QUESTIONS = 200
WINDOW = "1200,1230"  # the head of the page and the first plot


def sweep(out: Path) -> None:
    """All settings, as a user would."""
    if not (DATA / "test.jsonl").exists():
        write(DATA, "test", PICTURES["test"])
    command = [sys.executable, "-m", "export.command.main", "sweep", "--data", DATA / "test.jsonl",
               "--limit", QUESTIONS, "--grid", GRID, "--max-new-tokens", 4, "--out", out]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)


def picture(page: Path, out: Path) -> None:
    """What a browser shows of the page's beginning."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"no chromium: {out} stays as it is")
        return
    words = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WINDOW}", f"--screenshot={out}"]
    subprocess.run([chromium, *words, page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Sweep, report, draw."""
    if len(sys.argv) == 1:
        sweep(SWEEP)
    write_report(Path(sys.argv[1]) if len(sys.argv) > 1 else SWEEP, DOCS / "report.html", plots=False, force=True)
    picture(DOCS / "report.html", DOCS / "report.png")


if __name__ == "__main__":
    main()
