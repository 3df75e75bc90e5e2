"""Fitting of Gaussians: moments against numpy's, spreads of images left out, and what they see."""

from __future__ import annotations

import pytest
import torch

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import Batches
from kizu.training.detectors import create_detector
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection
from kizu.training.training_set import TrainingSet

GEOMETRY = InputGeometry(height=64, width=64, channels=1)


def textures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    grain = torch.rand(count, 1, 64, 64, generator=generator)
    rows = torch.rand(count, 1, 64, 1, generator=generator)
    return (90 + 60 * grain + 40 * rows).to(torch.uint8)


def fitted(images, **options):
    method = create_detector(GEOMETRY, DetectorSection(kind="padim", options={"least_side": 64} | options))
    training = TrainingSet(Batches(images, 8, 0))
    method.prepare(training, RunLog(None, quiet=True))
    method.finish(training)
    return method


@pytest.fixture(scope="module")
def method():
    return fitted(textures(40, 0))


def features(detector, images):
    with torch.no_grad():
        levels = detector.backbone(images.float() / 127.5 - 1)
        return detector.features(levels), detector.pool(levels)


def test_means_and_covariance_are_those_of_the_ok_images(method):
    detector = method.detector()
    f, _ = features(detector, textures(40, 0))
    overall = f.mean((0, 2, 3))
    mean = (f.sum(0) + 20 * overall[:, None, None]) / 60
    torch.testing.assert_close(detector.place_mean, mean, rtol=1e-3, atol=1e-3)
    different = (f - mean).movedim(1, 0).flatten(1).double()
    covariance = different @ different.T / different.shape[1]
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    found = detector.whitening.double()
    torch.testing.assert_close(found @ found.T, torch.linalg.inv(covariance), rtol=1e-2, atol=1e-2)


def test_new_ok_images_are_as_far_as_the_scale_says(method):
    detector = method.detector()
    _, pooled = features(detector, textures(60, 7))
    found = (detector.pooled_distance(pooled) - detector.pooled_scale[0]) / detector.pooled_scale[1]
    assert abs(found.mean().item()) < 1
    _, seen = features(detector, textures(40, 0))
    inside = (detector.pooled_distance(seen) - detector.pooled_scale[0]) / detector.pooled_scale[1]
    assert inside.mean() < found.mean() - 1


def test_a_blot_and_a_slow_change_both_score_above_ok(method):
    ok, blot, slow = textures(20, 3), textures(20, 4), textures(20, 5)
    blot[:, :, 20:30, 20:30] = 20
    slow = (slow.float() * torch.linspace(0.6, 1.0, 64)).to(torch.uint8)
    with torch.no_grad():
        scores = [method.detector()(images.float() / 127.5 - 1)[0] for images in (ok, blot, slow)]
    assert scores[1].min() > scores[0].max()
    assert (scores[2] > scores[0].max()).float().mean() > 0.9


def test_the_heatmap_is_hottest_on_the_blot(method):
    image = textures(1, 9)
    image[:, :, 8:18, 40:50] = 20
    with torch.no_grad():
        heatmap = method.detector()(image.float() / 127.5 - 1)[1][0, 0]
    assert heatmap[8:18, 40:50].mean() > heatmap.mean() + heatmap.std()


def test_one_ok_image_is_too_few():
    with pytest.raises(UserError, match="fewer than two OK"):
        fitted(textures(1, 0))
