"""Who imports whom in the checkout, from the syntax tree: nothing is imported, nothing can hide in a function."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.support.paths import ROOT

PACKAGES = ("transform", "importance", "export")


@cache
def modules() -> dict[str, Path]:
    """Module name -> file, of the packages, of `artifacts` and of the tests."""
    files = [file for folder in (*PACKAGES, "artifacts", "tests") for file in (ROOT / folder).rglob("*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    return {name: file for name, file in names.items() if all(part.isidentifier() for part in name.split("."))}


@cache
def named(module: str, at_import: bool = False) -> frozenset[str]:
    """All that a module's import statements name; `at_import`: those alone that run when it is imported."""
    return frozenset(_named(module, at_import))


def _named(module: str, at_import: bool) -> Iterator[str]:
    tree = ast.parse(modules()[module].read_text())
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            if modules()[module].name == "__init__.py" and node.level:
                package = module.split(".")[: len(module.split(".")) - node.level + 1]
            home = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                yield inner if inner in modules() else home


def imports(module: str, at_import: bool = False) -> frozenset[str]:
    """The checkout's own modules among them."""
    return frozenset(name for name in named(module, at_import) if name in modules() and name != module)


def reached(starts: Iterable[str], at_import: bool = False) -> dict[str, str]:
    """Every own module that is reached from some -> the one it was reached from."""
    waiting = {start: start for start in starts}
    found: dict[str, str] = {}
    while waiting:
        module, by = waiting.popitem()
        found[module] = by
        waiting |= {name: module for name in imports(module, at_import) if name not in found}
    return found


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """A way that comes back to where it began, if there is one."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []
