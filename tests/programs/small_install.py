"""`knobcast WORDS…` where some packages aren't installed:  small_install.py torch,onnx WORDS…"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class Hiding(importlib.abc.MetaPathFinder):
    """A finder that doesn't find some packages."""

    def __init__(self, finder: importlib.abc.MetaPathFinder, hidden: Sequence[str]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for a hidden package, as for any that isn't there."""
        return None if fullname.partition(".")[0] in self.hidden else self.finder.find_spec(fullname, path, target)

    def __getattr__(self, name: str) -> object:
        return getattr(self.finder, name)


hidden = sys.argv.pop(1).split(",")
sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]  # type: ignore[arg-type]

from export.command.main import main  # noqa: E402

main()
