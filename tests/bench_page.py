"""`docs/bench.md` out of `docs/bench.json`: what each figure is, in words and units, beside its bar.

`python -m tests.bench_page` writes the page again and measures nothing.
"""

import json
import re
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parent.parent
FIGURES, PAGE = ROOT / "docs" / "bench.json", ROOT / "docs" / "bench.md"
Value: TypeAlias = str | int | float
Figures: TypeAlias = dict[str, Value]

HEAD = """# What was measured

`make bench` writes this page; here on {machine}.

Times are medians of interleaved runs, with files synced on both sides; memory is that of the whole process. Ratios are
to a baseline that took turns with it. "Full size" is a synthetic checkpoint with the names and shapes of MolmoE-1B and
random weights. A row is measured again when what it measures changes (`--only NAME`), so not all are of one day. The
same for programs: [bench.json](bench.json).
"""
ABOUT = {
    "drop_4_of_16": (
        "Dropping 4 of 16 blocks",
        "A 7 GB OLMoE checkpoint; the baseline is `cp` and `sync` of the bytes that stay.",
    ),
    "drop_4_of_16_reflink": ("The same where the file system shares blocks", "XFS with reflinks, in a loop device."),
    "plan_full_size": ("Planning at full size", "`knobcast plan`, which reads headers alone."),
    "graphs_full_size": ("Graphs at full size", "Vision, embedding and decoder of the `cpu` form."),
    "families_graphs": (
        "Graphs of a larger layout",
        "The decoder of Qwen3-30B-A3B, 48 blocks of 128 experts in bfloat16, from its headers; the baseline is "
        "MolmoE-1B's, 16 blocks of 64. Whole processes, the best of three.",
    ),
    "families_graphs_float32": ("The same in float32", "Every expert has nodes of its own."),
    "families_experts_cpu": (
        "Experts of Qwen3-30B-A3B, `cpu` form",
        "What one block does behind its attention, in bfloat16, one thread.",
    ),
    "families_experts_int4": ("The same, `int4` form", "Over the same weights, quantised."),
    "families_plan": (
        "Planning a larger layout",
        "`knobcast plan` of Qwen3-30B-A3B, 18,867 tensors in bfloat16, from its headers; the baseline is MolmoE-1B's, "
        "3,573. Whole processes, the best of each.",
    ),
    "families_drop_12_of_48": (
        "Dropping 12 of 48 blocks of a larger layout",
        "Qwen3-30B-A3B with all blocks and experts, each narrower, so that it has 6 GB in 16 files: a tensor for each "
        "matrix of an expert, as released. The baseline is `cp` and `sync` of the bytes that stay.",
    ),
    "families_drop_12_of_48_slabs": (
        "The same in slabs",
        "The experts of a block in two arrays, as transformers 5 writes them.",
    ),
    "families_data_files": (
        "What one more family takes",
        "Lines of its data file, all parts being known; MolmoE's, which lists the tensors of its vision tower, isn't "
        "counted.",
    ),
    "sweep_16_blocks": (
        "Scoring all 16 blocks one by one",
        "An OLMoE in memory; the baseline runs the whole model once for each dropped block.",
    ),
    "sweep_16_tokens_a_call": ("The same with short texts", "Small calls are stacked into one."),
    "exact_all_sets": (
        "Scoring all 16,384 sets of blocks",
        "A small model whose first and last block stay; the baseline is extrapolated from 128 sets.",
    ),
    "exact_embedded_4_of_14": (
        "Scoring all sets of at most 4 blocks of the embedded model",
        "Two pictures with all their questions; the baseline is extrapolated from 8 sets.",
    ),
    "score_full_size_streamed": (
        "Scoring a model larger than memory",
        "`knobcast score --stream --metric nll` at full size in bfloat16: all 16 blocks, a picture with two questions.",
    ),
    "sweep_75": (
        "Measuring 75 settings together",
        "`knobcast sweep` of the embedded model, accuracy and latency; the baseline evaluates and benchmarks one after "
        "the other, timed on three. Seconds of a processor, one thread per process, proofs of the graphs included.",
    ),
    "verify_files": (
        "Checking a variant's files",
        "`knobcast verify --level files` of a variant in the page cache: sums, facts, ranges; the baseline is a "
        "process that calls `hashlib.file_digest` on the same files, one after the other, as `verify` does.",
    ),
    "push_oci": (
        "What a second push moves",
        "Variants of an OLMoE of 1.2 GB into Debian's `docker-registry`, k = 8 first: parts of a variant's bytes in "
        "the bodies of requests, and what the registry's storage grows by.",
    ),
    "push_memory": ("Memory of a push", "A variant with a file of 2 GiB, into each kind of target."),
    "pick": ("Choosing a setting", "`knobcast pick` on a finished sweep, beside `knobcast --help`; processor time."),
    "report": ("A sweep as one page", "`knobcast report`: bytes of the page, processor time without and with plots."),
    "family_full_size": ("25 settings in one directory", "What `--family` adds to copying full-size weights."),
    "moe_layer_cpu": ("One layer of experts, `cpu` form", "MolmoE-1B's widths, one thread: time follows k."),
    "moe_layer_int4": ("One layer of experts, `int4` form", "The same weights in 4 bits."),
    "moe_layer_16_bits": (
        "One layer of experts in 16 bits",
        "A loop over the experts that are used, beside nodes of each one's own: time, and memory when opened, with the "
        "options of `io.json` and with default ones.",
    ),
    "decoder_and_parts_cpu": (
        "A decoder and its parts, `cpu` form",
        "One token through two blocks, beside attention, experts and head measured alone.",
    ),
    "decoder_and_parts_int4": ("A decoder and its parts, `int4` form", "The same in 4 bits."),
    "decode_against_pytorch": (
        "Decoding beside PyTorch",
        "One token through two blocks of float32 weights, one thread; PyTorch with grouped matrix products.",
    ),
    "cache_in_place": (
        "The cache written where it lies",
        "One token through four blocks of the `int4` form with int8 activations, one thread, behind as many cached "
        "ones, two sessions each; the baseline copies the cache (`Concat`) for every token.",
    ),
    "llama_cpp": (
        "Beside llama.cpp",
        "`knobcast bench --against llama.cpp`: an OLMoE of MolmoE-1B's widths, four blocks, `int4` form with int8 "
        "activations and Q4_0 of the same weights; 64 prompt tokens, one thread.",
    ),
    "session_load": ("Opening a graph", "One layer of experts; weights are read from the mapped file."),
    "export_full_size_cpu": (
        "The main job at full size, `cpu` form",
        "k = 4, 12 of 16 blocks, 432 vision tokens, bfloat16; verified block by block as where memory is short.",
    ),
    "export_full_size_int4": ("The main job at full size, `int4` form", "The same in 4 bits."),
    "packed_bytes_full_size": (
        "Bytes of the quantised forms at full size",
        "12 of 16 blocks, by headers alone; beside it the decoder's matrices packed and all else in bfloat16.",
    ),
    "activations": (
        "What activations of 8 bits cost the embedded model",
        "Every sixth test question, 432 tokens per picture, by the graphs of the `int4` form in onnxruntime. The "
        "loss is paired, with half the width of its 95 % interval over pictures.",
    ),
    "activations_parity": (
        "What they do to the parity set",
        "Its 8 prompts in 8 variants through the graphs of the `int4` form: root mean square of the differences "
        "between logits with activations in 8 bits and in float32, as a part of the logits' own.",
    ),
    "packed_accuracy": (
        "What quantising costs the embedded model",
        "Its test questions, in PyTorch on the values that the codes stand for: the decoder alone in 4 bits, then with "
        "the embedding tables (4 or 8 bits) or the vision side (8 bits); `int4` and `int8` have all of it. "
        "Losses are paired, with half the width of their 95 % interval over pictures.",
    ),
    "open_text_cpu_against_int4": (
        "The same, `cpu` form to `int4`",
        "With the options of `io.json` and with default ones; processor time.",
    ),
    "user_process": (
        "What checking a variant as its users load it takes",
        "A process without knobcast, embedded model; seconds of a processor.",
    ),
    "open_text_cpu": (
        "Opening the embedded variant's decoder, `cpu` form",
        "Seconds of a processor; the baseline lets onnxruntime plan which buffers to use again.",
    ),
    "open_text_int4": ("Opening the embedded variant's decoder, `int4` form", "The same in 4 bits."),
    "open_experts_cuda": (
        "Opening the experts of a block, `cuda` form",
        "MolmoE-1B's widths; gate and up rows are brought in turns meanwhile. Seconds of a processor, on the CPU, "
        "which arranges them on any machine; the baseline joins them along an axis (`Concat`).",
    ),
    "cost_int4": (
        "Estimated times against measured ones, `int4` form",
        "75 settings of the embedded model, one thread; `knobcast calibrate` fits a device to 8 of them.",
    ),
    "cost_cpu": ("The same, `cpu` form", "The same settings over the weights as they are."),
    "cut_12_megapixels": (
        "Cutting a photo of 12 megapixels into 2 crops",
        "`preprocess.onnx`, seconds of a processor; the baseline is the Python code. The photo's size is in float32.",
    ),
    "cut_12_megapixels_in_12": ("The same photo, up to 12 crops", "As MolmoE-1B cuts it."),
}
# A key, what it is called, its unit. The first that matches the whole key counts.
WORDS = [
    ("kept_bytes", "weights that stay", "B"),
    ("checkpoint_bytes", "the checkpoint", "B"),
    ("bytes_requested", "read", "B"),
    ("bytes_on_disk", "the variant on disk", "B"),
    ("weight_bytes", "its weights", "B"),
    ("seconds", "time", "s"),
    ("processor_seconds", "time of a processor", "s"),
    ("molmoe_processor_seconds", "the same of MolmoE-1B", "s"),
    ("cp_sync_seconds", "`cp` and `sync`", "s"),
    ("plain_loop_seconds", "the plain loop", "s"),
    (r"plain_loop_seconds_from_(\d+)_sets", r"the plain loop, from \1 sets", "s"),
    ("cp_sync_sha256sum_seconds", "`cp`, `sync` and `sha256sum` of the same files", "s"),
    ("file_digest_seconds", "`hashlib.file_digest`", "s"),
    ("file_bytes", "all files", "B"),
    ("python_seconds", "the Python code", "s"),
    ("picture_mb", "the photo", "MiB"),
    ("peak_ratio", "peak memory, to the photo", ""),
    ("joined_seconds", "joined", "s"),
    ("joined_peak_mb", "peak memory, joined", "MiB"),
    ("planned_seconds", "with the plan", "s"),
    ("main_job_seconds", "the main job", "s"),
    ("help_seconds", "`knobcast --help`", "s"),
    ("added", "added to the rest of the main job", ""),
    ("ratio", "ratio to the baseline", ""),
    ("share", "share of the plain loop's block evaluations", ""),
    ("bytes_ratio", "bytes, to those of the checkpoint", ""),
    ("bytes_over_bfloat16_same_blocks", "weights, to bfloat16 of the same blocks", ""),
    ("bytes_over_bfloat16_all_blocks", "weights, to bfloat16, all 16 blocks", ""),
    (r"(int\d)_over_bfloat16", r"`\1` form, to bfloat16", ""),
    (r"(int\d)_decoder_over_bfloat16", r"`\1`, the decoder's matrices alone, to bfloat16", ""),
    (r"activations_(\w+)_right", r"right, \1 activations", ""),
    ("int8_loses_to_float32_activations", "fewer with int8 activations", ""),
    ("median_rounding", "differences of the logits, median", ""),
    ("largest_rounding", "the largest", ""),
    ("same_answers", "same answers", ""),
    ("floats_right", "right, floats", ""),
    (r"(int\d)_right", r"right, `\1` form", ""),
    ("decoder_right", "right, decoder in 4 bits", ""),
    ("decoder_and_tables_right", "right, with the tables", ""),
    ("decoder_and_tables_8_right", "right, with the tables in 8 bits", ""),
    ("decoder_and_vision_right", "right, with the vision side", ""),
    (r"\w+_loses_to_floats", "fewer than the floats", ""),
    (r"\w+_loses_to_decoder", "fewer than with the decoder alone", ""),
    (r"\w+_interval", "plus or minus", ""),
    ("peak_mb", "peak memory", "MiB"),
    ("torch_imports", "processes that import PyTorch", ""),
    ("median_lines", "lines, median", ""),
    ("most_lines", "lines, at most", ""),
    (r"another_k_(sent|stored)", r"another k, \1", "%"),
    ("another_k_beside_sent", "another k into a neighbouring repository, sent", "%"),
    (r"member_(sent|stored)", r"one member more of a family, \1", "%"),
    ("depth_planned", "12 of 16 blocks, to be sent by the plan", "%"),
    ("depth_sent", "12 of 16 blocks, sent", "%"),
    (r"push_(\w+)_peak_mb", r"`\1:`", "MiB"),
    ("peak_anonymous_mb", "peak memory without mapped files", "MiB"),
    ("verify_seconds", "`verify`", "s"),
    ("verify_peak_anonymous_mb", "`verify`, peak memory without mapped files", "MiB"),
    ("anonymous_mb", "memory beside the mapped file", "MB"),
    ("weight_mb", "weights of the layer", "MB"),
    ("file_mb", "all graphs", "MB"),
    ("largest_graph_mb", "largest graph", "MB"),
    (r"decode_k(\d)_ms", r"one token, k = \1", "ms"),
    (r"prefill_(\d+)_k(\d)_ms", r"\1 tokens, k = \2", "ms"),
    (r"decode_k(\d)_over_k(\d)", r"one token, k = \1 to k = \2", ""),
    (r"prefill_k(\d)_over_k(\d)", r"512 tokens, k = \1 to k = \2", ""),
    (r"torch_k(\d)_ms", r"PyTorch, k = \1", "ms"),
    (r"(cpu|int4)_k(\d)_ms", r"`\1` form, k = \2", "ms"),
    (r"(cpu|int4)_over_torch_k(\d)", r"`\1` form to PyTorch, k = \2", ""),
    (r"in_place_(\d+)_ms", r"behind \1, in place", "ms"),
    (r"copied_(\d+)_ms", r"behind \1, copied", "ms"),
    (r"copied_over_in_place_(\d+)", r"behind \1, copied to in place", ""),
    ("decode_ms", "one token", "ms"),
    ("prefill_ms", "the prompt", "ms"),
    ("llama_cpp_decode_ms", "one token, llama.cpp", "ms"),
    ("llama_cpp_prefill_ms", "the prompt, llama.cpp", "ms"),
    ("decode_over_llama_cpp", "one token, to llama.cpp", ""),
    ("prefill_over_llama_cpp", "the prompt, to llama.cpp", ""),
    ("weights_ratio", "weights, to the GGUF file", ""),
    (r"decode_(loop|nodes)_ms", r"one token, \1", "ms"),
    (r"prefill_(\d+)_(loop|nodes)_ms", r"\1 tokens, \2", "ms"),
    (r"(loop|nodes)_io_json_anonymous_mb", r"memory beside the mapped file, \1", "MB"),
    (r"(loop|nodes)_default_anonymous_mb", r"the same with default options, \1", "MB"),
    ("decode_ratio", "one token, loop to nodes", ""),
    ("prefill_ratio", "the prompt, loop to nodes", ""),
    (r"(cpu|int4)_io_json_seconds", r"`\1` form, the options of `io.json`", "s"),
    (r"(cpu|int4)_default_seconds", r"`\1` form, default options", "s"),
    ("io_json_ratio", "ratio, the options of `io.json`", ""),
    ("default_ratio", "ratio, default options", ""),
    ("whole_over_parts", "decoder to the sum of its parts", ""),
    ("(whole|attention|experts|head)_ms", r"\1", "ms"),
    ("largest_difference", "largest difference of the losses", ""),
    ("static_vs_dynamic", "PyTorch: variant to source with the knobs at run time, largest difference", ""),
    ("onnx_vs_torch", "graphs to PyTorch, largest difference", ""),
    ("largest_value", "largest value compared", ""),
    ("block_evaluations", "block evaluations", ""),
    ("naive_block_evaluations", "the plain loop's", ""),
    ("block_evaluations_per_picture", "block evaluations per picture", ""),
    ("naive_block_evaluations_per_picture", "the plain loop's", ""),
    ("tokens_per_call", "tokens of a call", ""),
    ("calibrated_on", "settings that the device was fitted to", ""),
    ("median_error", "error of the estimated total, median", ""),
    ("largest_error", "the largest", ""),
    ("rank_correlation", "rank correlation of estimated and measured totals", ""),
    ("median_error_of_unseen", "median error over the other settings", ""),
    (r"median_error_of_(\w+)", r"median error of \1", ""),
    ("failed", "settings without accuracy or latency", ""),
    ("over_least", "to the least that the settings can share", ""),
    ("cpu_seconds", "the sweep", "s"),
    ("one_by_one_cpu_seconds", "one by one", "s"),
    ("ratio_with_exports", "ratio where exporting each variant counts too", ""),
    ("wall_minutes", "by the clock, in minutes", ""),
    ("mode", "verified", ""),
    ("onnxruntime", "version of onnxruntime", ""),
    ("page_kb", "the page", "kB"),
    ("seconds_with_plots", "the same with all plots as files", "s"),
    ("(families|workloads|cases|tensors|sets|settings|questions|calls|members|blocks|note|skipped)", r"\1", ""),
]


def render(results: dict[str, str | Figures]) -> str:
    """The page. KeyError: a bar or figure has no words here."""
    lines = [HEAD.format(machine=results["machine"])]
    for name, found in results.items():
        if isinstance(found, str):
            continue
        title, what = ABOUT[name]
        bars = dict(_bars(str(found.get("bar", ""))))
        lines += [f"## {title}", "", what, "", "| | measured | bar |", "|---|---|---|"]
        lines += [_row(key, value, bars) for key, value in found.items() if key != "bar"]
        lines += [""]
    return "\n".join(lines)


def words(key: str) -> tuple[str, str]:
    """(what a figure is called, its unit); KeyError where it has no words."""
    for pattern, label, unit in WORDS:
        if match := re.fullmatch(pattern, key):
            return match.expand(label), unit
    raise KeyError(f"{key!r} has no words in {Path(__file__).name}: add a row to WORDS.")


def _bars(text: str) -> list[tuple[str, tuple[str, float]]]:
    """`ratio <= 0.1, peak_mb <= 120`, by key; a key that ends in `*` stands for all that begin so."""
    return [(key, (sign, float(bar))) for key, sign, bar in re.findall(r"(\w+\*?) (<=|>=) ([\d.]+)", text)]


def _row(key: str, value: Value, bars: dict[str, tuple[str, float]]) -> str:
    label, unit = words(key)
    own = [bar for name, bar in bars.items() if name == key or (name[-1] == "*" and key.startswith(name[:-1]))]
    cell = ""
    for sign, bar in own:
        assert not isinstance(value, str)
        met = value <= bar if sign == "<=" else value >= bar
        cell = f"{'at most' if sign == '<=' else 'at least'} {_value(bar, unit)}{'' if met else ' (**missed**)'}"
    return f"| {label} | {_value(value, unit)} | {cell} |"


def _value(value: Value, unit: str) -> str:
    if isinstance(value, str):
        return value
    if unit == "B":
        return f"{value / 1e9:.2f} GB"
    if unit == "%":
        return f"{100 * value:.3g} %"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        number = f"{value:.1e}"
    elif value == int(value) or value >= 1000:
        number = f"{value:,.0f}"
    else:
        number = f"{value:,}"
    return f"{number} {unit}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(render(json.loads(FIGURES.read_text())))
