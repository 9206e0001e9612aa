"""What people read about the nano model: its card, and the table of its curves. All numbers come from measurements."""

from typing import Any

from artifacts.nano.build import CONFIG
from artifacts.nano.pictures import KINDS

HISTORY = (
    "- This checkpoint's own history differs from the recipe in one stretch: the first 700 steps of stage 2 took "
    "pictures of all tilings and all kinds at equal weight, and its place directions were scaled up after step 500."
)
_VISION = CONFIG["vision_backbone"]
_ASKED = {
    "colour": "What colour is the circle?",
    "shape": "Which shape is red?",
    "count": "How many blue shapes are there?",
    "position": "Where is the ring? (a 3 × 3 grid)",
    "relation": "From the cross, where is the ring? (left, right, above, below)",
    "digit": "What number is on the circle? (a picture that fits one tile)",
    "detail": "What number is on the circle? (a picture of six tiles)",
}


def curves(content: dict[str, Any]) -> str:
    """docs/nano.md."""
    lines = [
        "# What the knobs cost the embedded model",
        "",
        f"Accuracy of `artifacts/molmoe-nano` on its {content['samples']} test questions, exact match, with 95 % "
        "Wilson intervals; every knob applied at run time. Drawn pictures, a 7-million-parameter model: the shape of "
        "these curves is its own, and says nothing about MolmoE-1B.",
        "",
        f"Again: {', '.join(f'`{command}`' for command in content['commands'])}. One setting alone: "
        "`knobcast evaluate artifacts/molmoe-nano --data artifacts/molmoe-nano/data/test.jsonl --k 4`.",
        "",
        "![Accuracy against k, blocks and vision tokens](nano.svg)",
    ]
    for curve in dict.fromkeys(row["curve"] for row in content["settings"]):
        rows = [row for row in content["settings"] if row["curve"] == curve]
        lines += ["", f"## {curve[0].upper()}{curve[1:]}", "", _head(), _rule()]
        lines += [_line(row) for row in rows]
    dropped = [row for row in content["settings"] if row["dropped"] and row["curve"].startswith("blocks")]
    lines += ["", "## Which blocks were dropped", "", "| choice | blocks kept | dropped |", "|---|---|---|"]
    lines += [f"| {row['curve'].split(', ')[1]} | {row['blocks']} | {_list(row['dropped'])} |" for row in dropped]
    chance = ", ".join(f"{kind} {content['chance'][kind]:.2f}" for kind in KINDS)
    used = content["experts_used"]
    lines += [
        "",
        f"Chance (always the commonest answer): {chance}. At full knobs the test questions use "
        f"{min(used):.0%} to {max(used):.0%} of the experts of a block.",
        "",
    ]
    return "\n".join(lines)


def model(content: dict[str, Any], scores: dict[str, Any], logs: dict[str, Any], sizes: dict[str, int]) -> str:
    """The card, README.md of the model."""
    full = next(row for row in content["settings"] if row["curve"] == "full")
    hours = {stage: f"{log['seconds'] / 3600:.1f} h, {log['step']:,} steps" for stage, log in logs.items()}
    ranked = sorted(scores["blocks"], key=lambda block: -block["score"])
    lines = [
        "---",
        "license: apache-2.0",
        "---",
        "",
        "# molmoe-nano",
        "",
        "A MolmoE with the layout and topology of the released MolmoE-1B at small widths, really trained on drawn "
        "pictures, so that importance scores, curves and knob settings mean something on a machine without a "
        "download. It knows seven kinds of questions about coloured shapes and nothing else. Times and sizes "
        "measured on it say nothing about a full-size model.",
        "",
        f"{CONFIG['n_layers']} blocks, {CONFIG['moe_num_experts']} experts of width {CONFIG['mlp_hidden_size'] // 2}, "
        f"top-{CONFIG['moe_top_k']}, hidden size {CONFIG['d_model']}; a vision tower of {_VISION['image_num_layers']} "
        f"blocks of width {_VISION['image_emb_dim']} (features of two of them, the last one unused, as in the release) "
        "for 336×336 crops of 14×14 patches, 144 features per crop; bfloat16.",
        "",
        "## What it can do",
        "",
        f"{content['samples']} test questions on pictures it never saw, exact match, 95 % Wilson intervals:",
        "",
        "| kind | such as | chance | accuracy |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        found = full["by_kind"][kind]
        lines.append(f"| {kind} | {_ASKED[kind]} | {content['chance'][kind]:.2f} | {found['accuracy']:.3f} |")
    lines += [
        f"| all | | | {full['accuracy']:.3f} ({full['low']:.3f} to {full['high']:.3f}) |",
        "",
        "Every knob at run time, against k, blocks and vision tokens:",
        "",
        "| setting | accuracy | 95 % interval | detail |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']}{' (most important dropped)' if row['curve'].endswith(', most important dropped') else ''} "
        f"| {row['accuracy']:.3f} | {row['low']:.3f} to {row['high']:.3f} "
        f"| {row['by_kind']['detail']['accuracy']:.3f} |"
        for row in content["settings"][1:]
    ]
    lines += [
        "",
        f"`scores.json`: {scores['metric']} on {scores['samples']} calibration questions (baseline "
        f"{scores['baseline']:.3f}). Most important blocks: {_list(b['index'] for b in ranked[:4])}; least: "
        f"{_list(b['index'] for b in ranked[-4:])}.",
        "",
        "## How it was made",
        "",
        "`make nano` trains it again from nothing, on any CPU; a stopped run goes on. Here: 2 cores of an AMD EPYC "
        "(AVX-512), no GPU, other work running beside it. Seeds are fixed; threads and instruction sets move the "
        "last bits, so another machine gets another model of the same kind.",
        "",
        f"- Data: drawn pictures of 11 sizes with 2 to 6 shapes, {sizes['train']:,} training, {sizes['calibration']:,} "
        f"calibration and {sizes['test']:,} test questions; the splits come from different seeds.",
        f"- Stage 1 ({hours['vision']}): tower, pooling, padding embeddings and projector, from pixels; linear heads "
        "on each of the 144 features ask for shape, colour, number, centre and place (cross-entropy, squared error for "
        "the place), and are thrown away. Two cosine cycles of AdamW, 32 crops a step, bfloat16 autocast.",
        f"- Stage 2 ({hours['language']}): the decoder, on the frozen vision side's features. Sequences hold all "
        "questions about a picture, which don't see each other; 5,000 positions a step. Cross-entropy of the answer "
        "tokens, 0.1 × load balance (Switch Transformer) and 0.001 × router z-loss (ST-MoE). "
        "The curriculum begins with pictures of one tile, and leaves out image tokens, mostly background, until three "
        "quarters of the steps. Counts weigh twice, positions and relations three times.",
        "- The weights are a moving average, rounded to bfloat16.",
        HISTORY,
        "",
        "Made for this project and under its licence; no weights or data of others are in it.",
        "",
    ]
    return "\n".join(lines)


def _head() -> str:
    return "| " + " | ".join(("setting", "accuracy", "95 % interval", *KINDS)) + " |"


def _rule() -> str:
    return "|---" * (3 + len(KINDS)) + "|"


def _line(row: dict[str, Any]) -> str:
    kinds = [f"{row['by_kind'][kind]['accuracy']:.3f}" for kind in KINDS]
    cells = (row["name"], f"{row['accuracy']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", *kinds)
    return "| " + " | ".join(cells) + " |"


def _list(values: Any) -> str:
    return ", ".join(str(value) for value in values)
