"""Fine-tuning of a pretrained backbone: frozen first, then at its share of the rate, its statistics as they came."""

import pytest
import torch

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import Batches
from kizu.training.detectors import create_detector
from kizu.training.loop import TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection

GEOMETRY = InputGeometry(height=64, width=64, channels=1)


def pretrained_method(**options):
    torch.manual_seed(0)
    section = DetectorSection(kind="classifier", preset="pretrained", epochs=4, batch_size=4, options=options)
    return create_detector(GEOMETRY, section)


def batches_of_64():
    images = torch.randint(0, 256, (16, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batches(images, 4, 0, labels=torch.arange(16) % 2)


def backbone_after(method, tmp_path, steps=None):
    before = {name: value.clone() for name, value in method.classifier.backbone.state_dict().items()}
    stages = method.stages(16)
    log = RunLog(None, quiet=True)
    loop = TrainingLoop(method, batches_of_64(), tmp_path, identity="x", log=log)
    loop.stages = stages[:steps]
    loop.run()
    after = method.classifier.backbone.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_pretrained_backbone_is_frozen_while_the_head_finds_its_place(tmp_path):
    method = pretrained_method(head_share=0.5)
    head = method.classifier.head.weight.clone()
    assert [stage.steps for stage in method.stages(16)] == [8, 8]
    assert backbone_after(method, tmp_path, steps=1) == set()
    assert not torch.equal(head, method.classifier.head.weight)


def test_then_it_trains_at_its_share_of_the_rate_and_keeps_its_statistics(tmp_path):
    method = pretrained_method(head_share=0.5, backbone_rate=0.2)
    moved = backbone_after(method, tmp_path)
    assert moved
    assert not any(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    (phase,) = method.stages(16)[1].phases
    phase.optimizer.step()
    rates = sorted({group["lr"] for group in phase.optimizer.param_groups})
    assert rates[0] == pytest.approx(0.2 * rates[1])


def test_a_rate_of_nothing_keeps_it_frozen_and_the_bundle_says_so(tmp_path):
    method = pretrained_method(backbone_rate=0)
    assert backbone_after(method, tmp_path) == set()
    assert [weights.frozen for weights in method.pretrained] == [True]
    assert [weights.frozen for weights in pretrained_method().pretrained] == [False]


def test_a_backbone_that_nobody_knows_is_refused_by_name():
    with pytest.raises(UserError, match=r"detector\.options\.backbone: .*plian"):
        create_detector(GEOMETRY, DetectorSection(kind="classifier", options={"backbone": "plian"}))
