"""Where a variant comes from, inside each of its graphs: `metadata_props`, which every runtime keeps and tools show.

A graph says what shaped its bytes and nothing else: decoders know k and blocks, graphs of pictures the budget. So
graphs that variants share stay equal byte for byte. Weight files say nothing: two variants may share one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from export.run.graph_facts import read_metadata
from importance.choose import Source
from importance.scores import Scores
from transform.errors import VerificationError
from transform.ownership import MANIFEST, is_ignored
from transform.strict_json import Record

PREFIX = "knobcast."
_STORED = ("dtype", "form", "activations")
_DECODER = ("blocks_kept", "top_k", *_STORED)
_OTHERS = {"preprocess": ("tokens", "resize", "rule"), "vision": ("tokens", *_STORED), "embedding": _STORED}
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError)
_KIND = re.compile(r"[a-z]+")  # begins a graph's name
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EMITTERS = ("knobcast", "onnx")  # of the manifest's tools: those that a graph's bytes come from


def scores_facts(ranking: Source | None) -> Record | None:
    """What chose the blocks, for the manifest: the file's name, its SHA-256, what was measured. None: no scores did."""
    if ranking is None:
        return None
    facts: Record = {"source": ranking.source, "sha256": ranking.file_digest}
    if isinstance(ranking, Scores):
        facts |= {"metric": ranking.metric, "samples": ranking.samples}
    return facts


@dataclass(frozen=True)
class Provenance:
    """A variant's, by the words of its manifest."""

    source: Record  # name, revision, layout_digest
    blocks: int  # of the source
    knobs: Record  # all that shape graphs
    scores: str | None  # SHA-256 of the file that chose the blocks
    tools: Record

    @classmethod
    def parse(cls, manifest: Mapping[str, object]) -> "Provenance":
        """By a manifest, or by what will be one; raises VerificationError where it is none."""
        try:
            return cls._parse(manifest)
        except _MALFORMED as error:
            raise VerificationError(
                f"{MANIFEST} must say where the variant comes from: {type(error).__name__} {str(error)[:80]}. "
                "Export the variant again."
            ) from error

    @classmethod
    def _parse(cls, manifest: Mapping[str, object]) -> "Provenance":
        source, knobs, tools = (_object(manifest[word]) for word in ("source", "knobs", "tools"))
        vision, scores = manifest["vision"], manifest["scores"]
        policy = {} if vision is None else {word: _object(vision)[word] for word in _OTHERS["preprocess"]}
        return cls(
            {word: source[word] for word in ("name", "revision", "layout_digest")},
            int(source["blocks"]),
            {
                **policy,
                **{word: manifest[word] for word in ("blocks_kept", "top_k")},
                **{word: knobs[word] for word in _STORED},
            },
            None if scores is None else _object(scores)["sha256"],
            {tool: tools[tool] for tool in _EMITTERS if tool in tools},
        )

    def of_member(self, blocks_kept: tuple[int, ...], top_k: tuple[int, ...]) -> "Provenance":
        """That of a family's member, whose blocks and k are others."""
        return replace(self, knobs=self.knobs | {"blocks_kept": list(blocks_kept), "top_k": list(top_k)})

    def of(self, graph: str) -> dict[str, str]:
        """The metadata of a graph file: name -> JSON."""
        kind = _KIND.match(graph)
        words = _OTHERS.get(kind[0] if kind else "", _DECODER)
        said: dict[str, object] = {"source": self.source, "knobs": {word: self.knobs[word] for word in words}}
        if words is _DECODER and self.scores is not None and len(self.knobs["blocks_kept"]) < self.blocks:
            said["scores"] = self.scores
        return {PREFIX + word: _spelt(value) for word, value in {**said, "tools": self.tools}.items()}


def check_scores(scores: object) -> None:
    """Raise ValueError unless this is what `scores_facts` gives."""
    digest = None if scores is None else _object(scores)["sha256"]
    if digest is not None and not _DIGEST.fullmatch(str(digest)):
        raise ValueError(f"scores.sha256 {digest!r}")


def check_graphs(directory: Path, manifest: Record, members: Mapping[str, Provenance]) -> int:
    """Compare what every graph says of itself with the manifest; returns how many there were.

    `members`: graph file -> what a family's member says. A derived graph says what the one says that it comes from.
    Raises VerificationError.
    """
    if "scores" not in manifest:
        return 0  # by an earlier version, whose graphs say nothing
    own, derived, count = Provenance.parse(manifest), manifest.get("derived"), 0
    made = derived if isinstance(derived, dict) else {}
    for path in sorted(directory.glob("*.onnx")):
        if is_ignored(path.name):
            continue
        name = _root(path.name, made)
        wanted = members.get(name, own).of(name)
        said = {key: value for key, value in read_metadata(path).items() if key in wanted or key == PREFIX + "scores"}
        if wrong := sorted(key for key in wanted.keys() | said.keys() if wanted.get(key) != said.get(key)):
            raise VerificationError(
                f"{path.name} must say what {MANIFEST} says: its metadata {wrong[0]} is "
                f"{str(said.get(wrong[0]))[:120]}, not {str(wanted.get(wrong[0]))[:120]}. Export the variant again."
            )
        count += 1
    return count


def _root(name: str, derived: Mapping[str, object]) -> str:
    """The graph that was emitted, of which this one was derived."""
    seen: set[str] = set()
    while name in derived and name not in seen:
        seen.add(name)
        entry = derived[name]
        name = str(entry.get("source")) if isinstance(entry, dict) else ""
    return name


def _object(value: object) -> Record:
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:40]!r} is no object")
    return value


def _spelt(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
