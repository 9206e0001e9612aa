"""What is fuzzed: a reader of files that may come from anywhere, valid input for it, and how that is changed."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from export.derive import load_graph
from export.derive.surgery import operate
from export.files.integrity import check_graph_bounds
from export.files.io_spec import signature
from export.gate.golden import FILE as GOLDEN
from export.gate.golden_file import load_golden
from export.layout.moved import plan_move, write_move
from export.layout.triton import config_pbtxt
from export.run.graph_facts import check_ranges, read_facts
from export.run.io_file import read_io
from importance.choose import choose_blocks
from importance.readers.read import read_samples
from tests.fuzz.answers import answer_targets
from tests.fuzz.families import family_targets, quantised_targets
from tests.fuzz.hub import hub_targets
from tests.fuzz.measurements import measurement_targets
from tests.fuzz.mlflow_answers import mlflow_targets
from tests.fuzz.mutate import Mutate, in_header, in_json, in_lines, in_protobuf
from tests.fuzz.records import record_targets
from tests.fuzz.running import running_targets
from tests.fuzz.sweeps import sweep_targets
from tests.fuzz.target import Target, put
from tests.support.data_sets import ANNOTATIONS, QUESTIONS
from tests.support.foreign_graphs import write_foreign
from tests.support.models import save_source
from tests.support.paths import FIXTURES
from tests.support.pictures import noise_png
from tests.support.variants import write_variant
from transform.checkpoint import Checkpoint
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.safetensors_header import read_header

INDEX = "model.safetensors.index.json"


def targets(folder: Path) -> tuple[Target, ...]:
    """All targets; their valid inputs are made below `folder`."""
    save_source(folder / "olmoe")
    text = write_variant(folder / "olmoe", folder / "text", keep=(0, 1))
    seeing = write_variant(FIXTURES, folder / "seeing", keep=(0, 1))
    checkpoint = read_checkpoint(seeing)
    whole = read_checkpoint(folder / "olmoe")
    sharded = _sharded(folder / "olmoe", folder / "sharded")
    (folder / "data").mkdir()
    for name in ("a.png", "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"):
        (folder / "data" / name).write_bytes(noise_png(0))
    weights = (text / "model.safetensors").read_bytes()
    return (
        Target("safetensors header", (weights,), in_header, lambda d: read_header(put(folder / "h.safetensors", d))),
        _file("index", sharded, INDEX, in_json, _planned),
        _file("config of olmoe", folder / "olmoe", "config.json", in_json, _planned),
        _file("config of molmo", _copied(FIXTURES, folder / "molmo"), "config.json", in_json, _planned),
        Target("scores", _scores(), in_json, lambda data: _chosen(folder, whole, data)),
        Target("samples", (_lines(),), in_lines, lambda d: _read(read_samples(put(folder / "data" / "q.jsonl", d)))),
        Target("vqav2", (json.dumps([QUESTIONS, ANNOTATIONS]).encode(),), in_json, lambda data: _vqa(folder, data)),
        _graph("facts", _copied(text, folder / "facts"), "text.onnx", lambda at: check_ranges(at, read_facts(at))),
        _graph("verify", _copied(text, folder / "verify"), "text.onnx", lambda at: check_graph_bounds(at.parent)),
        _graph("derive", _copied(text, folder / "derive"), "text.onnx", lambda at: _operated(at, [0])),
        _graph("derive k", _copied(seeing, folder / "derive-k"), "text.onnx", lambda at: _operated(at)),
        Target(
            "derive, foreign",
            (write_foreign(folder / "foreign.onnx", [2, 2]).read_bytes(),),
            in_protobuf,
            lambda data: _operated(put(folder / "foreign.onnx", data), [0]),
        ),
        _graph("layout", _copied(seeing, folder / "layout"), "preprocess.onnx", _laid_out),
        _file("io.json", seeing, "io.json", in_json, read_io),
        Target(
            "golden",
            (_golden(checkpoint),),
            in_header,
            lambda d: load_golden(put(folder / GOLDEN, d).parent, checkpoint),
        ),
        *record_targets(folder / "records", text),
        *answer_targets(folder / "answers"),
        *family_targets(folder / "families"),
        *quantised_targets(folder / "quantised"),
        *running_targets(folder / "running", (folder / "olmoe", folder / "molmo"), text, seeing),
        *hub_targets(folder / "hub"),
        *mlflow_targets(folder / "mlflow"),
        *sweep_targets(folder / "sweeps"),
        *measurement_targets(folder / "measurements", whole),
    )


def _file(name: str, directory: Path, file: str, mutate: Mutate, run: Callable[[Path], object]) -> Target:
    return Target(name, ((directory / file).read_bytes(),), mutate, lambda d: run(put(directory / file, d).parent))


def _graph(name: str, directory: Path, file: str, run: Callable[[Path], object]) -> Target:
    valid = ((directory / file).read_bytes(),)
    return Target(name, valid, in_protobuf, lambda data: run(put(directory / file, data)))


def _operated(graph: Path, drop: list[int] | None = None) -> object:
    return operate(load_graph(graph), 1, None, drop)


def _laid_out(graph: Path) -> object:
    """For Triton: read, carried, its inputs and outputs in words."""
    moved = plan_move(graph, "1/model.onnx")
    write_move(moved, graph.parent / "out", lambda _: None)
    return config_pbtxt("preprocess", {**signature(graph)}, "cpu", {}, folds=moved.facts.sixteen_bit)


def _copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def _sharded(source: Path, target: Path) -> Path:
    """A checkpoint of two files with an index."""
    from safetensors.numpy import load_file

    tensors = load_file(source / "model.safetensors")
    target.mkdir()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        (target / file).write_bytes(save({name: tensors[name] for name in held}))
    listed = {name: file for file, held in parts.items() for name in held}
    (target / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def _planned(directory: Path) -> object:
    return make_plan(read_checkpoint(directory), Knobs(k=1)).as_dict()


def _scores() -> tuple[bytes, ...]:
    blocks = [{"index": i, "score": 0.1 * i, "stderr": 0.01} for i in range(3)]
    ours = {"schema": 1, "metric": "kl", "unit": "nats", "higher_means": "keep", "samples": 3, "blocks": blocks}
    sets = {"schema": 1, "layers": 3, "sets": {"2": [1], "1": [0, 1]}}
    return tuple(json.dumps(value).encode() for value in (ours, {"0": 0.5, "1": 0.25, "2": 1}, sets))


def _chosen(folder: Path, checkpoint: Checkpoint, data: bytes) -> object:
    return choose_blocks(checkpoint, blocks=2, scores=str(put(folder / "scores.json", data)))


def _lines() -> bytes:
    rows = [
        {"id": "1", "image": "a.png", "prompt": "What is this?", "answers": ["net", "mesh"]},
        {"id": "2", "image": None, "prompt": "How many?", "answers": ["2"], "choices": ["1", "2"], "kind": "n"},
        {"id": "3", "image": "a.png", "prompt": "Is it?", "answers": []},
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _read(samples: list[Any]) -> object:
    return [(sample.prompt, sample.answers) for sample in samples]


def _vqa(folder: Path, data: bytes) -> object:
    both = [data, data]
    with suppress(ValueError, RecursionError):  # else both files are what can't be taken apart
        pair = json.loads(data)
        both = [json.dumps(pair[at]).encode() for at in range(2)] if isinstance(pair, list) and len(pair) > 1 else both
    files = [put(folder / "data" / name, value) for name, value in zip("qa", both, strict=True)]
    questions = files[0].rename(files[0].with_suffix(".json"))
    return _read(read_samples(questions, annotations=files[1], images=folder / "data"))


def _golden(checkpoint: Checkpoint) -> bytes:
    wide, narrow = np.zeros((1, 18, 4), np.float32), np.zeros((1, 4), np.float32)
    arrays = {"ids": np.arange(18)[None], "logits": wide, "image.logits": narrow}
    arrays |= {"image.input_ids": np.arange(30)[None], "image.rows": np.arange(5)}
    return save({**arrays, "image.embeddings": np.zeros((5, checkpoint.settings.hidden), np.float32)})
