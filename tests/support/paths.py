"""Where the checkout and the reference's tiny checkpoint are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "molmo"
PROGRAMS = ROOT / "tests" / "programs"  # run by other Pythons, or in processes of their own
