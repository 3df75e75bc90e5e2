"""Put a piece of one image into another without a visible border.

Pérez, Gangnet & Blake, "Poisson image editing", SIGGRAPH 2003: the piece keeps its gradients, the border the
background's values. Feathering fades over a few pixels instead.

Notable here:
- Rectangles are solved by sine transforms, regions of any shape by a sparse factorisation; both are exact.
- Where a region reaches the image's edge there is no border to keep: no flux crosses that edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from scipy.sparse.linalg import splu

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def solve_rectangle(frame: NDArray[np.float64], laplacian: NDArray[np.float64]) -> NDArray[np.float64]:
    """f with f[i−1, j] + f[i+1, j] + f[i, j−1] + f[i, j+1] − 4·f[i, j] = laplacian, and the frame's values around it.

    Args:
        frame: [..., h + 2, w + 2], of which the outermost pixels count.
        laplacian: [..., h, w].

    Returns [..., h, w]. In the basis of sines (DST-I) the equation is diagonal, with the eigenvalues
    2·cos(πk/(h + 1)) + 2·cos(πl/(w + 1)) − 4.
    """
    right = np.array(laplacian, np.float64)
    height, width = right.shape[-2:]
    right[..., 0, :] -= frame[..., 0, 1:-1]
    right[..., -1, :] -= frame[..., -1, 1:-1]
    right[..., :, 0] -= frame[..., 1:-1, 0]
    right[..., :, -1] -= frame[..., 1:-1, -1]
    down = 2 * np.cos(np.pi * np.arange(1, height + 1) / (height + 1))
    across = 2 * np.cos(np.pi * np.arange(1, width + 1) / (width + 1))
    spectrum = fft.dstn(right, type=1, axes=(-2, -1)) / (down[:, None] + across[None, :] - 4)
    return np.asarray(fft.idstn(spectrum, type=1, axes=(-2, -1)))


def poisson_blend(background: Floats, source: Floats, inside: Mask) -> Floats:
    """Fill `inside` of the background so that its gradients are the source's: [C, H, W].

    Args:
        background, source: [C, H, W]; of the source, the pixels of `inside` and their neighbours count.
        inside: bool [H, W]; must leave a pixel of the background, which fixes the level.
    """
    if inside.all():
        raise ValueError("a region that leaves no background has no level")
    blended = background.copy()
    if not inside.any():
        return blended
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = inside.shape
    if inside[top:bottom, left:right].all() and top > 0 and left > 0 and bottom < height and right < width:
        around = (..., slice(top - 1, bottom + 1), slice(left - 1, right + 1))
        piece = source[around].astype(np.float64)
        laplacian = (
            piece[..., :-2, 1:-1] + piece[..., 2:, 1:-1] + piece[..., 1:-1, :-2] + piece[..., 1:-1, 2:]
        ) - 4 * piece[..., 1:-1, 1:-1]
        blended[..., top:bottom, left:right] = solve_rectangle(background[around].astype(np.float64), laplacian)
        return blended
    blended[:, inside] = _solve_region(background.astype(np.float64), source.astype(np.float64), inside)
    return blended


def _solve_region(background: NDArray[np.float64], source: NDArray[np.float64], inside: Mask) -> NDArray[np.float64]:
    """Values of the pixels of `inside`, [C, K]: Σ_q (f_p − f_q) = Σ_q (g_p − g_q) over the neighbours q of each p."""
    count = int(inside.sum())
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(count)
    y, x = np.nonzero(inside)
    diagonal = np.zeros(count)
    right = np.zeros((count, background.shape[0]))
    pairs: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        near_y, near_x = y + down, x + across
        there = (near_y >= 0) & (near_y < inside.shape[0]) & (near_x >= 0) & (near_x < inside.shape[1])
        own = np.flatnonzero(there)
        near_y, near_x = near_y[there], near_x[there]
        diagonal[own] += 1
        right[own] += (source[:, y[own], x[own]] - source[:, near_y, near_x]).T
        neighbour = number[near_y, near_x]
        unknown = neighbour >= 0
        pairs.append((own[unknown], neighbour[unknown]))
        right[own[~unknown]] += background[:, near_y[~unknown], near_x[~unknown]].T
    rows, columns = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    matrix = sparse.coo_matrix((-np.ones(len(rows)), (rows, columns)), shape=(count, count)) + sparse.diags(diagonal)
    return np.asarray(splu(matrix.tocsc()).solve(right).T)


def feather(mask: Mask, pixels: float) -> Floats:
    """1 in the mask, falling to 0 within so many pixels of it: 1 − smoothstep(distance / (pixels + 1)), [H, W]."""
    distance = ndimage.distance_transform_edt(~mask)
    t = np.clip(distance / (pixels + 1), 0, 1)
    return np.asarray(1 - t * t * (3 - 2 * t), np.float32)
