"""What lies beside weights: sums, manifests, families, signatures, tokenizers, pictures; grids and device files."""

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from random import Random

from export.cost.device import parse_device
from export.files.check import check_variant_files
from export.files.integrity import check_sums, sha256_file
from export.files.provenance import check_graphs
from export.run.family_file import FILE, read_family
from export.sweep.grid import PRESETS, read_grid
from tests.fuzz.mutate import in_bytes, in_json, in_protobuf
from tests.fuzz.target import Target, put
from tests.support.families import write_family, write_scores
from tests.support.paths import FIXTURES, ROOT
from tests.support.pictures import noise_png
from tests.support.variants import record_sums
from transform.molmoe.pictures import decode_image
from transform.source import DEFAULT
from transform.special_tokens import added_tokens
from transform.strict_json import read_json
from transform.tokenizer_file import check_tokenizer, highest_id

ODD_WORDS = (b"[]", b'""', b"nan", b"1e999", b"-1", b"../x", b"= =", b"9" * 20)


def record_targets(folder: Path, text: Path) -> tuple[Target, ...]:
    """`text`: a variant without pictures."""
    folder.mkdir()
    variant = Path(shutil.copytree(text, folder / "variant"))
    record_sums(variant)
    grids = tuple(path.read_bytes() for path in sorted(PRESETS.glob("*.toml")))
    devices = tuple(path.read_bytes() for path in sorted((ROOT / "export/cost/devices").glob("*.toml")))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    stated, graph = (Path(shutil.copytree(variant, folder / name)) for name in ("stated", "graph"))
    manifest = read_json(variant / "manifest.json")
    targets = (
        Target("SHA256SUMS", ((variant / "SHA256SUMS").read_bytes(),), in_text, lambda data: _summed(variant, data)),
        Target("manifest", ((variant / "manifest.json").read_bytes(),), in_json,
               lambda data: check_variant_files(put(stated / "manifest.json", data).parent, lambda _: None)),
        Target("provenance", ((variant / "text.onnx").read_bytes(),), in_protobuf,
               lambda data: check_graphs(put(graph / "text.onnx", data).parent, manifest, {})),
        Target("family", (_family(folder),), in_json,
               lambda data: read_family(put(folder / FILE, data).parent)),
        Target("grid", grids, in_text, lambda data: read_grid(str(put(folder / "grid.toml", data)))),
        Target("grid's words", (b"k=1,2,4 blocks=8-16:4 tokens=288,432",), in_text,
               lambda data: read_grid(data.decode("utf-8", "replace"))),
        Target("device", devices, in_text, lambda data: parse_device(data, "device.toml")),
        Target("tokenizer", (_tokenizer(),), in_json, lambda data: _tokenized(put(tokenizer / "tokenizer.json", data))),
        Target("picture", (noise_png(0), noise_png(1)), in_bytes, decode_image),
    )  # fmt: skip
    return (*targets, *_signed(folder, variant))


def in_text(rng: Random, data: bytes) -> bytes:
    """Lines gone, doubled and exchanged, words of one in another; or bytes."""
    lines = data.splitlines(keepends=True)
    way = rng.random()
    if way < 0.4 or not lines:
        return in_bytes(rng, data)
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if way < 0.5:
        del lines[at]
    elif way < 0.6:
        lines.insert(at, lines[other])
    elif way < 0.7:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        words = lines[at].split(b" ")
        words[rng.randrange(len(words))] = rng.choice((*ODD_WORDS, *lines[other].split(b" ")))
        lines[at] = b" ".join(words)
    return b"".join(lines)


def _summed(variant: Path, data: bytes) -> object:
    """With a manifest that has its digest, as someone who changes both would."""
    put(variant / "SHA256SUMS", data)
    manifest = read_json(variant / "manifest.json")
    manifest["files"]["sha256sums"] = sha256_file(variant / "SHA256SUMS")
    (variant / "manifest.json").write_text(json.dumps(manifest))
    return check_sums(variant)


def _family(folder: Path) -> bytes:
    write_family(FIXTURES, folder / "family", verify=False, scores=write_scores(folder))
    return (folder / "family" / FILE).read_bytes()


def _tokenizer() -> bytes:
    """The embedded model's, of 40 words."""
    found = json.loads((DEFAULT / "tokenizer.json").read_bytes())
    model = found["model"]
    model["vocab"] = {word: at for word, at in model["vocab"].items() if at < 300}
    model["merges"] = []
    return json.dumps(found).encode()


def _tokenized(file: Path) -> object:
    check_tokenizer(file.parent)
    return added_tokens(file.parent), highest_id(file.parent)


def _signed(folder: Path, variant: Path) -> tuple[Target, ...]:
    """Where the packages of [sign] are installed."""
    if find_spec("model_signing") is None:
        return ()
    from export.files.signature import check_signature, sign

    private, public = folder / "private.pem", folder / "public.pem"
    make: list[str | Path] = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    place = Path(shutil.copytree(variant, folder / "signed"))
    signature = sign(place, private)
    other = Path(shutil.copytree(place, folder / "signed otherwise")) / signature.name
    return (
        Target("signature", (signature.read_bytes(),), in_json,
               lambda data: check_signature(put(other, data).parent, public)),
        Target("public key", (public.read_bytes(),), in_bytes,
               lambda data: check_signature(place, put(folder / "key.pem", data))),
    )  # fmt: skip
