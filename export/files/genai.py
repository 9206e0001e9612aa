"""`genai_config.json`: lets onnxruntime-genai generate with a variant's graphs.

Its runtime needn't know a family by name: any decoder with the usual inputs runs as a type that it knows, and so does
a vision/embedding/text triple, whose vision inputs may carry other names. The family's data file says which type.
"""

from collections.abc import Mapping
from pathlib import Path

from export.run.providers import cuda_options
from export.run.session_options import SESSION_OPTIONS, session_options
from transform.checkpoint import Checkpoint
from transform.forms import Form
from transform.special_tokens import begin_id, end_ids, image_token_ids
from transform.write import write_json


def genai_config(checkpoint: Checkpoint, directory: Path, form: Form) -> dict[str, object]:
    """The content of genai_config.json for the graphs of a finished variant."""
    settings = checkpoint.settings
    modality = checkpoint.architecture.modality
    ends = end_ids(checkpoint, directory)
    given = modality.decoder_input
    decoder = {
        "filename": "text.onnx",
        "session_options": _session_options(form),
        "head_size": settings.head_dim,
        "hidden_size": settings.hidden,
        "num_attention_heads": settings.heads,
        "num_hidden_layers": settings.layers,
        "num_key_value_heads": settings.kv_heads,
        "inputs": {
            given: given,
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    pad = checkpoint.config.get("pad_token_id")
    model: dict[str, object] = {
        "type": checkpoint.architecture.runtimes.genai,
        "bos_token_id": begin_id(checkpoint, directory),
        "eos_token_id": list(ends) if len(ends) > 1 else ends[0],
        "pad_token_id": pad if isinstance(pad, int) else ends[0],
        "context_length": settings.max_positions,
        "vocab_size": checkpoint.head.shape[0],
        "decoder": decoder,
    }
    if modality.sees_images:
        model["image_token_id"] = image_token_ids(checkpoint, directory).patch
        model["vision"] = {
            "filename": "vision.onnx",
            "session_options": _session_options(form, SESSION_OPTIONS),
            "inputs": {"pixel_values": "images"},
            "outputs": {"image_features": "image_features"},
        }
        model["embedding"] = {
            "filename": "embedding.onnx",
            "session_options": _session_options(form),
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        }
    search = {
        "do_sample": False,
        "max_length": settings.max_positions,
        "num_beams": 1,
        "past_present_share_buffer": False,  # the graphs append to the cache; a shared buffer needs a fused operator
    }
    return {"model": model, "search": search}


def write_genai_config(checkpoint: Checkpoint, directory: Path, form: Form) -> Path:
    """Write genai_config.json beside the graphs."""
    path = directory / "genai_config.json"
    write_json(path, genai_config(checkpoint, directory, form))
    return path


def _session_options(form: Form, options: Mapping[str, str] | None = None) -> dict[str, object]:
    providers = [] if form.runs_on_cpu else [{"cuda": cuda_options(static=False)}]
    return {"log_id": "knobcast", "provider_options": providers, **(options or session_options(form))}
