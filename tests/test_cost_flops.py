"""FLOPs by arithmetic equal what torch's own counter sees, for every knob; tokens equal the real preprocessing."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from export.cost.count import count
from export.cost.part import flops
from export.cost.stored import Stored
from export.cost.vision import vision_parts
from export.cost.work import Workload
from tests.support.flops import counted_by_torch, decoder_flops, model_of
from tests.support.models import BLOCKWISE, save_source
from tests.support.paths import ROOT
from transform.errors import KnobError
from transform.knobs import Knobs
from transform.molmoe.preprocessing import Preprocessed, feature_index, fitting_tiling, index_map, preprocess
from transform.plan import make_plan
from transform.read import read_checkpoint

NANO = ROOT / "artifacts" / "molmoe-nano"
PICTURE = Workload((640, 480), 5, 4)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads share a key, and queries are clipped."""
    path = tmp_path_factory.mktemp("models") / "grouped"
    return save_source(path, num_key_value_heads=2, clip_qkv=4.0, **BLOCKWISE)


SETTINGS = [
    Knobs(),
    Knobs(k=1),
    Knobs(k=3, keep=(0, 2)),
    Knobs(keep=(1,)),
    Knobs(k=2, form="int4"),  # its fused operators are the same products, counted by hand
    Knobs(k=2, form="cuda"),
]


FAMILIES = ("molmo", "olmoe", "grouped")
CASES = [(family, knobs) for family in FAMILIES for knobs in SETTINGS] + [("molmo", Knobs(k=(3, 1), keep=(0, 2)))]


@pytest.mark.parametrize(("family", "knobs"), CASES)
def test_a_decoders_flops_are_those_that_torch_counts(
    family: str, knobs: Knobs, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(family)
    plan = make_plan(read_checkpoint(directory), knobs)
    workload = Workload(None, 11, 5)
    counted = count(plan, workload)
    assert (counted.work.prefill_flops, counted.work.decode_flops) == decoder_flops(
        plan, directory, counted, workload.new
    )
    assert counted.work.vision_flops == 0


@pytest.mark.parametrize("tokens", [288, 432, "low", None])
@pytest.mark.parametrize("name", ["molmo", "nano"])
def test_a_pictures_flops_are_those_that_torch_counts(name: str, tokens: int | str | None, molmo: Path) -> None:
    """PyTorch pools every window, graphs those alone that the sequence keeps."""
    directory = molmo if name == "molmo" else NANO
    plan = make_plan(read_checkpoint(directory), Knobs(tokens=tokens))
    assert plan.vision is not None
    counted = count(plan, PICTURE)
    cut = preprocess(np.zeros((480, 640, 3), np.uint8), tokens, plan.vision.max_crops)
    assert counted.tokens.features == len(cut.feature_index)
    crops = len(cut.images)
    backbone = model_of(directory).model.vision_backbone
    images, masks = torch.from_numpy(cut.images)[None], torch.from_numpy(cut.image_masks)[None]
    every = counted_by_torch(lambda: backbone(images, masks))
    assert flops(vision_parts(Stored(plan), crops, crops * 144)) == every
    window = torch.zeros(counted.tokens.features, 4, backbone.pad_embed.shape[1])
    kept = counted_by_torch(lambda: backbone.vit_features(images))
    kept += counted_by_torch(lambda: backbone.image_projector(backbone.image_pooling_2d(window)))
    assert counted.work.vision_flops == kept
    if tokens == 432:
        assert (counted.work.prefill_flops, counted.work.decode_flops) == decoder_flops(
            plan, directory, counted, PICTURE.new
        )


def test_tokens_are_those_of_the_real_preprocessing(molmo: Path) -> None:
    """1,000 random sizes, under every policy."""
    draw = random.Random(0)
    source = read_checkpoint(molmo)
    plans = [
        make_plan(source, Knobs(tokens=tokens, rule=rule, resize=resize))
        for tokens in (288, 432, "low", None)
        for rule, resize in (("canvas", "pad"), ("linear", "fill"))
        if tokens is not None or rule == "canvas"
    ]
    for n in range(1000):
        plan = plans[n % len(plans)]
        assert plan.vision is not None
        width, height = draw.randint(8, 90) * draw.choice((1, 4)), draw.randint(8, 90) * draw.choice((1, 4))
        vision = plan.vision
        policy = (vision.tokens, vision.max_crops, vision.resize, vision.rule)
        picture = np.zeros((height, width, 3), np.uint8)
        tiling = fitting_tiling(picture, *policy)
        stream = 1 + len(Preprocessed(tiling, (0, 0), *[picture] * 3).image_tokens(1, 2, 3, 4))
        features = len(feature_index(index_map(tiling)))
        if n % 50 == 0:  # down to the pixels, which say nothing of tokens
            cut = preprocess(picture, *policy)
            assert (features, stream) == (len(cut.feature_index), 1 + len(cut.image_tokens(1, 2, 3, 4)))
        work = count(plan, Workload((width, height), 7, 1)).work
        assert (work.vision_tokens, work.positions) == (features, stream + 7)


def test_what_a_model_cannot_do_is_refused(olmoe: Path, molmo: Path) -> None:
    with pytest.raises(KnobError, match="Leave the picture out"):
        count(make_plan(read_checkpoint(olmoe), Knobs()), PICTURE)
    with pytest.raises(KnobError, match="positions"):
        count(make_plan(read_checkpoint(molmo), Knobs()), Workload(None, 5000, 5))
