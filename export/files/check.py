"""`knobcast verify --level files`: a directory against what it records of itself. Nothing is computed by a model.

`full` begins with the same checks (`export/gate/verify.py`). Needs neither torch nor onnx.
"""

from collections.abc import Mapping
from pathlib import Path

from export.files.facts import check_facts
from export.files.integrity import NONE, check_graph_bounds, check_sums, sha256_file, unreplaced
from export.files.provenance import Provenance, check_graphs
from export.files.runtime_files import check_runtime_files
from export.run.family_file import FILE, Family, read_family
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.ownership import MANIFEST
from transform.progress import Say
from transform.read import read_checkpoint
from transform.strict_json import Record, read_json


def check_files(directory: Path, say: Say = lambda _: None, known: Mapping[str, str] = NONE) -> Record:
    """Check a variant or a family: its sums, the manifest's facts, its graphs' ranges, the digests of members.

    `known`: sums of files that were just read whole, as `check_signature` returns them. Returns how many of each there
    were; raises VerificationError.
    """
    with unreplaced(directory):
        _, _, results = check_variant_files(directory, say, known)
        if (directory / FILE).is_file():
            results["member_graphs"] = check_members(directory, read_family(directory))
        return results


def check_variant_files(
    directory: Path, say: Say, known: Mapping[str, str] = NONE
) -> tuple[Record, Checkpoint, Record]:
    """(the manifest, the variant, how much was checked)."""
    say("sums")
    manifest = read_json(directory / MANIFEST)
    files = check_sums(directory, known=known)
    checkpoint = read_checkpoint(directory)
    ranges = check_graph_bounds(directory)
    check_runtime_files(directory)
    facts = check_facts(manifest, checkpoint, ranges)
    told = check_graphs(directory, manifest, _members(directory, manifest))
    return manifest, checkpoint, {"files": files, "facts": facts, "graph_ranges": ranges, "provenance": told}


def _members(directory: Path, manifest: Record) -> dict[str, Provenance]:
    """What the members' graphs say, by their files; none where it is no family."""
    if "scores" not in manifest or not (directory / FILE).is_file():
        return {}
    own = Provenance.parse(manifest)
    members = read_family(directory).members
    return {member.graph: own.of_member(member.blocks_kept, member.top_k) for member in members}


def check_members(directory: Path, family: Family) -> int:
    """Compare the members' graphs with their digests in the family's record; returns how many there are."""
    for member in family.members:
        if sha256_file(directory / member.graph) != member.sha256:
            raise VerificationError(f"{member.graph} must have the digest in {FILE}. Export the family again.")
    return len(family.members)
