"""The Python API: docs/api.md does what it shows, and what it names is there, typed and light."""

import re
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text()
ROWS = re.findall(r"^\| `(\w+)`: (.+?) \|", PAGE, re.MULTILINE)
NAMES = [(package, name) for package, names in ROWS for name in re.findall(r"`(\w+)`", names)]


def test_the_main_job_runs_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(program, "docs/api.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("molmoe-nano-k4-b12-t432 ")
    assert {float(value) for value in re.findall(r": ([\d.e-]+)", lines[1])} == {0.0}
    assert len(lines) == 4
    assert lines[3].strip()


def test_the_page_names_all_that_is_public() -> None:
    said = {(package, name) for package, name in NAMES}
    for package in ("export", "transform"):
        public = {name for name in import_module(package).__all__ if name not in ("__version__", "KnobcastError")}
        assert {name for owner, name in said if owner == package} == public


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_there_and_documented(package: str, name: str) -> None:
    found = getattr(import_module(package), name)
    assert found.__doc__
    assert name in dir(import_module(package))
    get_type_hints(found if isinstance(found, type) is False else found.__init__, include_extras=True)


@pytest.mark.parametrize("package", ["transform", "importance", "export"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = import_module(package).nothing


def test_the_version_is_the_distributions() -> None:
    import export

    assert re.fullmatch(r"\d+\.\d+\.\d+.*", export.__version__)
