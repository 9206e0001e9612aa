"""Answer a prompt with a variant's graphs: onnxruntime, numpy, pillow and tokenizers, no torch.

One prompt, at most one image, greedy. The variant says how (io.json): the image policy, the special ids, the session
options. Prompts go into the family's template; of image models the begin token and the image stream come before.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from export.run.bound import Bound
from export.run.family_file import read_family
from export.run.graphs import Graphs, open_tokenizer
from export.run.io_file import ROLES, policy_in
from export.run.picture import Picture, choose_way, cut_by_graph, cut_by_python
from export.run.providers import PROVIDERS
from export.run.session import RunError
from transform.architectures import architecture_named
from transform.arrays import Array
from transform.molmoe.pictures import ImageInput, open_image
from transform.progress import Say
from transform.strict_json import Record

_NO_GRAPHS = (
    "Export it with its graphs (without --no-onnx); a family of weights alone has none, load that with transformers"
)


@dataclass(frozen=True)
class Prompt:
    """What the graphs take: ids with BOS and image stream, and the cut image if there is one."""

    ids: Array  # int64 [1, s]
    image: Picture | None

    @property
    def tiling(self) -> tuple[int, int] | None:
        """Rows and columns of the image's tiles."""
        return self.image.tiling if self.image else None


@dataclass
class Timing:
    """Seconds, filled in while tokens are produced. The first token comes with the prefill, the others are decoded.
    opening: of graphs and tokenizer, where this answer had to wait for it."""

    opening: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Answer:
    """A whole answer and what it took."""

    text: str
    ids: tuple[int, ...]  # the stop token not included
    stopped: str  # "end": the model ended it; "length": it was cut
    prompt_tokens: int
    tiling: tuple[int, int] | None
    preprocess: str | None  # what cut the image: "graph" or "python"; None without one
    timing: Timing = field(repr=False)

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.timing.prefill

    @property
    def decode_speed(self) -> float | None:
        """Tokens per second after the first; None where there was no second."""
        return self.timing.steps / self.timing.decode if self.timing.steps else None

    def as_dict(self) -> Record:
        """For `--json`."""
        return {
            "text": self.text,
            "ids": list(self.ids),
            "stopped": self.stopped,
            "prompt_tokens": self.prompt_tokens,
            "tiling": list(self.tiling) if self.tiling else None,
            "preprocess": self.preprocess,
            "seconds": {n: round(getattr(self.timing, n), 6) for n in ("opening", "vision", "prefill", "decode")},
            "tokens_per_second": {
                "prefill": round(self.prefill_speed, 3),
                "decode": None if self.decode_speed is None else round(self.decode_speed, 3),
            },
        }

    def speed(self) -> str:
        """One line for people."""
        opening = f"opening {self.timing.opening:.2f} s, " if self.timing.opening >= 0.005 else ""
        image = f"image {self.timing.vision:.2f} s, " if self.tiling else ""
        decode = "" if self.decode_speed is None else f", {self.decode_speed:.1f} tokens/s after the first"
        prefill = f"{self.prompt_tokens} tokens in {self.timing.prefill:.2f} s ({self.prefill_speed:.0f}/s)"
        return f"{opening}{image}prompt of {prefill}{decode}"


class Runner:
    """The graphs and the tokenizer of one variant, loaded once for any number of prompts.

    `member` names one of a family's decoders; `threads` 0 takes all cores; `preprocess` says what cuts images, "graph"
    or "python": where not said the graph does, if the variant has one.
    """

    def __init__(
        self,
        directory: Path,
        provider: str = "cpu",
        threads: int = 0,
        member: str | None = None,
        preprocess: str | None = None,
    ) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise RunError(f"A variant to run must be a directory: {self.directory} is none. Check the path.")
        self.preprocess = choose_way(self.directory, preprocess)
        if provider not in PROVIDERS:
            raise RunError(f"The provider must be one of {', '.join(PROVIDERS)}, got {provider!r}. Choose one of them.")
        if threads < 0:
            raise RunError(f"Threads are counted from 1, 0 takes all cores: got {threads}. Give 0 or more.")
        text = "text.onnx" if member is None else read_family(self.directory).member(member).graph
        for name, reason in (
            ("io.json", _NO_GRAPHS),
            (text, _NO_GRAPHS),
            ("tokenizer.json", "Export from a source that has its tokenizer"),
        ):
            if not (self.directory / name).is_file():
                raise RunError(f"A variant to run must have {name}: {self.directory} has none. {reason}.")
        self.graphs = Graphs(self.directory, provider, threads, text)
        opened = self.graphs.text  # what can't run is said before anything else is loaded
        del opened
        self.tokenizer = open_tokenizer(self.directory)
        self.ids = self.graphs.io["special_ids"]
        self.max_positions = self.graphs.io["max_positions"]
        self.template = architecture_named(self.graphs.io["model_type"]).prompt

    def prompt(self, text: str, image: ImageInput | None = None) -> Prompt:
        """Ids of one prompt; cuts the image by the variant's own policy."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RunError(
                f"A prompt must be text in UTF-8: character {error.start + 1} of {text[:60]!r} is none. Write it again."
            ) from error
        if not self.graphs.modality.sees_images:
            if image is not None:
                raise RunError(
                    f"Only image models take an image: {self.directory} is a text-only "
                    f"{self.graphs.io['model_type']!r}. Leave the image out."
                )
            ids = self.tokenizer.encode(self.template.around(text)).ids or [self.ids["bos"]]
            return self._checked(Prompt(np.array([ids], np.int64), None))
        roles = [self.ids[role] for role in ROLES]
        words = self.tokenizer.encode(self.template.around(text), add_special_tokens=False).ids
        if own := set(words) & set(roles):
            raise RunError(
                "A prompt must not contain the image's own tokens, such as "
                f"{self.tokenizer.id_to_token(min(own))}. Leave them out."
            )
        cut = None
        if image is not None:
            policy = policy_in(self.graphs.io["vision"])
            if self.preprocess == "graph":
                cut = cut_by_graph(self.graphs.preprocess, image, policy)
            else:
                cut = cut_by_python(image, policy, roles)
        stream = [] if cut is None else cut.ids.tolist()
        return self._checked(Prompt(np.array([[self.ids["bos"], *stream, *words]], np.int64), cut))

    def _checked(self, prompt: Prompt) -> Prompt:
        length, highest = prompt.ids.shape[1], int(prompt.ids.max())
        rows = self.graphs.io.get("embedding_rows")
        if type(rows) is int and highest >= rows:  # variants of older versions don't say
            raise RunError(
                f"A prompt's tokens must have an embedding: {self.tokenizer.id_to_token(highest)!r} has the id "
                f"{highest}, the model has {rows} rows. Leave that text out, or resize the source's embeddings and "
                "export it again."
            )
        if length >= self.max_positions:
            raise RunError(
                f"The prompt and at least one new token must fit the model's {self.max_positions} positions: it has "
                f"{length} tokens. Shorten it, or use a variant with fewer vision tokens."
            )
        return prompt

    def generate(self, prompt: Prompt, max_new_tokens: int = 64, timing: Timing | None = None) -> Iterator[int]:
        """Greedy ids one by one, the stop token last if the model came to one."""
        if max_new_tokens < 1:
            raise RunError(f"At least one token must be asked for, got max_new_tokens={max_new_tokens}.")
        timing = timing if timing is not None else Timing()
        graphs, length = self.graphs, prompt.ids.shape[1]
        sequence = Bound(graphs)
        began = perf_counter()
        opened = [graphs.embedding] if graphs.modality.sees_images else []
        opened += [] if prompt.image is None else [graphs.vision]
        timing.opening += perf_counter() - began
        if prompt.image is not None:
            began = perf_counter()
            sequence.see(prompt.image.images, prompt.image.image_masks, prompt.image.feature_index)
            timing.vision = perf_counter() - began
        del opened
        began = perf_counter()
        token = int(sequence.prefill(prompt.ids).argmax())
        timing.prefill = perf_counter() - began
        yield token
        for _ in range(length + 1, min(length + max_new_tokens, self.max_positions)):
            if token in self.ids["eos"]:
                return
            began = perf_counter()
            token = int(sequence.decode(token).argmax())
            timing.decode += perf_counter() - began
            timing.steps += 1
            yield token

    def answer(
        self,
        image: ImageInput | None,
        text: str,
        max_new_tokens: int = 64,
        stream: Say | None = None,
    ) -> Answer:
        """The whole answer; `stream` gets its text piece by piece as it comes."""
        prompt, timing = self.prompt(text, image), Timing()
        ids: list[int] = []
        shown, stopped = "", "length"
        for token in self.generate(prompt, max_new_tokens, timing):
            if token in self.ids["eos"]:
                stopped = "end"
                break
            ids.append(token)
            if stream:
                said = self.tokenizer.decode(ids).lstrip()
                # a character may take several tokens: until it is whole, it decodes to the replacement character
                if said.startswith(shown) and not said.endswith("\ufffd"):
                    stream(said[len(shown) :])
                    shown = said
        said = self.tokenizer.decode(ids).lstrip()
        if stream and len(said) > len(shown):
            stream(said[len(shown) :])
        how = self.preprocess if prompt.image else None
        return Answer(said.strip(), tuple(ids), stopped, prompt.ids.shape[1], prompt.tiling, how, timing)


def answer(
    directory: Path,
    image: ImageInput | None,
    prompt: str,
    max_new_tokens: int = 64,
    *,
    provider: str = "cpu",
    threads: int = 0,
    member: str | None = None,
    preprocess: str | None = None,
    stream: Say | None = None,
) -> Answer:
    """Load the variant in `directory` and answer one prompt, about one image or none."""
    picture = None if image is None else open_image(image)  # refused before the graphs are loaded
    began = perf_counter()
    runner = Runner(directory, provider, threads, member, preprocess)
    opening = perf_counter() - began
    given = runner.answer(picture, prompt, max_new_tokens, stream)
    given.timing.opening += opening
    return given
