"""The embedded model, exported through the command line: its graphs on the device against PyTorch in float32."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.gpu.rows import Context, NotAvailableError, Row, attempted
from transform.arrays import Array

ROOT = Path(__file__).parents[2]
TOKENS, PROMPT = 64, 48
# Of the largest logit. A position whose choice of experts 16 bits can't decide disturbs all behind it: with numpy's
# float16 the prompt's are typically at 1e-3 here and the steps behind them at 7e-3. The gate's limit is the same.
TYPICAL, LARGEST, CLEAR = 2e-2, 5e-2, 5e-2
PICTURE = 1e-2
SMALL = ("--k", "2", "--tokens", "288", "--keep-blocks", "0,3")
COMMON = ("--k", "4", "--tokens", "432", "--drop-blocks", "2,5,9,11")


def knobcast(*arguments: str) -> str:
    """stdout of a command; NotAvailableError where the command or option isn't there, RuntimeError where it fails."""
    command = [sys.executable, "-m", "export.command.main", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise NotAvailableError(f"knobcast {arguments[0]}: " + " ".join(done.stderr.split())[-200:])
    if done.returncode != 0:
        raise RuntimeError(f"knobcast {arguments[0]}: " + " ".join(done.stderr.split())[-400:])
    return done.stdout


def exported(ctx: Context, *more: str, form: str = "") -> Path:
    """The embedded model as a variant in a form, the context's unless it is said, exported once."""
    form = form or ctx.form
    out = ctx.work / "-".join(("nano", form, *(word.strip("-") for word in more)))
    if not (out / "manifest.json").is_file():
        knobcast(
            "export",
            *(COMMON if ctx.cuda else SMALL),
            "--form",
            form,
            "--out",
            str(out),
            "--force",
            "--json",
            *more,
        )
    return out


def torch_logits(directory: Path, ids: Array) -> Array:
    """[s] ids -> [s, V], float32 on the CPU."""
    import torch

    from transform.load import load_model

    with torch.no_grad():
        return load_model(directory)(input_ids=torch.from_numpy(ids[None])).logits[0].numpy()


def probe_ids(vocab: int) -> Array:
    """TOKENS ordinary ids."""
    return np.random.default_rng(0).integers(0, vocab - 1, TOKENS)


def compare(ours: Array, theirs: Array, what: str) -> Iterator[Row]:
    """Logits [s, V]: typical and largest difference; the greedy token wherever theirs is clearly first.

    Where two experts are about equally probable 16 bits may choose another: that position then differs visibly, as it
    does in PyTorch's own float16, so the largest difference has a wider limit than the typical one.
    """
    scale = np.abs(theirs).max()
    differences = np.abs(ours - theirs).max(axis=-1) / scale
    yield Row(f"{what}: logits, median difference", float(np.median(differences)), TYPICAL)
    yield Row(f"{what}: logits, 9 of 10 within", float(np.quantile(differences, 0.9)), LARGEST)
    ordered = np.sort(theirs, axis=-1)
    clear = ordered[:, -1] - ordered[:, -2] > CLEAR * scale
    wrong = int((ours.argmax(-1) != theirs.argmax(-1))[clear].sum())
    yield Row(f"{what}: other greedy tokens of {int(clear.sum())} clear ones", wrong, 0)


def measure(ctx: Context) -> Iterator[Row]:
    """Prefill, then decoding with the cache, then a picture's embeddings; what the export itself found."""
    from transform.strict_json import read_json

    directory = exported(ctx)
    said = read_json(directory / "manifest.json")["verification"]
    yield Row("gate at the export", str(said["mode"]))
    yield Row("operators at the export", f"on {said['operators']['provider']}")
    yield from attempted("text", measure_text(ctx, directory))
    yield from attempted("picture", measure_picture(ctx, directory))


def measure_text(ctx: Context, directory: Path) -> Iterator[Row]:
    """Logits of a prompt and of steps behind it."""
    from export.run.graphs import Graphs
    from transform.read import read_checkpoint

    graphs = Graphs(directory, ctx.provider, ctx.threads)
    ids = probe_ids(read_checkpoint(directory).settings.vocab)
    theirs = torch_logits(directory, ids)
    logits, cache = graphs.step(ids[None, :PROMPT], np.ones((1, PROMPT), np.int64), graphs.empty_cache(1))
    rows = [logits[0]]
    for at in range(PROMPT, TOKENS):
        logits, cache = graphs.step(ids[None, at : at + 1], np.ones((1, at + 1), np.int64), cache)
        rows.append(logits[0])
    yield from compare(rows[0].astype(np.float32), theirs[:PROMPT], "prefill")
    yield from compare(np.concatenate(rows[1:]).astype(np.float32), theirs[PROMPT:], "decode")


def measure_picture(ctx: Context, directory: Path) -> Iterator[Row]:
    """Embeddings of the golden picture."""
    from export.gate.golden_file import load_golden
    from export.gate.image_probe import image_probe
    from export.run.graphs import Graphs
    from transform.read import read_checkpoint
    from transform.strict_json import read_json

    graphs, checkpoint = Graphs(directory, ctx.provider, ctx.threads), read_checkpoint(directory)
    golden = load_golden(directory, checkpoint)
    if golden is not None and "image.rows" in golden:
        image = image_probe(checkpoint, directory, read_json(directory / "manifest.json")["vision"], 0)
        features = graphs.image_features(image.images[0], image.image_masks[0], image.feature_index)
        found = graphs.embed(golden["image.input_ids"], features)[0][golden["image.rows"]].astype(np.float32)
        meant = golden["image.embeddings"]
        yield Row("picture: embeddings", float(np.abs(found - meant).max() / np.abs(meant).max()), PICTURE)


def measure_commands(ctx: Context) -> Iterator[Row]:
    """`knobcast run` and `knobcast bench` as a user calls them."""
    from tests.gpu.environment import nvidia

    directory = exported(ctx)
    yield from attempted("run", measure_run(ctx, directory))
    yield from attempted("bench", measure_bench(ctx, directory))
    if ctx.cuda:
        yield Row("device", str(nvidia("name")))


def measure_run(ctx: Context, directory: Path) -> Iterator[Row]:
    """An answer about a picture."""
    picture = sorted((ROOT / "artifacts" / "molmoe-nano").rglob("*.png"))[:1]
    shown = ("--image", str(picture[0])) if picture else ()
    threads = ("--threads", str(ctx.threads))
    question = ("--prompt", "What shape is this?", "--max-new-tokens", "8")
    answer = json.loads(
        knobcast("run", str(directory), *question, *shown, "--provider", ctx.provider, *threads, "--json")
    )
    yield Row("run", f"{answer['text']!r}, {answer['tokens_per_second']['decode']} tokens/s after the first")


def measure_bench(ctx: Context, directory: Path) -> Iterator[Row]:
    """The graphs beside PyTorch's model."""
    small = ("--runs", "1", "--new-tokens", "8", "--threads", "1")
    against = ("--against", "eager" if ctx.cuda else "none")
    record = json.loads(knobcast("bench", str(directory), "--provider", ctx.provider, *small, *against, "--json"))
    for found in record["contestants"]:
        yield Row(f"bench, {found['name']}", f"{found['status']} {found.get('reason') or ''}".strip())
