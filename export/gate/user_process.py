"""Run by `as_user.py` in a process of its own: a variant as its users load it, knobcast not importable.

    python -P user_process.py DIRECTORY < request.json      prints one line of JSON

Prompts go through `generate` with its cache, as a batch and alone; prompts and answers go through `forward` once,
without a cache, which for causal models is the loop without a cache: each token must be the likeliest behind all
before it.
"""

import contextlib
import importlib
import inspect
import json
import re
import sys
from typing import Any

_HIDDEN = ("transform", "export", "importance")
TEXTS = ("What is this?", "Describe in one sentence what the picture shows.")


class _Hide:
    """An import finder in front of all others."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in _HIDDEN:
            raise ModuleNotFoundError(f"{name} can't be imported here: a variant needs nothing of knobcast")


sys.meta_path.insert(0, _Hide())

import torch  # noqa: E402
import transformers  # noqa: E402

Record = dict[str, Any]  # a JSON object; knobcast's own name for it can't be imported here
Batch = dict[str, torch.Tensor]


def load_model(directory: str, request: Record) -> tuple["transformers.PreTrainedModel", dict[str, int]]:
    """The model by the Auto class, and how many tensors found no place; more than none is an error.

    It loads in the type that all its tensors have, and computes in float32.
    """
    pictures = request["pictures"]
    kind = transformers.AutoModelForImageTextToText if pictures else auto_class(directory, request.get("class"))
    model, info = kind.from_pretrained(
        directory, dtype=getattr(torch, request["dtype"]), output_loading_info=True, trust_remote_code=pictures
    )
    if pictures and not type(model).__module__.startswith("transformers_modules"):
        raise TypeError(f"config.json's auto_map must lead to the code beside it, not to {type(model).__module__}")
    left = [name for name in info["unexpected_keys"] if not _beyond(model, name)]
    counts = {"missing": len(info["missing_keys"]), "mismatched": len(info["mismatched_keys"]), "unexpected": len(left)}
    if any(counts.values()):
        raise ValueError(f"every tensor must find its place: {counts}")
    towers = [part for part in model.modules() if isinstance(part, transformers.CLIPVisionModel)]
    inside = {id(parameter) for tower in towers for parameter in tower.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.float()
    for tower in towers:
        widen_in_turn(tower)
        see_once(tower)
    return model.eval(), counts


def auto_class(directory: str, name: str | None) -> Any:
    """The Auto class that gives the class of this name; the one for text where none is asked for.

    For some models the one for text gives another class, which leaves out a vision tower without a word.
    """
    if name is not None:
        config = type(transformers.AutoConfig.from_pretrained(directory))
        for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
            if config in auto._model_mapping and auto._model_mapping[config].__name__ == name:
                return auto
    return transformers.AutoModelForCausalLM


def widen_in_turn(tower: torch.nn.Module) -> None:
    """From now on each part's own parameters are float32 while it computes, and mapped from their file else."""
    for part in tower.modules():
        stored = {own: own.data for own in part.parameters(recurse=False) if own.dtype != torch.float32}
        if stored:
            part.register_forward_pre_hook(lambda _part, _given, stored=stored: _widen(stored))
            part.register_forward_hook(lambda _part, _given, _made, stored=stored: _narrow(stored))


def _widen(stored: dict[torch.nn.Parameter, torch.Tensor]) -> None:
    for parameter, values in stored.items():
        parameter.data = values.float()


def _narrow(stored: dict[torch.nn.Parameter, torch.Tensor]) -> None:
    for parameter, values in stored.items():
        parameter.data = values


def see_once(tower: torch.nn.Module) -> None:
    """From now on each crop passes the tower once: its features don't depend on the crops beside it, and it is where
    most of the time goes. What brings crops together is computed again each time."""
    forward, seen = tower.forward, dict[bytes, torch.Tensor]()

    def remembering(patches: torch.Tensor) -> torch.Tensor:
        keys = [crop.numpy().tobytes() for crop in patches]
        new = {key: crop for key, crop in zip(keys, patches, strict=True) if key not in seen}
        if new:
            seen.update(zip(new, forward(torch.stack(list(new.values()))), strict=True))
        return torch.stack([seen[key] for key in keys])

    tower.forward = remembering


def _beyond(model: "transformers.PreTrainedModel", tensor: str) -> bool:
    """Whether a tensor of the files belongs to a block behind those that config.json asks for."""
    layers = model.get_decoder().layers
    prefix = next(name for name, module in model.named_modules() if module is layers)
    match = re.match(re.escape(prefix) + r"\.(\d+)\.", tensor)
    return match is not None and int(match[1]) >= len(layers)


def check_tokenizer(tokenizer: "transformers.PreTrainedTokenizerBase") -> int:
    """Ids of a text, decoded and encoded again, must be the same ids; returns how many."""
    count = 0
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        again = tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"]
        if not ids or ids != again:
            raise ValueError(f"the tokenizer must give {text!r} back: ids {ids}, decoded and encoded again {again}")
        count += len(ids)
    return count


def drawn() -> object:
    """A small picture, uint8 [110, 150, 3]."""
    y, x = torch.meshgrid(torch.arange(110), torch.arange(150), indexing="ij")
    return torch.stack((255 * x // 149, 255 * y // 109, 40 + 150 * ((x // 9 + y // 7) % 2)), -1).byte().numpy()


def prompts(
    request: Record,
    tokenizer: "transformers.PreTrainedTokenizerBase | None",
    processor: "transformers.ProcessorMixin | None",
) -> tuple[Batch, Batch | None]:
    """(two prompts padded to one length, the first one alone); None: the first one alone is its row of the batch."""
    if processor is not None:  # a picture with a question, and a text
        return dict(processor(text=list(TEXTS), images=[drawn(), None])), dict(processor(text=TEXTS[0], images=drawn()))
    rows = [request["ids"], request["ids"][: len(request["ids"]) // 2]]
    if tokenizer is not None:
        rows = [tokenizer(text)["input_ids"] for text in reversed(TEXTS)]
    width = max(map(len, rows))  # padded by hand, on the left: not every tokenizer has a token for it
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}, None


def row_of(batch: Batch, row: int) -> Batch:
    """A text prompt [1, s] out of a batch, without padding."""
    ids = batch["input_ids"][row, batch["attention_mask"][row] == 1][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def cached(
    model: "transformers.PreTrainedModel", given: Batch, new_tokens: int
) -> tuple[list[list[int]], torch.Tensor]:
    """What `generate` gives with its cache: (answers, each of `new_tokens` tokens; logits [B, n, V])."""
    made = model.generate(
        **given, max_new_tokens=new_tokens, do_sample=False, num_beams=1, eos_token_id=-1,  # never ends early
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return made.sequences[:, -new_tokens:].tolist(), torch.stack(made.logits, 1).float()


@torch.no_grad()
def plain(model: "transformers.PreTrainedModel", given: Batch, answer: list[int]) -> torch.Tensor:
    """Logits [n, V] that lead to each of an answer's n tokens, by one pass without a cache over prompt and answer."""
    ids = torch.cat((given["input_ids"], torch.tensor([answer])), 1)
    pictures = {name: value for name, value in given.items() if name.startswith(("image", "pixel"))}
    kinds = {name: value for name, value in given.items() if name.endswith("token_type_ids")}
    pictures |= {name: torch.nn.functional.pad(value, (0, len(answer))) for name, value in kinds.items()}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **pictures).logits
    return logits[0, given["input_ids"].shape[1] - 1 : -1].float()


def generations(model: "transformers.PreTrainedModel", batch: Batch, first: Batch | None, new_tokens: int) -> Record:
    """`generate` for the batch and for each of its rows alone, beside the passes without a cache."""
    names = ("text", "short text") if first is None else ("image", "text")
    alone = [first or row_of(batch, 0), row_of(batch, 1)]
    together = cached(model, batch, new_tokens)
    expected = [plain(model, given, answer) for given, answer in zip(alone, together[0], strict=True)]
    found = {"batch": measure(together, expected)}
    for name, given, theirs in zip(names, alone, expected, strict=True):
        found[name] = measure(cached(model, given, new_tokens), [theirs])
    return found


def picture_prompt(directory: str, model: "transformers.PreTrainedModel", ids: list[int], request: Record) -> Batch:
    """A stock model's prompt with the small picture, by the processor in the directory; empty where the picture has
    more tokens than are asked for."""
    processor = transformers.AutoImageProcessor.from_pretrained(directory, local_files_only=True)
    seen = dict(processor(images=[drawn()], return_tensors="pt"))
    count = int(seen["image_grid_thw"].prod()) // request["merge"] ** 2
    if count > request["most"]:
        return {}
    half = len(ids) // 2
    given = torch.tensor([ids[:half] + [request["token"]] * count + ids[half:]])
    taken = inspect.signature(model.forward).parameters
    kinds = (name for name in ("mm_token_type_ids", "moe_mm_token_type_ids") if name in taken)
    seen |= {name: (given == request["token"]).int() for name in kinds}
    return {"input_ids": given, "attention_mask": torch.ones_like(given), **seen}


def measure(ours: tuple[list[list[int]], torch.Tensor], expected: list[torch.Tensor]) -> Record:
    """How far cached logits are from plain ones, and whether every token is the likeliest of the plain ones."""
    same, difference, largest = True, 0.0, 0.0
    for answer, logits, theirs in zip(*ours, expected, strict=True):
        same &= theirs.argmax(-1).tolist() == answer
        difference = max(difference, float((logits - theirs).abs().nan_to_num(float("inf")).max()))
        largest = max(largest, float(theirs.abs().max()))
    tokens = sum(map(len, ours[0]))
    return {"tokens": tokens, "same_tokens": same, "difference": difference, "largest_value": largest}


def report_on(directory: str, request: Record) -> Record:
    """What a request asks for: the tokenizer's round trip, the model's loading, its generations."""
    transformers.utils.logging.disable_progress_bar()
    report: Record = {"transformers": transformers.__version__, "generate": {}}
    tokenizer = processor = None
    if request["tokenizer"] and request["pictures"]:
        processor = transformers.AutoProcessor.from_pretrained(directory, trust_remote_code=True)
        tokenizer = processor.tokenizer
    elif request["tokenizer"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if tokenizer is not None:
        report["tokenizer_round_trip"] = check_tokenizer(tokenizer)
    if request["model"]:
        model, report["reload"] = load_model(directory, request)
        batch, first = prompts(request, tokenizer, processor)
        report["generate"] = generations(model, batch, first, request["new_tokens"])
        patches = request.get("patches")
        if patches and (given := picture_prompt(directory, model, request["ids"], patches)):
            ours = cached(model, given, request["new_tokens"])
            report["generate"]["picture"] = measure(ours, [plain(model, given, ours[0][0])])
    return report


def main() -> None:
    """Read the request, print the report."""
    for name in _HIDDEN:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
            raise RuntimeError(f"{name} must not be importable here")
    print(json.dumps(report_on(sys.argv[1], json.load(sys.stdin))))


if __name__ == "__main__":
    main()
