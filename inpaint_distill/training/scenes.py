"""Synthetic scenes made on the fly: textured dead leaves crossed by long straight structures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Floats = npt.NDArray[np.float32]

__all__ = ["dead_leaves"]

_DISC, _BOX, _DIAMOND = range(3)


def dead_leaves(count: int, size: int, *, seed: int) -> Tensor:
    """Make scenes of occluding leaves, with what an inpainting network has to continue: edges, texture, shading.

    Discs, ellipses, rectangles and diamonds with power-law radii cover each other (the dead leaves model, Lee, Mumford
    and Huang, IJCV 2001). Ours: each leaf has a texture (plain, waves, stripes, checks or 1/f noise) and a shading, and
    some leaves are longer than the image, so that straight lines and horizons run through it.

    Args:
        count: How many images; image i depends on ``seed``, ``size`` and i alone.
        size: Side in pixels.
        seed: Non-negative.

    Returns:
        uint8 tensor (count, 3, size, size), RGB.
    """
    scenes = np.empty((count, 3, size, size), dtype=np.uint8)
    for index in range(count):
        scenes[index] = _scene(np.random.default_rng([seed, index]), size)
    return torch.from_numpy(scenes)


def _scene(rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    side = 2 * size  # edges are smoothed by averaging 2 x 2 samples
    leaves = _leaf_shapes(rng, int(rng.integers(16, 40)))
    label = _visible_leaf(leaves, side)
    colour = _paint(rng, label, len(leaves["kind"]))
    # Summed slices: numpy's mean over two short axes takes three times as long.
    mean = (colour[:, ::2, ::2] + colour[:, 1::2, ::2] + colour[:, ::2, 1::2] + colour[:, 1::2, 1::2]) / 4
    scene: npt.NDArray[np.uint8] = np.round(mean.clip(0, 1) * 255).astype(np.uint8)
    return scene


def _leaf_shapes(rng: np.random.Generator, count: int) -> dict[str, npt.NDArray[Any]]:
    """Draw shapes from back to front, in units of the image side; the backmost leaf covers everything."""
    # Inverse of the distribution function of p(r) ~ r^-3 between the smallest and the largest radius.
    smallest, largest = 0.06, 0.6
    radius = (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5
    shape: dict[str, npt.NDArray[Any]] = {
        "kind": rng.choice(3, size=count, p=(0.45, 0.4, 0.15)),
        "x": rng.random(count),
        "y": rng.random(count),
        "angle": rng.uniform(0, math.pi, count),
        "a": radius,
        "b": radius * rng.uniform(0.35, 1, count),
    }
    role = rng.random(count)
    line, horizon = role < 0.1, (role > 0.94) & (np.arange(count) < count // 2)
    shape["kind"][line | horizon] = _BOX
    shape["a"][line | horizon] = 3.0
    shape["b"][line] = rng.uniform(0.012, 0.05, count)[line]
    # A half-plane: its middle is moved away so far that one edge alone crosses the image.
    shape["b"][horizon] = 1.5
    shape["x"][horizon] -= 1.5 * np.sin(shape["angle"][horizon])
    shape["y"][horizon] += 1.5 * np.cos(shape["angle"][horizon])
    shape["kind"][0], shape["a"][0], shape["b"][0] = _BOX, 9.0, 9.0
    return shape


def _visible_leaf(leaves: dict[str, npt.NDArray[Any]], side: int) -> npt.NDArray[np.intp]:
    """Return the index of the frontmost leaf at every pixel (side, side)."""
    label = np.zeros((side, side), dtype=np.intp)
    centre = (np.arange(side, dtype=np.float32) + 0.5) / side
    for index, (kind, x, y, angle, a, b) in enumerate(zip(*leaves.values(), strict=True)):
        reach = math.hypot(a, b) if kind == _BOX else max(a, b)
        top, bottom = max(0, int((y - reach) * side)), max(0, math.ceil((y + reach) * side))
        left, right = max(0, int((x - reach) * side)), max(0, math.ceil((x + reach) * side))
        cos, sin = math.cos(angle), math.sin(angle)
        across, down = centre[left:right] - x, (centre[top:bottom] - y)[:, None]
        u = across * (cos / a) + down * (sin / a)
        v = down * (cos / b) - across * (sin / b)
        if kind == _DISC:
            inside = u * u + v * v < 1
        elif kind == _BOX:
            inside = np.maximum(np.abs(u), np.abs(v)) < 1
        else:
            inside = np.abs(u) + np.abs(v) < 1
        label[top:bottom, left:right][inside] = index
    return label


def _paint(rng: np.random.Generator, label: npt.NDArray[np.intp], count: int) -> Floats:
    """Give each leaf two colours, a texture that mixes them, and a shading; evaluated once per pixel."""
    side = len(label)
    position = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = position[None, :], position[:, None]

    angle = rng.uniform(0, math.pi, count)
    frequency = 2 * math.pi * rng.uniform(2, 14, count)
    phase = rng.uniform(0, 2 * math.pi, count)
    along_x, along_y = (frequency * np.cos(angle)).astype(np.float32), (frequency * np.sin(angle)).astype(np.float32)
    fx, fy = along_x[label], along_y[label]
    wave = np.sin(fx * x + fy * y + phase.astype(np.float32)[label])
    cross = np.sin(fx * y - fy * x)

    # One field for all leaves, each of which shows another part of it; at half the sampling rate.
    size = side // 2
    shift = rng.integers(0, size, (2, count))
    rows = (np.arange(side)[:, None] // 2 + shift[0][label]) % size
    columns = (np.arange(side)[None, :] // 2 + shift[1][label]) % size
    noise = _smooth_noise(rng, size)[rows, columns]

    # plain, waves, stripes, checks, noise; a soft sign keeps stripes from aliasing
    texture = rng.choice(5, size=count, p=(0.2, 0.2, 0.15, 0.15, 0.3))[label]
    mixing = np.choose(texture, (noise * 0.2, wave, (wave * 6).clip(-1, 1), (wave * cross * 8).clip(-1, 1), noise))

    luminance = rng.uniform(0.1, 0.9, count)
    base = luminance + rng.normal(0, 0.09, (3, count))
    change = rng.normal(0, 0.12, count) + rng.normal(0, 0.05, (3, count))
    shade = rng.normal(0, 0.3, (2, count)).astype(np.float32)
    light = 1 + shade[0][label] * (x - 0.5) + shade[1][label] * (y - 0.5)
    painted: Floats = (base.astype(np.float32)[:, label] + change.astype(np.float32)[:, label] * mixing) * light
    return painted


def _smooth_noise(rng: np.random.Generator, side: int) -> Floats:
    """Return periodic 1/f noise (side, side) of unit variance, the spectrum of natural images."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency
    noise = np.fft.irfft2(spectrum, s=(side, side))
    normalised: Floats = (noise / noise.std()).astype(np.float32)
    return normalised
