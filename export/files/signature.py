"""A signature over all files of a variant, by a key that lies elsewhere: OpenSSF model-signing, without a network.

`model.sig` is a sigstore bundle, which other programs that know the format check as well. SHA256SUMS can't name it, so
that it can be added later, and by others; it names SHA256SUMS, the manifest and every file that they record.
"""

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from export.files.integrity import read_sums, sha256_file
from importance.atomic import write_atomically
from transform.errors import KnobError, VerificationError, WriteError
from transform.ownership import MANIFEST, SIGNATURE, SUMS, visible_files
from transform.regular_file import IrregularError, read_regular
from transform.scratch import scratch

if TYPE_CHECKING:
    from model_signing.hashing import Config

PASSWORD = "KNOBCAST_KEY_PASSWORD"  # the environment's, for an encrypted private key
_MOST_BYTES = 64_000_000  # a bundle takes some 100 bytes per file
_MOST_KEY_BYTES = 100_000


def sign(directory: Path, private_key: Path, force: bool = False) -> Path:
    """Sign a variant or family whose files were checked; returns the signature's file.

    `private_key`: PEM of an elliptic curve (P-256, P-384, P-521). Raises KnobError for one that isn't, WriteError where
    a signature is there already and `force` isn't given.
    """
    from model_signing import signing

    target = directory / SIGNATURE
    if os.path.lexists(target) and not force:
        raise WriteError(f"{target} exists; pass --force to replace it.")
    with _a_key(private_key, "--private-key"):
        signer = signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=os.environ.get(PASSWORD, "").encode() or None
        )
    with scratch("sign") as place:
        made = place / SIGNATURE
        signer.set_hashing_config(_hashing(directory)).sign(directory, made)
        write_atomically(target, made.read_bytes(), force)
    return target


def check_signature(directory: Path, public_key: Path) -> dict[str, str]:
    """Compare a variant's files with its signature, and that with the key; returns the sums of the files, all of which
    are signed.

    Raises VerificationError, and KnobError for what is no public key.
    """
    from model_signing import verifying

    path = directory / SIGNATURE
    if not os.path.lexists(path):
        raise VerificationError(
            f"a variant that is checked with --public-key must be signed, {directory} has no {SIGNATURE}. Get it with "
            "its signature, or leave --public-key out."
        )
    with _a_key(public_key, "--public-key"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        bundle = read_regular(path, _MOST_BYTES)
        with redirect_stdout(sys.stderr):  # remarks about older formats
            verifier.set_hashing_config(_hashing(directory)).verify(directory, path)
        signed = _signed(bundle)
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # each of the libraries below has its own
        raise VerificationError(f"{SIGNATURE}: {_reason(error, directory, path)}") from error
    _, listed = read_sums(directory)
    if left := sorted({*listed, SUMS, MANIFEST} - signed.keys()):
        raise VerificationError(
            f"{SIGNATURE}: must cover every file of the variant, it leaves out {', '.join(left[:5])}. Have it signed "
            "again."
        )
    return signed


def _signed(bundle: bytes) -> dict[str, str]:
    """Name -> digest of every file that a bundle is about."""
    statement = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return {str(entry["name"]): str(entry["digest"]) for entry in statement["predicate"]["resources"]}


def _reason(error: Exception, directory: Path, path: Path) -> str:
    """What libraries say of a signature, as a rule with the way out."""
    again = "Get the variant again, or have it signed again by whom you trust."
    if isinstance(error, IrregularError | OSError):
        return f"cannot be read ({error}). {again}"
    text = " ".join(str(error).split())
    if "Key mismatch" in text or type(error).__name__ == "InvalidSignature":
        return f"must be made with the private key that belongs to --public-key, it isn't. {again}"
    if text.startswith("Signature mismatch"):
        found = _differences(directory, _signed(read_regular(path, _MOST_BYTES)))
        return f"must be of the files that are here: {found}. {again}"
    return f"must be a signature of OpenSSF model-signing: {type(error).__name__} {text[:200]}. {again}"


def _differences(directory: Path, signed: Mapping[str, str]) -> str:
    """Files that were changed, came or went, a few of each by name."""
    own = {*visible_files(directory)} - {SIGNATURE}
    there = sorted(own & signed.keys())
    kinds = {
        "changed": [name for name in there if sha256_file(directory / name) != signed[name]],
        "added": sorted(own - signed.keys()),
        "missing": sorted(signed.keys() - own),
    }
    found = [f"{kind} {', '.join(name[:80] for name in names[:5])}" for kind, names in kinds.items() if names]
    return "; ".join(found) or "it was made by other rules"


def _hashing(directory: Path) -> "Config":
    """Every file that counts, read through links as sums are: neither the signature nor what is never a variant's."""
    from model_signing import hashing

    own = {*visible_files(directory)} - {SIGNATURE}
    found = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())
    others = [SIGNATURE, *sorted(str(path) for path in found if path.as_posix() not in own)]
    return hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=dict.fromkeys(others))


@contextmanager
def _a_key(path: Path, option: str) -> Iterator[None]:
    try:
        read_regular(path, _MOST_KEY_BYTES)
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        shown = (
            "encrypted, or no such key" if isinstance(error, TypeError) else str(error)[:120] or type(error).__name__
        )
        raise KnobError(
            f"{option} must be a PEM file of an elliptic curve key (P-256, P-384 or P-521), {path} is not: {shown}. "
            "Make one with openssl ecparam -name prime256v1 -genkey -noout; an encrypted one takes its password from "
            f"the environment, {PASSWORD}."
        ) from error
