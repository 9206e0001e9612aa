"""Options that several commands share. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated

import typer

from export.run.providers import PROVIDERS

Model = Annotated[str | None, typer.Argument(help="Directory or hub id; absent: the embedded default model.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Of a hub model: a branch, tag or commit.")]
K = Annotated[str | None, typer.Option("--k", help="Experts per token: 4, or one per kept block: 8,4,4,…")]
Blocks = Annotated[str | None, typer.Option("--blocks", help="How many blocks to keep, chosen by scores.")]
Keep = Annotated[list[str] | None, typer.Option("--keep-blocks", help="Block indices to keep: 0,1,3")]
Drop = Annotated[list[str] | None, typer.Option("--drop-blocks", help="Block indices to drop: 2,5")]
Tokens = Annotated[
    str | None,
    typer.Option("--tokens", help="Vision tokens per image: 288, 432, … or low, medium, high; of pixel budgets 256, …"),
]
Scores = Annotated[str | None, typer.Option("--scores", help="FILE or preset:NAME; absent: scores.json of the model.")]
Dtype = Annotated[str, typer.Option("--dtype", help="source, float32, float16 or bfloat16.")]
Form = Annotated[
    str | None, typer.Option("--form", help="cpu (float32), cuda (float16, fused), int4 or int8 (quantised, fused).")
]
Activations = Annotated[
    str | None,
    typer.Option(
        "--activations", help="Of int4 and int8: float32, or int8 (faster, onnxruntime 1.31); absent: as the model."
    ),
]
Resize = Annotated[
    str | None,
    typer.Option("--resize", help="pad (letterbox, as trained) or fill (cover and crop); absent: as the model has it."),
]
Rule = Annotated[
    str | None,
    typer.Option("--rule", help="Tiling: canvas (the shape it fills) or linear (columns/rows); absent: as the model."),
]
Family = Annotated[
    str | None, typer.Option("--family", help="A grid, 'k=1,2,4 blocks=8,12': one directory, a graph per setting.")
]
Member = Annotated[str | None, typer.Option("--member", help="MODEL is a family: export this member of it, k4-b12.")]
Static = Annotated[
    str | None, typer.Option("--static", help="Also graphs of fixed sizes, for at most N tokens of prompt and answer.")
]
Prompt = Annotated[
    str | None, typer.Option("--prompt", help="With --static, text-only models: tokens of a prompt per call.")
]
PROVIDER_WORDS = f"{', '.join(PROVIDERS[:-1])} or {PROVIDERS[-1]}"
Provider = Annotated[str, typer.Option("--provider", help=f"{PROVIDER_WORDS}.")]
Preprocess = Annotated[
    str | None,
    typer.Option("--preprocess", help="What cuts the picture: graph or python. The graph, where there is one."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SAMPLES = (
    "Samples: .jsonl, VQAv2 questions (.json) or .parquet; repeat it, or give a folder or 'pattern-*', for shards."
)
Data = Annotated[list[Path] | None, typer.Option("--data", help=SAMPLES)]
Annotations = Annotated[Path | None, typer.Option("--annotations", help="The answers to VQAv2 questions (.json).")]
Images = Annotated[Path | None, typer.Option("--images", help="The folder of the pictures; absent: that of --data.")]
Limit = Annotated[str | None, typer.Option("--limit", help="Only the first N samples of the file.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
TASKS = "exact_match, vqa_score, multiple_choice, anls, relaxed_accuracy or token_f1."
