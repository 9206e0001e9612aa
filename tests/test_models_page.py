"""The table of families is the data files' own, and a family of known parts is one short file."""

from pathlib import Path

from tests.models_page import IN_GENAI, PAGE, page
from transform.architectures.read import known_model_types, read_architecture

DATA = Path(__file__).parents[1] / "transform" / "architectures"
COMPLETE = {"molmo"}  # its vision tower's tensors are listed one by one


def test_the_page_is_what_the_data_files_say() -> None:
    assert PAGE.read_text() == page(), "python -m tests.models_page writes it"


def test_every_family_with_graphs_ran_in_genai() -> None:
    with_graphs = {name for name in known_model_types() if read_architecture(name).graph is not None}
    assert with_graphs == IN_GENAI


def test_a_family_is_at_most_thirty_lines() -> None:
    lines = {name: len((DATA / f"{name}.json").read_text().splitlines()) for name in known_model_types()}
    assert {name: n for name, n in lines.items() if n > 30 and name not in COMPLETE} == {}
