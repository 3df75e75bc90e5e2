"""Training of SuperSimpleNet: its losses as assembled, its noise, and what it learns from each mixture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import Batch, Batches, LabelledBatch, LabelledBatches, Stratum, Truth
from kizu.training.detectors import create_detector
from kizu.training.detectors import supersimplenet as module
from kizu.training.detectors.supersimplenet import truncated_l1
from kizu.training.evaluation.ranking import auroc
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.losses import focal_terms
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection
from kizu.training.training_set import TrainingSet

GEOMETRY = InputGeometry(height=64, width=64, channels=1)
QUICK = LoopSettings(checkpoint_seconds=1e9, sample_every=10**9)


def method_of(**options):
    torch.manual_seed(0)
    small = {"least_side": 64, "map_width": 16, "score_width": 8}
    return create_detector(GEOMETRY, DetectorSection(kind="supersimplenet", epochs=1, options=small | options))


def parts(count, seed, spoilt=False):
    """Grain with stripes; spoilt ones have a blot, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    grain = torch.rand(count, 1, 64, 64, generator=generator)
    images = 90 + 60 * grain + 30 * torch.rand(count, 1, 64, 1, generator=generator)
    masks = torch.zeros(count, 1, 64, 64, dtype=torch.uint8)
    if spoilt:
        for image, mask in zip(images, masks, strict=True):
            y, x = torch.randint(4, 48, (2,), generator=generator).tolist()
            image[:, y : y + 10, x : x + 10] -= 45
            mask[:, y : y + 10, x : x + 10] = 255
    return images.to(torch.uint8), masks


def training_set(ok=40, ng=10, located=True):
    images, _ = parts(ok, 0)
    if not ng:
        return TrainingSet(Batches(images, 8, 0))
    spoilt, masks = parts(ng, 1, spoilt=True)
    labels = torch.cat([torch.zeros(ok), torch.ones(ng)]).long()
    mask_of = torch.cat([torch.zeros(ok), torch.arange(ng) + 1 if located else -torch.ones(ng)]).long()
    strata = [Stratum(torch.arange(ok), 6), Stratum(torch.arange(ok, ok + ng), 3)]
    empty = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    batches = LabelledBatches(
        torch.cat([images, spoilt]),
        0,
        labels=labels,
        masks=torch.cat([empty, masks]),
        mask_of=mask_of,
        weights=torch.ones(ok + ng),
        strata=strata,
        epoch=ok + ng,
    )
    return TrainingSet(batches)


def trained(training, folder, steps=60, **options):
    method = method_of(steps=steps, **options)
    log = RunLog(None, quiet=True)
    method.prepare(training, log)
    TrainingLoop(method, training.batches, folder, identity="x", log=log, settings=QUICK).run()
    return method.detector().eval()


def ranking(detector):
    with torch.no_grad():
        ok, ng = (
            detector(parts(40, seed, spoilt)[0].float() / 127.5 - 1)[0] for seed, spoilt in ((7, False), (8, True))
        )
    found = auroc(ng.numpy(), ok.numpy())
    assert found is not None
    return found.value


@pytest.mark.parametrize(("ng", "located"), [(10, True), (10, False)])
def test_it_learns_from_labels_and_from_masks(ng, located, tmp_path):
    assert ranking(trained(training_set(ng=ng, located=located), tmp_path, steps=120)) > 0.8


def test_from_ok_alone_it_learns_a_map_whose_peak_is_the_score(tmp_path):
    detector = trained(training_set(ng=0), tmp_path, steps=120, least_side=128)
    assert detector.heads.parts.tolist() == [0, 1]
    assert ranking(detector) > 0.8


def test_masks_teach_the_map_where(tmp_path):
    detector = trained(training_set(), tmp_path)
    image, mask = parts(8, 9, spoilt=True)
    with torch.no_grad():
        heatmap = detector(image.float() / 127.5 - 1)[1]
    inside = (heatmap * (mask > 0)).sum((1, 2, 3)) / (mask > 0).sum((1, 2, 3))
    assert (inside > heatmap.mean((1, 2, 3))).all()


def batch_of(method, n=6, labels=(0, 0, 0, 1, 1, 1), located=(True, True, True, True, True, False)):
    masks = torch.zeros(n, 1, 64, 64, dtype=torch.uint8)
    masks[3:, :, :32, :32] = 255
    y = torch.tensor(labels)
    truth = Truth(masks, torch.tensor(located), torch.ones(n), y, torch.zeros(n, dtype=torch.bool))
    images = torch.rand(n, 1, 64, 64) * 2 - 1
    method.augment = method.augment.model_copy(update={"shift": 0, "brightness": 0, "contrast": 0, "noise": 0})
    return LabelledBatch(images, y, truth)


def test_the_loss_is_that_of_score_and_map_as_the_paper_assembles_it():
    method = method_of(noisy_share=0, map_weight=3.0, truncation=0.5, focus=2.0)
    batch = batch_of(method)
    found = method._losses(batch)
    with torch.no_grad():
        features = method._features(batch.images)
        score, places = method.heads(method.heads.adapt(features))
    target = F.adaptive_max_pool2d(batch.truth.masks.float() / 255, places.shape[2:])
    of_place = focal_terms(places, target, 2.0) + 0.5 * truncated_l1(places, target)
    dense = of_place[:5].mean()  # the last one's defect is not located
    image = focal_terms(score, batch.labels.float(), 2.0).mean()
    torch.testing.assert_close(found["image"], image)
    torch.testing.assert_close(found["map"], dense)
    torch.testing.assert_close(found["total"], image + 3.0 * dense)


def test_focal_and_truncated_losses_are_their_formulas():
    z, t = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    p = torch.where(t > 0, torch.sigmoid(z), 1 - torch.sigmoid(z))
    torch.testing.assert_close(focal_terms(z, t, 2.0), (1 - p) ** 2 * -p.log())
    torch.testing.assert_close(truncated_l1(z, t), torch.tensor([0.2, 1.7, 2.5]))


def test_noise_makes_ng_of_ok_images_alone_and_inside_regions():
    method = method_of(noisy_share=1.0, noise=0.7)
    adapted = torch.zeros(400, 4, 8, 8)
    labels = (torch.arange(400) % 2).float()
    noisy, region = method._noised(adapted, labels)
    assert region[labels == 1].sum() == 0
    assert (region[labels == 0].amax((1, 2, 3)) == 1).all()
    assert (noisy[(region == 0).expand_as(noisy)] == 0).all()
    assert noisy[(region == 1).expand_as(noisy)].std().item() == pytest.approx(0.7, rel=0.05)
    share = region[labels == 0].mean((1, 2, 3))
    assert share.min() < 0.05
    assert 0.2 < share.max() <= 0.32


def test_about_the_given_share_of_ok_images_gets_noise():
    method = method_of(noisy_share=0.25)
    _, region = method._noised(torch.zeros(800, 2, 8, 8), torch.zeros(800))
    assert region.amax((1, 2, 3)).mean().item() == pytest.approx(0.25, abs=0.06)


def test_a_noisy_ok_image_counts_as_ng_for_score_and_map():
    method = method_of(noisy_share=1.0, map_weight=0.0)
    batch = Batch(torch.rand(4, 1, 64, 64) * 2 - 1, torch.zeros(4, dtype=torch.int64))
    torch.nn.init.zeros_(method.heads.score.weight)
    torch.nn.init.constant_(method.heads.score.bias, 9.0)
    assert method._losses(batch)["image"] < 1e-3


def test_features_are_standardised_on_ok_images():
    method, training = method_of(), training_set()
    method.prepare(training, RunLog(None, quiet=True))
    with torch.no_grad():
        features = method._features(training.batches.at(torch.arange(40)).images)
        standard = (features - method.heads.mean) / method.heads.std
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(standard.shape[1]), atol=1e-3, rtol=0)
    assert standard.std((0, 2, 3)).median().item() == pytest.approx(1, abs=1e-2)


def test_too_many_features_go_through_the_backbone_at_every_step(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MEMORY", 1000)
    method, training = method_of(steps=2), training_set()
    log = RunLog(None, quiet=True)
    method.prepare(training, log)
    assert method._views is None
    TrainingLoop(method, training.batches, tmp_path, identity="x", log=log, settings=QUICK).run()


def test_without_an_ok_image_there_is_nothing_to_stand_on():
    training = training_set()
    training.batches.labels = torch.ones_like(training.batches.labels)
    with pytest.raises(UserError, match="no OK image"):
        method_of().prepare(training, RunLog(None, quiet=True))
