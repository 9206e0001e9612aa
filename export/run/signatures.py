"""The inputs and outputs that a variant's graphs must have, before anything is fed to them. No torch.

Names are onnxruntime-genai's; b batch, s tokens, d width, V vocabulary. `io_spec.py` records what graphs have, this
file says what running them relies on.
"""

from typing import Any

from transform.errors import VerificationError

PAST, PRESENT = "past_key_values.", "present."
_LARGEST = 1 << 20  # heads, or numbers of a head


def check_decoder(file: str, session: Any, tokens: str) -> Any:
    """The session, if it takes `tokens`, a mask and a cache [b, heads, past, width] and gives logits and cache."""
    given, made = _names(session.get_inputs()), _names(session.get_outputs())
    cache = [name for name in given if name.startswith(PAST)]
    missing = sorted({tokens, "attention_mask"} - given.keys()) + sorted({"logits"} - made.keys())
    missing += [twin for name in cache if (twin := name.replace(PAST, PRESENT)) not in made]
    more = sorted(given.keys() - {tokens, "attention_mask", *cache})
    if missing or more or not cache:
        raise _refused(
            file, f"takes {tokens}, attention_mask and a cache, and gives logits and the cache", missing, more
        )
    _check_rank(file, "logits", made["logits"], 3)
    for name in cache:
        _check_rank(file, name, given[name], 4)
        if not all(type(size) is int and 0 < size < _LARGEST for size in (given[name][1], given[name][3])):
            raise VerificationError(
                f"{file}: {name} must be [batch, heads, tokens, width] with fixed heads and width, it is "
                f"{given[name]}. Export the variant again."
            )
    return session


def check_vision(file: str, session: Any) -> Any:
    """The session, if it takes crops, masks and the features to keep, and gives these features."""
    return _check(file, session, {"images": 3, "image_masks": 2, "feature_index": 1}, {"image_features": 2})


def check_preprocess(file: str, session: Any) -> Any:
    """The session, if it takes a picture, and gives what the vision graph takes and the picture's ids."""
    made = {"images": 3, "image_masks": 2, "feature_index": 1, "image_ids": 1}
    return _check(file, session, {"image": 3}, made)


def check_embedding(file: str, session: Any) -> Any:
    """The session, if it takes ids and image features, and gives embeddings of a known width."""
    _check(file, session, {"input_ids": 2, "image_features": 2}, {"inputs_embeds": 3})
    width = session.get_outputs()[0].shape[-1]
    if type(width) is not int or not 0 < width < _LARGEST:
        raise VerificationError(
            f"{file}: inputs_embeds must have a fixed width, it is {str(width)[:40]}. Export the variant again."
        )
    return session


def _check(file: str, session: Any, inputs: dict[str, int], outputs: dict[str, int]) -> Any:
    given, made = _names(session.get_inputs()), _names(session.get_outputs())
    missing = sorted(inputs.keys() - given.keys()) + sorted(outputs.keys() - made.keys())
    more = sorted(given.keys() - inputs.keys())
    if missing or more:
        raise _refused(file, f"takes {', '.join(inputs)} and gives {', '.join(outputs)}", missing, more)
    for wanted, shapes in ((inputs, given), (outputs, made)):
        for name, rank in wanted.items():
            _check_rank(file, name, shapes[name], rank)
    return session


def _names(values: Any) -> dict[str, list[Any]]:
    return {value.name: list(value.shape) for value in values}


def _check_rank(file: str, name: str, shape: list[Any], rank: int) -> None:
    if len(shape) != rank:
        raise VerificationError(
            f"{file}: {name} must have {rank} dimensions, it has {len(shape)}. Export the variant again."
        )


def _refused(file: str, rule: str, missing: list[str], more: list[str]) -> VerificationError:
    odd = [f"without {name[:80]}" for name in missing[:3]] + [f"with {name[:80]}" for name in more[:3]]
    return VerificationError(
        f"{file} must be the variant's graph, which {rule}: it is {', '.join(odd) or 'without a cache'}. Export it "
        "again."
    )
