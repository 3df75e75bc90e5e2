"""The discriminator's rating of single images: of each alone, with the minibatch statistic that training saw."""

import dataclasses

import pytest
import torch

from kizu.models.bundle import InputGeometry
from kizu.models.layers import MinibatchStd
from kizu.models.stylegan2 import Discriminator
from kizu.training import checkpoint
from kizu.training.data.crops import ng_crops
from kizu.training.data.render import render_boards
from kizu.training.execution import Execution
from kizu.training.loop import LoopSettings
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection
from kizu.training.synthesis import filtering
from kizu.training.synthesis.filtering import discriminator_rating
from kizu.training.synthesis.generator_job import DefectImages, GeneratorJob

SECTION = GeneratorSection(
    kind="stylegan2-ada",
    kimg=0.32,
    batch_size=8,
    measurements=0,
    augment="none",
    options={"latent": 16, "mapping_layers": 2, "capacity": 128, "max_channels": 16, "r1_every": 4},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("filtering")


@pytest.fixture(scope="module")
def trained(folder):
    """A generator after 40 steps, and the minibatch statistics that D saw of groups of fakes in the last 20."""
    manifest = render_boards(folder / "boards", boards=4, count_ok=1, count_ng=28, size=48, channels=1)
    crops = ng_crops(manifest, manifest.rows, InputGeometry(height=32, width=32, channels=1), crop=24)
    execution = Execution(RunLog(None, quiet=True), torch.device("cpu"), settings=LoopSettings(sample_every=10**9))
    seen = []
    forward = MinibatchStd.forward

    def recorded(self, x):
        result = forward(self, x)
        seen.append(result[:, -1, 0, 0].mean().item())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MinibatchStd, "forward", recorded)
        generator = GeneratorJob(SECTION, DefectImages.of(crops, True), 0, folder, "boards", execution).train()
    return generator, torch.tensor(seen[len(seen) // 2 :])


def statistics_of(rate, batch, numbers):
    """Minibatch statistics that D's last layers are given while it rates: [N]."""
    given = []
    with pytest.MonkeyPatch.context() as patch:
        forward = filtering.ConstantSpread.forward

        def recorded(self, x):
            given.append(forward(self, x))
            return given[-1]

        patch.setattr(filtering.ConstantSpread, "forward", recorded)
        rate(batch, numbers)
    return torch.cat(given)[:, -1, 0, 0]


def test_an_image_is_rated_beside_the_spread_that_training_saw(trained, folder):
    generator, seen = trained
    numbers = generator.class_numbers(6)
    batch = generator.sample(range(6), numbers)
    given = statistics_of(discriminator_rating(generator, SECTION, folder), batch, numbers)
    assert given.shape == (6,)
    assert (given == given[0]).all()
    assert seen.min() <= given[0] <= seen.max()
    assert seen.min() > 0.01, "the statistic of one image alone is 0.0001"


def test_a_rating_is_of_one_image_whatever_stands_beside_it(trained, folder):
    generator, _ = trained
    rate = discriminator_rating(generator, SECTION, folder)
    numbers = generator.class_numbers(6)
    batch = generator.sample(range(6), numbers)
    together = rate(batch, numbers)
    alone = torch.cat([rate(generator.sample([k], [numbers[k]]), [numbers[k]]) for k in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)  # uint8 images of another batch may round anew
    again = discriminator_rating(generator, SECTION, folder)
    assert torch.equal(together, again(batch, numbers))


def test_a_rating_is_the_logit_that_d_gives_among_typical_images(trained, folder):
    generator, _ = trained
    numbers = generator.class_numbers(64)
    batch = generator.sample(range(64), numbers)
    rated = discriminator_rating(generator, SECTION, folder)(batch, numbers)
    state = checkpoint.load(folder)
    assert state is not None
    weights = state["networks"]
    images, classes = batch.images.float() / 127.5 - 1, torch.tensor(numbers)
    logits = {}
    for group in (1, generator.shape.group):
        network = Discriminator(dataclasses.replace(generator.shape, group=group))
        network.load_state_dict({k.removeprefix("D."): v for k, v in weights.items() if k.startswith("D.")})
        with torch.no_grad():
            logits[group] = network(images, classes)
    in_groups = logits[generator.shape.group]
    assert (rated - in_groups).abs().mean() < 0.3 * (logits[1] - in_groups).abs().mean()
