"""What the stand-in Hub keeps: repositories of commits, branches, and blobs by their digest.

Not the Hub: as much of its model as its client sees. `hub_stand_in.py` speaks HTTP about it.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

from transform.strict_json import Record

_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def git_oid(content: bytes) -> str:
    """What git calls a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `content` is a pointer where `sha256` names a blob of the large file storage."""

    content: bytes
    size: int
    sha256: str | None = None

    @property
    def oid(self) -> str:
        return git_oid(self.content)

    def as_dict(self, path: str) -> Record:
        entry: Record = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.content)}
        return entry


def pointer(sha256: str, size: int) -> Entry:
    """The entry of a blob that lies in the large file storage."""
    return Entry(_POINTER.format(sha256, size).encode(), size, sha256)


Tree = dict[str, Entry]


@dataclass
class Repository:
    """Commits by their id, each a whole tree; branches; the names of blobs that were sent to this repository."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    history: dict[str, list[str]] = field(default_factory=dict)  # branch -> the commits made on it

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", 25)})

    def commit(self, branch: str, tree: Tree) -> str:
        parent = self.branches.get(branch, "")
        said = [parent, len(self.commits), *((path, entry.oid) for path, entry in sorted(tree.items()))]
        sha = hashlib.sha1(json.dumps(said).encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        self.history.setdefault(branch, []).append(sha)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit's own id."""
        names = {**self.tags, **self.branches}
        return names.get(revision, revision if revision in self.commits else None)


@dataclass
class Store:
    """All repositories, and a folder of blobs named by their SHA-256."""

    folder: Path
    repositories: dict[str, Repository] = field(default_factory=dict)

    def blob(self, sha256: str) -> Path:
        return self.folder / sha256

    def save(self, file: Path) -> None:
        """Everything but the blobs, whole or not at all."""
        written = file.with_suffix(".part")
        written.write_bytes(pickle.dumps(self.repositories))
        written.replace(file)

    @classmethod
    def load(cls, file: Path, folder: Path) -> "Store":
        """What `save` wrote; an empty one where there is nothing."""
        return cls(folder, pickle.loads(file.read_bytes()) if file.exists() else {})

    def tree(self, name: str, revision: str = "main") -> dict[str, str]:
        """What tests look at: path -> SHA-256 of the content, of all files but `.gitattributes`."""
        repository = self.repositories[name]
        found = repository.find(revision)
        assert found is not None, (revision, repository.branches)
        return {
            path: entry.sha256 or hashlib.sha256(entry.content).hexdigest()
            for path, entry in repository.commits[found].items()
            if path != ".gitattributes"
        }
