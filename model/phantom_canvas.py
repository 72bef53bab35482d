"""Drawing in patient units, and where the organs of a phantom are.

Patient units are a unit square, x to the right (the patient's left), y down, before
the patient is scaled and shifted in the frame. Brightness is 0 (air) to 1 (metal)
until exposure turns it into grey levels.
"""

import numpy as np
from PIL import Image

LUNG_RADII = (0.155, 0.31)
LUNG_CENTRES = {"right": (0.30, 0.47), "left": (0.70, 0.47)}
HEART_CENTRE = (0.545, 0.605)
HEART_RADII = (0.115, 0.135)


class Canvas:
    """Brightness of the frame, and its coordinates in patient units.

    Attributes:
      brightness: float32 `(size, size)`, drawn on in place.
      x, y: float32 `(1, size)` and `(size, 1)`, patient units of pixel centres.
      lung: float32 `(size, size)`, 0 outside to 1 inside either lung.
      heart_radii: Radii of the heart's shadow.
    """

    def __init__(self, rng: np.random.Generator, size: int):
        self._size = size
        self._scale = rng.uniform(0.9, 1.08)
        self._shift = rng.uniform(-0.03, 0.03, size=2)
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x = ((centres - 0.5 - self._shift[0]) / self._scale + 0.5)[np.newaxis, :]
        self.y = ((centres - 0.5 - self._shift[1]) / self._scale + 0.5)[:, np.newaxis]
        self.brightness = np.zeros((size, size), np.float32)
        self.lung = np.zeros((size, size), np.float32)
        self.heart_radii = HEART_RADII

    def pixels(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
        """Returns x, y, width and height of a rectangle, clipped to the frame, in pixels."""
        corners = np.array([[x0, y0], [x1, y1]])
        scaled = ((corners - 0.5) * self._scale + 0.5 + self._shift) * self._size
        (left, top), (right, bottom) = np.clip(scaled, 0, self._size).round(1).tolist()
        return left, top, round(right - left, 1), round(bottom - top, 1)

    def window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """Returns the rows and columns that cover a rectangle in patient units."""
        columns = np.searchsorted(self.x[0], [x0, x1])
        rows = np.searchsorted(self.y[:, 0], [y0, y1])
        return slice(*rows), slice(*columns)

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, edge: float
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Returns a window and a soft mask (0 to 1) of an ellipse in it.

        Args:
          cx, cy: Centre.
          rx, ry: Radii, where the mask is one half.
          edge: Width of the soft rim, as a share of the radius.
        """
        reach = 1 + edge
        window = self.window(cx - rx * reach, cy - ry * reach, cx + rx * reach, cy + ry * reach)
        rows, columns = window
        distance = np.hypot((self.x[:, columns] - cx) / rx, (self.y[rows] - cy) / ry)
        return window, ramp(1 - distance, edge)

    def add(self, window: tuple[slice, slice], mask: np.ndarray, amount: float) -> None:
        """Adds `amount` times `mask` to the brightness in `window`."""
        self.brightness[window] += np.float32(amount) * mask

    def texture(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Returns smooth noise, float32 `(size, size)`, mean 0, deviation about 1."""
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        return np.asarray(coarse.resize((self._size, self._size), Image.Resampling.BICUBIC))


def ramp(inside: np.ndarray, edge: float) -> np.ndarray:
    """Returns 0 to 1 across `edge`, one half where `inside` is 0."""
    return np.clip(inside / edge + 0.5, 0, 1).astype(np.float32)


def bump(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns 1 on a line, falling to 0.37 at `width` from it."""
    return np.exp(-np.square(distance / width)).astype(np.float32)
