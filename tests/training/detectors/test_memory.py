"""How the memory is filled: its coreset against the definition, where features come from, what a run makes of it."""

import itertools
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.memory import MemoryConfig
from kizu.models.stylegan2 import PRESETS as STYLEGAN2
from kizu.models.stylegan2 import StyleGAN2Config
from kizu.training import checkpoint
from kizu.training.augment.ada import AugmentConfig
from kizu.training.augment.classic import recorded
from kizu.training.data.batches import Batch, Batches
from kizu.training.data.labelled import UNKNOWN
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import OK
from kizu.training.data.render import render_boards
from kizu.training.detectors import create_detector
from kizu.training.detectors import memory as module
from kizu.training.detectors.memory import balanced_bce, farthest_points, pasted, patch_targets
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.loop import Interrupted, LoopSettings, TrainingLoop
from kizu.training.pipeline import train
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, GeneratorSection
from kizu.training.training_set import TrainingSet

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


def section_of(preset="self-supervised", epochs=1, **options):
    return DetectorSection(kind="memory", preset=preset, epochs=epochs, batch_size=16, options=options)


def method_of(section, seed=0, geometry=GEOMETRY):
    torch.manual_seed(seed)
    return create_detector(geometry, section)


def set_of(boards, count=48, others=None):
    images = training_tensor(boards, [row for row in boards.rows if row.label == OK][:count], GEOMETRY)
    labels = torch.zeros(len(images), dtype=torch.int64)
    if others is not None:
        images, labels = torch.cat([others, images]), torch.cat([torch.full((len(others),), UNKNOWN), labels])
    return TrainingSet(Batches(images, 16, 0, labels=labels))


def loop_of(method, training, folder, log=None):
    settings = LoopSettings(control_every=1, sample_every=10**9)
    log = log or RunLog(None, quiet=True)
    return TrainingLoop(method, training.batches, folder, identity="x", log=log, settings=settings)


def radius(points, chosen):
    return torch.cdist(points, points[chosen]).amin(1).max().item()


@pytest.mark.parametrize("seed", range(5))
def test_no_place_is_further_from_the_memory_than_twice_what_is_possible(seed):
    points = torch.randn(11, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for count in (1, 2, 3, 4):
        best = min(radius(points, list(some)) for some in itertools.combinations(range(11), count))
        assert radius(points, farthest_points(points, count)) <= 2 * best + 1e-9


def test_the_choice_is_the_definitions():
    points = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [0]
    while len(chosen) < 40:
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    assert farthest_points(points, 40).tolist() == chosen


def test_rare_clusters_are_remembered_and_repeats_are_not():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)[:, :6] * 50
    sizes = [400, 200, 100, 20, 3, 1, 1, 1]
    points = torch.cat([c + 0.1 * torch.randn(n, 6, generator=generator) for c, n in zip(centres, sizes, strict=True)])
    # The last two centres coincide: seven clusters.
    nearest = torch.cdist(points[farthest_points(points, 7)], centres[:7]).argmin(1)
    assert sorted(nearest.tolist()) == list(range(7))
    assert len(farthest_points(torch.ones(30, 4).cumsum(0)[:5].repeat(6, 1), 20)) == 5
    assert farthest_points(torch.zeros(9, 4), 5).tolist() == [0]


def test_what_is_pasted_is_one_rectangle_of_the_neighbour():
    torch.manual_seed(0)
    levels = torch.linspace(-1, 1, 64)
    images = levels[:, None, None, None].expand(64, 3, 30, 50)
    altered, masks = pasted(images)
    assert masks.shape == (64, 1, 30, 50)
    areas = []
    for k in range(64):
        changed = (altered[k] != images[k]).all(0)
        assert torch.equal(changed, (altered[k] != images[k]).any(0))
        assert (altered[k][:, changed] == levels[k - 1]).all()
        rows, columns = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & columns[None])
        assert rows.sum() <= 12
        assert columns.sum() <= 20
        areas.append(int(changed.sum()))
        visible = abs(levels[k] - levels[k - 1]) > 0.1
        assert torch.equal(masks[k, 0].bool(), changed & visible)
    assert min(areas) >= 1
    assert len(set(areas)) > 20


def test_a_place_is_pasted_if_any_of_its_pixels_is():
    masks = torch.zeros(1, 1, 33, 47)
    masks[0, 0, 32, 5] = masks[0, 0, 3, 46] = 1
    found = patch_targets(masks, MemoryConfig(33, 47, 1, features="self-supervised"))
    assert found.shape == (1, 1, 9, 12)
    assert torch.nonzero(found[0, 0]).tolist() == [[0, 11], [8, 1]]


def test_the_loss_weighs_pasted_places_as_much_as_the_others():
    z = torch.tensor([1.2, -0.7, 3.0, 0.4])
    t = torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = (F.softplus(-z[0]) + F.softplus(z[1:]).mean()) / 2
    torch.testing.assert_close(balanced_bce(z, t), expected)
    torch.testing.assert_close(balanced_bce(z, torch.zeros(4)), F.softplus(z).mean() / 2)


def test_the_encoder_is_asked_where_something_was_pasted_into_a_varied_recording():
    method = method_of(section_of(filters=4))
    images = torch.rand(6, 1, 32, 32) * 2 - 1
    torch.manual_seed(5)
    found = method._losses(Batch(images, torch.zeros(6, dtype=torch.int64)))["total"]
    torch.manual_seed(5)
    altered, masks = pasted(images)
    logits = method.networks["head"](method.detector().patches(recorded(altered, AugmentSection())))
    targets = F.max_pool2d(masks, 4)
    assert logits.shape == targets.shape
    expected = F.softplus(-logits[targets == 1]).mean() / 2 + F.softplus(logits[targets == 0]).mean() / 2
    torch.testing.assert_close(found, expected)


def test_only_images_known_to_be_ok_are_remembered(boards):
    strange = torch.randint(0, 256, (20, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone, mixed = method_of(section_of()), method_of(section_of())
    assert alone.uses_unlabelled
    alone.finish(set_of(boards))
    mixed.finish(set_of(boards, others=strange))
    for name, value in alone.detector().state_dict().items():
        assert torch.equal(value, mixed.detector().state_dict()[name]), name
    assert "48 OK images" in mixed.notes[-1]
    only_strange = TrainingSet(Batches(strange, 16, 0, labels=torch.full((20,), UNKNOWN)))
    with pytest.raises(UserError, match="no OK image"):
        method_of(section_of()).finish(only_strange)


def test_of_many_places_a_drawn_part_is_chosen_from(boards, monkeypatch):
    training = set_of(boards)
    method = method_of(section_of(memory=50))
    method.finish(training)
    assert "chosen from 3072 of 3072 on 48 OK images" in method.notes[-1]
    monkeypatch.setattr(module, "CANDIDATES", 1000)
    kept = []
    for _ in range(2):
        method = method_of(section_of(memory=50))
        method.finish(training)
        kept.append(method.detector().memory.bank)
    assert len(kept[0]) == 50
    assert torch.equal(kept[0], kept[1])
    chosen_from = int(method.notes[-1].split("chosen from ")[1].split(" ")[0])
    assert 700 < chosen_from <= 1000


def test_a_resumed_run_has_the_memory_of_one_left_alone(boards, tmp_path, stop_at):
    section, training = section_of(epochs=2, filters=4, memory=100, dimensions=24), set_of(boards)
    whole = method_of(section)
    torch.manual_seed(1)
    loop_of(whole, training, tmp_path / "whole").run()
    whole.finish(training)
    torch.manual_seed(1)
    first = loop_of(method_of(section), set_of(boards), tmp_path / "parts", stop_at(3))
    torch.manual_seed(1)
    with pytest.raises(Interrupted):
        first.run()
    for _ in range(2):  # the second time, nothing is left to train
        again = method_of(section)
        training = set_of(boards)
        second = loop_of(again, training, tmp_path / "parts")
        torch.manual_seed(99)
        assert second.resume()
        second.run()
        again.finish(training)
        for name, value in whole.networks.state_dict().items():
            assert torch.equal(value, again.networks.state_dict()[name]), name


def test_images_that_show_nothing_are_a_collapse():
    method = method_of(section_of(filters=4))
    method._losses(Batches(torch.full((16, 1, 32, 32), 90, dtype=torch.uint8), 16, 0).next())
    assert method._collapse() is None  # noise of the sensor is still there
    method._spread = torch.zeros(())
    assert "same features" in method._collapse()


def test_resnets_need_a_file_of_weights_and_train_nothing(boards, tmp_path):
    torch.manual_seed(1)
    network = models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    method = method_of(section_of("resnet18", weights=str(tmp_path / "resnet18.pth"), memory=60))
    loaded = method.detector().patches.backbone.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items() if name in loaded)
    assert "448 features at each of 8×8 patches" in method.notes[0]
    assert not method.uses_unlabelled
    training = set_of(boards)
    loop = loop_of(method, training, tmp_path / "run")
    assert not loop.resume()
    loop.run()
    method.finish(training)
    assert torch.isfinite(method.detector()(training.batches.next().images)[0]).all()
    with pytest.raises(UserError, match=r"weights is missing.*\n?.*preset self-supervised"):
        method_of(section_of("resnet34"))
    with pytest.raises(UserError, match="have no weights"):
        method_of(section_of(weights="somewhere.pth"))


def generator_run(folder, size=32, spectral_norm=False):
    shape = StyleGAN2Config(size, size, 1, **STYLEGAN2["demo"])
    config = StyleGAN2ADAConfig(spectral_norm=spectral_norm, augment="none")
    method = StyleGAN2ADAMethod(shape, config, AugmentConfig(), 1, torch.zeros(4, dtype=torch.int64))
    checkpoint.save(folder / "generator", {"networks": method.networks.state_dict()})
    TrainedGenerator(method.average, ["open"], [4], method.prior).save(folder / "generator")
    return method.discriminator.eval()


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_features_of_the_runs_discriminator_are_its_own(boards, tmp_path, spectral_norm):
    torch.manual_seed(2)
    discriminator = generator_run(tmp_path, spectral_norm=spectral_norm)
    method = method_of(section_of("discriminator", memory=60))
    method.begin(tmp_path)
    training = set_of(boards)
    x = training.batches.next().images
    with torch.no_grad():
        for ours, theirs in zip(method.detector().patches.backbone.levels(x), discriminator.features(x), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert method.stages(48) == []
        method.finish(training)
        assert method.detector()(x)[0].shape == (16,)
    assert "discriminator of this run's generator" in method.notes[0]
    assert method.learns_from_ng  # so that the NG it was trained on do not calibrate
    assert not method_of(section_of()).learns_from_ng


@pytest.mark.parametrize(
    ("generator", "refused"),
    [
        (None, "no generator with a discriminator"),
        ({"kind": "perlin"}, "no generator with a discriminator"),
        ({"kind": "stylegan2-ada", "size": 64}, "judge 64×64 pixels, but the detector, .* sees 32×32"),
        ({"kind": "stylegan2-ada", "size": [64, 32]}, "judge 32×64 pixels"),
        ({"kind": "stylegan2-ada", "size": 32}, None),
        ({"kind": "stylegan2-ada"}, None),
    ],
)
def test_a_generator_that_cannot_give_its_features_is_refused_before_it_trains(generator, refused):
    section = None if generator is None else GeneratorSection.model_validate(generator)
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        method_of(section_of("discriminator")).check(section)
    method_of(section_of()).check(section)


def test_without_a_generator_that_fits_there_is_no_discriminator(tmp_path):
    with pytest.raises(UserError, match="no generator"):
        method_of(section_of("discriminator")).begin(tmp_path)
    generator_run(tmp_path, size=64)
    with pytest.raises(UserError, match="64×64 pixels, 1 channels, but the detector sees 32×32"):
        method_of(section_of("discriminator")).begin(tmp_path)


def test_unknown_options_and_values_are_refused_by_name():
    with pytest.raises(UserError, match="patches"):
        method_of(section_of(patches=3))
    with pytest.raises(UserError, match="memory"):
        method_of(section_of(memory=1))


def test_a_whole_run_separates_rendered_defects(tmp_path):
    render_boards(tmp_path / "boards", boards=20, count_ok=400, count_ng=240, size=32, channels=1, seed=4)
    (tmp_path / "recipe.toml").write_text(
        'name = "memory-boards"\ndataset = "boards"\n[image]\nsize = 32\nchannels = 1\n'
        '[detector]\nkind = "memory"\nepochs = 20\nbatch_size = 16\n[detector.options]\nfilters = 8\nmemory = 500\n'
    )
    bundle = train(tmp_path / "recipe.toml", tmp_path / "run", quiet=True)
    assert bundle is not None
    found = bundle.manifest.metrics["auroc"]
    assert found["lower"] > 0.65, found
