"""The tensor that trains against the graph that ships: the same pixels to the bit, whatever the image."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Inspector
from kizu.training.data.batches import Batches
from kizu.training.data.labelled import labelled_images
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import OK, Manifest, Row

GEOMETRIES = {
    "whole-grey": InputGeometry(height=32, width=32, channels=1),
    "whole-oblong-rgb": InputGeometry(height=32, width=56, channels=3),
    "enlarged-rgb": InputGeometry(height=100, width=120, channels=3, enlarge=2),
    "letterboxed-grey": InputGeometry(height=64, width=64, channels=1, fit="letterbox", enlarge=2),
    "tiles-grey": InputGeometry(height=32, width=32, channels=1, tile=32, stride=24),
    "resized-tiles-rgb": InputGeometry(height=32, width=32, channels=3, tile=50, stride=37),
}


class Recorder(nn.Module):
    """A detector that keeps what it is given."""

    def forward(self, x):
        self.seen = x
        return x.mean((1, 2, 3)), x.mean(1, keepdim=True)


@pytest.fixture
def images(tmp_path):
    """Random images of several sizes, grey and RGB, and one as large as the detector's."""
    random, rows = np.random.default_rng(0), []
    for k, shape in enumerate([(64, 112), (101, 77), (57, 130, 3), (90, 64, 3)]):
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        rows.append(Row(f"{k}.png", OK))
    return Manifest(tmp_path, rows)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_training_sees_what_the_graph_that_ships_sees_to_the_bit(images, geometry):
    detector = Recorder()
    inspector = Inspector(detector, geometry)
    for row in images.rows:
        inspector(torch.from_numpy(images.image(row).copy())[None])
        for stored in (
            training_tensor(images, [row], geometry),
            labelled_images(images, [row], geometry).images,
        ):
            batch = Batches(stored, len(stored), 0).at(torch.arange(len(stored)))
            assert torch.equal(batch.images, detector.seen), row.path


def test_pixels_are_stored_as_uint8_where_they_are_whole(images):
    grey = images.rows[:2]
    assert training_tensor(images, grey, GEOMETRIES["tiles-grey"]).dtype == torch.uint8
    resized = training_tensor(images, grey, GEOMETRIES["whole-grey"])
    assert resized.dtype == torch.float32
    assert (resized != resized.round()).any()
    assert 0 <= resized.min() <= resized.max() <= 255
    own = InputGeometry(height=64, width=112, channels=1)
    assert training_tensor(images, grey[:1], own).dtype == torch.uint8
