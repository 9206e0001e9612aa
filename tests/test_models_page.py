"""docs/models.md says of every family what its data file says."""

from tests.models_page import PAGE, render


def test_the_page_is_the_families() -> None:
    assert PAGE.read_text() == render()
