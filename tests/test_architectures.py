"""Families are data: files that aren't whole are refused, a new one needs no code, none is named outside its file."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from export.cost.count import count
from export.cost.work import Workload
from export.variant import export_variant
from importance.blocks import ResidentBlocks
from importance.prompts import load_processor
from importance.streaming import StreamedBlocks
from tests.support.flops import decoder_flops
from tests.support.imports import PACKAGES
from tests.support.paths import ROOT
from transform.architectures import architecture_named, known_model_types, read
from transform.architectures.vocabulary import PER_BLOCK, select_blocks
from transform.depth import drop_blocks
from transform.errors import ArchitectureError, CheckpointError
from transform.knobs import Knobs
from transform.load import load_model
from transform.molmoe import MolmoEProcessor
from transform.molmoe.configuration_molmoe import _REQUIRED, _VISION
from transform.molmoe.processing_molmoe import IMAGE_TOKENS
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper
from transform.source import DEFAULT
from transform.special_tokens import begin_id, begin_id_of

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 4, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
MOE = "model.layers.{i}.block_sparse_moe"
# Differences to what a decoder usually is: the whole of what a new family takes.
NEW = {
    "mixtral": {
        "model_type": "mixtral",
        "like": "_decoder",
        "keys": {"experts": ["num_local_experts"]},
        "defaults": {"norm_top_k": True},
        "roles": {
            "router": {"names": [f"{MOE}.gate.weight"], "shape": ["E", "d"]},
            "expert.gate": {"names": [f"{MOE}.experts.{{e}}.w1.weight"], "shape": ["I", "d"]},
            "expert.up": {"names": [f"{MOE}.experts.{{e}}.w3.weight"], "shape": ["I", "d"]},
            "expert.down": {"names": [f"{MOE}.experts.{{e}}.w2.weight"], "shape": ["d", "I"]},
        },
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "like": "olmoe",
        "keys": {"experts": ["num_experts", "num_local_experts"]},
        "config_dims": {"I": "moe_intermediate_size"},
        "dims": {"h": "head_dim"},
        "roles": {
            "attention.q_norm": {"names": ["model.layers.{i}.self_attn.q_norm.weight"], "shape": ["h"]},
            "attention.k_norm": {"names": ["model.layers.{i}.self_attn.k_norm.weight"], "shape": ["h"]},
        },
        "qk_norm": "head",
        "runtimes": {"transformers_js": None},
    },
}
KINDS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=8)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_experts=8, moe_intermediate_size=32, head_dim=16, norm_topk_prob=True)
    ),
}


@pytest.fixture
def families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all data files, which are read from there; what is written to it counts until the test ends."""
    folder = tmp_path / "families"
    folder.mkdir()
    for file in read.HERE.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(read, "HERE", folder)
    read.read_architecture.cache_clear()
    yield folder
    read.read_architecture.cache_clear()


@pytest.fixture(params=sorted(NEW))
def newcomer(request: pytest.FixtureRequest, families: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint of a family that is known by a data file alone."""
    (families / f"{request.param}.json").write_text(json.dumps(NEW[request.param]))
    torch.manual_seed(0)
    model = KINDS[request.param]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_norm.weight"):  # 1 everywhere would hide a norm that isn't applied
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_a_data_file_is_all_that_a_family_takes(newcomer: Path, tmp_path: Path) -> None:
    """The gate compares graphs with transformers' own model, as users load it too."""
    source = read_checkpoint(newcomer)
    manifest = export_variant(make_plan(source, Knobs(2, (0, 2), None, "source")), tmp_path / "v")
    assert manifest["top_k"] == [2, 2]
    assert manifest["verification"]["onnx_vs_torch"]["prefill"] < 1e-5


def test_its_flops_are_counted(newcomer: Path) -> None:
    plan = make_plan(read_checkpoint(newcomer), Knobs(2, (0, 2)))
    counted = count(plan, Workload(None, 9, 4))
    assert (counted.work.prefill_flops, counted.work.decode_flops) == decoder_flops(plan, newcomer, counted, 4)


def test_its_blocks_are_read_one_by_one(newcomer: Path) -> None:
    streamed, whole = StreamedBlocks(read_checkpoint(newcomer)), ResidentBlocks(load_model(newcomer))
    for index in range(whole.layers):
        with streamed.block(index) as ours, whole.block(index) as theirs:
            named = dict(theirs.named_parameters())
            assert {name for name, value in ours.named_parameters() if torch.equal(value, named[name])} == named.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"like": None}, "block, config_dims, .* must be there"),
        ({"blocks": "x"}, "nothing reads blocks"),
        ({"top_k_key": 3}, "top_k_key must be a text, got 3"),
        ({"per_block_top_k": "no"}, "per_block_top_k must be true or false"),
        ({"dropped": ".x"}, "dropped must be a list"),
        ({"requires": []}, "requires must be an object"),
        ({"requires": {"x": {"values": [1]}}}, "requires.x: reason must be there"),
        ({"qk_norm": "some"}, "qk_norm must be one of full, head, none"),
        ({"qk_norm": "none"}, "roles must have both norms of attention, or neither"),
        ({"prompt": {"begin": ["cls_token_id"]}}, "begin must be one of bos_token_id, eos_token_id"),
        ({"prompt": {"template": "Say"}}, "prompt must have {prompt} once"),
        ({"prompt": {"begin": []}}, "what a sequence begins with"),
        ({"keys": {"width": ["w"]}}, "keys and defaults must name"),
        ({"depth_key": "n"}, "depth_key must be among the keys of layers"),
        ({"keys": {"top_k": ["k"]}, "top_k_key": "k"}, "one of moe_top_k, num_experts_per_tok"),
        ({"per_block_top_k": True}, "per_block_top_k must be false"),
        ({"block": "layers."}, "block must end in"),
        ({"dims": {"d": "width"}}, "dims must name settings, got width"),
        ({"roles": {"norm": {"names": ["norm.{x}"], "shape": ["d"]}}}, "roles.norm: names count by"),
        ({"roles": {"norm": {"names": [], "shape": ["d"]}}}, "roles.norm: must have at least one name"),
        ({"roles": {"router": {"names": [], "shape": ["E", "d"]}}}, "roles.router: must have at least one name"),
        ({"roles": {"norm": {"names": ["norm.{i"], "shape": ["d"]}}}, "nothing but an index in braces"),
        ({"roles": {"norm": {"names": ["norm", "norm}"], "shape": ["d"]}}}, "nothing but an index in braces"),
        ({"roles": {"norm": {"names": ["norm"], "shape": ["d+1"]}}}, "roles.norm: a shape has"),
        ({"fused": {"x": ["expert.all"]}}, "roles must have expert.all"),
        ({"roles": {"expert.bias": {"names": ["b.{i}"], "shape": ["d"]}}}, "modules must have expert.bias"),
        ({"model_class": "OlmoeForCausalLM"}, "classes and code must be dotted names"),
        ({"model_type": "other"}, "model_type must be the file's name"),
        ({"like": "olmoe"}, "like must name a file that isn't like it"),
        ({"like": "no\0thing"}, r"must be a JSON file"),
        ({"like": "nothing"}, r"nothing\.json must be a JSON file"),
    ],
)
def test_a_data_file_that_is_not_whole_is_refused(families: Path, change: Mapping[str, object], message: str) -> None:
    path = families / "olmoe.json"
    whole = json.loads((families / "_decoder.json").read_text()) | json.loads(path.read_text())
    mixed = {key for key, value in change.items() if isinstance(value, dict) and isinstance(whole[key], dict)}
    entries = {key: whole[key] | change[key] for key in mixed}
    path.write_text(json.dumps(json.loads(path.read_text()) | change | entries))
    with pytest.raises(ArchitectureError, match=message):
        read.read_architecture("olmoe")


def test_a_data_file_that_means_two_things_is_refused(families: Path) -> None:
    (families / "olmoe.json").write_text('{"model_type": "olmoe", "model_type": "olmoe"}')
    with pytest.raises(ArchitectureError, match="'model_type' occurs twice"):
        read.read_architecture("olmoe")


@pytest.mark.parametrize("key", PER_BLOCK)
def test_a_list_with_a_value_per_block_loses_those_of_dropped_blocks(olmoe: Path, key: str) -> None:
    """One list of keys serves the pass, the model at run time and blocks that are streamed."""
    source, values = read_checkpoint(olmoe), [3, 1, 4, 1, 5, 2]
    source = replace(source, config=dict(source.config) | {key: values})
    assert drop_blocks(source, (0, 2, 5)).config[key] == [3, 4, 2]
    assert select_blocks(source.config, "num_hidden_layers", ())[key] == []
    if key == "num_experts_per_tok":
        return  # transformers' configs take no list there
    model = load_model(olmoe)
    setattr(model.config, key, values)
    with BlockMaskWrapper(model, [True, False, True, False, False, True]):
        assert getattr(model.config, key) == [3, 4, 2]
    assert getattr(model.config, key) == values


def test_a_list_of_another_length_is_refused(olmoe: Path) -> None:
    source = read_checkpoint(olmoe)
    with pytest.raises(CheckpointError, match="layer_types must list one value per block, it has 2 for 6"):
        drop_blocks(replace(source, config=dict(source.config) | {"layer_types": ["a", "b"]}), (0,))


@pytest.mark.parametrize(
    ("begin", "wanted"), [(["bos_token_id", "eos_token_id"], 2), (["eos_token_id"], 2), (["bos_token_id"], None)]
)
def test_a_sequence_begins_with_the_first_token_that_there_is(
    families: Path, olmoe: Path, begin: list[str], wanted: int | None
) -> None:
    own = json.loads((families / "olmoe.json").read_text())
    base = json.loads((families / "_decoder.json").read_text())
    (families / "olmoe.json").write_text(json.dumps(own | {"prompt": base["prompt"] | {"begin": begin}}))
    checkpoint = read_checkpoint(olmoe)  # no begin token, 2 ends a text
    if wanted is not None:
        assert begin_id(checkpoint, olmoe) == wanted
    else:
        with pytest.raises(CheckpointError, match=r"config\.json has no bos_token_id"):
            begin_id(checkpoint, olmoe)


# Copies that travel with every variant and can read no data file: they must say what the file says.


def test_the_travelling_configuration_requires_what_the_data_file_does() -> None:
    rules = architecture_named("molmo").requires
    assert {key: rules[key].values for key in _REQUIRED} == _REQUIRED
    assert {key: rules[key].default for key in _REQUIRED if key != "block_type"} == {
        key: allowed[0] for key, allowed in _REQUIRED.items() if key != "block_type"
    }
    # how pictures are cut, which the travelling preprocessing can do in one way only, whatever the config says
    geometry = {"use_col_tokens", "image_pooling_h", "image_pooling_w", "overlap_margins", "crop_mode"}
    assert {key for key in rules if not key.startswith("vision_backbone.")} == _REQUIRED.keys() | geometry
    backbone = {"image_model_type", "image_mlp_activations", "image_patch_size", "image_default_input_size"}
    assert {key for key in rules if key.startswith("vision_backbone.")} == {
        f"vision_backbone.{key}" for key in backbone
    }


def test_the_travelling_processor_asks_as_the_data_file_says() -> None:
    family = architecture_named("molmo")
    assert family.images is not None
    assert tuple(vars(family.images.tokens).values()) == IMAGE_TOKENS
    assert family.images.processor == f"transform.molmoe.{MolmoEProcessor.__name__}"
    processor = load_processor(read_checkpoint(DEFAULT))
    ids = processor(text="What is this?", return_tensors=None)["input_ids"][0].tolist()
    words = processor.tokenizer(family.prompt.around("What is this?"), add_special_tokens=False)["input_ids"]
    assert ids == [begin_id_of(processor.tokenizer, family.prompt), *words]


@pytest.mark.parametrize(("begin", "end"), [(5, 7), (None, 7), (0, 7)])
def test_the_travelling_processor_begins_as_the_data_file_says(begin: int | None, end: int) -> None:
    tokenizer = SimpleNamespace(bos_token_id=begin, eos_token_id=end)
    processor = SimpleNamespace(tokenizer=tokenizer)
    assert vars(MolmoEProcessor)["bos_id"].fget(processor) == begin_id_of(tokenizer, architecture_named("molmo").prompt)


def test_the_travelling_configuration_has_the_tower_of_the_data_file() -> None:
    images = architecture_named("molmo").images
    assert images is not None
    keys = {key.removeprefix("vision_backbone.") for key in vars(images.tower).values() if isinstance(key, str)}
    assert keys - {images.tower.taps} <= _VISION.keys()


_WORD = re.compile("[a-z0-9_]+")
# Where a family's name may stand besides: {file: {string: reason}}.
EXCEPTIONS = {
    "transform/source.py": {"molmoe-nano": "the folder of the embedded model"},
    "export/bench/gguf_file.py": {"olmoe": "llama.cpp's own word, whose tensor names the file has"},
    "importance/prompts.py": {"MolmoEProcessor": "a type, for checkers alone"},
}


def test_no_code_names_a_family() -> None:
    """No string and no name of an attribute; a module of the travelling folder may be imported by its path."""
    told = {"molmo", "olmo", *words_of_families()}
    assert {"molmoeforconditionalgeneration", "<im_patch>", " user: ", "vision_backbone", "gemma3"} <= told
    types = set(known_model_types()) - {"llama"}  # a runtime is called so too
    found = []
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        where = file.relative_to(ROOT).as_posix()
        if where.startswith(("transform/architectures/", "transform/molmoe/")):
            continue
        for text in spoken(ast.parse(file.read_text())):
            plain = text.lower().replace("transform.molmoe", "")
            named = any(word in plain for word in told) or set(_WORD.findall(plain)) & types
            if named and text not in EXCEPTIONS.get(where, {}):
                found.append(f"{where}: {text!r}")
    assert found == []


def words_of_families() -> set[str]:
    """What data files call classes, tokens, runtimes' types and modules, in small letters."""
    words: set[str] = set()
    for family in filter(lambda family: family.complete, map(architecture_named, known_model_types())):
        words |= {family.model_type, family.runtimes.genai, family.prompt.end_of_text}
        words |= set(family.prompt.template.split("{prompt}")) - {""}
        if family.images:
            words |= {*vars(family.images.tokens).values(), family.images.module}
            words |= {family.images.processor.rpartition(".")[2], str(family.model_class).rpartition(".")[2]}
    return {word.lower() for word in words}


def spoken(tree: ast.Module) -> Iterator[str]:
    """Strings that aren't documentation, and the names that code asks objects and modules for."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented)
             and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield node.value
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
