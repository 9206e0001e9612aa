"""What a model sees, text alone or pictures too, and what follows from it for graphs, ids and those who load it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Modality:
    """One way of seeing. Graphs are named by kind; a variant's are called `<kind>.onnx`."""

    sees_images: bool  # prompts may hold a picture, a plan has a vision policy, the model's code travels
    front: tuple[str, ...]  # kinds of graphs in front of the decoder, in the order of data
    decoder_input: str  # what the decoder's graph is fed: token ids [b, s], or their embeddings [b, s, d]
    tables: tuple[str, ...]  # roles of the embedding tables, whose rows are numbered through
    auto_class: str  # transformers' class that users load a variant with

    @property
    def graphs(self) -> tuple[str, ...]:
        """Kinds of all graphs without fixed sizes."""
        return (*self.front, "text")


TEXT = Modality(False, (), "input_ids", ("embedding",), "AutoModelForCausalLM")
IMAGE = Modality(
    True, ("vision", "embedding"), "inputs_embeds", ("embedding", "embedding.extra"), "AutoModelForImageTextToText"
)
