"""Where samples come from, as `evaluate` and the verbs that score are told."""

from dataclasses import dataclass
from pathlib import Path

from export.command.once import CommandLineError
from export.command.options import Annotations, Data, Images, Limit
from transform.knobs import parse_count

HOW_TO = (
    'The simplest is a text file beside its pictures, a line per question: {"id": "1", "image": "dog.jpg", "prompt": '
    '"What is it?", "answers": ["a dog"]}; docs/evaluate.md#the-data has all forms.'
)


@dataclass(frozen=True)
class SampleFiles:
    """The files, and how many of their samples count."""

    data: Data = None
    annotations: Annotations = None
    images: Images = None
    limit: Limit = None

    def paths(self, purpose: str) -> tuple[Path, ...]:
        """What --data names, at least one; without any the error says how to make one."""
        if not self.data:
            raise CommandLineError(f"{purpose} needs samples, and no --data FILE is given. {HOW_TO}")
        return tuple(self.data)

    @property
    def most(self) -> int | None:
        """The number of samples to take; None: all."""
        return parse_count(self.limit, "--limit")
