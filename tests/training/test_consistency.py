"""Consistency terms against their formulas, and what each kind turns on."""

import pytest
import torch

from kizu.training.consistency import Consistency, bcr, cr, zcr_discriminator, zcr_generator

KINDS = ["none", "cr", "bcr", "zcr", "icr"]


def total(x):
    """A discriminator: [N, C, H, W] → [N, 1], the sum of its pixels."""
    return x.flatten(1).sum(1, keepdim=True)


def shifted(by):
    return lambda x: x + by


class Counting:
    """`w·total(x)`, which remembers what it saw."""

    def __init__(self):
        self.w = torch.tensor(1.0, requires_grad=True)
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)
        return self.w * total(x)


def term(config, discriminator, transform, real, fake, near):
    logits = {"real_logits": discriminator(real), "fake_logits": discriminator(fake.detach())}
    return config.discriminator_term(discriminator, transform, real, fake, near, **logits)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 4, 4, generator=generator) for _ in range(3)]


def test_cr_is_the_mean_square_of_logit_differences():
    """A shift by ε moves the sum of 12 pixels by 12ε."""
    shift = torch.tensor([0.1, 0.2, 0.0]).view(3, 1, 1, 1)
    real = torch.randn(3, 3, 2, 2)
    expected = 12**2 * (0.01 + 0.04) / 3
    assert cr(total, real, real + shift).item() == pytest.approx(expected, rel=1e-4)
    assert cr(total, real, real + shift, logits=total(real)).item() == pytest.approx(expected, rel=1e-4)
    on_real, on_fake = bcr(total, real, real + shift, 2 * real, 2 * real - 2 * shift)
    assert on_real.item() == pytest.approx(expected, rel=1e-4)
    assert on_fake.item() == pytest.approx(4 * expected, rel=1e-4)
    assert zcr_discriminator(total, real, real + shift).item() == pytest.approx(expected, rel=1e-4)


def test_cr_gives_a_gradient_on_both_sides():
    """d/dw (w·a − w·b)² = 2w(a − b)², which neither side's gradient alone amounts to."""
    discriminator, real = Counting(), torch.randn(1, 1, 2, 2)
    cr(discriminator, real, 3 * real).backward()
    assert discriminator.w.grad is not None
    assert discriminator.w.grad.item() == pytest.approx(2 * (2 * total(real).item()) ** 2, rel=1e-4)


def test_bcr_leaves_the_generator_alone():
    """Else it would learn to please T."""
    theta = torch.tensor(0.5, requires_grad=True)
    fake, discriminator = theta * torch.ones(2, 1, 2, 2), Counting()
    on_real, on_fake = bcr(discriminator, fake.detach(), fake.detach() + 1, fake, 2 * fake)
    (on_real + on_fake).backward()
    assert discriminator.w.grad is not None
    assert theta.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_to_pay_where_the_transform_and_the_step_in_z_do_nothing(kind, images):
    real, fake, _ = images
    assert term(Consistency(kind), total, lambda x: x, real, fake, fake).item() == 0
    assert Consistency(kind).generator_term(fake, fake).item() == 0


@pytest.mark.parametrize(("kind", "weight"), [("none", 0), ("cr", 2), ("bcr", 2 + 3), ("zcr", 0), ("icr", 2 + 3)])
def test_the_weights_of_the_transform_terms(kind, weight, images):
    """T shifts each of 48 pixels by 0.01, so each square is 0.48²."""
    real, fake, _ = images
    config = Consistency(kind, real_weight=2, fake_weight=3)
    assert term(config, total, shifted(0.01), real, fake, fake).item() == pytest.approx(weight * 0.48**2, rel=1e-3)


@pytest.mark.parametrize(("kind", "weight"), [("none", 0), ("cr", 0), ("bcr", 0), ("zcr", 7), ("icr", 7)])
def test_the_weights_of_the_latent_terms(kind, weight, images):
    real, fake, _ = images
    fake = fake.clamp(-0.9, 0.9)
    config = Consistency(kind, z_discriminator_weight=7, z_generator_weight=7)
    assert config.needs_near == (weight > 0)
    near = fake + 0.01 if config.needs_near else None
    assert term(config, total, lambda x: x, real, fake, near).item() == pytest.approx(weight * 0.48**2, rel=1e-3)
    assert config.generator_term(fake, near).item() == pytest.approx(-weight * 0.01**2, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "passes", "transforms"), [("none", 0, 0), ("cr", 1, 1), ("bcr", 2, 2), ("zcr", 1, 0), ("icr", 3, 2)]
)
def test_logits_that_the_step_has_are_not_computed_again(kind, passes, transforms, images):
    real, fake, near = images
    discriminator, transform = Counting(), Counting()
    logits = {"real_logits": total(real), "fake_logits": total(fake)}
    Consistency(kind).discriminator_term(discriminator, transform, real, fake, near, **logits)
    assert (len(discriminator.seen), len(transform.seen)) == (passes, transforms)
    assert Consistency(kind).needs_transform == (transforms > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminators_term_trains_the_discriminator_and_never_the_generator(kind, images):
    real, fake, near = images
    fake.requires_grad_(True)
    near.requires_grad_(True)
    discriminator = Counting()
    loss = term(Consistency(kind), discriminator, shifted(0.1), real, fake, near)
    assert loss.shape == ()
    if kind == "none":
        assert loss.item() == 0
        return
    loss.backward()
    assert discriminator.w.grad is not None
    assert discriminator.w.grad.item() > 0, "the less it reacts, the better"
    assert fake.grad is None
    assert near.grad is None


def test_the_generator_descends_towards_telling_neighbours_apart():
    theta = torch.tensor(0.1, requires_grad=True)
    z = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)
    loss = zcr_generator(theta * z, theta * (z + 0.2))
    assert loss.item() == pytest.approx(-((0.1 * 0.2) ** 2), rel=1e-4)
    loss.backward()
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(-2 * 0.1 * 0.2**2, rel=1e-4)


def test_the_generators_term_is_bounded_and_does_not_drive_pixels_out_of_range():
    fake = torch.full((2, 1, 2, 2), 50.0, requires_grad=True)
    near = torch.full((2, 1, 2, 2), -50.0, requires_grad=True)
    loss = zcr_generator(fake, near)
    assert loss.item() == -4
    loss.backward()
    assert fake.grad is not None
    assert near.grad is not None
    assert not fake.grad.any()
    assert not near.grad.any()


@pytest.mark.parametrize("size", [4, 16])
def test_the_generators_term_does_not_grow_with_the_resolution(size):
    assert zcr_generator(torch.zeros(2, 3, size, size), torch.full((2, 3, size, size), 0.5)).item() == -0.25


def test_neighbours_are_a_normal_step_away():
    torch.manual_seed(0)
    z = torch.randn(200, 512)
    step = Consistency("zcr", sigma=0.05).near(z) - z
    assert step.mean().item() == pytest.approx(0, abs=1e-3)
    assert step.std().item() == pytest.approx(0.05, rel=0.02)


def test_what_cannot_be_is_refused(images):
    real, fake, _ = images
    with pytest.raises(ValueError, match="kind must be one of"):
        Consistency("crr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs_near"):
        term(Consistency("zcr"), total, shifted(0), real, fake, None)
    with pytest.raises(ValueError, match="needs_near"):
        Consistency("icr").generator_term(fake, None)
