"""What may lie where a run was stopped that is neither the old state nor the new one, and what is wrong with it."""

import json
from pathlib import Path

from export.files.check import check_files
from export.files.facts import check_facts
from export.files.integrity import check_graph_bounds, check_sums
from export.sweep.folder import damaged_files
from export.sweep.table import FILE as TABLE
from export.sweep.table import read_table
from importance.jobs import damaged_results
from tests.faults.servers import damaged, is_storage
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
    if is_storage(shelf):
        return damaged(shelf)
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
