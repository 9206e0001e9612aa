"""A derived graph is checked before it appears: valid, its weights in range, run, and compared.

Two comparisons, each where it can be made. With the graph it comes from: experts of the lower ranks masked there
(`with_masked_ranks`), both must agree, which shows that every place of k was found. With PyTorch, where the graph lies
in a knobcast variant: the directory's weights, the same k and blocks at run time. A fused operator has no ranks to
mask; its k is one attribute.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.derive.feed import Feed, compute_dtype
from export.derive.surgery import Surgery, open_graph, with_masked_ranks
from export.derive.torch_check import against_torch
from export.gate.tolerance import scale_of
from export.run.external import check_external
from export.run.graph_facts import read_facts
from export.run.session_options import SESSION_OPTIONS
from transform.errors import CheckpointError, KnobcastError, VerificationError
from transform.strict_json import Record, read_json

TOLERANCE = 1e-5  # of the largest value; the same arithmetic, summed over more zeros
SEEDS = 3


def check_ranges(staged: Path) -> tuple[int, list[str]]:
    """(byte ranges checked, weight files that are missing); raises VerificationError for a range beyond its file."""
    missing: dict[str, None] = {}
    external = read_facts(staged).external
    places = check_external(
        staged.name, external, staged.parent, lambda file: missing.update({file: None}), folders=True
    )
    return len(places), list(missing)


def check_derived(source: Path, staged: Path, surgery: Surgery) -> Record:
    """Everything that can be checked about the graph in `staged`, beside its source; raises VerificationError."""
    import onnx

    found: dict[str, object] = {}
    ranges, missing = check_ranges(staged)
    found["checker"] = _checker(source, staged)
    found["ranges"] = ranges
    if missing:
        found["run"] = f"not run: the weights are missing ({', '.join(missing[:3])})"
        return found
    opened = open_graph(onnx.load(staged, load_external_data=False))
    options = _session_options(staged.parent)
    try:
        feed = Feed(opened, np.random.default_rng(0))
    except LookupError as error:
        found["run"] = f"not run: {error}"
        return found
    try:
        logits = feed.run(staged, options)
        found["run"] = {"prefill": list(logits[0].shape), "decode": list(logits[1].shape)}
    except KnobcastError:
        before = _failure(source, options)
        if before is None:
            raise
        found["run"] = f"not run: the source graph doesn't run here either: {before}"
    ran = isinstance(found["run"], dict)
    found["source_with_masked_ranks"] = (
        _against_source(source, staged, surgery, options) if ran else "not compared: not run"
    )
    found["torch"] = against_torch(staged, opened, surgery)
    return found


def is_proven(found: Mapping[str, object]) -> bool:
    """Whether the graph was compared with something."""
    return any(isinstance(found.get(other), dict) for other in ("source_with_masked_ranks", "torch"))


def _failure(source: Path, options: Mapping[str, str]) -> str | None:
    """Why the source graph itself can't be run here; None where it can."""
    import onnx

    try:
        opened = open_graph(onnx.load(source, load_external_data=False))
        Feed(opened, np.random.default_rng(0)).run(source, options)
    except KnobcastError as error:
        return str(error)
    return None


def _checker(source: Path, staged: Path) -> str:
    """onnx's own checker. Some exporters write operators that it doesn't know; the source then fails likewise."""
    import onnx

    try:
        onnx.checker.check_model(str(staged))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        try:
            onnx.checker.check_model(str(source))
        except Exception:
            return f"refuses the source graph too: {reason}"
        raise VerificationError(
            f"the derived graph must be valid, onnx's checker says: {reason}. Nothing was written: please report this."
        ) from error
    return "passed"


def _session_options(directory: Path) -> Mapping[str, str]:
    path = directory / "io.json"
    options = read_json(path).get("session_options") if path.is_file() else None
    return options if isinstance(options, dict) else SESSION_OPTIONS


def _against_source(source: Path, staged: Path, surgery: Surgery, options: Mapping[str, str]) -> dict[str, float] | str:
    """The derived graph and its source, in both of which only the experts count that the smaller k keeps."""
    import onnx

    if surgery.before is None or surgery.top_k is None:
        return "not compared: k isn't known, and wasn't changed"
    least = [min(pair) for pair in zip(surgery.before, surgery.top_k, strict=True)]
    every = range(len(surgery.keep_blocks))
    try:
        theirs = with_masked_ranks(onnx.load(source, load_external_data=False), surgery.keep_blocks, least)
        ours = with_masked_ranks(onnx.load(staged, load_external_data=False), every, least)
    except CheckpointError as error:
        return f"not compared: {error}"
    paths = [staged.with_name(f"{staged.name}.{side}") for side in ("ours", "theirs")]
    worst = ""
    try:
        for path, model in zip(paths, (ours, theirs), strict=True):
            path.write_bytes(model.SerializeToString())
        opened = open_graph(ours)
        # two experts may be equally probable in float32 for some tokens; three times in a row they are not
        for seed in range(SEEDS):
            feed = Feed(opened, np.random.default_rng(seed))
            mine, other = (np.concatenate(feed.run(path, options), 1).astype(np.float64) for path in paths)
            scale = scale_of(other)
            difference = float(np.abs(mine - other).max())
            # sixteen bits are coarser by their own measure
            coarse = 1.0 if str(compute_dtype(opened)) == "float32" else 1e3
            if difference <= TOLERANCE * coarse * scale:
                return {"relative_tolerance": TOLERANCE * coarse, "largest_value": scale, "difference": difference}
            worst = f"{difference:.3g} at values of {scale:.4g}"
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    raise VerificationError(
        f"the derived graph must agree with its source where only the experts of the smaller k count, to {TOLERANCE} "
        f"of the largest value; the difference is {worst}. Some constant that depends on k was missed. Nothing was "
        "written: please report this."
    )
