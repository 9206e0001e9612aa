"""Another k, or fewer blocks, for a decoder graph that is already exported. Its weights stay where they are.

`surgery.py` operates on the graph in memory: `blocks.py` finds the blocks by structure, `topk.py` the places of k by
the sizes that must fit; `check.py` proves the result; `place.py` says where it may go. For checkpoints at hand,
exporting again is as quick and says more; this is for graphs whose checkpoint is gone, and for graphs of other tools.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from export.run.graph_facts import read_facts
from transform.errors import CheckpointError, VerificationError
from transform.progress import Say
from transform.strict_json import Record


def derive(
    graph: Path,
    k: int | Sequence[int] | None = None,
    *,
    keep: Sequence[int] | None = None,
    drop: Sequence[int] | None = None,
    out: Path | None = None,
    verify: bool = True,
    dry_run: bool = False,
    force: bool = False,
    say: Say = lambda _: None,
) -> Record:
    """Write the derived graph beside `graph`; returns what it has and what was checked. On any error nothing changes.

    `keep` and `drop` count the graph's own blocks; `k` may be one value per kept block. Raises KnobError for a setting
    that the graph can't have, CheckpointError for a graph whose parts can't be told, WriteError for an impossible
    target, VerificationError for a result that isn't right.
    """
    from export.derive.place import check_out, default_out, overlay_for, setting_name
    from export.derive.record import check_record, is_recorded, publish, refusing, staging
    from export.derive.surgery import operate
    from export.files.integrity import sha256_file
    from transform.write import write_json

    say("surgery")
    surgery = operate(load_graph(graph), k, keep, drop)
    target = out or default_out(graph, setting_name(surgery.top_k, len(surgery.keep_blocks)))
    check_out(target, graph, force)
    directory = target.resolve().parent
    check_record(directory, verify)
    overlay = overlay_for(graph, directory / target.name)
    record: Record = {
        "graph": target.name,
        "source": graph.name,
        "blocks": surgery.total,
        "blocks_kept": list(surgery.keep_blocks),
        "top_k_before": None if surgery.before is None else list(surgery.before),
        "top_k": None if surgery.top_k is None else list(surgery.top_k),
        "nodes": surgery.nodes,
    }
    if dry_run:
        return {**record, "out": str(target)}
    _mark(surgery.model, record)
    from export.derive.check import check_derived, check_ranges, is_proven  # onnxruntime: only for settings that can be

    data = surgery.model.SerializeToString(deterministic=True)
    needed = len(data) * (3 if verify else 1)  # the check opens two graphs more
    with ExitStack() as staged, refusing(directory / target.name, needed):
        stage = staged.enter_context(staging(directory / target.name))
        stage.write_bytes(data)
        record |= {"bytes": len(data), "sha256": sha256_file(stage)}
        if verify:
            say("verify")
            record["verification"] = check_derived(graph.resolve(), stage, surgery)
            if is_recorded(directory) and not is_proven(record["verification"]):
                raise VerificationError(
                    f"{directory} is a verified variant, and takes no graph that could be compared with nothing: "
                    f"{record['verification']['run']}; {record['verification'].get('torch', 'nothing to compare')}. "
                    "Export the setting with `knobcast export` instead."
                )
        else:
            check_ranges(stage)
            record["verification"] = "skipped"
        files = {}
        if overlay is not None:
            files[overlay] = staged.enter_context(staging(overlay))
            changed = {"filename": target.name, "num_hidden_layers": len(surgery.keep_blocks)}
            write_json(files[overlay], {"model": {"decoder": changed}})
            record["overlay"] = overlay.name
        publish(directory, record, {**files, directory / target.name: stage})
    return {**record, "out": str(target)}


def load_graph(path: Path) -> Any:
    """An ONNX model without its weights."""
    import onnx

    if path.is_dir():
        raise CheckpointError(f"{path} is a directory. Give the .onnx file of a decoder in it, as {path}/text.onnx.")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Give the .onnx file of a decoder.")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exception type depends on its implementation
        raise CheckpointError(f"{path.name}: not an ONNX file ({str(error)[:100]}). Give a decoder's graph.") from error
    if not model.graph.node:
        raise CheckpointError(f"{path.name}: an ONNX graph without operators. Give a decoder's graph.")
    try:
        read_facts(path)
    except VerificationError as error:  # more nodes than can be taken apart in time
        raise CheckpointError(str(error)) from error
    return model


def _mark(model: Any, record: Mapping[str, object]) -> None:
    """What was done, inside the file."""
    from export.derive.place import MARK

    kept = [item for item in model.metadata_props if item.key != MARK]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    words = ("source", "blocks_kept", "top_k")
    model.metadata_props.add(key=MARK, value=json.dumps({word: record[word] for word in words}))
