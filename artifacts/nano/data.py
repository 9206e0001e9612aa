"""Write the nano model's questions in the canonical form: `python -m artifacts.nano.data [DIRECTORY [PICTURES]]`.

DIRECTORY/{train,calibration,test}.jsonl and DIRECTORY/images/; the default is artifacts/molmoe-nano/data, which is not
tracked. With a number of PICTURES the test split alone, its first ones. The splits are drawn from different seeds; the
same files come out every time.
"""

import json
import sys
from pathlib import Path

from PIL import Image
from rich.progress import track

from artifacts.nano.pictures import pictures

TARGET = Path(__file__).parents[1] / "molmoe-nano" / "data"
PICTURES = {"train": 8000, "calibration": 80, "test": 250}


def write(directory: Path, split: str, count: int) -> None:
    """Draw `count` pictures and write their questions; the .jsonl appears when all pictures are there."""
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, shown, asked in track(pictures(split, count), f"{split} pictures", total=count):
        file = images / f"{name}.png"
        if not file.exists():
            staged = file.with_suffix(".tmp")
            Image.fromarray(shown.draw()).save(staged, format="png", compress_level=1)
            staged.replace(file)
        for n, question in enumerate(asked):
            line = {
                "id": f"{name}-{n}",
                "image": f"images/{file.name}",
                "prompt": question.prompt,
                "answers": question.answers,
                "kind": question.kind,
            }
            lines.append(json.dumps(line) + "\n")
    staged = directory / f"{split}.tmp"
    staged.write_text("".join(lines))
    staged.replace(directory / f"{split}.jsonl")


def main(directory: Path = TARGET) -> None:
    """Write what is missing, the smallest split first: training pictures take longest."""
    for split, count in sorted(PICTURES.items(), key=lambda item: item[1]):
        if not (directory / f"{split}.jsonl").exists():
            write(directory, split, count)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write(Path(sys.argv[1]), "test", int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
