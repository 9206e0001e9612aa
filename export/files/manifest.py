"""`manifest.json`: what a variant is, where it comes from, and the differences that were measured.

Same input, versions and machine give the same bytes: no clock, no host, no absolute path.
"""

from importlib.metadata import PackageNotFoundError, version

from export.files.measured import Measured
from export.files.provenance import Provenance, scores_facts
from export.files.verification import SKIPPED, Verification
from importance.choose import Source
from transform.checkpoint import Checkpoint
from transform.molmoe.versions import TESTED_TRANSFORMERS
from transform.ownership import MANIFEST, SCHEMA, visible_files
from transform.plan import Plan
from transform.strict_json import Record
from transform.write import write_json

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


def provenance_of(plan: Plan, ranking: Source | None) -> Provenance:
    """What the graphs of a planned variant say of themselves, before there is a manifest."""
    return Provenance.parse({**plan.as_dict(), "scores": scores_facts(ranking), "tools": tool_versions()})


def write_manifest(
    written: Checkpoint,
    plan: Plan,
    verification: Verification | None,
    sums: str,
    measured: Measured | None = None,
    ranking: Source | None = None,
) -> Record:
    """Write the manifest, the last file of a variant; `sums` is the digest of SHA256SUMS, or "not computed"; `ranking`
    chose the blocks.

    What no sums name, the manifest does: --force replaces a directory only where every file is known.
    """
    names = {"names": visible_files(written.path)} if sums == "not computed" else {}
    manifest = {
        "schema": SCHEMA,
        **plan.as_dict(),
        "scores": scores_facts(ranking),
        "verification": SKIPPED if verification is None else verification.as_dict(),
        **({"measured": measured.as_dict()} if measured else {}),
        "files": {"sha256sums": sums, "layout_digest": written.layout_digest, **names},
        "tools": tool_versions(),
        "tested": {"transformers": list(TESTED_TRANSFORMERS)},
    }
    write_json(written.path / MANIFEST, manifest)
    return manifest
