"""Two pushes at once, step by step in every drawn order: what is named is whole, and a loser says why in words.

Whole processes that race: `python -m tests.faults.together`.
"""

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from export.publish.content import Content, read_content
from export.publish.publisher import Publisher, pull
from export.publish.targets import open_target
from tests.support.hub_stand_in import TOKEN, hub_stand_in
from tests.support.published import names, push, variant
from tests.support.registry import NEEDED, running
from transform.errors import KnobcastError

STEPS = 4  # plan, push, confirm, alias
ORDERS = list(combinations(range(2 * STEPS), STEPS))  # at which places the first one's steps are
Place = tuple[str, Callable[[str], str]]  # a target, and what an alias or a version is called there


@pytest.fixture(scope="module")
def contents(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Content, Content]:
    made = tmp_path_factory.mktemp("variants")
    return read_content(variant(molmo, made / "k1", 1)), read_content(variant(molmo, made / "k2", 2))


@pytest.fixture(params=["dir", "file", "hf", pytest.param("oci", marks=NEEDED)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    shelf = tmp_path / "shelf"
    if request.param == "hf":
        shelf.mkdir()
        with hub_stand_in(shelf) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            for name, value in (("CACHE", str(tmp_path / "cache")), ("DISABLE_XET", True), ("OFFLINE", False)):
                monkeypatch.setattr(f"huggingface_hub.constants.HF_HUB_{name}", value)
            yield "hf:me/molmoe", "hf:me/molmoe@{}".format
    elif request.param == "oci":
        with running(shelf) as registry:
            target = f"oci://localhost:{registry.port}/molmoe"
            yield target, (target + ":{}").format
    else:
        target = f"dir:{shelf}" if request.param == "dir" else f"file://{shelf}"
        yield target, (target + "/{}").format


def steps(publisher: Publisher, content: Content) -> Iterator[None]:
    """A push with an alias, one step at a time."""
    transfer = publisher.plan(content, "edge")
    yield
    receipt = publisher.push(transfer, lambda _: None)
    yield
    publisher.confirm(receipt, content)
    yield
    publisher.move_alias(receipt, content, "edge")
    yield


@pytest.mark.parametrize("same", [True, False], ids=["one version", "two versions"])
def test_two_pushes_at_once_publish_nothing_in_part(
    same: bool, place: Place, contents: tuple[Content, Content], tmp_path: Path
) -> None:
    target, called = place
    pair = (contents[0], contents[0 if same else 1])
    push(open_target(target), contents[1], "edge")
    for number, first in enumerate(random.Random(5).sample(ORDERS, 3)):
        two = [steps(open_target(target), content) for content in pair]
        told: dict[int, KnobcastError] = {}
        for at in range(2 * STEPS):
            which = 0 if at in first else 1
            try:
                if which not in told:
                    next(two[which])
            except KnobcastError as error:
                told[which] = error
        assert len(told) < 2, told
        for lost in told.values():
            assert "meanwhile" in str(lost), lost
        out = tmp_path / f"out-{number}"
        reference = called("edge")
        pull(open_target(reference), reference, out, force=False, say=lambda _: None, tick=lambda _: None)
        whole = [names(content.directory) for which, content in enumerate(pair) if which not in told]
        assert names(out) in whole
        push(open_target(target), pair[0], "edge")
