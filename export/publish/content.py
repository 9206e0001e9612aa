"""What is published: a variant or a family, checked, as files with their digests in the order they are to be written.

A registry that shows `manifest.json`, which is last, holds all. Its digest names the content: the manifest has the
digest of SHA256SUMS, which has those of all other files but a signature's: that may come later, and changes no version.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.files.check import check_files
from export.files.integrity import check_before_torch, read_sums, sha256_file
from export.files.measured import Measured
from export.run.family_file import FILE
from transform.errors import PublishError
from transform.knobs import canonical_name
from transform.ownership import MANIFEST, PENDING, SIGNATURE, SUMS
from transform.progress import Say
from transform.strict_json import Record, read_json

_WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,99}")
_DIGITS = 12  # of the digest in a version: 48 bits


@dataclass(frozen=True)
class Item:
    """One file. `path`: relative, plain, with `/`; `size`: bytes; `sha256`: hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """A variant or a family in `directory`, whose files were compared with what it records of itself.

    `digest`: SHA-256 of its manifest, hex; `name`: the source's, `owner/name` of one from the Hub: what an alias
    belongs to; `version`: knobs and digest, `k4-b12-t432-0123456789ab`, a valid tag, branch and file name; `items`: as
    they are to be written, the manifest last; `tags`: knobs, source and what was measured, in words.
    """

    directory: Path
    digest: str
    name: str
    version: str
    items: tuple[Item, ...]
    tags: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(item.size for item in self.items)


def read_content(directory: Path, say: Say = lambda _: None) -> Content:
    """Check a directory as `verify --level files` does and list it; raises VerificationError or PublishError."""
    check_before_torch(directory)
    manifest = read_json(directory / MANIFEST)
    if PENDING in manifest:
        raise PublishError(
            f"what is published must be at rest, and knobcast derive is adding to {directory}, or was when it was "
            "killed. Wait, or run it again."
        )
    check_files(directory, say)
    _, listed = read_sums(directory)
    digest = sha256_file(directory / MANIFEST)
    beside = [SUMS, *([SIGNATURE] if (directory / SIGNATURE).is_file() else [])]
    sums = {**listed, **{name: sha256_file(directory / name) for name in beside}, MANIFEST: digest}
    if read_json(directory / MANIFEST) != manifest:
        raise PublishError(f"{directory} was changed while it was read. Run the command again.")
    items = [Item(path, (directory / path).stat().st_size, sums[path]) for path in sums]
    last = (SUMS, SIGNATURE, MANIFEST)
    items.sort(key=lambda item: (last.index(item.path) if item.path in last else -1, -item.size, item.path))
    family = (directory / FILE).is_file()
    name = str(manifest["source"]["name"])[:200]
    version = f"{_words(manifest, family)}-{digest[:_DIGITS]}"
    return Content(directory, digest, name, version, tuple(items), dict(_tags(manifest, family)))


def digest_in(version: str) -> str | None:
    """The digits of the digest that a version ends with; None: it isn't a version, but an alias."""
    match = re.fullmatch(rf".+-([0-9a-f]{{{_DIGITS}}})", version)
    return match[1] if match else None


def _words(manifest: Record, family: bool) -> str:
    """`k4-b12-t432` with the rest of the variant's own name, where that is plain."""
    knobs = canonical_name(tuple(manifest["top_k"]), manifest["knobs"]["tokens"])
    _, found, rest = str(manifest.get("name")).rpartition(f"-{knobs}")
    whole = f"{knobs}{rest}" if found else knobs
    words = f"family-{whole}" if family else whole
    return words if _WORDS.fullmatch(words) and ".." not in words else f"b{len(manifest['top_k'])}"


def _tags(manifest: Record, family: bool) -> Iterator[tuple[str, str]]:
    source, knobs = manifest["source"], manifest["knobs"]
    yield "kind", "family" if family else "variant"
    yield "source", str(source["name"])
    if source.get("revision") is not None:
        yield "source_revision", str(source["revision"])
    yield "source_layout_digest", str(source["layout_digest"])
    yield "model_type", str(manifest["model_type"])
    yield "top_k", ",".join(map(str, manifest["top_k"]))
    yield "blocks_kept", ",".join(map(str, manifest["blocks_kept"]))
    yield from ((name, str(knobs[name])) for name in ("tokens", "dtype", "form", "activations") if knobs.get(name))
    yield from ((name, str(manifest[name])) for name in ("parameters", "active_parameters", "bytes"))
    yield "sha256sums", str(manifest["files"]["sha256sums"])
    if "measured" in manifest:
        yield from _measured(Measured.parse(manifest["measured"], f"{MANIFEST}: measured"))


def _measured(measured: Measured) -> Iterator[tuple[str, str]]:
    if measured.quality and measured.data:
        yield "accuracy", f"{measured.quality.total.accuracy:.6g}"
        yield "accuracy_drop", f"{measured.quality.drop.mean:.6g}"
        yield "accuracy_samples", str(measured.quality.total.samples)
        yield "accuracy_data", measured.data.name
        yield "accuracy_task", measured.data.task
    for name, latency in measured.latency.items():
        yield f"latency_ms.{name}", f"{latency.total_ms:.6g}"
