# SPDX-License-Identifier: Apache-2.0
import numpy as np
from numpy.typing import NDArray

MAX_SHAPES: int

def render(
    shapes: NDArray[np.float32],
    textures: NDArray[np.float32],
    lights: NDArray[np.float32],
    ambient: NDArray[np.float32],
    cameras: NDArray[np.float32],
    antialias: bool,
    first: int,
    last: int,
    rgb: NDArray[np.uint8],
    depth: NDArray[np.float32],
    points: NDArray[np.float32],
    /,
) -> None: ...
def mean_norm(points: NDArray[np.float32], /) -> float: ...
