"""A pair of files as VQAv2 has them: questions about two pictures, and their annotations."""

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
