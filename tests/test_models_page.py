"""The table of families is the data files' own, and a family of known parts is one short file."""

from pathlib import Path

from tests.models_page import PAGE, page
from transform.architectures.read import known_model_types

DATA = Path(__file__).parents[1] / "transform" / "architectures"
COMPLETE = {"molmo"}  # its vision tower's tensors are listed one by one


def test_the_page_is_what_the_data_files_say() -> None:
    assert PAGE.read_text() == page(), "python -m tests.models_page writes it"


def test_a_family_is_at_most_thirty_lines() -> None:
    lines = {name: len((DATA / f"{name}.json").read_text().splitlines()) for name in known_model_types()}
    assert {name: n for name, n in lines.items() if n > 30 and name not in COMPLETE} == {}
