"""Poisson blending against closed forms, both solvers against each other, and what a feather leaves alone."""

import numpy as np
import pytest

from kizu.training.generators.blending import feather, poisson_blend, solve_rectangle


def laplacian_of(f):
    return f[..., :-2, 1:-1] + f[..., 2:, 1:-1] + f[..., 1:-1, :-2] + f[..., 1:-1, 2:] - 4 * f[..., 1:-1, 1:-1]


def test_a_harmonic_function_is_found_from_its_frame_alone():
    y, x = np.mgrid[:9, :13].astype(float)
    for f in (3 * x - 2 * y + 5, x * y, x**2 - y**2):
        assert laplacian_of(f) == pytest.approx(0)
        frame = f.copy()
        frame[1:-1, 1:-1] = 0
        assert solve_rectangle(frame, np.zeros((7, 11))) == pytest.approx(f[1:-1, 1:-1])


def test_a_product_of_sines_is_divided_by_its_eigenvalue():
    height, width, k, m = 8, 11, 3, 2
    y, x = np.mgrid[1 : height + 1, 1 : width + 1]
    mode = np.sin(np.pi * k * y / (height + 1)) * np.sin(np.pi * m * x / (width + 1))
    eigenvalue = 2 * np.cos(np.pi * k / (height + 1)) + 2 * np.cos(np.pi * m / (width + 1)) - 4
    found = solve_rectangle(np.zeros((2, height + 2, width + 2)), np.stack([mode, 5 * mode]))
    assert found == pytest.approx(np.stack([mode, 5 * mode]) / eigenvalue)


def noise(seed, *shape):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


def test_a_source_that_differs_by_a_constant_leaves_the_background_as_it_is():
    background = noise(0, 3, 14, 18)
    disc = np.hypot(*np.mgrid[-7:7, -9:9]) < 5
    box = np.zeros((14, 18), bool)
    box[3:9, 4:15] = True
    for inside in (disc, box):
        assert poisson_blend(background, background + 40, inside) == pytest.approx(background, abs=1e-2)


def test_both_solvers_agree_on_a_rectangle():
    background, source = noise(1, 2, 16, 20), noise(2, 2, 16, 20)
    box = np.zeros((16, 20), bool)
    box[4:10, 5:13] = True
    alone = box.copy()
    alone[0, 0] = True  # a second part far away, so that the sparse solver takes over
    by_sines, by_factors = poisson_blend(background, source, box), poisson_blend(background, source, alone)
    assert by_factors[:, box] == pytest.approx(by_sines[:, box], abs=1e-2)
    assert np.array_equal(by_sines[:, ~box], background[:, ~box])


def test_the_blend_keeps_the_source_s_gradients_and_the_background_outside():
    background, source = noise(3, 1, 12, 12), noise(4, 1, 12, 12)
    inside = np.zeros((12, 12), bool)
    inside[2:10, 3:9] = True
    inside[4:6, 9] = True
    blended = poisson_blend(background, source, inside)
    assert np.array_equal(blended[:, ~inside], background[:, ~inside])
    kept = inside[1:-1, 1:-1]
    assert laplacian_of(blended)[:, kept] == pytest.approx(laplacian_of(source)[:, kept], abs=0.05)


def test_a_region_at_the_image_s_edge_has_no_flux_across_it():
    background = np.full((1, 6, 8), 30, np.float32)
    source = np.tile(np.arange(8, dtype=np.float32) * 10, (6, 1))[None]
    inside = np.zeros((6, 8), bool)
    inside[:, 4:] = True  # reaches three edges; the only border is column 3
    assert poisson_blend(background, source, inside)[0, :, 4:] == pytest.approx(
        np.tile([40.0, 50.0, 60.0, 70.0], (6, 1)), abs=1e-3
    )


def test_a_region_without_a_border_has_no_level():
    image = noise(0, 1, 4, 4)
    with pytest.raises(ValueError, match="no level"):
        poisson_blend(image, image, np.ones((4, 4), bool))
    assert np.array_equal(poisson_blend(image, noise(1, 1, 4, 4), np.zeros((4, 4), bool)), image)


def test_a_feather_is_1_in_the_mask_and_falls_to_0_within_its_width():
    mask = np.zeros((1, 12), bool)
    mask[0, :4] = True
    alpha = feather(mask, 3)[0]
    t = np.array([0.25, 0.5, 0.75])
    assert alpha[:4] == pytest.approx(1)
    assert alpha[4:7] == pytest.approx(1 - t * t * (3 - 2 * t))
    assert not alpha[7:].any()
    assert np.array_equal(feather(mask, 0) > 0, mask)
