"""A trained generator: images that depend on seed and class alone, classes in proportion, its file."""

import pytest
import torch

from kizu.errors import UserError
from kizu.models.stylegan2 import Generator, StyleGAN2Config
from kizu.training.data.loading import to_pixels
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.priors import make_prior
from kizu.training.run import GENERATOR_FILE

TINY = {"latent": 16, "mapping_layers": 2, "capacity": 128, "max_channels": 16}


def trained(classes=("hole", "scratch", "short"), counts=(6, 3, 1), conditional=True, prior="normal"):
    torch.manual_seed(0)
    shape = StyleGAN2Config(16, 20, 3, len(classes) if conditional else 0, **TINY)
    network = Generator(shape).eval().requires_grad_(False)
    for layer in network.synthesis.convs:
        assert isinstance(layer.strength, torch.Tensor)
        layer.strength.fill_(0.5)
    return TrainedGenerator(
        network=network,
        classes=list(classes),
        counts=list(counts),
        prior=make_prior(prior, 16, images=torch.rand(12, 3, 16, 20)),
        run="boards@abc",
        conditional=conditional,
    )


def assert_same_but_for_rounding(a, b):
    """uint8 images: a batch's size decides how convolutions round."""
    assert a.shape == b.shape
    difference = (a.int() - b.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("prior", ["normal", "truncated", "bourgain"])
def test_an_image_is_that_of_its_seed_and_class_whatever_the_batch(prior):
    generator = trained(prior=prior)
    together = generator.images([5, 6, 7, 8], [0, 1, 2, 1])
    assert together.dtype == torch.uint8
    assert together.shape == (4, 3, 16, 20)
    assert torch.equal(together, generator.images([5, 6, 7, 8], [0, 1, 2, 1]))
    assert_same_but_for_rounding(together[2:3], generator.images([7], [2]))
    assert_same_but_for_rounding(together[[3, 0]], generator.images([8, 5], [1, 0]))
    assert (together[1].int() - together[3].int()).abs().float().mean() > 3
    assert not torch.equal(together[2:3], generator.images([7], [0]))


def test_the_random_state_of_the_caller_is_left_alone():
    generator = trained()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generator.images([1, 2], [0, 1])
    assert torch.equal(before, torch.get_rng_state())


def test_no_image_s_noise_is_drawn_from_another_s_seed():
    generator = trained(conditional=False)
    seeds: list[int] = []
    generator.network.register_forward_pre_hook(
        lambda _module, _inputs, named: seeds.extend(g.initial_seed() for g in named["noise"]), with_kwargs=True
    )
    generator.images(range(100), [0] * 100)
    assert len(set(seeds)) == 100
    assert not {seed % 2**32 for seed in seeds} & set(range(10**6))  # the CPU's generator knows 32 bits of a seed


def test_truncation_0_leaves_nothing_but_the_noise():
    generator = trained(conditional=False)
    for layer in generator.network.synthesis.convs:
        layer.strength.zero_()
    images = generator.images([1, 2], [0, 0], truncation=0.0)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(*generator.images([1, 2], [0, 0]))


def test_images_outside_of_what_pixels_can_show_are_clipped():
    pixels = to_pixels(torch.tensor([[[[-3.0, -1.0, 0.0, 0.5, 1.0, 9.0]]]]))
    assert pixels.flatten().tolist() == [0, 0, 128, 191, 255, 255]


def test_classes_come_interleaved_in_proportion_to_their_counts():
    generator = trained()
    numbers = generator.class_numbers(40)
    for length in range(1, 41):
        given = torch.tensor(numbers[:length]).bincount(minlength=3)
        assert ((given - length * torch.tensor([0.6, 0.3, 0.1])).abs() < 1).all(), length
    assert torch.tensor(numbers).bincount().tolist() == [24, 12, 4]
    assert numbers[:10] == generator.class_numbers(10)
    assert generator.class_numbers(3, "short") == [2, 2, 2]


def test_a_class_that_it_never_saw_is_refused_with_those_it_knows():
    with pytest.raises(UserError, match="never saw the defect class 'dent'") as refused:
        trained().class_numbers(1, "dent")
    assert "hole, scratch, short" in str(refused.value.remedy)


def test_an_unconditional_generator_cannot_be_asked_for_a_class():
    generator = trained(conditional=False)
    with pytest.raises(UserError, match="trained without classes"):
        generator.class_numbers(1, "hole")
    assert generator.class_numbers(2) == [0, 0]
    assert generator.name(0) == "NG"
    assert trained(("hole",), (4,), conditional=False).name(0) == "hole"
    assert trained().name(2) == "short"


def test_batches_count_seeds_and_do_not_depend_on_their_size():
    generator = trained()

    def made(size):
        parts = list(generator.batches(7, seed=100, size=size))
        images = torch.cat([part.images for part in parts])
        assert all(part.masks is None for part in parts)
        return images, [n for part in parts for n in part.classes], [s for part in parts for s in part.seeds]

    images, names, seeds = made(3)
    others = made(32)
    assert seeds == others[2] == list(range(100, 107))
    assert names == others[1] == [generator.classes[k] for k in generator.class_numbers(7)]
    assert_same_but_for_rounding(images, others[0])


@pytest.mark.parametrize("prior", ["normal", "truncated", "bourgain"])
def test_what_is_saved_is_what_is_loaded(prior, tmp_path):
    generator = trained(prior=prior)
    generator.network.mapping.average.normal_()
    assert generator.save(tmp_path) == tmp_path / GENERATOR_FILE
    loaded = TrainedGenerator.load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [GENERATOR_FILE]
    for name in ("classes", "counts", "kind", "run", "conditional", "shape"):
        assert getattr(loaded, name) == getattr(generator, name)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert torch.equal(loaded.images([1, 2], [0, 2], 0.7), generator.images([1, 2], [0, 2], 0.7))


def test_a_file_that_is_missing_damaged_or_newer_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no trained generator"):
        TrainedGenerator.load(tmp_path)
    path = trained().save(tmp_path)
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04 no"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=GENERATOR_FILE):
            TrainedGenerator.load(tmp_path)
    torch.save(state | {"format": 99}, path)
    with pytest.raises(UserError, match="has format 99") as refused:
        TrainedGenerator.load(tmp_path)
    assert "Update" in str(refused.value.remedy)
    del state["network"]["mapping.layers.0.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match="cannot be read"):
        TrainedGenerator.load(tmp_path)
