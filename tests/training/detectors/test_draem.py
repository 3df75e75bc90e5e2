"""How a DRAEM trains: its losses against their formulas, what it is shown, and what it learns from OK boards alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import Batch, Batches
from kizu.training.detectors import create_detector
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.losses import focal, ssim
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, Option

GEOMETRY = InputGeometry(height=32, width=32, channels=1)
TINY = {"features": 4, "segmentation_features": 4}
STILL = AugmentSection(shift=0.0, brightness=0.0, contrast=0.0, noise=0.0)


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(**options):
    torch.manual_seed(0)
    return create_detector(GEOMETRY, DetectorSection(kind="draem", options=TINY | options))


def batch_of(images):
    return Batch(images, torch.zeros(len(images), dtype=torch.int64))


def test_the_focal_loss_is_its_formula_and_a_cross_entropy_without_focus():
    logits = torch.tensor([2.0, -1.0, 0.5, -60.0], requires_grad=True)
    targets = torch.tensor([1.0, 1.0, 0.0, 1.0])
    right = [1 / (1 + math.exp(-z)) for z in (2.0, -1.0, -0.5, -60.0)]
    for gamma in (0.0, 1.0, 2.0):
        expected = -sum((1 - p) ** gamma * math.log(p) for p in right) / 4
        assert focal(logits, targets, gamma).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(focal(logits, targets, 0.0), F.binary_cross_entropy_with_logits(logits, targets))
    torch.testing.assert_close(focal(logits, targets), focal(logits, targets, 2.0))
    focal(logits, targets).backward()
    assert logits.grad is not None
    assert (logits.grad[[0, 1, 3]] < 0).all()
    assert logits.grad[2] > 0


def test_structural_similarity_is_wangs_equation_13_with_a_gaussian_window():
    a, b = random_images(2, 3, 20, 26, seed=1).double(), random_images(2, 3, 20, 26, seed=2).double()
    found = []
    for x, y in zip(a.flatten(0, 1).numpy() / 2 + 0.5, b.flatten(0, 1).numpy() / 2 + 0.5, strict=True):
        mx, my, xx, yy, xy = (gaussian_filter(v, 1.5, radius=5)[5:-5, 5:-5] for v in (x, y, x * x, y * y, x * y))
        c1, c2 = 0.01**2, 0.03**2
        top = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
        found.append(np.mean(top / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2))))
    assert ssim(a, b).item() == pytest.approx(np.mean(found), rel=1e-9)
    torch.testing.assert_close(ssim(a, a), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert ssim(a, (a + 0.2 * b).clamp(-1, 1)) > ssim(a, (a + b).clamp(-1, 1))
    assert ssim(a[..., :11, :11], b[..., :11, :11]).isfinite()
    for small in (slice(None), slice(10)), (slice(10), slice(None)):
        with pytest.raises(ValueError, match="smaller than the window"):
            ssim(a[..., *small], b[..., *small])


def test_flat_images_differ_in_luminance_alone():
    for x, y in ((0.2, 0.7), (0.0, 1.0), (0.4, 0.4)):
        a, b = (torch.full((1, 1, 16, 16), 2 * v - 1, dtype=torch.float64) for v in (x, y))
        assert ssim(a, b).item() == pytest.approx((2 * x * y + 1e-4) / (x * x + y * y + 1e-4), rel=1e-6)


def test_so_many_images_of_a_batch_get_an_anomaly_and_the_others_none():
    images = random_images(12, 1, 32, 32)
    for share, count in ((0.5, 6), (0.25, 3), (0.01, 1), (0.99, 11)):
        torch.manual_seed(3)
        inputs, masks = make(anomalous=share)._with_anomalies(images)
        assert torch.equal(inputs[count:], images[count:])
        assert not masks[count:].any()
        changed = (inputs != images).any(1, keepdim=True)
        assert torch.equal(changed, masks > 0)
        assert changed[:count].any()


def test_the_loss_wants_the_clean_image_back_and_the_mask_of_what_was_drawn():
    images = random_images(6, 1, 32, 32)
    method = make(ssim_weight=0.3, gamma=1.5)
    method.augment = STILL
    torch.manual_seed(5)
    losses = method._losses(batch_of(images))
    torch.manual_seed(5)
    inputs, masks = method._with_anomalies(images)
    reconstruction, logits = method.trained.both(inputs)
    torch.testing.assert_close(losses["squared"], (reconstruction - images).square().mean())
    torch.testing.assert_close(losses["structure"], 1 - ssim(reconstruction, images))
    torch.testing.assert_close(losses["segmentation"], focal(logits, masks, 1.5))
    total = losses["squared"] + 0.3 * losses["structure"] + losses["segmentation"]
    torch.testing.assert_close(losses["total"], total)


def test_light_varies_before_the_anomaly_as_the_recipe_allows(monkeypatch):
    images = random_images(4, 1, 32, 32) * 0.5
    method = make()
    seen = []

    def unchanged(x):
        seen.append(x)
        return x, torch.zeros_like(x)

    monkeypatch.setattr(method, "_with_anomalies", unchanged)
    method._losses(batch_of(images))
    assert not torch.equal(seen[0], images)
    assert (seen[0] - images).abs().median() < 0.2
    method.augment = STILL
    method._losses(batch_of(images))
    assert torch.equal(seen[1], images)
    section = DetectorSection(kind="draem", options={**TINY})
    given = AugmentSection(brightness=0.3)
    assert create_detector(GEOMETRY, section, given).augment == given


def test_samples_are_image_anomaly_reconstruction_and_heat():
    images = random_images(8, 1, 32, 32)
    method = make()
    method.networks.eval()
    grid = method.samples(images)
    assert grid.shape == (32, 1, 32, 32)
    assert grid.abs().max() <= 1
    assert torch.equal(grid[:8], images)
    reconstruction, logits = method.average.both(grid[8:16])
    torch.testing.assert_close(grid[16:24], reconstruction.clamp(-1, 1))
    torch.testing.assert_close(grid[24:], torch.sigmoid(logits) * 2 - 1)


def loop_of(folder, log=None):
    method = make()
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (24, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    method.section = method.section.model_copy(update={"epochs": 2, "batch_size": 4})
    settings = LoopSettings(control_every=1, sample_every=4)
    log = log or RunLog(None, quiet=True)
    return TrainingLoop(method, Batches(pixels, 4, 3), folder, identity="x", log=log, settings=settings)


def test_a_resumed_run_has_the_weights_of_one_left_alone_and_the_average_scores(resumed):
    whole, _ = resumed(loop_of, 5)
    assert whole.method.detector() is whole.method.average
    moved = [
        (a != b).any()
        for a, b in zip(whole.method.trained.parameters(), whole.method.average.parameters(), strict=True)
    ]
    assert any(moved)


@pytest.mark.parametrize("options", [{"anomalous": 0}, {"anomalous": 1}, {"shapes": 1.5}, {"gamma": -1}], ids=str)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        make(**options)


def test_an_option_of_another_detector_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="latent") as found:
        make(latent=8)
    assert "segmentation_features" in found.value.problem


def test_draem_separates_boards_after_seconds_on_ok_parts_alone(auroc_on_unseen, tmp_path):
    options: dict[str, Option] = {"features": 8, "segmentation_features": 8}
    section = DetectorSection(kind="draem", epochs=18, batch_size=16, options=options)
    found = auroc_on_unseen(section, tmp_path, seed=0)
    assert found.lower > 0.75, found
