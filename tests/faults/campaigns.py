"""What is run and killed: commands, what lies there before, and what may lie there after."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.servers import CACHE, Served, end_all, lacking, serving
from tests.faults.sound import added_to, published, swept
from transform.source import DEFAULT


@dataclass(frozen=True)
class Campaign:
    """A command that changes `target`, a name in the folder of a run; `{m}` is the model, `{s}` that folder, `{p}` the
    port of the server that keeps its files below it."""

    name: str
    command: str
    target: str
    before: str = "nothing"  # of WORLDS
    beside: tuple[str, ...] = ()  # other names that may be seen there
    between: Callable[[Path], str] | None = None  # may be neither old nor new: what is wrong with it, "" for nothing
    goes_on: bool = False  # the same command completes it, without --force

    @property
    def server(self) -> str:
        """The kind that must run, "" for none."""
        return next((kind for kind in SERVED if f" {kind}:" in self.command), "")

    def arguments(self, model: Path, folder: Path, port: int | None, force: bool = False) -> list[str]:
        """For the command line."""
        words = [word.format(m=model, s=folder, p=port) for word in shlex.split(self.command)]
        return words if "--force" in words or not force or self.goes_on else [*words, "--force"]


WORLDS = (
    "nothing", "variant", "derived", "laid out", "scored", "swept", "on a shelf", "in a store", "registered",
    "on a hub", "tracked", "untracked",
)  # fmt: skip
QUICK = "--no-verify --out {s}/v"  # the gate only costs time: what it writes lies in the stage all the same
GRID = "--family 'k=1,2 blocks=2,3'"
OCI = "oci://localhost:{p}/molmoe"
HUB = "hf:me/molmoe"
MLFLOW = "mlflow://127.0.0.1:{p}/molmoe"
SERVED = {"oci": (OCI, "registered"), "hf": (HUB, "on a hub"), "mlflow": (MLFLOW, "tracked")}
SWEEP = "sweep {m} --data {m}/q.jsonl --max-new-tokens 2 --no-latency"  # times differ from run to run
CAMPAIGNS = (
    Campaign("export", f"export {{m}} --k 2 --drop-blocks 1 {QUICK}", "v"),
    Campaign("export, weights alone, as one file of float16", f"export {{m}} --dtype float16 --no-onnx {QUICK}", "v"),
    Campaign("export --force", f"export {{m}} --k 1 --force {QUICK}", "v", "variant"),
    Campaign("export --family --force", f"export {{m}} {GRID} --force {QUICK}", "v", "variant"),
    Campaign("export --form int4 --force", f"export {{m}} --form int4 --force {QUICK}", "v", "variant"),
    Campaign("derive", "derive {s}/v/text.onnx --k 1", "v", "variant", between=added_to),
    Campaign("derive --force", "derive {s}/v/text.onnx --k 1 --force", "v", "derived", between=added_to),
    Campaign("layout", "layout {s}/v --for triton --out {s}/l", "l", "variant", ("v",)),
    Campaign("layout --force", "layout {s}/v --for transformers.js --out {s}/l --force", "l", "laid out", ("v",)),
    Campaign(
        "score", "score {m} --data {m}/q.jsonl --metric block_influence --out {s}/s.json",
        "s.json", beside=("s.json.jobs",),
    ),
    Campaign(
        "score --jobs --force", "score {m} --data {m}/q.jsonl --metric nll --force --jobs {s}/j --out {s}/s.json",
        "s.json", "scored", ("j",),
    ),
    Campaign("sweep", f"{SWEEP} --grid 'k=1,2 blocks=2,3' --out {{s}}/w", "w", between=swept, goes_on=True),
    Campaign(
        "sweep, a larger grid", f"{SWEEP} --grid 'k=1,2 blocks=2,3' --out {{s}}/w", "w", "swept",
        between=swept, goes_on=True,
    ),
    *(
        Campaign(
            f"push {words}", f"push {{s}}/v {to} --alias edge", "shelf", world, ("v", CACHE), published, goes_on=True
        )
        for to, shelf in (("dir:{s}/shelf", "on a shelf"), ("file://{s}/shelf", "in a store"), *SERVED.values())
        for words, world in (
            (to.partition(":")[0], "untracked" if to == MLFLOW else "variant"),
            (f"{to.partition(':')[0]}, another version", shelf),
        )
    ),
    *(
        Campaign(f"pull {source.partition(':')[0]}{force}", f"pull {source} {{s}}/{out}{force}", out, world, beside)
        for source, world in (
            ("dir:{s}/shelf/edge", "on a shelf"),
            ("file://{s}/shelf/edge", "in a store"),
            (f"{OCI}:edge", "registered"),
            (f"{HUB}@edge", "on a hub"),
            (f"{MLFLOW}/edge", "tracked"),
        )
        for out, force, beside in (("out", "", ("v", "shelf", CACHE)), ("v", " --force", ("shelf", CACHE)))
    ),
)  # fmt: skip
GATED = Campaign("export with its gate --force", "export {m} --k 1 --force --out {s}/v", "v", "variant")

Run = Callable[[list[str], Served | None], None]


def make_model(place: Path) -> None:
    """A stock OLMoE of 3 blocks and 4 experts, with the embedded model's tokenizer, scores and two questions."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    vocab = json.loads((DEFAULT / "config.json").read_text())["vocab_size"]
    config = OlmoeConfig(
        vocab_size=vocab + 128, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=512, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(place, max_shard_size="300KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEFAULT / name, place / name)
    (place / "scores.json").write_text(json.dumps({"0": 0.3, "1": 0.1, "2": 0.2}))
    rows = [{"id": name, "image": None, "prompt": "What is this?", "answers": [name]} for name in ("ring", "mark")]
    (place / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))


def make_worlds(model: Path, place: Path, run: Run, asked: set[str]) -> dict[str, Path]:
    """{name: a folder as it is before a command}; `asked`: the kinds of servers that are needed."""
    worlds = {name: place / name for name in WORLDS}
    worlds["nothing"].mkdir(parents=True)
    variant = worlds["variant"] / "v"
    run(["export", str(model), "--k", "2", "--out", str(variant)], None)
    shutil.copytree(worlds["variant"], worlds["derived"])
    run(["derive", str(worlds["derived"] / "v" / "text.onnx"), "--k", "1"], None)
    shutil.copytree(worlds["variant"], worlds["laid out"])
    run(["layout", str(variant), "--for", "triton", "--out", str(worlds["laid out"] / "l")], None)
    worlds["scored"].mkdir()
    (worlds["scored"] / "s.json").write_text(json.dumps({"0": 0.3, "1": 0.1, "2": 0.2}))
    worlds["swept"].mkdir()
    words = SWEEP.format(m=model).split()
    run([*words, "--grid", "k=1 blocks=3", "--out", str(worlds["swept"] / "w")], None)
    kinds = {place: kind for kind, (_, place) in SERVED.items()}
    targets = [("dir:{s}/shelf", "on a shelf"), ("file://{s}/shelf", "in a store"), *SERVED.values()]
    for to, name in targets:
        worlds[name].mkdir()
        kind = kinds.get(name, "")
        if lacking(kind) or (kind and kind not in asked):
            continue
        with serving(kind, worlds[name] / "shelf") as served:
            if to == MLFLOW:
                shutil.copytree(worlds["variant"], worlds["untracked"])
                shutil.copytree(worlds[name] / "shelf", worlds["untracked"] / "shelf")
            target = to.format(s=worlds[name], p=served and served.port)
            run(["push", str(variant), target, "--alias", "edge"], served)
        run(["export", str(model), "--k", "1", "--drop-blocks", "1", "--out", str(worlds[name] / "v")], None)
    end_all()
    return worlds
