"""Phantom radiographs: synthetic frontal chest images with known findings.

Each of the 14 findings is a visible, localised change inside a box that is known
exactly. Phantoms test machinery; nothing learnt from them says anything about
patients.
"""

import dataclasses

import numpy as np

from model.phantom_canvas import (
    HEART_CENTRE,
    HEART_RADII,
    LUNG_CENTRES,
    LUNG_RADII,
    Canvas,
    bump,
    ramp,
)
from model.phantom_findings import DRAWERS
from schemas.findings import ABNORMAL_FINDINGS, NO_FINDING

_MIN_SIZE = 64
_NORMAL_SHARE = 0.35
"""Share of phantoms without a finding."""

_DIAPHRAGM_Y = 0.735


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
    canvas = Canvas(rng, size)
    _draw_anatomy(canvas, rng, cardiomegaly="Cardiomegaly" in findings)
    boxes = tuple(Box(name, *canvas.pixels(*DRAWERS[name](canvas, rng))) for name in findings)
    pixels = _expose(canvas.brightness, rng)
    return Phantom(pixels, findings or (NO_FINDING,), boxes)


def _choose_findings(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.random() < _NORMAL_SHARE:
        return ()
    count = rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])
    return tuple(sorted(rng.choice(ABNORMAL_FINDINGS, size=count, replace=False).tolist()))


def _draw_anatomy(canvas: Canvas, rng: np.random.Generator, *, cardiomegaly: bool) -> None:
    x, y = canvas.x, canvas.y
    body = ramp(1 - np.hypot((x - 0.5) / 0.49, (y - 0.62) / 0.72), 0.06)
    canvas.brightness += 0.62 * body
    dome = _DIAPHRAGM_Y + 0.9 * np.square(np.abs(x - 0.5) - 0.2)
    above_diaphragm = ramp(dome - y, 0.02)
    for cx, cy in LUNG_CENTRES.values():
        rx, ry = LUNG_RADII
        shape = ramp(1 - np.hypot((x - cx) / rx, (y - cy) / ry), 0.08)
        np.maximum(canvas.lung, shape * above_diaphragm, out=canvas.lung)
    canvas.brightness -= 0.40 * canvas.lung
    _draw_vessels(canvas, rng)
    _draw_ribs(canvas, rng, body)
    _draw_spine(canvas, body)
    _draw_heart(canvas, rng, cardiomegaly)


def _draw_vessels(canvas: Canvas, rng: np.random.Generator) -> None:
    """Lung markings: denser towards the hila, so that their absence shows."""
    near_hilum = bump(np.abs(canvas.x - 0.5) - 0.1, 0.16) * bump(canvas.y - 0.46, 0.25)
    strands = np.abs(canvas.texture(rng, 56))
    canvas.brightness += 0.05 * canvas.lung * (0.35 + near_hilum) * np.minimum(strands, 2.5)


def _draw_ribs(canvas: Canvas, rng: np.random.Generator, body: np.ndarray) -> None:
    arch = canvas.y - 1.3 * np.square(np.abs(canvas.x - 0.5) - 0.16)
    phase = np.mod(arch / 0.083 + rng.uniform(), 1) - 0.5
    cage = ramp(1 - np.hypot((canvas.x - 0.5) / 0.41, (canvas.y - 0.45) / 0.38), 0.1)
    strength = rng.uniform(0.06, 0.10)
    canvas.brightness += strength * bump(phase, 0.16) * cage * body
    for side in (-1, 1):
        clavicle = canvas.y - 0.155 + side * 0.2 * (canvas.x - 0.5)
        length = bump(np.abs(canvas.x - 0.5 - side * 0.19), 0.15)
        canvas.brightness += 0.12 * bump(clavicle, 0.013) * length


def _draw_spine(canvas: Canvas, body: np.ndarray) -> None:
    discs = 0.75 + 0.25 * np.cos(canvas.y * 2 * np.pi / 0.065)
    canvas.brightness += 0.16 * bump(canvas.x - 0.5, 0.035) * discs * body
    trachea = bump(canvas.x - 0.5, 0.018) * ramp(0.34 - canvas.y, 0.05)
    canvas.brightness -= 0.12 * trachea * body


def _draw_heart(canvas: Canvas, rng: np.random.Generator, cardiomegaly: bool) -> None:
    widening = rng.uniform(1.45, 1.75) if cardiomegaly else rng.uniform(0.9, 1.1)
    canvas.heart_radii = (HEART_RADII[0] * widening, HEART_RADII[1])
    window, mask = canvas.ellipse(*HEART_CENTRE, *canvas.heart_radii, 0.12)
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
