"""The contract of passes: what each ensures is checked at every call, and a pass that breaks its word is named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from transform import packed_layout
from transform.checkpoint import Checkpoint, Tensor
from transform.depth import DropBlocks, drop_blocks
from transform.dtype import Cast, cast
from transform.errors import CheckpointError, KnobError
from transform.knobs import Knobs
from transform.packed_layout import Stack
from transform.passes import Changes, Pass, PassError
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.stack import StackExperts, stack_experts
from transform.top_k import SetTopK, set_top_k

Damage = Callable[[Checkpoint], Checkpoint]


@dataclass(frozen=True)
class Broken(Pass):
    """A pass that does its work, and then something that it doesn't say."""

    inner: Pass
    damage: Damage
    name = "broken"

    def requires(self, source: Checkpoint) -> None:
        self.inner.requires(source)

    def run(self, source: Checkpoint) -> Checkpoint:
        return self.damage(self.inner.run(source))

    def changes(self, source: Checkpoint) -> Changes:
        return self.inner.changes(source)

    def ensures(self, target: Checkpoint) -> str | None:
        return self.inner.ensures(target)


@pytest.fixture
def source(olmoe: Path) -> Checkpoint:
    return read_checkpoint(olmoe)


def tensors(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Damage:
    return lambda made: replace(made, tensors=change(dict(made.tensors)))


def config(**keys: object) -> Damage:
    return lambda made: replace(made, config={**made.config, **keys})


def lose(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    table.pop("model.layers.1.mlp.gate.weight")
    return table


def add(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    name = "model.layers.1.mlp.extra.weight"
    return table | {name: table["model.norm.weight"]._replace(name=name)}


def swap(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Two blocks in the wrong order: every name is there, with the other's bytes."""
    one, other = (f"model.layers.{i}.input_layernorm.weight" for i in (0, 1))
    return table | {one: table[other]._replace(name=one), other: table[one]._replace(name=other)}


def twice(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return table | {"model.norm.weight": table["model.norm.weight"]._replace(name="lm_head.weight")}


def reshape(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return table | {"model.norm.weight": table["model.norm.weight"]._replace(shape=(8, 8))}


def retype(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return table | {"model.norm.weight": table["model.norm.weight"]._replace(dtype="BF16")}


def reverse(table: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return dict(reversed(table.items()))


DROP, K, CAST, STACK = DropBlocks((1, 2, 4)), SetTopK(2), Cast("float16"), StackExperts()


@pytest.mark.parametrize(
    ("inner", "damage", "message"),
    [
        (DROP, tensors(lose), " tensors are lost, the first is 'model.layers.1.mlp.gate.weight'"),
        (DROP, config(num_hidden_layers=4), "the blocks have k (4, 4, 4, 4), not (4, 4, 4)"),
        (DROP, config(num_experts_per_tok=9), "num_experts_per_tok must be one number or 3 numbers from 1 to 8"),
        (DROP, config(layer_types=["full_attention"] * 2), "layer_types must list one value per block, it has 2 for 3"),
        (DROP, tensors(swap), "'model.layers.0.input_layernorm.weight' hasn't the bytes"),
        (K, tensors(add), "1 tensors have names unknown to olmoe, one is 'model.layers.1.mlp.extra.weight'"),
        (K, tensors(twice), "a tensor is named twice, 'model.norm.weight' and 'lm_head.weight'"),
        (K, tensors(reshape), "'model.norm.weight' hasn't the bytes, the shape and the dtype"),
        (K, tensors(retype), "'model.norm.weight' hasn't the bytes, the shape and the dtype"),
        (K, tensors(reverse), "the tensors have another order"),
        (K, config(num_experts_per_tok=3), "the blocks have k (3, 3, 3, 3, 3, 3), not (2, 2, 2, 2, 2, 2)"),
        (K, config(vocab_size=64), "the config has another vocab_size"),
        (K, lambda made: replace(made, joined=True), "the tensors go into other files"),
        (K, lambda made: replace(made, side_files=("notes.txt",)), "other files travel along"),
        (CAST, tensors(retype), "'model.norm.weight' hasn't the bytes, the shape and the dtype"),
        (CAST, config(dtype="bfloat16"), "the tensors are float16, the config says bfloat16"),
        (STACK, tensors(reverse), "the experts of block 0 don't follow each other"),
        (STACK, lambda made: replace(made, joined=False), "don't follow each other in one file"),
    ],
)
def test_a_pass_that_breaks_its_word_is_named(source: Checkpoint, inner: Pass, damage: Damage, message: str) -> None:
    inner(source)
    with pytest.raises(PassError) as error:
        Broken(inner, damage)(source)
    assert "after broken, " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (DropBlocks(()), KnobError, "at least one, got \\[\\]"),
        (DropBlocks((1, 0)), KnobError, "ascending indices from 0 to 5"),
        (DropBlocks((0, 6)), KnobError, "ascending indices from 0 to 5"),
        (SetTopK((4, 4)), KnobError, "2 values, 6 blocks kept"),
        (SetTopK(9), KnobError, "k must be from 1 to 8"),
        (SetTopK((4, 4, 4, 4, 4, 2)), KnobError, "can't carry 4,4,4,4,4,2"),
    ],
)
def test_a_setting_that_a_pass_cannot_take_is_refused_before_it_runs(
    source: Checkpoint, wrong: Pass, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wrong(source)


def test_a_list_of_another_length_is_the_sources_fault(source: Checkpoint) -> None:
    damaged = replace(source, config={**source.config, "layer_types": ["full_attention"]})
    with pytest.raises(CheckpointError, match="must list one value per block, it has 1 for 6"):
        drop_blocks(damaged, range(6))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda stack: [stack, stack], "after pack, .* matrices lie in two stacks"),
        (
            lambda stack: [stack._replace(members=stack.members[1:])],
            "after pack, '.*' has room for .* values",
        ),
    ],
)
def test_packing_gives_each_matrix_one_place(
    source: Checkpoint, damage: Callable[[Stack], list[Stack]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(source, Knobs(form="int4"))
    assert plan.bytes > 0
    right = list(packed_layout.stacks(plan.target, packed_layout.Packing(4)))
    monkeypatch.setattr(packed_layout, "stacks", lambda *_: [*right[:-1], *damage(right[-1])])
    with pytest.raises(PassError, match=message):
        _ = plan.bytes


def test_what_changes_nothing_gives_the_source_itself(source: Checkpoint) -> None:
    assert drop_blocks(source, range(6)) is source
    assert set_top_k(source, 4) is source
    assert cast(source, "float32") is source
    stacked = stack_experts(source)
    assert stack_experts(stacked) is stacked


def test_a_plan_says_which_passes_changed_something(source: Checkpoint) -> None:
    assert make_plan(source, Knobs(k=4, dtype="float32")).target.passes == ()
    plan = make_plan(source, Knobs(k=2, keep=(0, 5), form="cuda"))
    assert plan.target.passes == ("drop_blocks", "set_top_k", "cast", "stack_experts")
    assert source.passes == ()
