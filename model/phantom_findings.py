"""How each of the 14 findings is drawn on a phantom.

Each function draws one finding at a random place and returns its box
`(x0, y0, x1, y1)` in patient units.
"""

from collections.abc import Callable

import numpy as np

from model.phantom_canvas import (
    HEART_CENTRE,
    LUNG_CENTRES,
    LUNG_RADII,
    Canvas,
    bump,
    ramp,
)


def _side(rng: np.random.Generator) -> tuple[str, int]:
    """Returns a lung and the direction of its outer wall along x."""
    return ("right", -1) if rng.random() < 0.5 else ("left", 1)


def _place(
    rng: np.random.Generator, margin: float, y_range: tuple[float, float]
) -> tuple[float, float]:
    """Returns a point inside a lung, `margin` away from its sides."""
    side, _ = _side(rng)
    cx, cy = LUNG_CENTRES[side]
    rx, ry = LUNG_RADII
    y = rng.uniform(*y_range)
    half = max(rx * np.sqrt(max(1 - ((y - cy) / ry) ** 2, 0)) - margin, 0.01)
    return cx + rng.uniform(-half, half) * 0.9, y


def _around(cx: float, cy: float, rx: float, ry: float) -> tuple[float, float, float, float]:
    return cx - rx, cy - ry, cx + rx, cy + ry


def _draw_atelectasis(canvas: Canvas, rng: np.random.Generator):
    """Plate-like bands, slightly tilted, in a lower zone."""
    cx, cy = _place(rng, 0.07, (0.58, 0.66))
    slope, half = rng.uniform(-0.35, 0.35), rng.uniform(0.075, 0.1)
    rows, columns = window = canvas.window(*_around(cx, cy, half, 0.07))
    along = ramp(half - 0.01 - np.abs(canvas.x[:, columns] - cx), 0.02)
    tilted = canvas.y[rows] - cy - slope * (canvas.x[:, columns] - cx)
    for offset in (-0.024, 0.024):
        canvas.add(window, bump(tilted - offset, 0.009) * along, 0.34)
    return _around(cx, cy, half, 0.07)


def _draw_cardiomegaly(canvas: Canvas, rng: np.random.Generator):
    """The heart itself, drawn wide with the anatomy."""
    return _around(*HEART_CENTRE, *canvas.heart_radii)


def _draw_consolidation(canvas: Canvas, rng: np.random.Generator):
    """A dense, even patch with an uneven border."""
    cx, cy = _place(rng, 0.07, (0.35, 0.6))
    rx, ry = rng.uniform(0.065, 0.09), rng.uniform(0.075, 0.11)
    window, mask = canvas.ellipse(cx, cy, rx, ry, 0.5)
    uneven = 1 + 0.35 * canvas.texture(rng, 24)[window]
    canvas.add(window, np.clip(mask * uneven, 0, 1) * (0.3 + 0.7 * canvas.lung[window]), 0.34)
    return _around(cx, cy, rx, ry)


def _draw_edema(canvas: Canvas, rng: np.random.Generator):
    """Haze spreading from both hila like wings."""
    amount = rng.uniform(0.2, 0.28)
    for cx in (0.36, 0.64):
        window, mask = canvas.ellipse(cx, 0.46, 0.1, 0.16, 1.0)
        grain = 1 + 0.3 * canvas.texture(rng, 90)[window]
        canvas.add(window, mask * grain * canvas.lung[window], amount)
    return 0.24, 0.26, 0.76, 0.66


def _draw_effusion(canvas: Canvas, rng: np.random.Generator):
    """Fluid over a lung base, its surface rising to the outer wall."""
    side, outward = _side(rng)
    cx, _ = LUNG_CENTRES[side]
    level = rng.uniform(0.58, 0.66)
    x0, x1 = cx - 0.17, cx + 0.17
    rows, columns = window = canvas.window(x0, level - 0.1, x1, 0.85)
    rise = 0.08 * np.clip(outward * (canvas.x[:, columns] - cx) / 0.15, -0.4, 1)
    fluid = ramp(canvas.y[rows] - (level - rise), 0.03)
    canvas.add(window, fluid * canvas.lung[window], 0.42)
    return x0, level - 0.06, x1, 0.78


def _draw_emphysema(canvas: Canvas, rng: np.random.Generator):
    """A cluster of dark, thin-walled bullae in an upper zone."""
    side, _ = _side(rng)
    cx, _ = LUNG_CENTRES[side]
    cy = rng.uniform(0.3, 0.4)
    for dx, dy in ((-0.045, -0.04), (0.05, -0.03), (-0.03, 0.055), (0.05, 0.05)):
        radius = rng.uniform(0.04, 0.052)
        rows, columns = window = canvas.window(*_around(cx + dx, cy + dy, 0.075, 0.075))
        distance = np.hypot(canvas.x[:, columns] - cx - dx, canvas.y[rows] - cy - dy)
        inside = ramp(radius - distance, 0.01)
        canvas.brightness[window] *= 1 - 0.75 * inside
        canvas.add(window, bump(distance - radius, 0.006), 0.16)
    return _around(cx, cy, 0.1, 0.105)


def _draw_fibrosis(canvas: Canvas, rng: np.random.Generator):
    """A mesh of fine lines near the outer wall of a lower zone."""
    side, outward = _side(rng)
    cx = LUNG_CENTRES[side][0] + outward * 0.05
    cy = rng.uniform(0.52, 0.62)
    window, mask = canvas.ellipse(cx, cy, 0.09, 0.1, 0.4)
    rows, columns = window
    u = canvas.x[:, columns] + canvas.y[rows]
    v = canvas.x[:, columns] - canvas.y[rows]
    mesh = np.maximum(bump(np.sin(u * np.pi / 0.026), 0.3), bump(np.sin(v * np.pi / 0.026), 0.3))
    canvas.add(window, mesh * mask * (0.3 + 0.7 * canvas.lung[window]), 0.3)
    return _around(cx, cy, 0.09, 0.1)


def _draw_hernia(canvas: Canvas, rng: np.random.Generator):
    """A round shadow behind the heart with an air-fluid level."""
    cx, cy, radius = rng.uniform(0.52, 0.6), rng.uniform(0.66, 0.7), rng.uniform(0.06, 0.075)
    window, mask = canvas.ellipse(cx, cy, radius, radius, 0.12)
    rows, columns = window
    air = mask * ramp(cy - canvas.y[rows], 0.012)
    canvas.brightness[window] -= 0.32 * air
    canvas.add(window, mask - air, 0.14)
    rim = bump(np.hypot(canvas.x[:, columns] - cx, canvas.y[rows] - cy) - radius, 0.006)
    canvas.add(window, rim, 0.2)
    return _around(cx, cy, radius, radius)


def _draw_infiltration(canvas: Canvas, rng: np.random.Generator):
    """Many small, faint, ill-defined spots in one zone."""
    cx, cy = _place(rng, 0.09, (0.34, 0.58))
    for _ in range(14):
        dx, dy = rng.uniform(-0.075, 0.075), rng.uniform(-0.085, 0.085)
        window, mask = canvas.ellipse(cx + dx, cy + dy, 0.015, 0.015, 1.2)
        canvas.add(window, mask, 0.2)
    return _around(cx, cy, 0.095, 0.105)


def _draw_mass(canvas: Canvas, rng: np.random.Generator):
    """One large, round, sharply bordered opacity."""
    cx, cy = _place(rng, 0.06, (0.3, 0.6))
    radius = rng.uniform(0.05, 0.07)
    window, mask = canvas.ellipse(cx, cy, radius, radius, 0.1)
    canvas.add(window, mask, 0.36)
    return _around(cx, cy, radius, radius)


def _draw_nodule(canvas: Canvas, rng: np.random.Generator):
    """One small, round, bright opacity."""
    cx, cy = _place(rng, 0.035, (0.27, 0.64))
    radius = rng.uniform(0.02, 0.028)
    window, mask = canvas.ellipse(cx, cy, radius, radius, 0.25)
    canvas.add(window, mask, 0.48)
    return _around(cx, cy, 0.04, 0.04)


def _draw_pleural_thickening(canvas: Canvas, rng: np.random.Generator):
    """A bright rind along the outer wall of one lung, its inner border in waves."""
    side, outward = _side(rng)
    cx, cy = LUNG_CENTRES[side]
    rx, ry = LUNG_RADII
    y0, y1 = cy - 0.16, cy + 0.1
    x0, x1 = sorted((cx + outward * 0.08, cx + outward * (rx + 0.02)))
    rows, columns = window = canvas.window(x0, y0, x1, y1)
    distance = np.hypot((canvas.x[:, columns] - cx) / rx, (canvas.y[rows] - cy) / ry)
    ends = ramp(0.12 - np.abs(canvas.y[rows] - (y0 + y1) / 2), 0.03)
    waves = 0.04 * np.sin(canvas.y[rows] * 2 * np.pi / 0.07)
    canvas.add(
        window, ramp(distance - 0.83 - waves, 0.05) * ramp(1.02 - distance, 0.08) * ends, 0.48
    )
    return x0, y0, x1, y1


def _draw_pneumonia(canvas: Canvas, rng: np.random.Generator):
    """A lobe's wedge under a straight fissure, with dark air bronchograms."""
    cx, cy = _place(rng, 0.08, (0.44, 0.58))
    half, depth = rng.uniform(0.075, 0.095), rng.uniform(0.12, 0.15)
    rows, columns = window = canvas.window(cx - half, cy - 0.02, cx + half, cy + depth)
    dx, dy = canvas.x[:, columns] - cx, canvas.y[rows] - cy
    wedge = ramp(dy, 0.012) * ramp(half * (1 - dy / depth) - np.abs(dx), 0.03)
    bronchi = np.maximum(bump(dx - 0.3 * dy, 0.007), bump(dx + 0.35 * dy, 0.007))
    canvas.add(window, wedge * (1 - 0.85 * bronchi), 0.33)
    return cx - half, cy, cx + half, cy + depth


def _draw_pneumothorax(canvas: Canvas, rng: np.random.Generator):
    """Black, empty space over an apex, ending at a thin pleural line."""
    side, outward = _side(rng)
    cx, cy = LUNG_CENTRES[side]
    rx, ry = LUNG_RADII
    x0, x1 = cx - rx, cx + rx
    y1 = 0.47
    rows, columns = window = canvas.window(x0, 0.13, x1, y1)
    shrink = rng.uniform(0.58, 0.68)
    inner = np.hypot(
        (canvas.x[:, columns] - cx + outward * 0.05) / (rx * 0.95),
        (canvas.y[rows] - cy - 0.08) / (ry * shrink * 1.35),
    )
    outside = ramp(inner - 1, 0.06) * canvas.lung[window] * ramp(y1 - canvas.y[rows], 0.06)
    canvas.brightness[window] *= 1 - 0.9 * outside
    canvas.add(window, bump(inner - 1, 0.025) * canvas.lung[window], 0.25)
    return x0, 0.17, x1, y1


DRAWERS: dict[str, Callable[[Canvas, np.random.Generator], tuple[float, float, float, float]]] = {
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
