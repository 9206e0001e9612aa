"""docs/models.md: every family with what can be chosen, which graphs there are and what was planned of it.

Rows follow from the data files and the released configurations; `python -m tests.models_page` writes the page,
`tests/test_models_page.py` compares it.
"""

import tomllib
from collections.abc import Iterator

from tests.support.decoders import DECODERS
from tests.support.paths import ROOT
from tests.support.released import release, released
from tests.support.zoo import KS, ZOO, cases
from transform.architectures import absent_model_types, lookup
from transform.architectures.read import known_model_types, read_architecture
from transform.architectures.records import Architecture, TopK
from transform.forms import FORMS

IN_GENAI = {"molmo", "olmoe", *(name.partition("-")[0] for name in DECODERS)}  # tests/test_onnx_genai.py
PAGE = ROOT / "docs" / "models.md"
HEAD = """# Models

Families by the `model_type` of their config.json. A variant of one keeps its class, tensor names and config keys, so
that whatever reads the original reads it. Where the third column names forms, the same variant has ONNX graphs and a
`genai_config.json`; elsewhere plan, card and manifest say why there are none. Every row's checkpoints are tiny random
ones that transformers writes, compared with the full model without those blocks: of {settings} settings (no block
dropped, the first, one in the middle, the last of another make, the last two; with the trained k, half of it and 1) the
difference is 0 in {exact}, and {refused} are refused with the reason. Graphs are compared with transformers, within
1e-5 of the largest logit. Nothing here ran on released weights of these sizes.

*Runtimes* are those in which such variants ran in a test, on a CPU ([how](runtimes.md)): {transformers} and
{onnxruntime} ([versions](versions.md)); onnxruntime-genai generated transformers' tokens in the forms cpu,
int4 and int8. Others that read the original, such as vLLM or llama.cpp, were not tried.

*Vision tokens* of a stock model are bounds in its processor's file ([checkpoints](checkpoints.md#vision-tokens)), and
its variants are compared with the full model on pictures too. So are those of {noise},
with pictures of noise: nothing is known here of how their processors count tokens.

The last column is a released configuration of which half the blocks and half of k are planned from headers in a test
(`tests/test_released.py`); an empty one: no released configuration was at hand. *Sizes* after a name: of its
config.json only sizes, counts and lists were at hand, not every key.

| `model_type` | what can be chosen | graphs | runtimes | configuration |
|---|---|---|---|---|
"""
ABSENT = """
## Not yet

Models of transformers with routed experts, and others that people ask for, that are refused by name. What a reason says
was seen in their code or in a comparison; where it says that nobody has tried, one file may be all that is missing.

| `model_type` | why not | instead |
|---|---|---|
"""
WALK = """
## Adding a family

Of known parts it is one file in `transform/architectures/` and one row of a test. Llama's mixture-of-experts cousins
mostly differ in how a router weighs; GLM-4.5 is {glm} lines, Qwen3-MoE {qwen}, LFM2-MoE (weights alone) {lfm}, and the
longest of those with graphs, GPT-OSS, {oss}. A walk, with dots.llm1 ({dots} lines):

1. **Say what it is like.** `"like": "_graphs"` where every part of the decoder is known (`"_checkpoint"` for weights
   alone, `"_stock"` for names without graphs). Now `knobcast plan` reads it: k, blocks, lists per block.
2. **Lists that transformers derives** from the number of blocks go into `"derived"`, or a variant of fewer blocks gets
   others: `["layer_types"]`. The config's other lists are known by name (`vocabulary.py`); one that isn't is refused.
3. **Where names differ,** `"roles"` names the tensors, `"keys"` the config's numbers under the names that transformers'
   class reads, `"defaults"` what the class has where one is absent (`tests/test_spellings.py` asks the class).
4. **What the router does** is in `"graph"`: `"scores": "sigmoid"`, `"groups"`, `"scale"`, `"add"`, each a word or a
   config key. A key that nothing reads, or a tensor that no role has, stops the graphs and is named.
5. **One row** in `tests/support/zoo.py`: sizes that collide nowhere. `tests/test_zoo.py` compares every dropped block
   and every k with the full model, exactly. With graphs, one more in `tests/support/decoders.py`, and what may be
   drawn of it in `FAMILIES` of `tests/support/drawn.py`; tests name the rows that are missing.
6. **A stock model that resizes pictures by their area** says so in `"pixels"`: the config keys of its patches, which
   of transformers' processors it has and whether they count a picture once or as a clip. `TOKENS` then works.
7. A released config.json, without weights, into `tests/fixtures/configs/`, then `python -m tests.models_page`.

What the words mean is in `records.py`, `pictures.py` and `graph_facts.py` of `transform/architectures/`; more in
[design](design.md#adding-a-family).
"""


def page() -> str:
    """The whole page."""
    pins = [*_pins()]
    rows = "".join(f"| {' | '.join(_row(name))} |\n" for name in known_model_types())
    lines = {key: _lines(name) for key, name in WALKED.items()}
    compared, refused = _settings()
    head = HEAD.format(
        transformers=pins[0], onnxruntime=pins[1], settings=compared, exact=compared - refused, refused=refused,
        noise=", ".join(f"`{name}`" for name in known_model_types() if read_architecture(name).noise),
    )  # fmt: skip
    absent = "".join(f"| `{name}` | {why} | {instead} |\n" for name, (why, instead) in absent_model_types().items())
    return head + rows + ABSENT + absent + WALK.format(**lines)


def _settings() -> tuple[int, int]:
    """Of all rows that `tests/test_zoo.py` compares: how many settings, and how many of these are refused."""
    kept = [(animal, cases(animal.boundary)) for animal in ZOO.values()]
    everything = sum(len(found) for _, found in kept) + len(cases(None, 4))  # and MolmoE's
    return everything * len(KS), sum(len(animal.refused(found, KS)) for animal, found in kept)


WALKED = {"glm": "glm4_moe", "qwen": "qwen3_moe", "lfm": "lfm2_moe", "oss": "gpt_oss", "dots": "dots1"}


def _lines(name: str) -> int:
    return len((ROOT / "transform" / "architectures" / f"{name}.json").read_text().splitlines())


def _pins() -> Iterator[str]:
    """The admitted transformers and onnxruntime, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    yield f"`{next(p for p in (*project['dependencies'], *extras['full']) if p.startswith('transformers'))}`"
    yield f"`{extras['run'][0]}`"


def _row(name: str) -> tuple[str, ...]:
    family = read_architecture(name)
    graphs = family.complete or family.graph is not None
    forms = ", ".join(f"`{form.name}`" for form in FORMS) if graphs else "weights alone"
    ran = ("transformers", *(["onnxruntime"] if graphs else []), *(["onnxruntime-genai"] if name in IN_GENAI else []))
    return f"`{name}`", "; ".join(_knobs(family)), forms, ", ".join(ran), _config(family)


def _knobs(family: Architecture) -> Iterator[str]:
    free = family.model_type not in ZOO or not ZOO[family.model_type].fixed
    yield ", ".join(
        (*(["k"] if free else []), "blocks", *(["vision tokens"] if family.images or family.pixels else []))
    )
    if family.k is TopK.FIXED:
        yield "k is built into its code"
    if family.pinned:
        yield "the first blocks, which receive pictures' features, stay"
    for key, kind in family.last.items():
        yield f"the last block has `{kind}` in `{key}`"
    if family.quantised:
        yield f"{', '.join(family.quantised)} weights pass as they are, without graphs"


def _config(family: Architecture) -> str:
    if family.model_type not in released():
        return ""
    known = release(family.model_type)
    method = lookup(known.config, "quantization_config.quant_method")
    refused = "" if method in (None, *family.quantised) else f" ({method}: refused; planned as plain weights)"
    return f"{known.hub}{refused}{'' if known.whole else ', *sizes*'}"


if __name__ == "__main__":
    PAGE.write_text(page())
