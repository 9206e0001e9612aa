"""Which static graphs a variant gets, and writing them: every size fixed, over the same weight bytes as the others.

One prompt length per tiling for image models, one for text-only models; one cache length for all. The decoder for one
token more is shared. `static_run.py` runs them, `static_verify.py` proves them, `docs/static.md` tells how to.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transform.checkpoint import Checkpoint
from transform.errors import KnobError, VerificationError
from transform.knobs import parse_count
from transform.molmoe import tiling
from transform.plan import Plan

PROMPT = 128  # tokens of a text-only prompt per call, unless --prompt says otherwise
LEAST_CACHE = 32  # the gate's own probe takes 18
MOST = 1 << 24  # positions that float32 counts exactly
MULTIPLE = 16  # rows of a matrix unit's tile
DECODE, DECODE_EMBEDDING = "decode.onnx", "embedding-decode.onnx"


@dataclass(frozen=True)
class Prefill:
    """The graphs for a prompt of at most `sequence` tokens, about an image of one (rows, columns) or about none."""

    tiling: tiling.Tiling | None
    sequence: int

    def file(self, kind: str) -> str:
        """`prefill-2x3.onnx`."""
        return f"{kind}.onnx" if self.tiling is None else f"{kind}-{self.tiling[0]}x{self.tiling[1]}.onnx"


@dataclass(frozen=True)
class StaticPlan:
    """All static graphs of a variant."""

    cache: int  # tokens: prompt and answer
    prefills: tuple[Prefill, ...]

    @property
    def multimodal(self) -> bool:
        """Whether there are vision and embedding graphs."""
        return self.prefills[0].tiling is not None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all graphs."""
        kinds = ("vision", "embedding", "prefill") if self.multimodal else ("prefill",)
        prefills = [prefill.file(kind) for prefill in self.prefills for kind in kinds]
        return (*prefills, *([DECODE_EMBEDDING] if self.multimodal else []), DECODE)

    def as_dict(self) -> dict[str, Any]:
        """For the printed plan and io.json."""
        entries = [
            {"tiling": list(p.tiling) if p.tiling else None, "sequence": p.sequence, "prefill": p.file("prefill")}
            | ({kind: p.file(kind) for kind in ("vision", "embedding")} if p.tiling else {})
            for p in self.prefills
        ]
        decode = {"decode": DECODE} | ({"embedding": DECODE_EMBEDDING} if self.multimodal else {})
        return {"cache": self.cache, "prefills": entries, "decode": decode}


def parse_static(cache: str | None, prompt: str | None) -> tuple[int | None, int | None]:
    """The words of `--static` and `--prompt`."""
    if prompt is not None and cache is None:
        raise KnobError("--prompt is the prompt length of static graphs. Give --static N with it, or leave it out.")
    return parse_count(cache, "--static"), parse_count(prompt, "--prompt")


def plan_static(plan: Plan, cache: int, prompt: int | None = None) -> StaticPlan:
    """The static graphs of a planned variant; raises KnobError where a prompt doesn't fit the cache or the model."""
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


def write_static(checkpoint: Checkpoint, directory: Path, static: StaticPlan, form: str = "cpu") -> list[Path]:
    """Write the static graphs of a finished variant beside its weights."""
    from export.graph.embedding import embedding_graph
    from export.graph.vision import vision_graph
    from export.special_tokens import image_token_ids
    from transform.molmoe.preprocessing import feature_index, index_map

    graphs = {}
    if static.multimodal:
        patch = image_token_ids(directory, checkpoint.settings).patch
        for prefill in static.prefills:
            assert prefill.tiling is not None
            rows, columns = prefill.tiling
            kept = feature_index(index_map(prefill.tiling))
            graphs[prefill.file("vision")] = vision_graph(checkpoint, rows * columns + 1, form, kept)
            graphs[prefill.file("embedding")] = embedding_graph(checkpoint, patch, form, prefill.sequence, len(kept))
        graphs[DECODE_EMBEDDING] = embedding_graph(checkpoint, patch, form, 1)
    for name, graph in graphs.items():
        graph.write(directory / name)
    return [*(directory / name for name in graphs), *write_decoders(checkpoint, directory, static, form)]


def write_decoders(
    checkpoint: Checkpoint, directory: Path, static: StaticPlan, form: str = "cpu", prefix: str = ""
) -> list[Path]:
    """Write the static decoders alone, under names that begin with `prefix`."""
    from export.graph.attention import Static
    from export.graph.decoder import text_graph

    lengths = {prefill.file("prefill"): prefill.sequence for prefill in static.prefills} | {DECODE: 1}
    for name, sequence in lengths.items():
        text_graph(checkpoint, form, Static(sequence, static.cache)).write(directory / f"{prefix}{name}")
    return [directory / f"{prefix}{name}" for name in lengths]


def read_static(io: dict[str, Any]) -> StaticPlan | None:
    """The plan that an io.json records, or None where there are no static graphs."""
    spec = io.get("static")
    if spec is None:
        return None
    try:
        entries = [(_read_tiling(e["tiling"]), _whole(e["sequence"])) for e in spec["prefills"]]
        cache = _whole(spec["cache"])
        if not entries or not all(0 < sequence <= cache <= MOST for _, sequence in entries):
            raise ValueError(f"cache {cache}, prompts {[sequence for _, sequence in entries]}")
        if not isinstance(spec["providers"], dict):
            raise ValueError("no providers")
        return StaticPlan(cache, tuple(Prefill(*entry) for entry in entries))
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"io.json: static is damaged ({error!r}). Export the variant again.") from error


def _read_tiling(value: Any) -> tiling.Tiling | None:
    if value is None:
        return None
    rows, columns = value
    return _whole(rows), _whole(columns)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value
