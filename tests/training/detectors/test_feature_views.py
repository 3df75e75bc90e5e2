"""Features computed once: which images, which copies, and masks that go with them."""

from __future__ import annotations

import pytest
import torch

from kizu.training.data.batches import Batches, LabelledBatches, Stratum
from kizu.training.detectors import feature_views as module
from kizu.training.detectors.feature_views import feature_views, ok_images
from kizu.training.recipe import AugmentSection

STILL = AugmentSection(shift=0, brightness=0, contrast=0, noise=0)


def images(count=6):
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def labelled(defects=(0, 1, -1, 0, 1, 0)):
    """The third shows a sliver of a defect; the second's mask is its lower right quarter."""
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    masks[1, :, 16:, 16:] = 255
    of_class = torch.tensor(defects)
    return LabelledBatches(
        images(),
        0,
        labels=(of_class > 0).long(),
        masks=masks,
        mask_of=torch.tensor([0, 1, 0, 0, -1, 0]),
        weights=torch.ones(6),
        defects=of_class,
        strata=[Stratum(torch.tensor([0, 3, 5]), 2), Stratum(torch.tensor([1, 4]), 1)],
        epoch=6,
    )


def coarse(x):
    return torch.nn.functional.avg_pool2d(x, 8)


def test_slivers_are_not_ok_images():
    assert ok_images(labelled()).tolist() == [0, 3, 5]


def test_of_many_ok_images_some_are_drawn_by_their_seed(monkeypatch):
    monkeypatch.setattr(module, "MOST_IMAGES", 4)
    batches = Batches(images(20), 4, 0)
    drawn = ok_images(batches, seed=1)
    assert len(drawn) == 4
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert torch.equal(drawn, ok_images(batches, seed=1))
    assert not torch.equal(drawn, ok_images(batches, seed=2))


def test_the_first_view_is_the_image_itself_and_others_are_altered():
    batches = labelled()
    views = feature_views(batches, coarse, torch.tensor([1, 3, 1, 1, 2, 1]), AugmentSection(), seed=0)
    assert views.first.tolist() == [0, 1, 4, 5, 6, 8]
    plain = coarse(batches.at(torch.arange(6)).images).half()
    assert torch.equal(views.features[views.first], plain)
    assert not torch.equal(views.features[2], plain[1])
    assert not torch.equal(views.features[2], views.features[3])
    again = feature_views(batches, coarse, torch.tensor([1, 3, 1, 1, 2, 1]), AugmentSection(), seed=0)
    assert torch.equal(views.features, again.features)


def test_masks_move_with_their_images():
    batches = labelled()
    turned = STILL.model_copy(update={"flip_horizontal": True})
    views = feature_views(batches, coarse, torch.tensor([1, 30, 1, 1, 1, 1]), turned, seed=0)
    assert views.defect[1, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 255, 255], [0, 0, 255, 255]]
    mirrored = views.defect[1].flip(2)
    copies = views.defect[2:31]
    same = [torch.equal(copy, views.defect[1]) for copy in copies]
    flipped = [torch.equal(copy, mirrored) for copy in copies]
    assert any(same)
    assert any(flipped)
    assert all(a != b for a, b in zip(same, flipped, strict=True))


def test_a_sample_is_of_the_images_own_views():
    batches = labelled()
    views = feature_views(batches, coarse, torch.tensor([1, 3, 1, 1, 2, 1]), AugmentSection(), seed=0)
    features, defect = views.sample(torch.tensor([1] * 50))
    assert features.dtype == torch.float32
    assert defect.amax() == pytest.approx(1)
    found = {int((views.features.float() == f).flatten(1).all(1).nonzero()[0, 0]) for f in features}
    assert found == {1, 2, 3}
