"""`hf:` against the stand-in Hub, by huggingface_hub itself: what moves, what is confirmed, what goes wrong."""

import errno
import hashlib
import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.files.check import check_files
from export.publish.content import Content, read_content
from export.publish.hub import open_hub
from export.publish.publisher import Receipt, publish, pull
from tests.support.http_faults import Fault
from tests.support.hub_stand_in import TOKEN, HubStandIn, hub_stand_in
from tests.support.hub_store import Entry, Repository
from tests.support.peak import peak_of
from tests.support.published import names
from tests.support.published import variant as write
from tests.support.variants import record_sums
from transform.errors import PublishError

NAME = "me/molmo-small"


@pytest.fixture(scope="module")
def variant(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(molmo, tmp_path_factory.mktemp("variants") / "k2", 2)


@pytest.fixture(scope="module")
def other(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with another k: the same weights."""
    return write(molmo, tmp_path_factory.mktemp("variants") / "k3", 3)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    with hub_stand_in(blobs) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries, of the client and ours, no time passes."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def push(directory: Path, alias: str | None = None, name: str = NAME, public: bool = False) -> tuple[Content, Receipt]:
    content, hub = read_content(directory), open_hub(name, public)
    return content, publish(hub, hub.plan(content, alias), lambda _: None, lambda _: None)


def files(content: Content) -> dict[str, str]:
    return {item.path: item.sha256 for item in content.items}


def uploads(hub: HubStandIn) -> int:
    return sum(said.startswith("PUT /storage/") for said in hub.requests)


def commits(hub: HubStandIn, branch: str) -> int:
    return sum(said.endswith(f"/commit/{branch}") for said in hub.requests)


def test_a_variant_is_on_its_branch_and_on_main_which_had_one_commit(hub: HubStandIn, variant: Path) -> None:
    moved: list[int] = []
    content, there = read_content(variant), open_hub(NAME)
    receipt = publish(there, there.plan(content), lambda _: None, moved.append)
    assert hub.store.tree(NAME, content.version) == hub.store.tree(NAME) == files(content)
    assert receipt.reference == f"hf:{NAME}@{content.version}"
    assert commits(hub, content.version) == commits(hub, "main") == 1
    assert hub.store.repositories[NAME].private
    assert sum(moved) == content.bytes


def test_public_is_asked_for(hub: HubStandIn, variant: Path) -> None:
    push(variant, public=True)
    assert not hub.store.repositories[NAME].private


def test_a_plan_reads_alone_and_says_what_a_push_will_move(hub: HubStandIn, variant: Path, other: Path) -> None:
    plan = open_hub(NAME).plan
    assert plan(read_content(variant)).present == frozenset()
    assert not hub.store.repositories
    push(variant)
    before = dict(hub.store.repositories[NAME].branches)
    transfer = plan(read_content(other))
    large = {item.path for item in transfer.content.items if item.path.endswith(".safetensors")}
    assert large <= transfer.present
    assert "manifest.json" not in transfer.present
    assert plan(read_content(variant)).moving == ()
    assert hub.store.repositories[NAME].branches == before


def test_a_second_variant_sends_what_the_repository_lacks(hub: HubStandIn, variant: Path, other: Path) -> None:
    first, _ = push(variant)
    hub.received.clear()
    second, _ = push(other)
    known = set(files(first).values())
    assert hub.received.keys() == {
        item.sha256
        for item in second.items
        if item.path.endswith((".onnx", ".safetensors")) and item.sha256 not in known
    }
    assert hub.store.tree(NAME) == files(second)
    assert hub.store.tree(NAME, first.version) == files(first)


def test_a_push_goes_on_where_it_was_stopped(hub: HubStandIn, variant: Path, impatient: None) -> None:
    hub.faults.append(Fault("PUT /storage/", "status", 500, spare=3))
    with pytest.raises(PublishError, match="what arrived whole stays there"):
        push(variant)
    assert hub.store.tree(NAME) == {}
    arrived = set(hub.store.repositories[NAME].blobs)
    assert len(arrived) == 3
    hub.faults.clear()
    hub.received.clear()
    content, _ = push(variant)
    assert hub.store.tree(NAME) == files(content)
    assert not arrived & hub.received.keys()


def test_a_repeated_push_moves_nothing_and_commits_nothing(hub: HubStandIn, variant: Path) -> None:
    push(variant, "edge")
    hub.requests.clear()
    push(variant, "edge")
    assert not [said for said in hub.requests if "/commit/" in said or said.startswith("PUT")]


def test_an_alias_moves_in_one_commit_after_main(hub: HubStandIn, variant: Path, other: Path) -> None:
    first, _ = push(variant, "edge")
    assert hub.store.tree(NAME, "edge") == files(first)
    second, _ = push(other, "edge")
    assert hub.store.tree(NAME, "edge") == files(second)
    order = [said.rpartition("/")[2] for said in hub.requests if "/commit/" in said]
    assert order == [first.version, "main", second.version, "main", "edge"]


def test_files_that_an_older_version_had_leave_main(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    larger = shutil.copytree(variant, tmp_path / "larger")
    (larger / "notes.txt").write_text("beside the others")
    record_sums(larger)
    push(larger)
    content, _ = push(variant)
    assert hub.store.tree(NAME) == files(content)


def test_xet_storage_holds_what_it_has_once(
    hub: HubStandIn, variant: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Hub is today: large files go through hf_xet, here into a store of its own in a folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.xet = tmp_path / "xet"
    for directory in (variant, other):
        moved: list[int] = []
        content, there = read_content(directory), open_hub(NAME)
        transfer = there.plan(content, "edge")
        publish(there, transfer, lambda _: None, moved.append)
        assert sum(moved) == transfer.bytes
        assert hub.store.tree(NAME) == hub.store.tree(NAME, "edge") == files(content)
        assert names(_pull(f"hf:{NAME}@edge", tmp_path / directory.name)) == names(directory)
    assert transfer.bytes < content.bytes // 2
    assert uploads(hub) == 0
    assert not [said for said in hub.requests if said.startswith("GET /storage/")]


# what is refused before anything is sent


def _holding(hub: HubStandIn, branch: str, name: str, content: bytes) -> None:
    repository = hub.store.repositories.setdefault(NAME, Repository(True))
    repository.branches.setdefault(branch, repository.branches["main"])
    repository.commit(branch, {name: Entry(content, len(content))})


@pytest.mark.parametrize("branch", ["main", "edge"])
def test_a_branch_of_another_model_or_kind_stays(hub: HubStandIn, variant: Path, branch: str) -> None:
    _holding(hub, branch, "manifest.json", b'{"source": {"name": "somebody/else"}}')
    with pytest.raises(PublishError, match=f"{branch} names a version of somebody/else"):
        push(variant, "edge")
    _holding(hub, branch, "pytorch_model.bin", b"weights")
    with pytest.raises(PublishError, match=r"no manifest\.json, but pytorch_model\.bin"):
        push(variant, "edge")
    assert not [said for said in hub.requests if "/commit/" in said or said.startswith("PUT")]


def test_a_repository_with_a_card_alone_is_taken(hub: HubStandIn, variant: Path) -> None:
    _holding(hub, "main", "README.md", b"# to come")
    content, _ = push(variant)
    assert hub.store.tree(NAME) == files(content)


def test_an_alias_must_be_a_branch_that_may_move(hub: HubStandIn, variant: Path) -> None:
    push(variant)
    repository = hub.store.repositories[NAME]
    repository.tags["stable"] = repository.branches["main"]
    for alias, why in (("stable", "is a tag"), ("main", "moves with every push"), ("../x", "an alias must be")):
        with pytest.raises(PublishError, match=why):
            push(variant, alias)


@pytest.mark.parametrize("rest", ["", "molmo", "a/b/c", "a/b@", "../b", "a/b@x/y"])
def test_a_target_names_a_repository(rest: str) -> None:
    with pytest.raises(PublishError, match="OWNER/NAME"):
        open_hub(rest)


def test_a_push_names_its_branch_itself(hub: HubStandIn, variant: Path) -> None:
    with pytest.raises(PublishError, match="Leave that out"):
        push(variant, name=f"{NAME}@v1")


# back


def _pull(reference: str, out: Path) -> Path:
    pull(open_hub(reference.removeprefix("hf:")), reference, out, force=False, say=lambda _: None, tick=lambda _: None)
    return out


def test_what_is_pulled_is_what_was_pushed_as_plain_files(
    hub: HubStandIn, variant: Path, other: Path, tmp_path: Path
) -> None:
    content, receipt = push(variant, "edge")
    push(other)
    for number, reference in enumerate((receipt.reference, f"hf:{NAME}@edge", f"hf:{NAME}@{receipt.digest}")):
        out = _pull(reference, tmp_path / f"out-{number}")
        found = {
            p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in out.rglob("*")
            if p.is_file()
        }
        assert found == files(content)
        assert not [path for path in out.rglob("*") if path.is_symlink()]
    check_files(_pull(f"hf:{NAME}", tmp_path / "main"))
    assert (tmp_path / "main/manifest.json").read_bytes() == (other / "manifest.json").read_bytes()


def test_a_signature_travels_and_may_come_later(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    signed = shutil.copytree(variant, tmp_path / "signed")
    push(signed)
    for text in ("one", "another"):
        (signed / "model.sig").write_text(text)
        content, receipt = push(signed)
        assert names(_pull(receipt.reference, tmp_path / text)) == names(signed)
        assert names(_pull(f"hf:{NAME}", tmp_path / f"main-{text}")) == names(signed)
        assert content.version in receipt.reference


def test_a_signature_stays_where_somebody_else_has_none(
    hub: HubStandIn, variant: Path, other: Path, tmp_path: Path
) -> None:
    signed = shutil.copytree(variant, tmp_path / "signed")
    (signed / "model.sig").write_text("one")
    push(signed, "edge")
    push(other)
    content, receipt = push(variant, "edge")
    assert names(_pull(receipt.reference, tmp_path / "out")) == names(signed)
    assert hub.store.tree(NAME) == hub.store.tree(NAME, "edge") == hub.store.tree(NAME, content.version)
    content, _ = push(other, "edge")
    assert hub.store.tree(NAME) == hub.store.tree(NAME, "edge") == files(content), "another version's goes"


def test_a_pull_goes_on_where_it_was_killed(hub: HubStandIn, variant: Path, tmp_path: Path, impatient: None) -> None:
    push(variant)
    hub.faults.append(Fault("GET /storage/", "status", 500, spare=1))
    with pytest.raises(PublishError, match="fails"):
        _pull(f"hf:{NAME}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    whole = {said for said in hub.requests if said.startswith("GET /storage/")}
    hub.faults.clear()
    hub.requests.clear()
    check_files(_pull(f"hf:{NAME}", tmp_path / "out"))
    again = [said for said in hub.requests if said.startswith("GET /storage/")]
    assert len([said for said in whole if said in again]) == len(whole) - 1


@pytest.mark.parametrize("times", [1, 1_000_000])
def test_a_truncated_download_is_asked_for_again_or_refused(
    hub: HubStandIn, variant: Path, tmp_path: Path, impatient: None, times: int
) -> None:
    push(variant)
    hub.faults.append(Fault("GET /storage/", "truncate", times=times))
    if times == 1:
        check_files(_pull(f"hf:{NAME}", tmp_path / "out"))
        return
    with pytest.raises(PublishError):
        _pull(f"hf:{NAME}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_of_the_cache_is_fetched_anew(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    push(variant)
    _pull(f"hf:{NAME}", tmp_path / "first")
    for blob in (tmp_path / "cache").rglob("blobs/*"):
        if blob.stat().st_size > 100_000:
            blob.write_bytes(b"\0" * blob.stat().st_size)
    check_files(_pull(f"hf:{NAME}", tmp_path / "second"))


def test_bytes_that_changed_at_the_hub_are_refused(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    content, _ = push(variant)
    large = next(item for item in content.items if item.path.endswith(".safetensors"))
    blob = hub.store.blob(large.sha256)
    blob.write_bytes(b"\0" * large.size)
    with pytest.raises(PublishError, match=r"safetensors must have the SHA-256"):
        _pull(f"hf:{NAME}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_isnt_there_is_said(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="no such repository"):
        _pull(f"hf:{NAME}", tmp_path / "out")
    push(variant)
    with pytest.raises(PublishError, match="no such branch, tag or commit"):
        _pull(f"hf:{NAME}@never", tmp_path / "out")
    _holding(hub, "card", "README.md", b"# a card")
    with pytest.raises(PublishError, match="holds no variant"):
        _pull(f"hf:{NAME}@card", tmp_path / "out")


def test_a_full_disk_below_the_cache_is_none_of_the_hubs_faults(
    hub: HubStandIn, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    push(variant)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(PublishError, match="disk is full that has the Hub client's cache"):
        _pull(f"hf:{NAME}", tmp_path / "out")


# what goes wrong

FAULTS = [
    Fault("PUT /storage/", "status", 500),
    Fault("PUT /storage/", "status", 429),
    Fault("PUT /storage/", "cut"),
    Fault("PUT /storage/", "lose", times=1),
    Fault("POST .*/preupload/", "status", 503),
    Fault("POST .*/objects/batch", "status", 500, spare=1),
    Fault("POST .*/commit/k2", "status", 500),
    Fault("POST .*/branch/", "status", 403),
    Fault("GET .*/tree/", "oid"),
    Fault("GET .*/refs", "status", 401, spare=1),
]


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.at.split('/')[-1] or 'storage'}"
)
def test_main_and_alias_stay_what_they_were_and_a_rerun_sends_what_is_missing(
    hub: HubStandIn, variant: Path, other: Path, impatient: None, fault: Fault
) -> None:
    before, _ = push(other, "edge")
    hub.faults.append(Fault(fault.at, fault.kind, fault.status, fault.times, fault.spare))
    with pytest.raises(PublishError) as caught:
        push(variant, "edge")
    assert TOKEN not in str(caught.value)
    assert "secret-of-the-storage" not in "".join(traceback.format_exception(caught.value))
    assert hub.store.tree(NAME) == hub.store.tree(NAME, "edge") == files(before)
    hub.faults.clear()
    content, _ = push(variant, "edge")
    assert hub.store.tree(NAME) == hub.store.tree(NAME, "edge") == files(content)


@pytest.mark.parametrize(
    "fault",
    [Fault("PUT /storage/", "status", 500, 2), Fault("PUT /storage/", "cut", 0, 1), Fault(".*", "status", 429, 3),
     Fault("POST .*/commit/", "status", 502, 2), Fault("GET .*/tree/", "status", 503, 1)],
    ids=["storage", "cut", "slower", "commit", "listing"],
)  # fmt: skip
def test_what_passes_is_waited_for(hub: HubStandIn, variant: Path, impatient: None, fault: Fault) -> None:
    hub.faults.append(fault)
    content, _ = push(variant)
    assert hub.store.tree(NAME) == files(content)


def test_a_commit_whose_answer_was_lost_counts_once(hub: HubStandIn, variant: Path, impatient: None) -> None:
    hub.faults.append(Fault("POST .*/commit/", "mute", times=2))
    content, _ = push(variant)
    assert hub.store.tree(NAME) == files(content)
    assert len(hub.store.repositories[NAME].history["main"]) == 2  # the Hub's own first one, and ours


def test_main_that_moved_meanwhile_is_not_overwritten(hub: HubStandIn, variant: Path, other: Path) -> None:
    there = open_hub(NAME)
    push(other)
    transfer = there.plan(read_content(variant))
    hub.faults.append(Fault("POST .*/commit/main", "moved", times=1))
    with pytest.raises(PublishError, match="moved meanwhile"):
        publish(there, transfer, lambda _: None, lambda _: None)
    assert "moved" in hub.store.tree(NAME)


# memory


@pytest.mark.extra
def test_a_file_of_a_gibibyte_takes_little_memory(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    large = shutil.copytree(variant, tmp_path / "large")
    with (large / "large.bin").open("wb") as file:
        file.truncate(1 << 30)
    record_sums(large)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    for arguments in (("push", large, f"hf:{NAME}"), ("pull", f"hf:{NAME}", tmp_path / "out")):
        assert peak_of(*arguments, env=env) < 200


def test_a_listing_that_lacks_what_it_listed_is_told(hub: HubStandIn, variant: Path) -> None:
    from export.publish.hub_client import calm

    push(variant)
    with pytest.raises(PublishError, match="the Hub's client failed"), calm(NAME) as client:
        head = client.commit_of("main")
        client.copy(["gone.bin"], [], head, "main", head, "Copy")
    for error in (UnboundLocalError("etag"), AssertionError(), OverflowError("size")):
        with pytest.raises(PublishError, match="must answer as the Hub does"), calm(NAME):
            raise error


# credentials


@pytest.mark.parametrize("token", ["", "hf_aWrongTokenOfSomebody"])
def test_refused_credentials_are_said_and_never_shown(
    hub: HubStandIn, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(PublishError, match="hf auth login") as caught:
        push(variant)
    assert not token or token not in "".join(traceback.format_exception(caught.value))
    assert not hub.store.repositories


def test_the_token_is_in_no_log_output_or_file(
    hub: HubStandIn,
    variant: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    impatient: None,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults.append(Fault("PUT /storage/", "status", 500, 2))
    push(variant, "edge")
    out = _pull(f"hf:{NAME}@edge", tmp_path / "out")
    said = "".join(capfd.readouterr()) + caplog.text
    assert TOKEN not in said
    assert "secret-of-the-storage" not in said
    assert not [path for path in out.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not [path for path in hub.store.folder.iterdir() if TOKEN.encode() in path.read_bytes()]


def test_a_hub_without_xet_is_told_of(hub: HubStandIn, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with pytest.raises(PublishError, match="HF_HUB_DISABLE_XET=1"):
        push(variant)


def test_offline_is_said(hub: HubStandIn, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
        push(variant)


def test_an_invalid_card_is_named(hub: HubStandIn, variant: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(variant, tmp_path / "wrong")
    (wrong / "README.md").write_text("---\nlicense: [1]\n---\n")
    record_sums(wrong)
    with pytest.raises(PublishError, match=r"README\.md"):
        push(wrong)
    assert uploads(hub) == 0
