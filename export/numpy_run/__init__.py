"""Run a graph with numpy: slow, small, and without onnxruntime's limits on what a CPU may run.

For the form that onnxruntime runs on GPUs alone. Built on onnx's reference evaluator, whose operators are replaced
where a GPU's kernel does other arithmetic with 16 bits, and extended by those of `com.microsoft` that graphs use.
"""

from export.numpy_run.session import NumpySession

__all__ = ["NumpySession"]
