"""The user's way: a variant loaded and run where nothing of knobcast can be imported.

A process of its own runs `user_process.py`: transformers' Auto classes with the code that travels along, the
tokenizer, cached `generate` beside one pass without a cache. A variant larger than what fits keeps its first blocks,
over the same weight files.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from export.files.verification import UserReport
from export.gate.patches import can_prepare
from export.gate.picture_probe import MOST_TOKENS, receiving
from export.gate.tolerance import LEAST_SCALE
from transform.architectures.vocabulary import attending
from transform.checkpoint import Checkpoint
from transform.depth import view_blocks
from transform.dtype import stored_dtype
from transform.errors import VerificationError
from transform.machine import LARGE, SMALL
from transform.scratch import scratch
from transform.sizes import parameters
from transform.write import write_json

SCRIPT = Path(__file__).with_name("user_process.py")
NEW_TOKENS, PROMPT = 6, 12
# Of the largest logit. Two float32 programs differ by 4e-6 here; an expert choice that float32 can't decide costs more,
# and a swallowed argument 0.1 and up.
TOLERANCE = 1e-3
Request = Mapping[str, object]


def check_as_user(variant: Checkpoint, blocks: int | None = None) -> UserReport:
    """What the process found, with the first `blocks` blocks or all of them.

    Raises VerificationError where nothing loads, or where generation with and without a cache differ.
    """
    blocks = variant.settings.layers if blocks is None else blocks
    request = {
        "ids": [1 + 7 * n % (variant.settings.vocab - 1) for n in range(PROMPT)],  # where there is no tokenizer
        "new_tokens": NEW_TOKENS,
        "patches": _patches(variant, blocks),
        "pictures": variant.architecture.modality.sees_images,
        "class": None if variant.architecture.model_class else variant.config.get("architectures", [None])[0],
        "dtype": stored_dtype(variant),
        "tokenizer": (variant.path / "tokenizer.json").is_file(),
        "model": not any(tensor.pack for tensor in variant.tensors.values()),
    }
    with scratch("user") as home:
        place = _linked(variant, home / "variant", blocks)
        threads = {"OMP_NUM_THREADS": "1"} if parameters(variant) < SMALL else {}
        report = _run(place, request, home, threads)
    for name, found in report["generate"].items():
        scale = max(LEAST_SCALE, found["largest_value"])
        if not (found["same_tokens"] and found["difference"] <= TOLERANCE * scale):
            raise VerificationError(
                f"generate with a cache must give what one pass without it gives, {name}: tokens "
                f"{'the same' if found['same_tokens'] else 'others'}, logits differ by {found['difference']:.3g} where "
                f"{TOLERANCE * scale:.3g} is allowed (transformers {report['transformers']}). "
                "No variant was written: please report this."
            )
    return {**report, "blocks": blocks}


def _patches(variant: Checkpoint, blocks: int) -> Request | None:
    """What to ask with a picture of a stock model; None where there is none, or too few blocks see it."""
    pixels, text = variant.architecture.pixels, variant.architecture.text_of(variant.config)
    if pixels is None or blocks < receiving(variant) or not attending(text, blocks) or not can_prepare(variant):
        return None
    return {name: pixels.number(variant.config, name) for name in ("token", "merge")} | {"most": MOST_TOKENS}


def code_of_others(variant: Checkpoint) -> list[str]:
    """Python files of a variant that aren't this version's, byte for byte: loading it as users do would run them."""
    images = variant.architecture.images
    if images is None:
        return []  # stock classes: nothing of the directory is run
    code = import_module(images.code)
    own = Path(code.__path__[0])
    return sorted(
        path.name
        for path in variant.path.glob("*.py")
        if path.name not in code.TRAVELLING_FILES or path.read_bytes() != (own / path.name).read_bytes()
    )


def _linked(variant: Checkpoint, place: Path, blocks: int) -> Path:
    """The variant under a name that is a module's too; its code may then leave a cache here and nowhere else."""
    short = blocks < variant.settings.layers
    place.mkdir()
    for file in variant.path.iterdir():
        if file.is_file() and not (short and file.name == "config.json"):
            (place / file.name).symlink_to(file.resolve())
    if short:
        write_json(place / "config.json", view_blocks(variant, range(blocks)).config)
    return place


def run_process(place: Path, request: Request, home: Path, threads: dict[str, str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process that looks at the variant in `place`."""
    env = os.environ | threads | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(home / "modules")}
    # one tensor after the other, and nothing kept of what is freed: as `transform/load.py` and `machine.py` have it
    env |= {"HF_DEACTIVATE_ASYNC_LOAD": "1", "MALLOC_MMAP_THRESHOLD_": str(LARGE)}
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(place)],
        input=json.dumps(request), cwd=home, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def _run(place: Path, request: Request, home: Path, threads: dict[str, str]) -> UserReport:
    code, printed, errors = run_process(place, request, home, threads)
    if code:
        lines = errors.strip().splitlines() or [f"it ended with {code}"]
        raise VerificationError(
            "the variant must load and generate in a process without knobcast, as its users do: "
            f"{lines[-1].replace(str(place), 'it')[:400]}. No variant was written."
        )
    report: UserReport = json.loads(printed.splitlines()[-1])
    return report
