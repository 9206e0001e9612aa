"""`manifest.json`: what a variant is, where it comes from, and the differences that were measured.

Same input, versions and machine give the same bytes: no clock, no host, no absolute path.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transform.molmoe.versions import TESTED_TRANSFORMERS
from transform.plan import Plan
from transform.stage import MANIFEST
from transform.write import write_json

SCHEMA = 1
_TOOLS = ("knobcast", "torch", "transformers", "safetensors", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")


def tool_versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_manifest(directory: Path, plan: Plan, verification: dict[str, Any] | str, sums: str) -> dict[str, Any]:
    """Write the manifest, the last file of a variant; `sums` is the digest of SHA256SUMS."""
    manifest = {
        "schema": SCHEMA,
        **plan.as_dict(),
        "verification": verification,
        "files": {"sha256sums": sums},
        "tools": tool_versions(),
        "tested": {"transformers": list(TESTED_TRANSFORMERS)},
    }
    write_json(directory / MANIFEST, manifest)
    return manifest
