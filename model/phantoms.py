"""Phantom radiographs: synthetic frontal chest images with known findings.

Each of the 14 findings is a visible, localised change inside a box that is known
exactly. Phantoms test machinery; nothing learnt from them says anything about
patients.

Drawing happens in patient units: a unit square, x to the right (the patient's
left), y down, before the patient is scaled and shifted in the frame. Brightness
is 0 (air) to 1 (metal) until exposure turns it into grey levels.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from schemas.findings import ABNORMAL_FINDINGS, NO_FINDING

_MIN_SIZE = 64
_NORMAL_SHARE = 0.35
"""Share of phantoms without a finding."""

_LUNG_RADII = (0.155, 0.31)
_LUNG_CENTRES = {"right": (0.30, 0.47), "left": (0.70, 0.47)}
_DIAPHRAGM_Y = 0.735
_HEART_CENTRE = (0.545, 0.605)
_HEART_RADII = (0.115, 0.135)


@dataclasses.dataclass(frozen=True)
class Box:
    """Where a finding was drawn, in pixels of the image, as the NIH box list has it."""

    finding: str
    x: float
    y: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A synthetic radiograph and what is in it.

    Attributes:
      pixels: uint8 `(size, size)`, grey, 0 to 255.
      findings: Names in alphabetical order; `("No Finding",)` where there is none.
      boxes: One a finding.
    """

    pixels: np.ndarray
    findings: tuple[str, ...]
    boxes: tuple[Box, ...]


def draw_phantom(seed: int, index: int, size: int = 1024) -> Phantom:
    """Draws phantom number `index` of the archive that `seed` names.

    The same arguments give the same pixels with the same NumPy and Pillow.

    Args:
      seed: Names the archive; 0 or more.
      index: Number of the phantom in it; 0 or more. Phantoms are independent.
      size: Height and width in pixels; 64 or more. Fine meshes show from about 224.

    Raises:
      ValueError: `size` is too small to show the findings.
    """
    if size < _MIN_SIZE:
        raise ValueError(f"size must be at least {_MIN_SIZE} pixels. Received: size={size}.")
    rng = np.random.default_rng([seed, index])
    findings = _choose_findings(rng)
    canvas = _Canvas(rng, size)
    _draw_anatomy(canvas, rng, cardiomegaly="Cardiomegaly" in findings)
    boxes = tuple(canvas.box(name, *_DRAWERS[name](canvas, rng)) for name in findings)
    pixels = _expose(canvas.brightness, rng)
    return Phantom(pixels, findings or (NO_FINDING,), boxes)


def _choose_findings(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.random() < _NORMAL_SHARE:
        return ()
    count = rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])
    return tuple(sorted(rng.choice(ABNORMAL_FINDINGS, size=count, replace=False).tolist()))


class _Canvas:
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
        self.heart_radii = _HEART_RADII

    def box(self, finding: str, x0: float, y0: float, x1: float, y1: float) -> Box:
        """Returns the box from patient units, clipped to the frame, in pixels."""
        corners = np.array([[x0, y0], [x1, y1]])
        pixels = ((corners - 0.5) * self._scale + 0.5 + self._shift) * self._size
        (left, top), (right, bottom) = np.clip(pixels, 0, self._size).round(1).tolist()
        return Box(finding, left, top, round(right - left, 1), round(bottom - top, 1))

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
        return window, _ramp(1 - distance, edge)

    def add(self, window: tuple[slice, slice], mask: np.ndarray, amount: float) -> None:
        """Adds `amount` times `mask` to the brightness in `window`."""
        self.brightness[window] += np.float32(amount) * mask

    def texture(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Returns smooth noise, float32 `(size, size)`, mean 0, deviation about 1."""
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        return np.asarray(coarse.resize((self._size, self._size), Image.Resampling.BICUBIC))


def _ramp(inside: np.ndarray, edge: float) -> np.ndarray:
    """Returns 0 to 1 across `edge`, one half where `inside` is 0."""
    return np.clip(inside / edge + 0.5, 0, 1).astype(np.float32)


def _bump(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns 1 on a line, falling to 0.37 at `width` from it."""
    return np.exp(-np.square(distance / width)).astype(np.float32)


# Anatomy


def _draw_anatomy(canvas: _Canvas, rng: np.random.Generator, *, cardiomegaly: bool) -> None:
    x, y = canvas.x, canvas.y
    body = _ramp(1 - np.hypot((x - 0.5) / 0.49, (y - 0.62) / 0.72), 0.06)
    canvas.brightness += 0.62 * body
    dome = _DIAPHRAGM_Y + 0.9 * np.square(np.abs(x - 0.5) - 0.2)
    above_diaphragm = _ramp(dome - y, 0.02)
    for cx, cy in _LUNG_CENTRES.values():
        rx, ry = _LUNG_RADII
        shape = _ramp(1 - np.hypot((x - cx) / rx, (y - cy) / ry), 0.08)
        np.maximum(canvas.lung, shape * above_diaphragm, out=canvas.lung)
    canvas.brightness -= 0.40 * canvas.lung
    _draw_vessels(canvas, rng)
    _draw_ribs(canvas, rng, body)
    _draw_spine(canvas, body)
    _draw_heart(canvas, rng, cardiomegaly)


def _draw_vessels(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Lung markings: denser towards the hila, so that their absence shows."""
    near_hilum = _bump(np.abs(canvas.x - 0.5) - 0.1, 0.16) * _bump(canvas.y - 0.46, 0.25)
    strands = np.abs(canvas.texture(rng, 56))
    canvas.brightness += 0.05 * canvas.lung * (0.35 + near_hilum) * np.minimum(strands, 2.5)


def _draw_ribs(canvas: _Canvas, rng: np.random.Generator, body: np.ndarray) -> None:
    arch = canvas.y - 1.3 * np.square(np.abs(canvas.x - 0.5) - 0.16)
    phase = np.mod(arch / 0.083 + rng.uniform(), 1) - 0.5
    cage = _ramp(1 - np.hypot((canvas.x - 0.5) / 0.41, (canvas.y - 0.45) / 0.38), 0.1)
    strength = rng.uniform(0.06, 0.10)
    canvas.brightness += strength * _bump(phase, 0.16) * cage * body
    for side in (-1, 1):
        clavicle = canvas.y - 0.155 + side * 0.2 * (canvas.x - 0.5)
        length = _bump(np.abs(canvas.x - 0.5 - side * 0.19), 0.15)
        canvas.brightness += 0.12 * _bump(clavicle, 0.013) * length


def _draw_spine(canvas: _Canvas, body: np.ndarray) -> None:
    discs = 0.75 + 0.25 * np.cos(canvas.y * 2 * np.pi / 0.065)
    canvas.brightness += 0.16 * _bump(canvas.x - 0.5, 0.035) * discs * body
    trachea = _bump(canvas.x - 0.5, 0.018) * _ramp(0.34 - canvas.y, 0.05)
    canvas.brightness -= 0.12 * trachea * body


def _draw_heart(canvas: _Canvas, rng: np.random.Generator, cardiomegaly: bool) -> None:
    widening = rng.uniform(1.45, 1.75) if cardiomegaly else rng.uniform(0.9, 1.1)
    canvas.heart_radii = (_HEART_RADII[0] * widening, _HEART_RADII[1])
    window, mask = canvas.ellipse(*_HEART_CENTRE, *canvas.heart_radii, 0.12)
    # The heart hides lung, not spine: it fills up to soft tissue.
    canvas.brightness[window] += 0.36 * mask * canvas.lung[window]
    canvas.lung[window] *= 1 - mask
    window, mask = canvas.ellipse(0.5, 0.36, 0.065, 0.16, 0.3)
    canvas.add(window, mask * canvas.lung[window], 0.25)


def _expose(brightness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns grey levels under a random exposure, gamma and quantum noise."""
    gamma, gain = rng.uniform(0.85, 1.2), rng.uniform(0.9, 1.15)
    level = gain * np.power(np.clip(brightness, 0, 1.2), np.float32(gamma))
    noise = rng.standard_normal(brightness.shape, dtype=np.float32)
    level += np.float32(rng.uniform(0.015, 0.035)) * noise
    return (np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8)


# Findings: each draws itself and returns its box (x0, y0, x1, y1) in patient units.


def _side(rng: np.random.Generator) -> tuple[str, int]:
    """Returns a lung and the direction of its outer wall along x."""
    return ("right", -1) if rng.random() < 0.5 else ("left", 1)


def _place(
    rng: np.random.Generator, margin: float, y_range: tuple[float, float]
) -> tuple[float, float]:
    """Returns a point inside a lung, `margin` away from its sides."""
    side, _ = _side(rng)
    cx, cy = _LUNG_CENTRES[side]
    rx, ry = _LUNG_RADII
    y = rng.uniform(*y_range)
    half = max(rx * np.sqrt(max(1 - ((y - cy) / ry) ** 2, 0)) - margin, 0.01)
    return cx + rng.uniform(-half, half) * 0.9, y


def _around(cx: float, cy: float, rx: float, ry: float) -> tuple[float, float, float, float]:
    return cx - rx, cy - ry, cx + rx, cy + ry


def _draw_atelectasis(canvas: _Canvas, rng: np.random.Generator):
    """Plate-like bands, slightly tilted, in a lower zone."""
    cx, cy = _place(rng, 0.07, (0.58, 0.66))
    slope, half = rng.uniform(-0.35, 0.35), rng.uniform(0.075, 0.1)
    rows, columns = window = canvas.window(*_around(cx, cy, half, 0.07))
    along = _ramp(half - 0.01 - np.abs(canvas.x[:, columns] - cx), 0.02)
    tilted = canvas.y[rows] - cy - slope * (canvas.x[:, columns] - cx)
    for offset in (-0.024, 0.024):
        canvas.add(window, _bump(tilted - offset, 0.009) * along, 0.34)
    return _around(cx, cy, half, 0.07)


def _draw_cardiomegaly(canvas: _Canvas, rng: np.random.Generator):
    """The heart itself, drawn wide with the anatomy."""
    return _around(*_HEART_CENTRE, *canvas.heart_radii)


def _draw_consolidation(canvas: _Canvas, rng: np.random.Generator):
    """A dense, even patch with an uneven border."""
    cx, cy = _place(rng, 0.07, (0.35, 0.6))
    rx, ry = rng.uniform(0.065, 0.09), rng.uniform(0.075, 0.11)
    window, mask = canvas.ellipse(cx, cy, rx, ry, 0.5)
    uneven = 1 + 0.35 * canvas.texture(rng, 24)[window]
    canvas.add(window, np.clip(mask * uneven, 0, 1) * (0.3 + 0.7 * canvas.lung[window]), 0.34)
    return _around(cx, cy, rx, ry)


def _draw_edema(canvas: _Canvas, rng: np.random.Generator):
    """Haze spreading from both hila like wings."""
    amount = rng.uniform(0.2, 0.28)
    for cx in (0.36, 0.64):
        window, mask = canvas.ellipse(cx, 0.46, 0.1, 0.16, 1.0)
        grain = 1 + 0.3 * canvas.texture(rng, 90)[window]
        canvas.add(window, mask * grain * canvas.lung[window], amount)
    return 0.24, 0.26, 0.76, 0.66


def _draw_effusion(canvas: _Canvas, rng: np.random.Generator):
    """Fluid over a lung base, its surface rising to the outer wall."""
    side, outward = _side(rng)
    cx, _ = _LUNG_CENTRES[side]
    level = rng.uniform(0.58, 0.66)
    x0, x1 = cx - 0.17, cx + 0.17
    rows, columns = window = canvas.window(x0, level - 0.1, x1, 0.85)
    rise = 0.08 * np.clip(outward * (canvas.x[:, columns] - cx) / 0.15, -0.4, 1)
    fluid = _ramp(canvas.y[rows] - (level - rise), 0.03)
    canvas.add(window, fluid * canvas.lung[window], 0.42)
    return x0, level - 0.06, x1, 0.78


def _draw_emphysema(canvas: _Canvas, rng: np.random.Generator):
    """A cluster of dark, thin-walled bullae in an upper zone."""
    side, _ = _side(rng)
    cx, _ = _LUNG_CENTRES[side]
    cy = rng.uniform(0.3, 0.4)
    for dx, dy in ((-0.045, -0.04), (0.05, -0.03), (-0.03, 0.055), (0.05, 0.05)):
        radius = rng.uniform(0.04, 0.052)
        rows, columns = window = canvas.window(*_around(cx + dx, cy + dy, 0.075, 0.075))
        distance = np.hypot(canvas.x[:, columns] - cx - dx, canvas.y[rows] - cy - dy)
        inside = _ramp(radius - distance, 0.01)
        canvas.brightness[window] *= 1 - 0.75 * inside
        canvas.add(window, _bump(distance - radius, 0.006), 0.16)
    return _around(cx, cy, 0.1, 0.105)


def _draw_fibrosis(canvas: _Canvas, rng: np.random.Generator):
    """A mesh of fine lines near the outer wall of a lower zone."""
    side, outward = _side(rng)
    cx = _LUNG_CENTRES[side][0] + outward * 0.05
    cy = rng.uniform(0.52, 0.62)
    window, mask = canvas.ellipse(cx, cy, 0.09, 0.1, 0.4)
    rows, columns = window
    u = canvas.x[:, columns] + canvas.y[rows]
    v = canvas.x[:, columns] - canvas.y[rows]
    mesh = np.maximum(_bump(np.sin(u * np.pi / 0.026), 0.3), _bump(np.sin(v * np.pi / 0.026), 0.3))
    canvas.add(window, mesh * mask * (0.3 + 0.7 * canvas.lung[window]), 0.3)
    return _around(cx, cy, 0.09, 0.1)


def _draw_hernia(canvas: _Canvas, rng: np.random.Generator):
    """A round shadow behind the heart with an air-fluid level."""
    cx, cy, radius = rng.uniform(0.52, 0.6), rng.uniform(0.66, 0.7), rng.uniform(0.06, 0.075)
    window, mask = canvas.ellipse(cx, cy, radius, radius, 0.12)
    rows, columns = window
    air = mask * _ramp(cy - canvas.y[rows], 0.012)
    canvas.brightness[window] -= 0.32 * air
    canvas.add(window, mask - air, 0.14)
    rim = _bump(np.hypot(canvas.x[:, columns] - cx, canvas.y[rows] - cy) - radius, 0.006)
    canvas.add(window, rim, 0.2)
    return _around(cx, cy, radius, radius)


def _draw_infiltration(canvas: _Canvas, rng: np.random.Generator):
    """Many small, faint, ill-defined spots in one zone."""
    cx, cy = _place(rng, 0.09, (0.34, 0.58))
    for _ in range(14):
        dx, dy = rng.uniform(-0.075, 0.075), rng.uniform(-0.085, 0.085)
        window, mask = canvas.ellipse(cx + dx, cy + dy, 0.015, 0.015, 1.2)
        canvas.add(window, mask, 0.2)
    return _around(cx, cy, 0.095, 0.105)


def _draw_mass(canvas: _Canvas, rng: np.random.Generator):
    """One large, round, sharply bordered opacity."""
    cx, cy = _place(rng, 0.06, (0.3, 0.6))
    radius = rng.uniform(0.05, 0.07)
    window, mask = canvas.ellipse(cx, cy, radius, radius, 0.1)
    canvas.add(window, mask, 0.36)
    return _around(cx, cy, radius, radius)


def _draw_nodule(canvas: _Canvas, rng: np.random.Generator):
    """One small, round, bright opacity."""
    cx, cy = _place(rng, 0.035, (0.27, 0.64))
    radius = rng.uniform(0.02, 0.028)
    window, mask = canvas.ellipse(cx, cy, radius, radius, 0.25)
    canvas.add(window, mask, 0.48)
    return _around(cx, cy, 0.04, 0.04)


def _draw_pleural_thickening(canvas: _Canvas, rng: np.random.Generator):
    """A bright rind along the outer wall of one lung."""
    side, outward = _side(rng)
    cx, cy = _LUNG_CENTRES[side]
    rx, ry = _LUNG_RADII
    y0, y1 = cy - 0.16, cy + 0.1
    x0, x1 = sorted((cx + outward * 0.09, cx + outward * (rx + 0.02)))
    rows, columns = window = canvas.window(x0, y0, x1, y1)
    distance = np.hypot((canvas.x[:, columns] - cx) / rx, (canvas.y[rows] - cy) / ry)
    ends = _ramp(0.12 - np.abs(canvas.y[rows] - (y0 + y1) / 2), 0.03)
    canvas.add(window, _bump(distance - 0.93, 0.1) * ends, 0.42)
    return x0, y0, x1, y1


def _draw_pneumonia(canvas: _Canvas, rng: np.random.Generator):
    """A lobe's wedge under a straight fissure, with dark air bronchograms."""
    cx, cy = _place(rng, 0.08, (0.44, 0.58))
    half, depth = rng.uniform(0.075, 0.095), rng.uniform(0.12, 0.15)
    rows, columns = window = canvas.window(cx - half, cy - 0.02, cx + half, cy + depth)
    dx, dy = canvas.x[:, columns] - cx, canvas.y[rows] - cy
    wedge = _ramp(dy, 0.012) * _ramp(half * (1 - dy / depth) - np.abs(dx), 0.03)
    bronchi = np.maximum(_bump(dx - 0.3 * dy, 0.007), _bump(dx + 0.35 * dy, 0.007))
    canvas.add(window, wedge * (1 - 0.85 * bronchi), 0.33)
    return cx - half, cy, cx + half, cy + depth


def _draw_pneumothorax(canvas: _Canvas, rng: np.random.Generator):
    """Black, empty space over an apex, ending at a thin pleural line."""
    side, outward = _side(rng)
    cx, cy = _LUNG_CENTRES[side]
    rx, ry = _LUNG_RADII
    x0, x1 = cx - rx, cx + rx
    y1 = 0.47
    rows, columns = window = canvas.window(x0, 0.13, x1, y1)
    shrink = rng.uniform(0.58, 0.68)
    inner = np.hypot(
        (canvas.x[:, columns] - cx + outward * 0.05) / (rx * 0.95),
        (canvas.y[rows] - cy - 0.08) / (ry * shrink * 1.35),
    )
    outside = _ramp(inner - 1, 0.06) * canvas.lung[window] * _ramp(y1 - canvas.y[rows], 0.06)
    canvas.brightness[window] *= 1 - 0.9 * outside
    canvas.add(window, _bump(inner - 1, 0.025) * canvas.lung[window], 0.25)
    return x0, 0.17, x1, y1


_DRAWERS: dict[str, Callable[[_Canvas, np.random.Generator], tuple[float, float, float, float]]] = {
    "Atelectasis": _draw_atelectasis,
    "Cardiomegaly": _draw_cardiomegaly,
    "Consolidation": _draw_consolidation,
    "Edema": _draw_edema,
    "Effusion": _draw_effusion,
    "Emphysema": _draw_emphysema,
    "Fibrosis": _draw_fibrosis,
    "Hernia": _draw_hernia,
    "Infiltration": _draw_infiltration,
    "Mass": _draw_mass,
    "Nodule": _draw_nodule,
    "Pleural_Thickening": _draw_pleural_thickening,
    "Pneumonia": _draw_pneumonia,
    "Pneumothorax": _draw_pneumothorax,
}
