"""Training of the flow: whitening in closed form, the wiring of its loss, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import Batches
from kizu.training.detectors import create_detector
from kizu.training.detectors import flow as module
from kizu.training.detectors.flow import FlowMethod, whitening_of
from kizu.training.evaluation.ranking import auroc
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection
from kizu.training.training_set import TrainingSet

GEOMETRY = InputGeometry(height=32, width=32, channels=1)
LOG = RunLog(None, quiet=True)


def method_of(**options):
    torch.manual_seed(0)
    small: dict[str, Any] = {"least_side": 64, "blocks": 2, "steps": 2}
    section = DetectorSection(kind="flow", epochs=1, batch_size=8, options=small | options)
    method = create_detector(GEOMETRY, section)
    assert isinstance(method, FlowMethod)
    return method


def stripes(count, angle, seed=0):
    """Images of stripes at an angle in radians, in any phase, under noise: uint8 [N, 1, 32, 32]."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.arange(32.0)
    where = along[None] * torch.cos(torch.tensor(angle)) + along[:, None] * torch.sin(torch.tensor(angle))
    phase = 6.28 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 6 * torch.randn(count, 1, 32, 32, generator=generator)
    return (128 + 60 * torch.sin(where + phase) + noise).clamp(0, 255).to(torch.uint8)


def trained(method, images, folder, labels=None):
    training = TrainingSet(Batches(images, 8, 0, labels=labels))
    method.prepare(training, LOG)
    settings = LoopSettings(control_every=10**9, sample_every=10**9)
    TrainingLoop(method, training.batches, folder, identity="x", log=LOG, settings=settings).run()
    method.finish(training)
    return method.detector().eval()


def correlated(count=400):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator)
    mixing[0] *= 100  # channels of very different size
    return torch.einsum("ij,njhw->nihw", mixing, torch.randn(count, 4, 3, 3, generator=generator)) + 7


def test_whitened_features_are_uncorrelated_with_unit_variance():
    features = correlated()
    mean, whitening = whitening_of(features.split(50), torch.eye(4), shrinkage=0)
    white = torch.einsum("ij,njhw->inhw", whitening, features.double() - mean[:, None, None]).flatten(1)
    torch.testing.assert_close(white.mean(1), torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(4).double(), rtol=0, atol=1e-6)


def test_whitening_by_a_shrunk_correlation_shrinks_what_varies_least():
    features = correlated()
    mean, whitening = whitening_of(features.split(50), torch.eye(4), shrinkage=0.5)
    white = torch.einsum("ij,njhw->inhw", whitening, features.double() - mean[:, None, None]).flatten(1)
    correlation = torch.linalg.eigvalsh(torch.corrcoef(features.movedim(1, 0).flatten(1).double()))
    found = torch.linalg.eigvalsh(white @ white.T / white.shape[1])
    torch.testing.assert_close(found, correlation / (0.5 * correlation + 0.5), rtol=1e-5, atol=1e-6)


def test_whitening_does_not_divide_by_what_never_varies():
    features = correlated()
    features[:, 2] = 3.0
    _, whitening = whitening_of(features.split(50), torch.eye(4))
    assert torch.isfinite(whitening).all()


def test_preparing_again_whitens_as_before():
    method, training = method_of(dimensions=6), TrainingSet(Batches(stripes(8, 0.0), 8, 0))
    method.prepare(training, LOG)
    first = {name: tensor.clone() for name, tensor in method.networks.state_dict().items()}
    method.prepare(training, LOG)
    for name, tensor in method.networks.state_dict().items():
        assert torch.equal(tensor, first[name]), name


def test_without_an_ok_image_there_is_nothing_to_learn():
    batches = Batches(stripes(4, 0.0), 4, 0, labels=torch.ones(4, dtype=torch.int64))
    with pytest.raises(UserError, match="no OK image"):
        method_of().prepare(TrainingSet(batches), LOG)


def losses_of(method, images):
    training = TrainingSet(Batches(images, 8, 0))
    method.prepare(training, LOG)
    return method._losses(training.batches.at(torch.arange(len(images))))


def test_the_loss_is_the_negative_log_likelihood_of_every_level():
    method, pixels = method_of(), stripes(8, 0.0)
    torch.nn.init.normal_(method._detector.levels[8].blocks[0].last.bias, 0.0, 0.5)
    losses = losses_of(method, pixels)
    maps = method._maps(pixels / 127.5 - 1)
    expected = {}
    for stride, flow in method._detector.levels.items():
        z, logarithm = flow(flow.white(maps[stride]))
        expected[stride] = (z.square().mean() / 2 - logarithm.mean() / flow.channels).item()
        assert losses[f"stride_{stride}"].item() == pytest.approx(expected[stride], rel=1e-3)
    assert losses["total"].item() == pytest.approx(sum(expected.values()), rel=1e-3)


def test_features_beyond_the_memory_are_computed_at_every_step(monkeypatch):
    pixels = stripes(8, 0.0)
    kept = losses_of(method_of(), pixels)
    monkeypatch.setattr(module, "MEMORY", 0)
    method = method_of()
    passes: list[int] = []
    method._detector.backbone.register_forward_hook(lambda _module, given, _found: passes.append(len(given[0])))
    found = losses_of(method, pixels)
    assert passes[-1] == 8
    for name, loss in kept.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-3)


def test_training_beats_the_gaussian_on_unseen_parts_and_does_not_collapse(tmp_path):
    """Without the log-determinant, scaling all features to zero would be best."""
    pixels, unseen = stripes(48, 0.0), stripes(16, 0.0, seed=1)
    method = method_of(steps=60)
    method.prepare(TrainingSet(Batches(pixels, 8, 0)), LOG)
    fine = method._detector.levels[8]  # the other has too few places here to be learned from
    features = fine.white(method._maps(unseen / 127.5 - 1)[8])
    gaussian = fine.surprise(features).mean().item()
    detector = trained(method, pixels, tmp_path)
    assert fine.surprise(features).mean().item() < gaussian - 0.05
    maps = method._maps(pixels / 127.5 - 1)
    for stride, flow in detector.levels.items():
        z, _ = flow(flow.white(maps[stride]))
        assert 0.7 < z.square().mean() < 1.3


def test_scores_are_in_units_of_the_spread_over_ok_images(tmp_path):
    pixels = stripes(24, 0.0)
    detector = trained(method_of(peak=1.0), pixels, tmp_path)
    with torch.no_grad():
        levels = detector.features(detector.backbone(pixels / 127.5 - 1))
    for stride, flow in detector.levels.items():
        scaled = flow.scaled(flow.surprise(flow.white(levels[stride])))
        assert scaled.mean().item() == pytest.approx(0, abs=0.02)
        assert scaled.std().item() == pytest.approx(1, rel=0.02)


def test_it_finds_a_patch_that_no_ok_part_shows(tmp_path):
    detector = trained(method_of(steps=30), stripes(48, 0.0), tmp_path)
    ok, ng = stripes(12, 0.0, seed=1), stripes(12, 0.0, seed=2)
    ng[:, :, 8:20, 8:20] = stripes(12, 1.57, seed=3)[:, :, 8:20, 8:20]
    with torch.no_grad():
        ok_scores, _ = detector(ok / 127.5 - 1)
        ng_scores, heatmap = detector(ng / 127.5 - 1)
    found = auroc(ng_scores.numpy(), ok_scores.numpy())
    assert found is not None
    assert found.value > 0.9
    inside = heatmap[:, :, 8:20, 8:20].mean()
    assert inside > heatmap[:, :, 22:].mean() + 1
