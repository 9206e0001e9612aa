"""transformers.js: `config.json`, tokenizer and `onnx/model.onnx` of a text-only variant, loaded with its defaults.

It needn't know a family: any decoder with the usual inputs runs under a name that it knows, whose class only feeds a
cache; the family's data file says which. Image models can't be laid out: it has no class that feeds their graphs.
"""

from collections.abc import Mapping
from pathlib import Path

from export.layout.moved import Layout, Moved, plan_move
from export.run.graph_facts import Facts
from transform.architectures.read import known_model_types, read_architecture
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.side_files import copy_side_files
from transform.write import write_json

GRAPH = "onnx/model.onnx"


def plan(variant: Checkpoint, graphs: Mapping[str, Path]) -> tuple[Moved, ...]:
    """The decoder alone."""
    if variant.architecture.runtimes.transformers_js is None:
        kinds = [read_architecture(kind) for kind in known_model_types()]
        tried = ", ".join(kind.model_type for kind in kinds if kind.runtimes.transformers_js is not None)
        raise KnobError(
            f"transformers.js takes text-only variants of families that were tried there ({tried}), got "
            f"{variant.architecture.model_type!r}. Use --for triton, onnxruntime-genai, or `knobcast run`."
        )
    moved = plan_move(graphs["text"], GRAPH)
    _check(moved.facts)
    return (moved,)


def _check(facts: Facts) -> None:
    if facts.device_only:
        raise KnobError(
            "transformers.js takes variants of the forms cpu, int4 and int8: neither its CPU nor its WebGPU "
            "provider has the fused experts of the cuda form. Export the variant with --form cpu or int4."
        )


def write_files(layout: Layout, stage: Path) -> None:
    """config.json under a model_type it knows, and the tokenizer's files."""
    variant, (text,) = layout.variant, layout.moved
    # counted in the graph itself: a family's member has fewer blocks than the checkpoint
    layers = sum(name.startswith("past_key_values.") and name.endswith(".key") for name in text.facts.inputs)
    write_json(stage / "config.json", config(variant, layers))
    copy_side_files(variant.path, variant.side_files, stage)


def config(variant: Checkpoint, layers: int) -> dict[str, object]:
    """The variant's config with what transformers.js reads from it written out."""
    settings, known = variant.settings, variant.architecture.runtimes.transformers_js
    assert known is not None
    kept = {key: value for key, value in variant.config.items() if key != "auto_map"}
    return {
        **kept,
        "architectures": [known.architecture],
        "model_type": known.model_type,
        "hidden_size": settings.hidden,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "num_hidden_layers": layers,
        "transformers.js_config": {"dtype": "fp32", "use_external_data_format": {Path(GRAPH).name: True}},
    }
