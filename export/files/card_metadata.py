"""The metadata that a card begins with, as the hub reads it: what the model is, what it was made of, what was measured.

YAML whose scalars are written as JSON, which YAML has them as too. `huggingface_hub` reads it back in the tests.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from export.files.measured import Measured, Share
from export.files.source_card import SourceCard
from transform.hub_cache import hub_id
from transform.plan import Plan

Value: TypeAlias = str | int | float | bool | Sequence["Value"] | Mapping[str, "Value"]


def front_matter(plan: Plan, onnx: bool, measured: Measured | None, source: SourceCard) -> list[str]:
    """The lines, dashes included; `source`: what the source's own card says."""
    sees = plan.target.architecture.is_shown_pictures(plan.target.config)
    task = "image-text-to-text" if sees else "text-generation"
    fields: dict[str, Value] = {"library_name": "onnx" if plan.packing else "transformers", "pipeline_tag": task}
    if source.license:
        fields["license"] = source.license
        fields |= {"license_name": source.license_name} if source.license_name else {}
        fields |= {"license_link": source.license_link} if source.license_link else {}
    if base := hub_id(plan.source.path) or source.base_model:
        # the hub has no word for a model that lost blocks or experts per token
        fields |= {"base_model": base, "base_model_relation": "quantized" if plan.packing else "finetune"}
    fields["tags"] = ["knobcast", plan.target.architecture.model_type, *_tags(plan, onnx)]
    if results := _results(task, measured):
        fields["model-index"] = [{"name": plan.name, "results": results}]
    return ["---", *_lines(fields), "---"]


def _tags(plan: Plan, onnx: bool) -> list[str]:
    routed = any(plan.target.settings.experts_of)
    words = [
        ("mixture-of-experts", routed),
        ("onnx", onnx and not plan.packing),
        ("pruned", bool(plan.removed)),
        (plan.form.name, bool(plan.packing)),
    ]
    return [word for word, so in words if so]


def _results(task: str, measured: Measured | None) -> list[Value]:
    """As `huggingface_hub.EvalResult` has them: all questions first, then each kind."""
    if measured is None or measured.quality is None or measured.data is None:
        return []
    data, quality = measured.data, measured.quality
    kinds = [("all questions", quality.total)]
    kinds += [*quality.by_task.items()] if len(quality.by_task) > 1 else []
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", data.name).strip("-.") or "questions"
    counted: Value = {"sha256": data.digest, "samples": data.samples}
    dataset: Value = {"name": data.name, "type": slug, "args": counted}
    metrics: list[Value] = [_metric(name, share) for name, share in kinds]
    return [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]


def _metric(name: str, share: Share) -> Value:
    more: dict[str, Value] = {"samples": share.samples}
    more |= {} if share.stderr is None else {"stderr": share.stderr}
    more |= {} if share.interval is None else {"interval_95": list(share.interval)}
    return {"type": "accuracy", "value": share.accuracy, "name": f"accuracy, {name}", "args": more}


def _lines(value: Mapping[str, Value], indent: str = "") -> list[str]:
    """Block style where something is nested, one line for all else."""
    lines = []
    for key, held in value.items():
        if isinstance(held, Mapping):
            lines += [f"{indent}{key}:", *_lines(held, f"{indent}  ")]
        elif nested := _mappings(held):
            lines.append(f"{indent}{key}:")
            for entry in nested:
                first, *rest = _lines(entry, f"{indent}  ")
                lines += [f"{indent}- {first.strip()}", *rest]
        else:
            lines.append(f"{indent}{key}: {_scalar(held)}")
    return lines


def _mappings(value: Value) -> list[Mapping[str, Value]]:
    """Those of a list; none of anything else."""
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return [entry for entry in given if isinstance(entry, Mapping)]


def _scalar(value: Value) -> str:
    """Strings between quotes unless they are plain words, without what YAML doesn't allow."""
    if not isinstance(value, str):
        return f"[{', '.join(map(_scalar, value))}]" if isinstance(value, Sequence) else json.dumps(value)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value) and value.lower() not in ("true", "false", "yes", "no", "null"):
        return value
    return json.dumps("".join(letter for letter in value if letter.isprintable()), ensure_ascii=False)
