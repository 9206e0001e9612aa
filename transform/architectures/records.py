"""What a family's data file says, as values. Field names are the file's keys; `read.py` checks what it reads."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from transform.architectures.graph_facts import GraphWords
from transform.architectures.pictures import Images, Noise, Pixels
from transform.architectures.settings import MOST, Settings, read_settings
from transform.architectures.values import lookup, shown
from transform.architectures.vocabulary import ROUTED, TOP_K, check_block_entries, depth_of, sparse_blocks
from transform.architectures.windows import KINDS
from transform.errors import CheckpointError
from transform.modality import IMAGE, TEXT, Modality


class QkNorm(StrEnum):
    """Where a block norms queries and keys: over all heads at once, over each head by itself, or nowhere."""

    FULL = "full"
    HEAD = "head"
    NONE = "none"


class TopK(StrEnum):
    """Whether k can be chosen, or is built into the model's code."""

    FREE = "free"
    FIXED = "fixed"


class Special(StrEnum):
    """Tokens with a role, by the name that configs and tokenizers have for their ids."""

    BEGIN = "bos_token_id"
    END = "eos_token_id"


@dataclass(frozen=True)
class Rule:
    """What a config key must hold, because nothing else was verified."""

    values: tuple[object, ...]
    reason: str
    default: object = None  # what an absent key means
    keys: tuple[str, ...] = ()  # a mapping of these alone passes: what stands under them has rules of its own


class Role(NamedTuple):
    """One kind of tensor: its spellings (the first is the usual one) and its shape in symbols such as `3*d`, where the
    family is complete."""

    names: tuple[str, ...]
    shape: tuple[str, ...] = ()

    @property
    def of_blocks(self) -> bool:
        """Whether every decoder block has its own."""
        return "{i}" in self.names[0]


@dataclass(frozen=True)
class Prompt:
    """How a model is asked."""

    template: str  # with {prompt} in it
    begin: tuple[Special, ...]  # what a sequence begins with: the first of these that the model has
    end_of_text: str  # the tokenizer's token that ends a text, where no config names an id

    def around(self, text: str) -> str:
        """A user's text as the model was trained to read it."""
        return self.template.replace("{prompt}", text)

    @property
    def behind(self) -> str:
        """What stands between a user's text and the answer."""
        return self.template.partition("{prompt}")[2]


@dataclass(frozen=True)
class BrowserType:
    """What transformers.js calls a decoder that it runs."""

    model_type: str
    architecture: str


@dataclass(frozen=True)
class Runtimes:
    """What runtimes that don't know the family by name call a model that they run in the same way."""

    genai: str
    transformers_js: BrowserType | None = None


@dataclass(frozen=True)
class Published:
    """What programs written for the published model call, and what that is called here."""

    name: str
    calls: Mapping[str, str]
    note: str


@dataclass(frozen=True)
class Architecture:
    """One family's data file."""

    model_type: str
    model_class: str | None  # dotted name of the class, or auto class, that loads it; None: the one its config names
    requires: Mapping[str, Rule]  # config key -> rule
    keys: Mapping[str, tuple[str, ...]]  # setting -> its config keys, the first that is there counts
    defaults: Mapping[str, object]  # setting -> its value where the config has none
    depth_key: str
    top_k_key: str
    per_block_top_k: bool  # whether the checkpoint format can carry one k per block
    block: str  # how names of a block's tensors begin, with {i}
    dims: Mapping[str, str]  # symbol of shapes -> setting
    config_dims: Mapping[str, str]  # symbol of shapes -> config key
    roles: Mapping[str, Role]
    modules: Mapping[str, str]  # role -> parameter of a decoder block in memory
    qk_norm: QkNorm
    counts: Mapping[str, str]  # index of names other than {i} and {e} -> config key with how far it runs
    fused: Mapping[str, tuple[str, ...]]  # a tensor of all experts of a block -> the roles it holds for each of them
    dropped: tuple[str, ...]  # ends of names of tensors that transformers computes and doesn't read
    prompt: Prompt
    runtimes: Runtimes
    images: Images | None = None
    published: Published | None = None
    complete: bool = True  # every tensor has a role; False: roles are what graphs read, and a block has those it has
    text: str | None = None  # where the decoder's config lies in the whole one
    also: tuple[str, ...] = ()  # other beginnings that names of a block's tensors may have
    derived: tuple[str, ...] = ()  # lists per block that transformers derives from their number where there are none
    pinned: str | None = None  # key of a list: so many first blocks get something by their place, and stay
    last: Mapping[str, str] = field(default_factory=dict)  # list per block -> what the last block must have there
    routed: str = ROUTED  # list per block of which those have experts that are sparse or moe there
    k: TopK = TopK.FREE
    singles: tuple[str, ...] = ()  # lists of the config that may be as long as there are blocks, and have none's values
    window: str | None = None  # key of a window that all blocks have where no list says which
    switch: str | None = None  # key that must be true for windows; false where it is absent
    ignored: tuple[str, ...] = ()  # beginnings of names of tensors beyond the model, which transformers doesn't load
    quantised: tuple[str, ...] = ()  # methods whose weights pass untouched, since the gate can load them
    pixels: Pixels | None = None  # a stock model's pictures, if its processor has a budget of pixels
    noise: Noise | None = None  # a stock model's pictures, if its processor isn't known
    graph: GraphWords | None = None  # what the decoder's graph computes besides; None: there are no graphs

    @property
    def modality(self) -> Modality:
        """What the family sees."""
        return TEXT if self.images is None else IMAGE

    def check(self, config: Mapping[str, object]) -> None:
        """Refuse a config with a feature that was never verified, naming the key and the reason."""
        for key, rule in self.requires.items():
            value = lookup(config, key, rule.default)
            if isinstance(value, Mapping) and rule.keys and value.keys() <= set(rule.keys):
                continue
            if value not in rule.values:
                raise CheckpointError(
                    f"model_type {self.model_type!r} needs {key} = {' or '.join(map(shown, rule.values))}, this config "
                    f"has {shown(value)}: {rule.reason}. Use a checkpoint with the supported value."
                )

    def settings(self, config: Mapping[str, object]) -> Settings:
        """Read the decoder's numbers from the config; a missing, mistyped or impossible one is an error."""
        text = self.text_of(config)
        check_block_entries(text)
        layers = min(depth_of(text, self.depth_key), MOST["layers"])  # more are refused below, before a list is made
        sparse = sparse_blocks(text, layers, self.routed)
        return read_settings(
            text, self.model_type, self.keys, self.defaults, sparse, self.window, self.switch, self.reads_kinds
        )

    @property
    def reads_kinds(self) -> bool:
        """Whether transformers' class goes by a list of what each block is."""
        return KINDS in self.derived

    def text_of(self, config: Mapping[str, object]) -> Mapping[str, object]:
        """The decoder's config within the whole one; a text model saved alone is its own."""
        inner = config.get(self.text) if self.text else None
        return inner if isinstance(inner, Mapping) else config

    def has_tower(self, config: Mapping[str, object]) -> bool:
        """Whether a stock model's config describes a vision tower; a text model saved alone has none."""
        return isinstance(config.get("vision_config"), Mapping)

    def is_shown_pictures(self, config: Mapping[str, object]) -> bool:
        """Whether a model of this config takes pictures, by our own code or as a stock model that is known to."""
        stock = self.pixels is not None or self.noise is not None
        return self.modality.sees_images or (stock and self.has_tower(config))

    def with_text(self, config: Mapping[str, object], text: Mapping[str, object]) -> dict[str, object]:
        """The whole config with another one of the decoder."""
        if self.text_of(config) is config:
            return dict(text)
        return dict(config) | {str(self.text): dict(text)}

    def top_k_keys(self, config: Mapping[str, object]) -> tuple[str, ...]:
        """What this config calls k: all spellings that are there, read by transformers or not; else the usual one."""
        text = self.text_of(config)
        return tuple(key for key in TOP_K if text.get(key) is not None) or (self.top_k_key,)


def beyond_the_model(family: Architecture, layers: int) -> Callable[[str], bool]:
    """Whether a tensor's name says that it lies behind the decoder's blocks, or in a part that transformers doesn't
    load: what predicts further tokens. Of a complete family none does."""
    if family.complete:
        return lambda _: False
    begin = "|".join(re.escape(block.partition("{i}")[0]) for block in (family.block, *family.also))
    numbered = re.compile(rf"(?:{begin})(\d{{1,6}})\.")

    def beyond(name: str) -> bool:
        match = numbered.match(name)
        return name.startswith(family.ignored) or (match is not None and int(match[1]) >= layers)

    return beyond
