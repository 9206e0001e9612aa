"""Past and present of the cache in one buffer: what is decoded, where it lies, which graphs have it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.graph.decoder import text_graph
from export.run import bound
from export.run.bound import Bound
from export.run.graphs import Graphs
from tests.support.models import save_source
from tests.support.variants import write_variant
from transform.forms import NAMES, form_named
from transform.read import read_checkpoint

PROMPT, NEW = 7, 9


@pytest.fixture(scope="module")
def variant(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(olmoe, tmp_path_factory.mktemp("shared") / "v", k=2, form="int4")


def test_tokens_are_written_into_the_buffer_until_it_is_full(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free slots hold NaN here, so that whoever reads them shows."""
    monkeypatch.setattr(bound, "SPARE", 4)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan if dtype == np.float32 else 0, dtype))
    graphs = Graphs(variant, threads=1)
    ids = np.random.default_rng(0).integers(3, 90, (1, PROMPT + NEW))
    expected, cache = graphs.step(ids[:, :PROMPT], np.ones((1, PROMPT), np.int64), graphs.empty_cache(1))
    sequence = Bound(graphs)
    np.testing.assert_allclose(sequence.prefill(ids[:, :PROMPT]), expected[0, -1], rtol=0, atol=1e-5)
    places = []
    for at in range(PROMPT, PROMPT + NEW):
        expected, cache = graphs.step(ids[:, at : at + 1], np.ones((1, at + 1), np.int64), cache)
        np.testing.assert_allclose(sequence.decode(int(ids[0, at])), expected[0, 0], rtol=0, atol=1e-5)
        held = sequence._cache["past_key_values.0.key"]
        assert not isinstance(held, np.ndarray)
        places.append((held.data_ptr(), held.shape()[2]))
    assert [room for _, room in places] == [12] * 5 + [17] * 4
    assert len({place for place, room in places if room == 12}) == len({p for p, room in places if room == 17}) == 1


def test_graphs_of_earlier_versions_have_a_cache_that_grows(variant: Path) -> None:
    earlier = replace(form_named("int4"), one_attention=False)
    text_graph(read_checkpoint(variant), earlier).write(variant / "earlier.onnx")
    sequences = [Bound(Graphs(variant, threads=1, text=name)) for name in ("text.onnx", "earlier.onnx")]
    assert [sequence.graphs.shares_cache for sequence in sequences] == [True, False]
    ids = np.arange(3, 3 + PROMPT)[None]
    for ours, theirs in (
        [sequence.prefill(ids) for sequence in sequences],
        *([sequence.decode(token) for sequence in sequences] for token in (5, 6)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    (variant / "earlier.onnx").unlink()


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("heads", [4, 8])
def test_heads_of_a_multiple_of_8_alone_go_through_one_operator(form: str, heads: int, tmp_path: Path) -> None:
    save_source(
        tmp_path / "source", hidden_size=32, intermediate_size=32, num_attention_heads=heads, num_key_value_heads=heads
    )
    made = write_variant(tmp_path / "source", tmp_path / "v", k=1, form=form)
    nodes = onnx.load(made / "text.onnx", load_external_data=False).graph.node
    assert ("If" in {node.op_type for node in nodes}) == (heads == 4 and form_named(form).one_attention)
    assert Graphs(made).shares_cache == (heads == 4 and form_named(form).one_attention)
