"""The type of numpy arrays whose dtype is only known at run time."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
