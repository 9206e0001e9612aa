"""Which static graphs a variant gets, and writing them: every size fixed, over the same weight bytes as the others.

One prompt length per tiling for image models, one for text-only models; one cache length for all. The decoder for one
token more is shared. `export/run/static.py` runs them, `export/gate/static.py` proves them; see `docs/static.md`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from export.graph.notes import Notes, silent
from export.run.static_plan import DECODE, DECODE_EMBEDDING, Prefill, StaticPlan
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.forms import Form
from transform.knobs import parse_count
from transform.molmoe import tiling
from transform.plan import Plan

if TYPE_CHECKING:
    from export.graph.builder import Graph

PROMPT = 128  # tokens of a text-only prompt per call, unless --prompt says otherwise
LEAST_CACHE = 32  # the gate's own probe takes 18
MULTIPLE = 16  # rows of a matrix unit's tile


def parse_static(cache: str | None, prompt: str | None) -> tuple[int | None, int | None]:
    """The words of `--static` and `--prompt`."""
    if prompt is not None and cache is None:
        raise KnobError("--prompt is the prompt length of static graphs. Give --static N with it, or leave it out.")
    return parse_count(cache, "--static"), parse_count(prompt, "--prompt")


def plan_static(plan: Plan, cache: int, prompt: int | None = None) -> StaticPlan:
    """The static graphs of a planned variant; raises KnobError where a prompt doesn't fit the cache or the model."""
    plan.insist_on_graphs("--static")
    most = plan.target.settings.max_positions
    if not LEAST_CACHE <= cache <= most:
        raise KnobError(
            f"--static is the longest sequence, prompt and answer: from {LEAST_CACHE} to the model's {most} positions, "
            f"got {cache}."
        )
    prefills = (_text_prefill(cache, prompt),) if plan.vision is None else _image_prefills(plan, cache, prompt)
    return StaticPlan(cache, prefills)


def _text_prefill(cache: int, prompt: int | None) -> Prefill:
    sequence = min(PROMPT, cache) if prompt is None else prompt
    if sequence < 2 or sequence > cache:
        raise KnobError(
            f"--prompt must be from 2 to the cache's {cache} tokens, got {sequence}. Longer prompts go in several "
            "calls: lower --prompt, or raise --static."
        )
    return Prefill(None, sequence)


def _image_prefills(plan: Plan, cache: int, prompt: int | None) -> tuple[Prefill, ...]:
    vision = plan.vision
    assert vision is not None
    if prompt is not None:
        raise KnobError(
            "--prompt is for text-only models: an image's prompt is as long as its tokens and "
            f"{tiling.TEXT_RESERVE} of text. Leave it out."
        )
    if vision.crops is None:
        counts = f"{vision.tokens!r} allows" if vision.tokens else "without --tokens there are"
        raise KnobError(
            f"static graphs need one number of crops: {counts} {len(vision.tilings)} tilings of up to "
            f"{vision.max_crops} crops. Give --tokens as a number, such as 432."
        )
    sizes = {shape: 1 + tiling.image_tokens(*shape) + tiling.TEXT_RESERVE for shape in vision.tilings}
    sequences = {shape: -(-size // MULTIPLE) * MULTIPLE for shape, size in sizes.items()}
    (rows, columns), longest = max(sequences.items(), key=lambda item: item[1])
    if longest > cache:
        most = plan.target.settings.max_positions
        advice = f"Give --static {longest} or more" if longest <= most else "Lower --tokens"
        raise KnobError(
            f"a prompt must fit the cache of {cache} tokens: an image of {rows}×{columns} tiles takes {longest} "
            f"(BOS, {tiling.image_tokens(rows, columns)} of the image, {tiling.TEXT_RESERVE} of text, in multiples "
            f"of {MULTIPLE}); the model has {most} positions. {advice}."
        )
    return tuple(Prefill(shape, sequence) for shape, sequence in sequences.items())


def write_static(
    checkpoint: Checkpoint, directory: Path, static: StaticPlan, form: Form, notes: Notes = silent
) -> list[Path]:
    """Write the static graphs of a finished variant beside its weights; `notes`: their metadata."""
    from export.graph.embedding import embedding_graph
    from export.graph.vision import vision_graph
    from transform.molmoe.preprocessing import feature_index, index_map
    from transform.special_tokens import image_token_ids

    graphs = {}
    if static.modality.sees_images:
        patch = image_token_ids(checkpoint, directory).patch
        for prefill in static.prefills:
            assert prefill.tiling is not None
            rows, columns = prefill.tiling
            kept = feature_index(index_map(prefill.tiling))
            graphs[prefill.file("vision")] = vision_graph(checkpoint, rows * columns + 1, form, kept)
            graphs[prefill.file("embedding")] = embedding_graph(checkpoint, patch, form, prefill.sequence, len(kept))
        graphs[DECODE_EMBEDDING] = embedding_graph(checkpoint, patch, form, 1)
    for name, graph in graphs.items():
        graph.notes = notes(name)
        graph.write(directory / name)
    decoders = write_decoders(checkpoint, directory, static, form, notes=notes)
    return [*(directory / name for name in graphs), *decoders]


def write_decoders(
    checkpoint: Checkpoint,
    directory: Path,
    static: StaticPlan,
    form: Form,
    prefix: str = "",
    notes: Notes = silent,
) -> list[Path]:
    """Write the static decoders alone, under names that begin with `prefix`."""
    written = []
    for name, graph in static_decoders(checkpoint, static, form).items():
        graph.notes = notes(name)
        written.append(directory / f"{prefix}{name}")
        graph.write(written[-1])
    return written


def static_decoders(checkpoint: Checkpoint, static: StaticPlan, form: Form) -> "dict[str, Graph]":
    """The static decoders by their files: one per prompt length, and that of one token more."""
    from export.graph.context import Static
    from export.graph.decoder import text_graph

    lengths = {prefill.file("prefill"): prefill.sequence for prefill in static.prefills} | {DECODE: 1}
    return {name: text_graph(checkpoint, form, Static(length, static.cache)) for name, length in lengths.items()}
