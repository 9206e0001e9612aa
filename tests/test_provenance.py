"""Where a variant comes from: in its manifest, in its graphs, and the two agree or `verify` says so."""

import hashlib
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest

from export.derive import derive
from export.files.check import check_files
from export.files.facts import check_facts
from export.files.provenance import Provenance, check_graphs
from export.variant import export_variant
from importance.choose import choose_blocks, find_scores
from tests.fuzz.mutate import in_json
from tests.support.variants import digests, read_json, record_sums, retell, write_variant
from transform.errors import KnobcastError, VerificationError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT
from transform.strict_json import read_json as parse_json


def said(graph: Path) -> dict[str, Any]:
    """Parsed, so that equal facts are equal."""
    props = onnx.load(graph, load_external_data=False).metadata_props
    words = ((entry.key.removeprefix("knobcast."), entry.value) for entry in props)
    return {key: value if key == "scores" else json.loads(value) for key, value in words}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant whose blocks were chosen by the scores beside the embedded model; its sums recorded."""
    out, source = tmp_path_factory.mktemp("provenance") / "v", read_checkpoint(DEFAULT)
    scores = find_scores(DEFAULT, None, 16)
    plan = make_plan(source, Knobs(4, choose_blocks(source, blocks=2, scores=scores), 288, dtype="float16"))
    export_variant(plan, out, verify=False, ranking=scores)
    record_sums(out)
    return out


def test_manifest_and_graphs_say_where_a_variant_comes_from(chosen: Path) -> None:
    manifest = read_json(chosen / "manifest.json")
    digest = hashlib.sha256((DEFAULT / "scores.json").read_bytes()).hexdigest()
    assert manifest["scores"]["sha256"] == digest
    assert (manifest["scores"]["source"], manifest["scores"]["samples"]) == ("scores.json", 653)
    source = {word: manifest["source"][word] for word in ("name", "revision", "layout_digest")}
    stored = {"dtype": "float16", "form": "cpu", "activations": None}
    decoder = {"blocks_kept": manifest["blocks_kept"], "top_k": [4, 4]}
    policy = {"tokens": 288, "resize": "pad", "rule": "canvas"}
    for name, knobs in (
        ("text", decoder | stored), ("vision", {"tokens": 288} | stored), ("embedding", stored), ("preprocess", policy),
    ):  # fmt: skip
        found = said(chosen / f"{name}.onnx")
        assert found.pop("tools") == {tool: manifest["tools"][tool] for tool in ("knobcast", "onnx")}
        assert found == {"source": source, "knobs": knobs} | ({"scores": digest} if name == "text" else {})
    assert check_files(chosen)["provenance"] == 4


def test_variants_that_differ_by_k_alone_share_all_but_the_decoder(molmo: Path, tmp_path: Path) -> None:
    one, two = (digests(write_variant(molmo, tmp_path / str(k), (0, 2), k, tokens=288)) for k in (1, 2))
    names = one.keys() & two.keys()
    assert {name for name in names if one[name] == two[name]} >= {
        "model.safetensors", "vision.onnx", "embedding.onnx", "preprocess.onnx",
    }  # fmt: skip
    assert one["text.onnx"] != two["text.onnx"]


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        ("text.onnx", {"knobcast.knobs": "{}"}), ("vision.onnx", {"knobcast.source": '{"name":"another"}'}),
        ("text.onnx", {"knobcast.scores": "0" * 64}), ("vision.onnx", {"knobcast.scores": "0" * 64}),
        ("preprocess.onnx", {"knobcast.tools": "{}"}),
    ],
)  # fmt: skip
def test_a_graph_that_says_something_else_is_refused(
    chosen: Path, tmp_path: Path, graph: str, told: dict[str, str]
) -> None:
    copied = Path(shutil.copytree(chosen, tmp_path / "v"))
    retell(copied / graph, told)
    record_sums(copied)
    with pytest.raises(VerificationError, match=f"{graph} must say what .*: its metadata {next(iter(told))}"):
        check_files(copied)


def test_a_source_that_the_graphs_do_not_name_is_refused(chosen: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(chosen, tmp_path / "v"))
    manifest = read_json(copied / "manifest.json")
    for change in ({"source": manifest["source"] | {"revision": "main"}}, {"scores": None}):
        (copied / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(VerificationError, match="must say what manifest"):
            check_files(copied)
    others: list[Any] = [{"source": "x"}, {"source": "x", "sha256": "0" * 63}, [], "x"]
    for scores in others:
        (copied / "manifest.json").write_text(json.dumps(manifest | {"scores": scores}))
        with pytest.raises(VerificationError, match="must be a variant's"):
            check_files(copied)


def test_what_a_graph_says_twice_is_refused(chosen: Path, tmp_path: Path) -> None:
    """Programs differ in which one they show."""
    copied = Path(shutil.copytree(chosen, tmp_path / "v"))
    model = onnx.load(copied / "text.onnx", load_external_data=False)
    model.metadata_props.add(key="knobcast.source", value='{"name":"another"}')
    onnx.save(model, copied / "text.onnx")
    record_sums(copied)
    with pytest.raises(VerificationError, match="is there twice"):
        check_files(copied)


def test_variants_of_before_say_nothing_and_pass(chosen: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(chosen, tmp_path / "v"))
    manifest = read_json(copied / "manifest.json")
    del manifest["scores"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    for graph in copied.glob("*.onnx"):
        retell(graph, {}, keep=False)
    record_sums(copied)
    assert check_files(copied)["provenance"] == 0


def test_a_derived_graph_says_what_it_was_made_of(olmoe: Path, tmp_path: Path) -> None:
    directory = write_variant(olmoe, tmp_path / "v", (0, 2, 5), 2)
    record_sums(directory)
    first = derive(directory / "text.onnx", 1)
    derive(directory / str(first["graph"]), keep=(0, 2))
    assert len(read_json(directory / "manifest.json")["derived"]) == 2
    assert check_files(directory)["provenance"] == 3


def test_of_a_members_graph_blocks_and_k_are_its_own() -> None:
    facts = {
        "source": {"name": "m", "revision": None, "layout_digest": "d", "blocks": 3},
        "knobs": {"dtype": "source", "form": "cpu", "activations": None}, "vision": None,
        "blocks_kept": [0, 1, 2], "top_k": [4, 4, 4], "scores": {"sha256": "0" * 64}, "tools": {"knobcast": "1"},
    }  # fmt: skip
    own = Provenance.parse(facts)
    assert "knobcast.scores" not in own.of("text.onnx")
    member = own.of_member((0, 2), (2, 1)).of("text-k2x1.1x1-b2.onnx")
    assert json.loads(member["knobcast.knobs"])["blocks_kept"] == [0, 2]
    assert member["knobcast.scores"] == "0" * 64
    assert own.of("embedding-decode.onnx") == own.of("embedding.onnx")


def test_a_manifest_that_anyone_wrote_is_taken_or_refused_in_words(chosen: Path, tmp_path: Path) -> None:
    rng, checkpoint, valid = Random(5), read_checkpoint(chosen), (chosen / "manifest.json").read_bytes()
    refused = 0
    for _ in range(300):
        (tmp_path / "manifest.json").write_bytes(in_json(rng, valid))
        try:
            manifest = parse_json(tmp_path / "manifest.json")
            check_facts(manifest, checkpoint)
            check_graphs(chosen, manifest, {})
        except KnobcastError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("missing", ["tools", "source", "knobs", "vision", "blocks_kept", "top_k"])
def test_a_manifest_without_a_part_is_no_origin(chosen: Path, missing: str) -> None:
    manifest = read_json(chosen / "manifest.json")
    del manifest[missing]
    with pytest.raises(VerificationError, match="must say where the variant comes from"):
        Provenance.parse(manifest)
