"""Which onnxruntime providers run a variant, with their options in onnxruntime's own spelling.

What an option is for stands beside it; all values are strings, as onnxruntime takes them. The names were compared with
the provider libraries of onnxruntime 1.31; CUDA's are what ran on a GPU (docs/gpu.md), TensorRT's were never run.
"""

from typing import Any

from transform.errors import VerificationError
from transform.forms import REFERENCE, Form

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = ("cpu", "cuda", "tensorrt")  # the words of --provider
_PLACES = ("path", "lib", "plugin", "prefix", "dump")  # parts of the names of TensorRT's options for files
ENGINE_CACHE = "trt-cache"  # relative: engines belong to one device, so never to the variant

# Properties of SessionOptions that no config entry sets, by `--provider`. Which buffers may be reused is planned in a
# time quadratic in experts x blocks, at every load. Unplanned they are freed after their last use all the same: equal
# results, and no more memory at the peak. On a GPU that wasn't measured.
SESSION_ATTRIBUTES = {"cpu": {"enable_mem_reuse": False}}

Entry = list[Any]  # [provider, options], as io.json has it
Providers = dict[str, list[Entry]]


def provider_options(form: Form, static: bool) -> Providers:
    """`--provider` name -> [[provider, options], ...] in order of preference, for the graphs of one form.

    The CPU is listed for every form: some graphs have no experts. `static`: all graphs have fixed shapes only, so that
    a CUDA graph can be captured.
    """
    cpu: Entry = [CPU, {}]
    cuda: Entry = [CUDA, cuda_options(static)]
    tensorrt: Entry = [TENSORRT, tensorrt_options(form, static)]
    known = {"cpu": [cpu], "cuda": [cuda, cpu], "tensorrt": [tensorrt, cuda, cpu]}
    return {"cpu": [cpu]} | {word: known[word] for word in form.providers}


def check_providers(known: object) -> Providers:
    """The `providers` of an io.json, which may come from anywhere; raises VerificationError.

    Values of options that variants have may be tuned. Others have onnxruntime load libraries, write where they say or
    call addresses; of the own ones that name a file only the cache is let through.
    """
    lists = list(known.values()) if isinstance(known, dict) else []
    whole = isinstance(known, dict) and lists and all(isinstance(listed, list) and listed for listed in lists)
    entries = [entry for listed in lists for entry in listed] if whole else []
    if not isinstance(known, dict) or not entries or not all(map(_is_provider, entries)):
        raise VerificationError(
            "io.json: providers must be lists of [provider, options], with names of CPU, CUDA or TensorRT and with "
            "options as strings. Export the variant again."
        )
    own = cuda_options(True) | tensorrt_options(REFERENCE, True)
    for name, options in entries:
        for key, value in options.items():
            if key not in own:
                raise VerificationError(
                    f"io.json: options of {name} must be ones that a variant has, {', '.join(own)}, got {key[:60]!r}. "
                    "Export the variant again."
                )
            if any(word in key for word in _PLACES) and own[key] != value:
                raise VerificationError(
                    f"io.json: {key} of {name} names a file or a library; a variant's is {own[key]!r}, got "
                    f"{value[:60]!r}. Export the variant again."
                )
    return known


def _is_provider(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in (CPU, CUDA, TENSORRT):
        return False
    return isinstance(entry[1], dict) and all(isinstance(value, str) for value in entry[1].values())


def cuda_options(static: bool) -> dict[str, str]:
    """Of the CUDA provider."""
    options = {
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles: up to twice the memory that is needed
        "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm for every new shape
        "use_tf32": "0",  # the default rounds float32 products to 10 bits of mantissa
    }
    if static:
        options["enable_cuda_graph"] = "1"  # replays recorded launches: wrong as soon as a shape changes
    return options


def tensorrt_options(form: Form, static: bool) -> dict[str, str]:
    """Of the TensorRT provider; what it can't take goes to the CUDA provider behind it."""
    half = str(int(form.compute == "float16"))
    options = {
        "trt_fp16_enable": half,
        "trt_layer_norm_fp32_fallback": half,  # sums of squares leave float16's range
        "trt_engine_cache_enable": "1",  # building an engine takes minutes
        "trt_engine_cache_path": ENGINE_CACHE,
        "trt_timing_cache_enable": "1",  # what was timed for one engine serves the next
        "trt_timing_cache_path": ENGINE_CACHE,
        "trt_max_workspace_size": str(1 << 30),  # the default is all of the device's memory
    }
    if static:
        options["trt_cuda_graph_enable"] = "1"
    return options


def own_caches(options: dict[str, str], identity: str) -> dict[str, str]:
    """The options with a TensorRT engine cache of one variant's own, below the working directory.

    An engine holds weights, and TensorRT's provider finds it by the names in a graph: variants of equal shape would
    get each other's. Only the last directory of the path is created by onnxruntime.
    """
    path = options.get("trt_engine_cache_path")
    return options if path is None else {**options, "trt_engine_cache_path": f"{path}-{identity}"}
