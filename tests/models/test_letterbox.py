"""Rest of letterboxed images: found, of no weight in detectors, and kept by augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kizu.models.backbones import BackboneConfig, PretrainedBackbone
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.models.letterbox import GREY, shown, shown_places
from kizu.training.augment.classic import augmented
from kizu.training.recipe import AugmentSection

UNIT = GREY / 127.5 - 1


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def letterboxed(height, width, size=64):
    image = np.random.default_rng(0).integers(0, 255, (2, height, width, 1), dtype=np.uint8)
    return Geometry(InputGeometry(height=size, width=size, channels=1, fit="letterbox"))(torch.from_numpy(image))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((40, 64), (12, 51, 0, 63)),
        ((64, 20), (0, 63, 22, 41)),
        ((64, 64), (0, 63, 0, 63)),
        ((128, 32), (0, 63, 24, 39)),
    ],
)
def test_rows_and_columns_that_show_the_part_are_found(source, expected):
    assert [edge.tolist() for edge in shown(letterboxed(*source))] == [[value] * 2 for value in expected]


def test_grey_inside_the_part_is_no_rest():
    x = noise(1, 1, 16, 16)
    x[:, :, 5:9] = UNIT
    assert shown_places(x, 4, 4).all()


def test_an_image_of_rest_alone_shows_nothing():
    assert not shown_places(torch.full((2, 3, 16, 16), UNIT), 4, 4).any()


def test_a_place_that_shows_a_single_row_counts():
    x = torch.full((1, 1, 16, 16), UNIT)
    x[:, :, 7:12] = noise(5, 16)
    assert shown_places(x, 4, 2)[0, 0].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("least_side", [64, 128])
def test_maps_of_a_backbone_are_zero_in_the_rest_and_only_there(least_side):
    backbone = PretrainedBackbone(BackboneConfig(64, 64, 1, least_side=least_side))
    with torch.no_grad():
        levels = backbone(letterboxed(20, 64))
        whole = backbone(letterboxed(64, 64))
    for stride in (8, 16):
        rows = levels[stride].abs().amax((0, 1, 3)) > 0
        places = len(rows)
        edges = torch.arange(places) * 64 / places
        assert rows.tolist() == ((edges + 64 / places > 22) & (edges < 42)).tolist()
        assert not rows.all()
        assert (whole[stride].abs().amax((0, 1)) > 0).all()


def test_augmentation_leaves_the_rest_as_it_was():
    x = letterboxed(40, 64)
    masks = torch.ones(2, 1, 64, 64)
    torch.manual_seed(0)
    altered, moved = augmented(x, masks, AugmentSection(shift=0.2, brightness=0.3, contrast=0.5, noise=0.1))
    assert (altered[:, :, :12] == x[:, :, :12]).all()
    assert (altered[:, :, 52:] == x[:, :, 52:]).all()
    assert not torch.allclose(altered[:, :, 12:52], x[:, :, 12:52], atol=0.05)
    assert moved is not None
    assert moved[:, :, 12:52].any()
    assert not moved[:, :, :12].any()
    assert not moved[:, :, 52:].any()
