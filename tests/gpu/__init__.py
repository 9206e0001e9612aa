"""What a machine with a CUDA device verifies and measures: `python -m tests.gpu.check`, described in docs/gpu.md."""
