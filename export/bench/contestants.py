"""Who can be measured, where each lives, and why one can't run here. Nothing is loaded to find out.

One more contestant: an `engine_*.py` with an `Engine` (load, start, see, prefill, step), a line in HOME, one in WHAT.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from transform.errors import KnobError
from transform.extras import lacking
from transform.machine import FLOAT32, free_memory

GRAPHS = "graphs"
LLAMA = "llama.cpp"
BASELINES = ("eager", "grouped_mm", "exporter", LLAMA)
HOME = {
    "graphs": "export.bench.engine_graphs",
    "eager": "export.bench.engine_torch",
    "grouped_mm": "export.bench.engine_torch",
    "exporter": "export.bench.engine_exporter",
    LLAMA: "export.bench.engine_llama",
}
WHAT = {
    "graphs": "the variant's graphs, onnxruntime",
    "eager": "PyTorch, a loop over experts",
    "grouped_mm": "PyTorch, one grouped product over experts",
    "exporter": "the graph of transformers' exporter, onnxruntime",
    LLAMA: "llama.cpp, the same weights in Q4_0 (Q8_0 of 8 bits)",
}
PREPARES = ("exporter", LLAMA)


def parse_against(text: str) -> tuple[str, ...]:
    """`eager,grouped_mm` in the order given, which says who the baseline is; `none` for the graphs alone."""
    if text == "none":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    wrong = [name for name in names if name not in BASELINES]
    if wrong or len(set(names)) < len(names):
        raise KnobError(
            f"--against takes each of {', '.join(BASELINES)} at most once, or none: got {text[:80]!r}. Choose of these."
        )
    return names


def unavailable(names: Sequence[str], parameters: int, provider: str, unfit: str | None = None) -> dict[str, str]:
    """{name: reason} of those that can't run here. All are in memory at once, `parameters` each, in float32 but for
    llama.cpp. `unfit`: why that one can't be given the variant."""
    free, needed = free_memory(), 0
    reasons = {}
    for name in names:
        if name == GRAPHS:
            continue  # its weights are mapped; whether it loads, onnxruntime says
        if name == LLAMA:
            if lacks := next((package for package in ("xllamacpp", "gguf") if find_spec(package) is None), None):
                reasons[name] = f"needs the package {lacks}: pip install -e '.[llamacpp]'"
            elif provider != "cpu":
                reasons[name] = "is built for the CPU here: bench on the cpu, or leave it out of --against"
            elif unfit is not None:
                reasons[name] = unfit
            continue  # a fraction of the others' memory
        if find_spec("torch") is None:
            reasons[name] = lacking("torch")
        elif name == "exporter" and find_spec("onnxscript") is None:
            reasons[name] = "needs the package onnxscript: pip install onnxscript"
        elif provider != "cpu" and name != "exporter" and _torch_version().endswith("+cpu"):
            reasons[name] = f"torch {_torch_version()} is built for the CPU: install one with CUDA, or bench on the cpu"
        elif needed + parameters * FLOAT32 > free:
            reasons[name] = (
                f"needs {parameters * FLOAT32:,} bytes of memory in float32, {max(0, free - needed):,} are free "
                "beside the others: leave others out of --against, or use a machine with more"
            )
        else:
            needed += parameters * FLOAT32
    return reasons


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"
