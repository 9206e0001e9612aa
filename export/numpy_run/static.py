"""Static graphs run by numpy, in float32 throughout."""

from typing import Any

import numpy as np

from export.numpy_run.session import NumpySession
from export.run.static import Call, StaticGraphs
from transform.arrays import Array


class NumpyCall(Call):
    """A call computed by numpy."""

    def _bind(self, capture: str | None) -> None:
        pass

    def run(self, **arrays: Array) -> None:
        """As onnxruntime's."""
        for name, array in arrays.items():
            self.write(name, array)
        given = {name: value.numpy() for name, value in self.inputs.items()}
        for name, array in zip(self.outputs, self.session.run(list(self.outputs), given), strict=True):
            self.outputs[name].update_inplace(np.ascontiguousarray(array))


class NumpyStaticGraphs(StaticGraphs):
    """As `StaticGraphs`, without onnxruntime."""

    _call_type = NumpyCall

    def _open(self, name: str) -> Any:
        return NumpySession(self.directory / name, widen=True)
