"""Triton: a repository of `preprocess`, `vision`, `embedding` and `text`, each with its `config.pbtxt` and version 1.

Names, types and shapes are those of the graphs. Triton has no way to set onnxruntime's session config entries but one,
so what io.json disables by name is disabled here with all graph optimisations where it matters: float32 graphs over
16-bit weights, which onnxruntime would fold to float32 at load.
"""

from collections.abc import Mapping
from pathlib import Path

from export.layout.moved import Layout, Moved, plan_move
from export.run.providers import CUDA, TENSORRT
from transform.checkpoint import Checkpoint
from transform.strict_json import Record

# By the names io.json uses.
TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}
# Triton wants numbers where onnxruntime has words, and writes its own defaults over these two unless they are here.
NUMBERS = {
    "arena_extend_strategy": {"kNextPowerOfTwo": "0", "kSameAsRequested": "1"},
    "cudnn_conv_algo_search": {"EXHAUSTIVE": "0", "HEURISTIC": "1", "DEFAULT": "2"},
}
# Triton's words for TensorRT's options; the others keep theirs.
RENAMED = {"trt_max_workspace_size": "max_workspace_size_bytes"}
NO_OPTIMISATION = 2
Options = Mapping[str, Mapping[str, str]]


def plan(_: Checkpoint, graphs: Mapping[str, Path]) -> tuple[Moved, ...]:
    """Every graph in a version directory of its own model."""
    return tuple(plan_move(path, f"{name}/1/model.onnx") for name, path in graphs.items())


def write_files(layout: Layout, stage: Path) -> None:
    """config.pbtxt of every model, from the graphs' own signatures."""
    from export.files.io_spec import signature

    for moved in layout.moved:
        name = moved.target.split("/")[0]
        # a graph that computes in 16 bits widens nothing; a quantised decoder is slow unless its scales are at load
        widens = layout.form.compute == "float32" and (layout.form.bits is None or name != "text")
        folds = widens and moved.facts.sixteen_bit
        # pictures are cut on the CPU wherever the others run, as `knobcast run` does
        provider, options = ("cpu", {}) if name == "preprocess" else (layout.provider, layout.options)
        text = config_pbtxt(name, {**signature(moved.source)}, provider, options, folds)
        (stage / name / "config.pbtxt").write_text(text, "utf-8")


def config_pbtxt(name: str, signature: Record, provider: str, options: Options, folds: bool) -> str:
    """The model's configuration; `folds`: 16-bit weights would be widened at load if graphs were optimised."""
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', "max_batch_size: 0"]
    for part in ("input", "output"):
        values = ",\n".join(_value(v) for v in signature[part + "s"])
        lines += [f"{part} [", values, "]"]
    kind = "KIND_CPU" if provider == "cpu" else "KIND_GPU"
    lines += ["instance_group [", f"  {{ count: 1 kind: {kind} }}", "]"]
    cuda, tensorrt = options.get(CUDA, {}), options.get(TENSORRT)
    accelerators = []
    if tensorrt is not None:
        accelerators.append(_accelerator("tensorrt", _tensorrt(tensorrt)))
    if cuda:
        accelerators.append(_accelerator("cuda", {k: v for k, v in cuda.items() if k not in NUMBERS}))
    inner = [f"  graph {{ level: {NO_OPTIMISATION} }}"] if folds else []
    if accelerators:
        inner += [
            "  execution_accelerators {",
            "    gpu_execution_accelerator [",
            ",\n".join(accelerators),
            "    ]",
            "  }",
        ]
    if inner:
        lines += ["optimization {", *inner, "}"]
    parameters = {"intra_op_thread_count": "0"}
    parameters |= {key: words[cuda[key]] for key, words in NUMBERS.items() if key in cuda}
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


def _value(value: Record) -> str:
    dims = ", ".join(str(d) if isinstance(d, int) else "-1" for d in value["shape"])
    return f'  {{ name: "{value["name"]}" data_type: {TYPES[value["dtype"]]} dims: [ {dims} ] }}'


def _accelerator(name: str, options: Mapping[str, str]) -> str:
    given = [f'        parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items()]
    return "\n".join(["      {", f'        name: "{name}"', *given, "      }"])


def _tensorrt(options: Mapping[str, str]) -> dict[str, str]:
    half = options.get("trt_fp16_enable") == "1"
    rest = {RENAMED.get(key, key): value for key, value in options.items() if key != "trt_fp16_enable"}
    return {"precision_mode": "FP16" if half else "FP32", **rest}
