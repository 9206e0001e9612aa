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


def packages_of(module: str) -> set[str]:
    """`a.b.c` -> a, a.b: Python runs their `__init__` first."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))} & modules().keys()


def reached(starts: Iterable[str], at_import: bool = False) -> dict[str, tuple[str, frozenset[str]]]:
    """Every own module that is reached from some -> the one it was reached from, and all that it names.

    Of packages that are only passed through on the way to a module, `__init__` counts as it is imported.
    """
    found: dict[str, tuple[str, frozenset[str]]] = {}
    waiting = [(start, start, at_import) for start in starts]
    while waiting:
        module, by, shallow = waiting.pop()
        if module in found and (shallow or found[module][1] == named(module, at_import)):
            continue
        found[module] = by, named(module, shallow)
        waiting += [(name, module, at_import) for name in imports(module, shallow)]
        waiting += [(name, module, True) for name in packages_of(module)]
    return found


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """A way that comes back to where it began, if there is one."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []
