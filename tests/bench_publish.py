"""What a push moves and how much memory it takes: `python -m tests.bench_publish`, prints JSON.

A synthetic OLMoE of 1.2 GB, its variants with k = 8 and 4, one of 12 blocks, and families with one member more, into
Debian's docker-registry. Bytes are those of request bodies as they pass a stand-in before the registry, and what its
storage grows by. A file of 2 GB that is all holes goes into each kind of target for the memory.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import KNOBCAST, synthetic_olmoe
from tests.support.families import write_family
from tests.support.paths import ROOT
from tests.support.registry import Registry, StandIn, running, standing_before
from tests.support.variants import record_sums, write_variant

HOLES = 2 << 30


def push(directory: Path, target: str, *more: str) -> tuple[dict[str, int], float]:
    """(what `knobcast push --json` says, peak resident MiB of its process)."""
    command = [*KNOBCAST, "push", str(directory), target, "--json", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), int(re.findall(r"^peak (\d+)$", done.stderr, re.M)[-1]) / 1024


@contextmanager
def pushed(directory: Path, server: StandIn, registry: Registry, name: str) -> Iterator[dict[str, float]]:
    """Push a directory and remove it -> bytes of it, planned, sent and stored, as parts of all."""
    target = f"oci://localhost:{server.port}/bench/{name}"
    planned, _ = push(directory, target, "--dry-run")
    server.asked.clear()
    before = registry.stored
    _, peak = push(directory, target)
    sent = sum(int(a.headers.get("Content-Length", 0)) for a in server.asked if a.method in ("PUT", "PATCH", "POST"))
    whole = planned["bytes"]
    yield {
        "bytes": whole,
        "planned": round(planned["bytes_to_move"] / whole, 5),
        "sent": round(sent / whole, 5),
        "stored": round((registry.stored - before) / whole, 5),
        "peak_mb": round(peak),
    }
    shutil.rmtree(directory)


def bench_oci(work: Path) -> dict[str, dict[str, float]]:
    """Each push after the first, by what it shares with those before it."""
    source, made = work / "olmoe", work / "variant"
    synthetic_olmoe(source, 512, 320)
    found = {}
    with running(work / "registry") as registry, standing_before(registry.port) as server:
        for row, k, keep, name in (
            ("first", 8, None, "olmoe"),
            ("k_alone", 4, None, "olmoe"),
            ("k_alone_in_another_repository", 2, None, "other"),
            ("12_of_16_blocks", 4, [i for i in range(16) if i not in (5, 8, 10, 12)], "olmoe"),
        ):
            record_sums(write_variant(source, made, keep, k))
            with pushed(made, server, registry, name) as found[row]:
                print(row, found[row], file=sys.stderr, flush=True)
        for row, grid in (("family", "k=8,4 blocks=16"), ("family_with_one_more_member", "k=8,4,2 blocks=16")):
            write_family(source, made, grid, verify=False)
            record_sums(made)
            with pushed(made, server, registry, "olmoe") as found[row]:
                print(row, found[row], file=sys.stderr, flush=True)
    return found


def bench_memory(work: Path, variant: Path) -> dict[str, int]:
    """Peak resident MiB of a push of a variant with a file of HOLES bytes beside its own, by target."""
    with (variant / "vocab.txt").open("wb") as file:
        os.truncate(file.fileno(), HOLES)
    record_sums(variant)
    found = {}
    with running(work / "registry-of-holes") as registry:
        for scheme, target in (
            ("dir", f"dir:{work / 'shelf'}"),
            ("oci", f"oci://localhost:{registry.port}/bench/holes"),
            ("file", f"file://{work / 'store'}"),
        ):
            record, peak = push(variant, target)
            found[scheme] = round(peak)
            print(scheme, found[scheme], str(record["reference"]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Both, as one JSON object."""
    work = Path(tempfile.mkdtemp(prefix="knobcast-bench-publish-"))
    try:
        found: dict[str, object] = {"oci": bench_oci(work)}
        shutil.rmtree(work / "registry")
        small = write_variant(ROOT / "tests" / "fixtures" / "molmo", work / "small", None, 2)
        found["peak_mb"] = bench_memory(work, small)
        print(json.dumps(found, indent=2))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
