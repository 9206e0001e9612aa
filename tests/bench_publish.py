"""The bars of pushing: what a push moves where something of it is there already, and how much memory it takes.

A synthetic OLMoE of 1.2 GB, its variants with k = 8 and 4, one of 12 blocks, and families with one member more, into
Debian's docker-registry. Bytes are those of request bodies as they pass a stand-in before the registry, and what its
storage grows by. A file of 2 GiB that is all holes goes into each kind of target for the memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.families import write_family
from tests.support.noise import synthetic_olmoe
from tests.support.paths import FIXTURES
from tests.support.registry import ABSENT, Registry, StandIn, available, running, standing_before
from tests.support.spent import knobcast
from tests.support.variants import record_sums, write_variant

HOLES = 2 << 30
DROP = (5, 8, 10, 12)


@contextmanager
def pushed(directory: Path, server: StandIn, registry: Registry, name: str) -> Iterator[dict[str, int]]:
    """Push a directory and remove it -> bytes of it, planned, sent and stored."""
    target = f"oci://localhost:{server.port}/bench/{name}"
    planned = json.loads(knobcast("push", directory, target, "--json", "--dry-run").said)
    server.asked.clear()
    before = registry.stored
    knobcast("push", directory, target, "--json")
    sent = sum(int(a.headers.get("Content-Length", 0)) for a in server.asked if a.method in ("PUT", "PATCH", "POST"))
    yield {
        "bytes": planned["bytes"],
        "planned": planned["bytes_to_move"],
        "sent": sent,
        "stored": registry.stored - before,
    }
    shutil.rmtree(directory)


def bench_oci(work: Path) -> dict[str, Any]:
    """Each push after the first, by what it shares with those before it."""
    if not available():
        return {"skipped": ABSENT}
    source, made = work / "olmoe", work / "variant"
    synthetic_olmoe(source, 512, 320)
    rest = [i for i in range(16) if i not in DROP]
    moved: dict[str, dict[str, int]] = {}
    with running(work / "registry") as registry, standing_before(registry.port) as server:
        for row, k, keep, name in (
            ("first", 8, None, "olmoe"),
            ("another_k", 4, None, "olmoe"),
            ("another_k_beside", 2, None, "other"),
            ("depth", 4, rest, "olmoe"),
        ):
            record_sums(write_variant(source, made, keep, k))
            with pushed(made, server, registry, name) as moved[row]:
                pass
        for row, grid in (("family", "k=8,4 blocks=16"), ("member", "k=8,4,2 blocks=16")):
            write_family(source, made, grid, verify=False)
            record_sums(made)
            with pushed(made, server, registry, "olmoe") as moved[row]:
                pass
    shutil.rmtree(source)
    shutil.rmtree(work / "registry")
    return {
        "file_bytes": moved["first"]["bytes"],
        **{
            f"{row}_{which}": round(moved[row][which] / moved[row]["bytes"], 5)
            for row, whichs in (
                ("another_k", ("sent", "stored")),
                ("another_k_beside", ("sent",)),
                ("member", ("sent", "stored")),
                ("depth", ("planned", "sent")),
            )
            for which in whichs
        },
        "bar": "another_k_sent <= 0.02, another_k_stored <= 0.02, member_sent <= 0.02, member_stored <= 0.02",
    }


def bench_memory(work: Path) -> dict[str, Any]:
    """A push of a variant with a file of HOLES bytes beside its own, by target."""
    if not available():
        return {"skipped": ABSENT}
    variant = write_variant(FIXTURES, work / "with-holes", None, 2)
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
            found[f"push_{scheme}_peak_mb"] = round(knobcast("push", variant, target, "--json").peak_mb)
    for left in ("with-holes", "shelf", "store", "registry-of-holes"):
        shutil.rmtree(work / left)
    return found | {"bar": "push_* <= 190"}


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [("push_oci", partial(bench_oci, work)), ("push_memory", partial(bench_memory, work))]
