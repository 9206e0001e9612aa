"""Records of `knobcast bench` that nobody measured."""

from pathlib import Path


def bench_record(directory: Path, **changes: object) -> dict[str, object]:
    """One variant's, measured with a picture; `changes` replace keys."""
    return {
        "schema": 1, "directory": str(directory), "member": None, "form": "cpu", "layers": 4, "top_k": [2] * 4,
        "provider": "cpu", "machine": {"cpu": "A processor", "threads": 1, "gpu": None, "cores": 2},
        "workload": {"batch": 1, "prompt_tokens": 500, "crops": 3, "image_tokens": 384, "new_tokens": 9, "steps": 8},
        "contestants": [{
            "name": "graphs", "status": "measured", "vision_seconds": {"median": 0.5, "least": 0.4, "most": 0.6},
            "prefill_seconds": {"median": 0.25, "least": 0.2, "most": 0.3},
            "step_seconds": {"steps": 8, "mean": 0.02, "p50": 0.01, "p95": 0.03}, "memory": {"peak_bytes": 1000},
        }],
        **changes,
    }  # fmt: skip
