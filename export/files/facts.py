"""What a manifest says about its variant, computed again from what is there: config, headers, io.json, sums.

Of the source only what follows from the variant can be: all blocks of a model have the same shapes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from export.files.integrity import pending_of, read_sums
from export.files.measured import Measured
from export.files.provenance import check_scores
from transform.checkpoint import Checkpoint
from transform.errors import KnobcastError, VerificationError
from transform.forms import REFERENCE, form_named
from transform.knobs import DTYPES, canonical_name
from transform.molmoe.tiling import BudgetError
from transform.ownership import MANIFEST, SCHEMA
from transform.packed_layout import activations_of
from transform.picture_processor import written_budget
from transform.sizes import active_parameters, parameters, weight_bytes
from transform.stored_form import form_of
from transform.strict_json import Record, read_json
from transform.vision_plan import own_policy, plan_vision

IO = "io.json"
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
Fact = tuple[str, Any, Any]  # name, what it must be, what the manifest says


def check_facts(manifest: Record, checkpoint: Checkpoint, ranges: Mapping[str, int] | None = None) -> int:
    """Compare every fact of the manifest with the variant in `checkpoint`; returns how many there were.

    `ranges`: how many ranges of weights each of its graphs reads, where they were counted.
    """
    count = 0
    try:
        if "measured" in manifest:
            Measured.parse(manifest["measured"], f"{MANIFEST}: measured")
        check_scores(manifest.get("scores"))
        for name, wanted, said in chain(_facts(manifest, checkpoint), _verified(manifest, ranges or {})):
            if json.dumps(wanted, sort_keys=True) != json.dumps(said, sort_keys=True):  # 1.0 and True are not 1
                raise VerificationError(
                    f"{MANIFEST} must say what the variant is: {name} is {_brief(wanted)}, it says {_brief(said)}. "
                    "Export the variant again."
                )
            count += 1
    except _MALFORMED as error:
        raise VerificationError(
            f"{MANIFEST} must be a variant's, of schema {SCHEMA}: {type(error).__name__} {str(error)[:80]}. "
            "Export the variant again."
        ) from error
    return count


def _facts(manifest: Record, checkpoint: Checkpoint) -> Iterator[Fact]:
    yield "schema", SCHEMA, manifest["schema"]
    spelt = canonical_name(checkpoint.settings.top_k, manifest["knobs"]["tokens"])
    yield f"name, which must say {spelt},", True, f"-{spelt}-" in f"{manifest['name']}-"
    yield "model_type", checkpoint.architecture.model_type, manifest["model_type"]
    yield "top_k", list(checkpoint.settings.top_k), manifest["top_k"]
    yield "parameters", parameters(checkpoint), manifest["parameters"]
    yield "active_parameters", active_parameters(checkpoint), manifest["active_parameters"]
    yield "bytes", weight_bytes(checkpoint), manifest["bytes"]
    if "layout_digest" in manifest["files"]:  # manifests of 0.1.0 have none
        yield "files.layout_digest", checkpoint.layout_digest, manifest["files"]["layout_digest"]
    yield from _blocks(manifest, checkpoint)
    yield from _knobs(manifest, checkpoint)
    yield from _vision(manifest, checkpoint)
    yield from _derived(manifest, checkpoint)


def _blocks(manifest: Record, checkpoint: Checkpoint) -> Iterator[Fact]:
    settings, source, kept = checkpoint.settings, manifest["source"], manifest["blocks_kept"]
    total, before = source["blocks"], source["top_k"]
    yield "the number of blocks_kept", settings.layers, len(kept)
    if not 1 <= total <= 10_000:
        raise ValueError(f"source.blocks {total}")
    yield "blocks_kept", [i for i in range(total) if i in set(kept)], kept
    yield "blocks_removed", [i for i in range(total) if i not in set(kept)], manifest["blocks_removed"]
    yield "the number of source.top_k", total, len(before)
    least = 1 if checkpoint.architecture.complete else 0
    if not all(type(k) is int and least <= k <= settings.experts for k in before):
        raise ValueError(f"source.top_k {before}")
    if manifest["knobs"]["k"] is None:
        yield "top_k, as no k was set,", [before[i] for i in kept], manifest["top_k"]
    if not checkpoint.architecture.complete:
        return  # blocks needn't be alike: what the removed ones had can't be counted
    each = _block_parameters(checkpoint)
    whole = parameters(checkpoint) + (total - settings.layers) * each
    expert = sum(math.prod(checkpoint.tensor(f"expert.{part}").shape) for part in ("gate", "up", "down"))
    idle = sum(settings.experts - k for k in before) * expert
    yield "source.parameters", whole, source["parameters"]
    yield "source.active_parameters", whole - idle, source["active_parameters"]


def _block_parameters(checkpoint: Checkpoint) -> int:
    roles = checkpoint.architecture.roles
    names = [name for name, (role, _) in checkpoint.expected().items() if "{i}" in roles[role][0][0]]
    return sum(math.prod(checkpoint.tensors[name].shape) for name in names) // checkpoint.settings.layers


def _knobs(manifest: Record, checkpoint: Checkpoint) -> Iterator[Fact]:
    knobs, k = manifest["knobs"], manifest["knobs"]["k"]
    yield "knobs.blocks", checkpoint.settings.layers, knobs["blocks"]
    if k is not None:
        layers = checkpoint.settings.layers
        ks = k if isinstance(k, list) else [k] * layers
        wanted = [k if has else 0 for k, has in zip(ks, checkpoint.settings.experts_of, strict=True)]
        yield "top_k by knobs.k", wanted, list(checkpoint.settings.top_k)
    try:
        form = form_named(knobs.get("form", REFERENCE.name))
    except KnobcastError as error:
        raise ValueError(f"knobs: {error}") from error
    if (checkpoint.path / IO).is_file():
        said = read_json(checkpoint.path / IO).get("form")
        yield "knobs.form by io.json", REFERENCE.name if said is None else said, form.name
    activations = knobs.get("activations")  # earlier versions said none, and had float32 ones
    if form.activations:
        activations = activations or form.activations[0]
        yield "knobs.activations", activations_of(checkpoint.config), activations
    if (checkpoint.path / IO).is_file() and activations is not None:
        said = read_json(checkpoint.path / IO).get("activations") or form.activations[0]
        yield "knobs.activations by io.json", said, activations
    own = form_of(checkpoint)
    if own.bits or form.bits:
        yield "knobs.form", own.name, form.name
        return
    dtype = form.dtype(knobs["dtype"])
    if dtype != "source":
        stored = sorted({tensor.stored for tensor in checkpoint.tensors.values()})
        yield f"the dtype by knobs ({dtype})", [DTYPES[dtype]], stored


def _vision(manifest: Record, checkpoint: Checkpoint) -> Iterator[Fact]:
    said = manifest["vision"]
    if not checkpoint.architecture.modality.sees_images:
        yield "vision", None, said
        yield from _pixels(manifest, checkpoint)
        return
    policy = said["tokens"], said["resize"], said["rule"]
    if "processor_config.json" in checkpoint.side_files:
        yield "the policy of images", list(own_policy(checkpoint)), list(policy)
    try:
        yield "vision", plan_vision(checkpoint, *policy).as_dict(), said
    except (KnobcastError, BudgetError) as error:
        raise ValueError(f"vision: {error}") from error
    if (checkpoint.path / IO).is_file():
        yield "vision by io.json", read_json(checkpoint.path / IO).get("vision"), said
    if manifest["knobs"]["tokens"] is not None:
        yield "vision.tokens by knobs", manifest["knobs"]["tokens"], said["tokens"]


def _pixels(manifest: Record, checkpoint: Checkpoint) -> Iterator[Fact]:
    """A budget of tokens that a stock model's processor holds."""
    said, pixels = manifest.get("pixels"), checkpoint.architecture.pixels
    if said is None and manifest["knobs"]["tokens"] is None:
        return
    if pixels is None:
        raise ValueError("pixels")
    try:
        yield "pixels", written_budget(checkpoint, pixels).as_dict(), said
    except KnobcastError as error:
        raise ValueError(f"pixels: {error}") from error
    if manifest["knobs"]["tokens"] is not None:  # else as its source has it
        yield "pixels.tokens by knobs", manifest["knobs"]["tokens"], manifest["pixels"]["tokens"]


def _derived(manifest: Record, checkpoint: Checkpoint) -> Iterator[Fact]:
    derived = manifest.get("derived", {})
    if not derived:
        return
    _, listed = read_sums(checkpoint.path)
    _, added = pending_of(manifest)
    for name, entry in derived.items():
        yield f"derived: the graph of {name}", name, entry["graph"]
        if name not in added:  # else another run is replacing it, or was
            yield f"derived: the sum of {name}", listed.get(name), entry["sha256"]
            path = checkpoint.path / name
            yield f"derived: the bytes of {name}", path.stat().st_size if path.is_file() else None, entry["bytes"]


def _verified(manifest: Record, ranges: Mapping[str, int]) -> Iterator[Fact]:
    """What the gate counted; what it measured, only `verify --level full` can measure again."""
    passed = manifest.get("verification")
    if not isinstance(passed, dict):
        return
    if "parameters_on_meta" in passed:
        yield "verification.parameters_on_meta", manifest["parameters"], passed["parameters_on_meta"]
    for graph, count in passed.get("graph_ranges", {}).items():
        if ranges and graph not in manifest.get("derived", {}):
            yield f"verification.graph_ranges of {graph}", ranges.get(graph), count


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
