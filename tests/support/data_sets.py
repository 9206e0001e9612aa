"""Small data sets: VQAv2's pair of files, questions about two pictures and their annotations; tables of any rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEN = ["net", "net", "net", "netting", "net", "mesh", "net", "net", "net", "netting"]
QUESTIONS: dict[str, Any] = {
    "data_subtype": "val2014",
    "questions": [
        {"question_id": 420, "image_id": 42, "question": "What is this?"},
        {"question_id": 421, "image_id": 42, "question": "Is it?"},
        {"question_id": 70, "image_id": 7, "question": "How many?"},
    ],
}
ANNOTATIONS: dict[str, Any] = {
    "annotations": [
        {"question_id": 70, "answer_type": "number", "answers": [{"answer": "2", "answer_id": i} for i in range(10)]},
        {"question_id": 420, "answer_type": "other", "answers": [{"answer": a} for a in TEN]},
        {"question_id": 421, "answer_type": "yes/no", "answers": [{"answer": a} for a in ("yes", "", "no")]},
        {"question_id": 999, "answers": None},
    ]
}


def table(path: Path, rows: Sequence[dict[str, Any]], schema: Any = None, **options: Any) -> Path:
    """A parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, **options)
    return path
