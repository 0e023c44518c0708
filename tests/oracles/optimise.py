"""Penalties, blur and turns of a picture, written out one number at a time."""

from __future__ import annotations

import math

import numpy as np


def alpha_norm(u: np.ndarray, alpha: float) -> float:
    colours, rows, columns = u.shape
    total = 0.0
    for c in range(colours):
        for i in range(rows):
            for j in range(columns):
                total += abs(u[c, i, j]) ** alpha
    return total / (rows * columns)


def total_variation(u: np.ndarray, beta: float) -> float:
    colours, rows, columns = u.shape
    total = 0.0
    for c in range(colours):
        for i in range(rows):
            for j in range(columns):
                right = u[c, i, j + 1] - u[c, i, j] if j + 1 < columns else 0.0
                below = u[c, i + 1, j] - u[c, i, j] if i + 1 < rows else 0.0
                total += (right**2 + below**2) ** (beta / 2)
    return total / (rows * columns)


def blurred(u: np.ndarray, sigma: float) -> np.ndarray:
    """Each place the mean of all within three standard deviations, weighed by a bell."""
    colours, rows, columns = u.shape
    reach = max(1, round(3 * sigma))
    out = np.zeros_like(u)
    for c in range(colours):
        for i in range(rows):
            for j in range(columns):
                total = weight = 0.0
                for di in range(-reach, reach + 1):
                    for dj in range(-reach, reach + 1):
                        bell = math.exp(-(di**2 + dj**2) / (2 * sigma**2))
                        row = min(max(i + di, 0), rows - 1)
                        column = min(max(j + dj, 0), columns - 1)
                        total += bell * u[c, row, column]
                        weight += bell
                out[c, i, j] = total / weight
    return out


def turned(u: np.ndarray, angle: float, zoom: float) -> np.ndarray:
    """Bilinear; NaN where that would look beyond the border."""
    colours, rows, columns = u.shape
    out = np.full_like(u, np.nan)
    middle = (rows - 1) / 2, (columns - 1) / 2
    for i in range(rows):
        for j in range(columns):
            down, right = i - middle[0], j - middle[1]
            row = middle[0] + zoom * (math.sin(angle) * right + math.cos(angle) * down)
            column = middle[1] + zoom * (math.cos(angle) * right - math.sin(angle) * down)
            top, left = math.floor(row), math.floor(column)
            if top < 0 or left < 0 or top + 1 >= rows or left + 1 >= columns:
                continue
            y, x = row - top, column - left
            for c in range(colours):
                out[c, i, j] = (
                    (1 - y) * (1 - x) * u[c, top, left]
                    + (1 - y) * x * u[c, top, left + 1]
                    + y * (1 - x) * u[c, top + 1, left]
                    + y * x * u[c, top + 1, left + 1]
                )
    return out
