"""What may lie where a run was stopped that is neither the old state nor the new one, and what is wrong with it."""

import hashlib
import json
from pathlib import Path

from export.files.check import check_files
from export.files.facts import check_facts
from export.files.integrity import check_graph_bounds, check_sums
from export.sweep.folder import damaged_files
from export.sweep.table import FILE as TABLE
from export.sweep.table import read_table
from importance.jobs import damaged_results
from transform.errors import KnobcastError
from transform.read import read_checkpoint
from transform.strict_json import read_json


def added_to(directory: Path) -> str:
    """A variant that `derive` adds to: sums, graphs and facts hold."""
    try:
        check_sums(directory)
        check_graph_bounds(directory)
        check_facts(read_json(directory / "manifest.json"), read_checkpoint(directory))
    except KnobcastError as error:
        return str(error)
    return ""


def swept(directory: Path) -> str:
    """A sweep's folder of finished parts: nothing in it is damaged."""
    try:
        _ = read_table(directory) if (directory / TABLE).exists() else None
    except KnobcastError as error:
        return str(error)
    return ", ".join(damaged_results(directory / "jobs") + damaged_files(directory))


def published(shelf: Path) -> str:
    """A shelf, a store or a registry's files: whatever is named there as a version or an alias is whole."""
    if (shelf / "config.yml").exists():
        return _registered(shelf)
    versions = [path.parent for path in shelf.glob("*/manifest.json") if not path.parent.name.startswith(".")]
    try:
        for version in versions:
            check_files(version)
    except KnobcastError as error:
        return str(error)
    links = [path for path in shelf.glob("[!.]*") if path.is_symlink()]
    try:
        pointers = [shelf / json.loads(path.read_bytes())["version"] for path in shelf.glob("*.json")]
    except ValueError as error:
        return f"a pointer is damaged: {error}"
    lost = [path.name for path in (*links, *pointers) if not (path / "manifest.json").is_file()]
    return f"names nothing: {', '.join(lost)}" if lost else ""


def tags(registry: Path) -> dict[str, str]:
    """{"repository:tag": digest of its manifest} in the files of a docker-registry."""
    found = {}
    for link in registry.glob("storage/docker/registry/v2/repositories/*/_manifests/tags/*/current/link"):
        found[f"{link.parents[4].name}:{link.parents[1].name}"] = link.read_text()
    return {tag: digest for tag, digest in found.items() if digest}  # an empty one is no tag yet


def _registered(registry: Path) -> str:
    for tag, digest in tags(registry).items():
        manifest = json.loads(_blob(registry, digest) or b"{}")
        layers = [*manifest.get("layers", ()), manifest.get("config", {"digest": digest})]
        for layer in layers:
            data = _blob(registry, layer["digest"])
            if data is None or f"sha256:{hashlib.sha256(data).hexdigest()}" != layer["digest"]:
                return f"{tag} lacks {layer['digest'][:19]}"
    return ""


def _blob(registry: Path, digest: str) -> bytes | None:
    name = digest.removeprefix("sha256:")
    path = registry / "storage/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
    return path.read_bytes() if path.is_file() else None
