"""A variant becomes something deployable: graphs, verification, manifest, card, command line.

What Python programs use is named here (`docs/api.md`) and resolved on first use: a runner needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.derive import derive as derive_graph
    from export.family.family import export_family, plan_family, verify_family
    from export.gate.verify import verify_directory
    from export.graph.static import plan_static
    from export.run.answer import Runner
    from export.run.static import StaticGraphs
    from export.variant import export_variant

    __version__: str

__all__ = [
    "Runner",
    "StaticGraphs",
    "__version__",
    "derive_graph",
    "export_family",
    "export_variant",
    "plan_family",
    "plan_static",
    "verify_directory",
    "verify_family",
]

_HOMES = {
    "Runner": "export.run.answer",
    "StaticGraphs": "export.run.static",
    "derive_graph": "export.derive:derive",
    "export_family": "export.family.family",
    "export_variant": "export.variant",
    "plan_family": "export.family.family",
    "plan_static": "export.graph.static",
    "verify_directory": "export.gate.verify",
    "verify_family": "export.family.family",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("knobcast")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, inside = _HOMES[name].partition(":")
    return getattr(import_module(home), inside or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
