"""A form: how weights are stored, and which operators read them. All that differs by form is a field of its row.

Nothing outside this file knows a form by its name, and a new one is a row here, with its operators in `export/graph/`.
Names are for users, manifests and `io.json`; whoever reads one turns it into its row at once. The words of `--provider`
are another thing: they say where a graph runs.
"""

from dataclasses import dataclass
from typing import Literal

from transform.errors import KnobError

# Who computes a form's graphs where it is proven: without repacking, because onnxruntime's kernels for repacked 8-bit
# experts round activations to 8 bits as well; numpy where no CPU has the experts.
Checker = Literal["onnxruntime", "onnxruntime without repacking", "numpy"]
# Of each row that meets a quantised matrix: as it is, or rounded to 8 bits for kernels that multiply integers.
ROUNDED = "int8"
ACTIVATIONS = ("float32", ROUNDED)


@dataclass(frozen=True)
class Form:
    """One row of FORMS.

    `compute`: the dtype of its graphs. `stored`: the dtype of its weights, None: as the setting asks. `bits`: of the
    codes that attention, head and experts are quantised to, `table_bits` and `vision_bits`: of those of the embedding
    tables and of the vision side's matrices, None: they stay floats. `experts`: the operator that computes a block's
    experts. `providers`: words of `--provider` that can run it, the usual one first. `tolerance`: of the experts'
    results in the operator checks, as a part of the largest value. `oldest`: onnxruntime that runs it; `vision_oldest`:
    that runs its vision graph. `activations`: what quantised matrices can be multiplied with, the usual first; empty:
    there are none. `one_attention`: attention is `GroupQueryAttention`, whose past and present may be one buffer.
    """

    name: str
    compute: Literal["float32", "float16"]
    stored: str | None
    bits: int | None
    stacked: bool  # the experts of a block lie back to back
    fused: bool  # onnxruntime's own operators may be used: the experts are one, and no shape depends on the routers
    experts: str
    providers: tuple[str, ...]
    checked_by: Checker
    tolerance: float
    oldest: str
    vision_oldest: str
    table_bits: int | None = None
    vision_bits: int | None = None
    activations: tuple[str, ...] = ()
    one_attention: bool = False

    @property
    def usual_provider(self) -> str:
        """The word of `--provider` where none is given."""
        return self.providers[0]

    @property
    def runs_on_cpu(self) -> bool:
        """Whether onnxruntime's CPU provider has all its operators."""
        return "cpu" in self.providers

    def oldest_with(self, activations: str | None) -> str:
        """The onnxruntime that runs it with these activations: `QMoE` has 4-bit experts for int8 ones since 1.31."""
        return "1.31" if activations == ROUNDED and self.bits == 4 else self.oldest

    def attends_at_once(self, head_dim: int) -> bool:
        """Whether a growing cache goes through `GroupQueryAttention`, which takes heads of a multiple of 8 alone."""
        return self.one_attention and head_dim % 8 == 0

    def takes(self, dtype: str) -> bool:
        """Whether a setting may ask for `dtype`."""
        return self.stored is None or dtype in ("source", self.stored)

    def dtype(self, asked: str) -> str:
        """The dtype that weights are rounded to where a setting asks for `asked`; `source`: they are not."""
        return self.stored or asked


FORMS = (
    Form(
        "cpu", compute="float32", stored=None, bits=None, stacked=False, fused=False, experts="Gemm per expert",
        providers=("cpu", "cuda", "tensorrt"), checked_by="onnxruntime", tolerance=1e-5, oldest="1.14",
        vision_oldest="1.12",
    ),
    # The release that was tried on a GPU; before 1.28 its MoE computes GPT-OSS's SwiGLU, whatever a graph says.
    Form(
        "cuda", compute="float16", stored="float16", bits=None, stacked=True, fused=True, experts="MoE",
        providers=("cuda", "tensorrt"), checked_by="numpy", tolerance=5e-3, oldest="1.31",
        vision_oldest="1.25",
    ),
    # Codes and scales are laid out for the CPU's QMoE; the CUDA one reads another order.
    Form(
        "int4", compute="float32", stored=None, bits=4, stacked=False, fused=True, experts="QMoE",
        providers=("cpu",), checked_by="onnxruntime", tolerance=1e-5, oldest="1.25",
        vision_oldest="1.23", table_bits=4, vision_bits=8, activations=ACTIVATIONS, one_attention=True,
    ),
    Form(
        "int8", compute="float32", stored=None, bits=8, stacked=False, fused=True, experts="QMoE",
        providers=("cpu",), checked_by="onnxruntime without repacking", tolerance=3e-2, oldest="1.25",  # 1e-2 was seen
        vision_oldest="1.23", table_bits=8, vision_bits=8, activations=ACTIVATIONS, one_attention=True,
    ),
)  # fmt: skip
NAMES = tuple(form.name for form in FORMS)
REFERENCE = FORMS[0]  # runs anywhere; what is meant where no form is named


def form_named(name: object) -> Form:
    """The row of a name that comes from anywhere; raises KnobError for any other value."""
    for form in FORMS:
        if form.name == name:
            return form
    raise KnobError(f"form must be one of {', '.join(NAMES)}, got {name!r}.")
