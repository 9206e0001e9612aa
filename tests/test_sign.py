"""Signed variants: what `verify --public-key` takes, and what it refuses and why. Needs the extra [sign]."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.files.check import check_files
from export.files.signature import check_signature, sign
from tests.support.command import knobcast
from tests.support.variants import digests, read_json, record_sums, write_variant
from transform.errors import KnobError, VerificationError, WriteError
from transform.ownership import SIGNATURE, foreign_files
from transform.progress import Progress

model_signing = pytest.importorskip("model_signing", reason="no model-signing: `make test-all` installs it")
pytestmark = pytest.mark.extra


def keys(place: Path, name: str, curve: str = "prime256v1") -> tuple[Path, Path]:
    """(private, public), by openssl as users make them."""
    private, public = place / f"{name}.pem", place / f"{name}.pub"
    subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return keys(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def made(olmoe: Path, ours: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_variant(olmoe, tmp_path_factory.mktemp("signed") / "v", (0, 3), 2)
    record_sums(out)
    sign(out, ours[0])
    return out


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "v"))


def test_a_signed_variant_is_one_still(signed: Path, ours: tuple[Path, Path]) -> None:
    assert len(check_signature(signed, ours[1])) == len(list(signed.iterdir())) - 1
    assert check_files(signed)["files"] == len(list(signed.iterdir())) - 3  # sums, manifest, signature
    assert foreign_files(signed) == []
    (signed / ".DS_Store").touch()  # what systems leave is nobody's
    check_signature(signed, ours[1])


def test_files_are_read_once(signed: Path, ours: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from export.files import integrity

    read: list[str] = []
    real = integrity.sha256_file

    def seen(path: Path, progress: Progress | None = None) -> str:
        read.append(path.name)
        return real(path, progress)

    monkeypatch.setattr(integrity, "sha256_file", seen)
    done = knobcast("verify", signed, "--level", "files", "--public-key", ours[1])
    assert (done.code, read) == (0, []), "but by model-signing"
    assert knobcast("verify", signed, "--level", "files").code == 0
    assert "config.json" in read


def test_signing_changes_nothing_else_and_asks_before_it_replaces(signed: Path, ours: tuple[Path, Path]) -> None:
    before = digests(signed)
    with pytest.raises(WriteError, match="pass --force"):
        sign(signed, ours[0])
    sign(signed, ours[0], force=True)
    after = digests(signed)
    assert {name for name in after if before.get(name) != after[name]} == {SIGNATURE}


def test_links_into_the_hubs_cache_are_read_through(signed: Path, ours: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in signed.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    check_signature(tmp_path / "snapshot", ours[1])


def changed(directory: Path) -> None:
    (directory / "config.json").write_text((directory / "config.json").read_text() + " ")
    record_sums(directory)


def added(directory: Path) -> None:
    (directory / "more.txt").write_text("x")
    record_sums(directory)


def renamed(directory: Path) -> None:
    (directory / "genai_config.json").rename(directory / "genai.json")
    record_sums(directory)


def other_fact(directory: Path) -> None:
    manifest = read_json(directory / "manifest.json")
    manifest["source"]["name"] = "someone/else"
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed, "changed SHA256SUMS, config.json, manifest.json"), (added, "added more.txt"),
        (renamed, "added genai.json; missing genai_config.json"),
        (other_fact, "here: changed manifest.json"),
        (lambda d: (d / SIGNATURE).write_text("{}"), "must be a signature of OpenSSF"),
        (lambda d: (d / SIGNATURE).write_bytes(b"\xff" * 50), "must be a signature of OpenSSF"),
        (lambda d: (d / SIGNATURE).unlink(), "has no model.sig"),
    ],
)  # fmt: skip
def test_what_was_changed_is_refused_by_name(
    signed: Path, ours: tuple[Path, Path], change: Callable[[Path], None], named: str
) -> None:
    """The sums follow each change, so that nothing but the signature can tell."""
    change(signed)
    with pytest.raises(VerificationError, match=named):
        check_signature(signed, ours[1])


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_another_key_is_refused(signed: Path, tmp_path: Path, curve: str) -> None:
    with pytest.raises(VerificationError, match="must be made with the private key that belongs to"):
        check_signature(signed, keys(tmp_path, "theirs", curve)[1])


def test_a_signature_that_claims_to_be_of_another_key_is_refused(
    signed: Path, ours: tuple[Path, Path], tmp_path: Path
) -> None:
    """The bundle's hint is the signer's word: the key decides."""
    hint = json.loads((signed / SIGNATURE).read_text())["verificationMaterial"]
    sign(signed, keys(tmp_path, "theirs")[0], force=True)
    forged = json.loads((signed / SIGNATURE).read_text()) | {"verificationMaterial": hint}
    (signed / SIGNATURE).write_text(json.dumps(forged))
    with pytest.raises(VerificationError, match="must be made with the private key"):
        check_signature(signed, ours[1])


def test_a_signature_that_leaves_a_file_out_is_refused(signed: Path, ours: tuple[Path, Path]) -> None:
    """Whoever signs by other means may ignore files, and says so in what is signed."""
    from model_signing import hashing, signing

    (signed / SIGNATURE).unlink()
    few = hashing.Config().set_ignored_paths(paths=["text.onnx"])
    signer = signing.Config().use_elliptic_key_signer(private_key=ours[0]).set_hashing_config(few)
    signer.sign(signed, signed / SIGNATURE)
    with pytest.raises(VerificationError, match=r"it leaves out text\.onnx"):
        check_signature(signed, ours[1])


def test_openssf_s_own_program_takes_the_signature(signed: Path, ours: tuple[Path, Path]) -> None:
    command = [
        "-m",
        "model_signing",
        "verify",
        "key",
        signed,
        "--signature",
        signed / SIGNATURE,
        "--public_key",
        ours[1],
    ]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", None, "rsa"]
)
def test_what_is_no_key_is_refused(signed: Path, tmp_path: Path, content: bytes | str | None) -> None:
    key = tmp_path / "key.pem"
    if content == "rsa":
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    elif isinstance(content, bytes):
        key.write_bytes(content)
    with pytest.raises(KnobError, match=r"--private-key must be a PEM file of an elliptic curve key .*P-256"):
        sign(signed, key, force=True)
    with pytest.raises(KnobError, match=r"--public-key must be a PEM file"):
        check_signature(signed, key)


def test_an_encrypted_key_takes_its_password_from_the_environment(
    signed: Path, ours: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked.pem"
    command = ["openssl", "ec", "-in", ours[0], "-aes256", "-passout", "pass:open sesame", "-out", locked]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    with pytest.raises(KnobError, match="KNOBCAST_KEY_PASSWORD"):
        sign(signed, locked, force=True)
    monkeypatch.setenv("KNOBCAST_KEY_PASSWORD", "open sesame")
    sign(signed, locked, force=True)
    check_signature(signed, ours[1])


def test_the_commands_say_what_was_signed(signed: Path, ours: tuple[Path, Path]) -> None:
    (signed / SIGNATURE).unlink()
    files = ("verify", signed, "--level", "files")
    assert "has no model.sig" in knobcast(*files, "--public-key", ours[1]).said
    done = knobcast("sign", signed, "--private-key", ours[0])
    assert (done.code, "PRIVATE" in done.out + done.err) == (0, False)
    found = json.loads(knobcast(*files, "--public-key", ours[1], "--json").out)
    assert found["signed_files"] == len(list(signed.iterdir())) - 1
    assert "not checked" in json.loads(knobcast(*files, "--json").out)["signature"]
    (signed / "config.json").write_text("{}")
    done = knobcast("sign", signed, "--private-key", ours[0], "--force")
    assert (done.code, "config.json must have the digest" in done.said) == (1, True)
