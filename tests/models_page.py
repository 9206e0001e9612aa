"""`docs/models.md` out of the families' data files: what can be chosen of each, and whether it has graphs.

`python -m tests.models_page` writes the page again.
"""

from tests.support.paths import ROOT
from transform.architectures import Architecture, Choice, architecture_named, known_model_types

PAGE = ROOT / "docs" / "models.md"
HEAD = """# Models

What `knobcast export` takes, by the `model_type` of its `config.json`; `python -m tests.models_page` writes this table
from the families' data files, and a test holds it. Of every row, tiny checkpoints with random weights lose blocks and
experts per token in the tests, and those with graphs are compared with transformers in every form.

A variant of a stock model stays one: its class, names of tensors and config keys are those of transformers, and what
reads the original reads it. "Weights alone": there are no graphs for this family yet, so no form, `knobcast run` or
onnxruntime.

| `model_type` | k | blocks | graphs |
|---|---|---|---|
"""


def render() -> str:
    """The page."""
    return HEAD + "\n".join(map(_row, map(architecture_named, known_model_types()))) + "\n"


def _row(family: Architecture) -> str:
    per_block = "yes, one per block too" if family.per_block_top_k else "yes"
    k = (
        "fixed"
        if family.k is Choice.FIXED
        else "where it has experts"
        if family.defaults.get("experts") == 0
        else per_block
    )
    pinned = "yes, but the first ones that pictures feed" if family.pinned else "yes"
    blocks = "yes, the last one being of its kind" if family.last else pinned
    graphs = "all forms" if family.complete or family.graph else "weights alone"
    return f"| `{family.model_type}` | {k} | {blocks} | {graphs} |"


if __name__ == "__main__":
    PAGE.write_text(render())
