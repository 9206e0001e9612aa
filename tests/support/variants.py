"""Variants as the main job writes them, without the gate; and what a careful tamperer does to one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx

from export.files.integrity import sha256_file, write_sums
from export.files.provenance import Provenance
from export.graph.decoder import text_graph
from export.run.family_file import Family, Member
from export.variant import export_variant
from transform.depth import drop_blocks
from transform.forms import REFERENCE
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.top_k import set_top_k


def write_variant(
    source: Path,
    target: Path,
    keep: Sequence[int] | None = None,
    k: int | Sequence[int] | None = None,
    *,
    tokens: int | None = None,
    dtype: str = "source",
    form: str = "cpu",
) -> Path:
    """A variant of `source` with its graphs; k counts kept blocks if it is a list."""
    top_k = k if k is None or isinstance(k, int) else tuple(k)
    knobs = Knobs(top_k, None if keep is None else tuple(keep), tokens, dtype, form)
    export_variant(make_plan(read_checkpoint(source), knobs), target, verify=False)
    return target


def add_member(directory: Path, name: str, keep: Sequence[int], k: int | None = None) -> None:
    """A decoder of other knobs over a variant's weights, as families have it, named in its record."""
    target = drop_blocks(read_checkpoint(directory), keep)
    target = target if k is None else set_top_k(target, k)
    member = Member(name, tuple(keep), target.settings.top_k, 0, 0, 0, 0, "", (), "skipped")
    text_graph(target, REFERENCE).write(directory / member.graph)
    (directory / "family.json").write_text(json.dumps(Family("m", REFERENCE, (), None, (member,)).as_dict()))


def digests(directory: Path) -> dict[str, str]:
    """File name -> SHA-256."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    return dict(json.loads(file.read_text()))


def retell(path: Path, said: Mapping[str, str], keep: bool = True) -> None:
    """A graph that says this of itself, and is otherwise the same; `keep`: what else it said."""
    model = onnx.load(path, load_external_data=False)
    kept = [(entry.key, entry.value) for entry in model.metadata_props if keep and entry.key not in said]
    del model.metadata_props[:]
    for key, value in (*said.items(), *kept):
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString(deterministic=True))


def record_sums(directory: Path, first: Mapping[str, str] = MappingProxyType({})) -> None:
    """Members' metadata and digests, sums and manifest follow a change; `first` overrides a family's first member."""
    if (directory / "family.json").is_file():
        record = read_json(directory / "family.json")
        own = Provenance.parse(read_json(directory / "manifest.json"))
        for member in record["members"]:
            told = own.of_member(tuple(member["blocks_kept"]), tuple(member["top_k"])).of(member["graph"])
            retell(directory / member["graph"], told)
            member["sha256"] = sha256_file(directory / member["graph"])
        record["members"][0] |= first
        (directory / "family.json").write_text(json.dumps(record))
    manifest = read_json(directory / "manifest.json")
    manifest["files"]["sha256sums"] = write_sums(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest))
