"""The losses of StyleGAN2-ADA as they are assembled, against the papers' formulas; mixed styles; p on its way."""

import pytest
import torch
import torch.nn.functional as F

from kizu.training.data.batches import Batch
from kizu.training.progress import RunLog

PLAIN = {"augment": "none", "style_mixing": 0.0}
"""Without augmentation and mixing, the random numbers of a step are few enough to sample them again."""
SEED = 5


def batch_of(n=4):
    return Batch(torch.rand(n, 1, 16, 16) * 2 - 1, torch.arange(n) % 2)


def louder(method):
    """The method with a discriminator whose logits and slopes are not all about 0."""
    with torch.no_grad():
        method.discriminator.head.out.weight.mul_(20)
    return method


def fakes_of(method, n=4):
    """The fakes of the next step, with classes and z; the random state is as after them."""
    torch.manual_seed(SEED)
    return method._fakes(n, torch.device("cpu"), method.generator.synthesis)


def losses_of(method, losses, batch):
    method.networks.requires_grad_(True)
    torch.manual_seed(SEED)
    return losses(batch)


DISCRIMINATOR = {
    "non-saturating": lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    "lsgan": lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
}
GENERATOR = {
    "non-saturating": lambda fake: F.softplus(-fake).mean(),
    "hinge": lambda fake: -fake.mean(),
    "lsgan": lambda fake: (fake - 1).square().mean() / 2,
    "wgan-gp": lambda fake: -fake.mean(),
}


@pytest.mark.parametrize("loss", DISCRIMINATOR)
def test_the_discriminator_s_loss_is_of_real_and_fake_images_with_their_classes(loss, make_method):
    method, (real, labels) = louder(make_method(loss=loss, **PLAIN)), batch_of()[:2]
    found = losses_of(method, method._discriminator_losses, Batch(real, labels))["total"]
    fake, classes, _ = fakes_of(method)
    expected = DISCRIMINATOR[loss](method.discriminator(real, labels), method.discriminator(fake, classes))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(method.discriminator(real, 1 - labels), method.discriminator(real, labels), rtol=1e-2)


def test_the_critic_pays_ten_times_the_squared_distance_of_its_slope_from_one(make_method):
    method, (real, labels) = louder(make_method(loss="wgan-gp", **PLAIN)), batch_of()[:2]
    found = losses_of(method, method._discriminator_losses, Batch(real, labels))["total"]
    fake, classes, _ = fakes_of(method)
    epsilon = torch.rand(4, 1, 1, 1)
    between = (epsilon * real + (1 - epsilon) * fake.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(method.discriminator(between, labels).sum(), between)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    distance = method.discriminator(real, labels).mean() - method.discriminator(fake, classes).mean()
    torch.testing.assert_close(found, 10 * penalty - distance, rtol=1e-4, atol=1e-4)
    assert penalty > 1e-2


@pytest.mark.parametrize("loss", GENERATOR)
def test_the_generator_s_loss_is_of_what_the_discriminator_says_of_its_images(loss, make_method):
    method = louder(make_method(loss=loss, **PLAIN))
    found = losses_of(method, method._generator_losses, batch_of())["total"]
    fake, classes, _ = fakes_of(method)
    torch.testing.assert_close(found, GENERATOR[loss](method.discriminator(fake, classes)))


def squared(a, b):
    return (a - b).square().mean()


@pytest.mark.parametrize("kind", ["cr", "bcr", "zcr", "icr"])
def test_consistency_terms_join_both_losses_with_the_papers_weights(kind, make_method):
    method, (real, labels) = louder(make_method(consistency=kind, **PLAIN)), batch_of()[:2]
    method._shift = lambda images: 0.5 * images
    critic = method.discriminator
    found = losses_of(method, method._discriminator_losses, Batch(real, labels))["total"]
    fake, classes, z = fakes_of(method)
    expected = DISCRIMINATOR["non-saturating"](critic(real, labels), critic(fake, classes))
    if kind in ("zcr", "icr"):
        fake = method.generator(z, classes, noise="const")
        near = method.generator(z + 0.05 * torch.randn_like(z), classes, noise="const")
        expected = expected + 5 * squared(critic(fake, classes), critic(near, classes))
    if kind != "zcr":
        expected = expected + 10 * squared(critic(real, labels), critic(real / 2, labels))
    if kind in ("bcr", "icr"):
        expected = expected + 10 * squared(critic(fake, classes), critic(fake / 2, classes))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    found = losses_of(method, method._generator_losses, Batch(real, labels))["total"]
    fake, classes, z = fakes_of(method)
    expected = GENERATOR["non-saturating"](critic(fake, classes))
    if kind in ("zcr", "icr"):
        fake, near = (method.generator(w, classes, noise="const") for w in (z, z + 0.05 * torch.randn_like(z)))
        apart = squared(fake.clamp(-1, 1), near.clamp(-1, 1))
        assert apart > 1e-4
        expected = expected - 0.5 * apart
    torch.testing.assert_close(found, expected)


def test_the_bourgain_prior_s_distance_term_weighs_a_tenth(make_method):
    method = make_method(prior="bourgain", **PLAIN)
    losses = losses_of(method, method._generator_losses, batch_of(6))
    fake, classes, z = fakes_of(method, 6)
    logits = method.discriminator(fake, classes)
    pair = method.generator(z, classes)
    distance = method.prior.distance_loss(z[:3], z[3:], pair[:3], pair[3:])
    torch.testing.assert_close(losses["total"], GENERATOR["non-saturating"](logits) + 0.1 * distance)
    assert distance > 1e-3


def test_lazy_r1_is_half_gamma_times_the_squared_slope_times_its_interval(make_method):
    method, (real, labels) = louder(make_method(r1=3.0, r1_every=4, **PLAIN)), batch_of()[:2]
    method.networks.requires_grad_(True)
    found = method._r1_losses(Batch(real, labels))["total"]
    images = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(method.discriminator(images, labels).sum(), images)
    torch.testing.assert_close(found, 4 * 3.0 / 2 * slope.square().sum((1, 2, 3)).mean(), rtol=1e-4, atol=0)
    assert found > 1e-3


def test_the_path_length_is_of_the_images_along_the_w_that_made_them(make_method):
    method = make_method(path_length=2.0, path_length_every=4, style_mixing=0.9)
    method.path_length.mean.fill_(0.25)
    made = []
    method.generator.synthesis.register_forward_hook(lambda _module, inputs, images: made.append((inputs[0], images)))
    noise = torch.randn(2, 1, 16, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kizu.training.penalties.torch.randn_like", lambda *_args, **_options: noise)
        found = losses_of(method, method._path_losses, batch_of())["total"]
    ((ws, images),) = made
    (slope,) = torch.autograd.grad((images * noise / 16).sum(), ws)
    lengths = slope.square().sum(2).mean(1).sqrt()
    mean = 0.25 + 0.01 * (lengths.mean() - 0.25)
    torch.testing.assert_close(method.path_length.mean, mean)
    torch.testing.assert_close(found, 2 * 4 * (lengths - mean).square().mean())


# --- mixed styles ---


@pytest.mark.parametrize("phase", ["G", "G-path", "D"])
@pytest.mark.parametrize(("probability", "mixed"), [(1.0, True), (0.0, False)])
def test_layers_get_the_styles_of_two_latents_in_every_phase(phase, probability, mixed, make_method):
    method, seen = make_method(style_mixing=probability), []
    method.generator.synthesis.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    phases = {p.name: p for p in method.stages(24)[0].phases}
    method.networks.requires_grad_(True)
    phases[phase].losses(batch_of(8))
    (ws,) = seen
    assert ws.shape[1] == method.shape.layers
    differs = (ws != ws[:, :1]).any(2)
    assert (differs[:, -1] == mixed).all()
    assert differs.any() == mixed
    for image in ws:  # no more than two styles
        assert len(image.unique(dim=0)) == 1 + mixed


# --- p inside the loop ---


@pytest.mark.parametrize(
    ("options", "path"),
    [
        # r_t lies in [−1, 1]: a target beyond fixes the direction. 4 images · 4 steps of 80 images for 0 → 1
        ({"ada_target": -1.5, "ada_start": 0.0}, [0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4, 0.5]),
        ({"ada_target": 1.5, "ada_start": 0.3}, [0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0, 0, 0, 0, 0]),
        ({"ada_target": -1e9, "ada_heuristic": "r_v"}, [0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4, 0.5]),
        ({"ada_target": -1.5, "ada_start": 0.3, "augment": "diffaugment"}, [0.3] * 12),
        # as many images in half of the steps
        ({"ada_target": -1.5, "critic_updates": 2}, [0, 0.2, 0.2, 0.4, 0.4, 0.5]),
    ],
)
def test_p_moves_towards_the_target_in_every_fourth_update_of_the_discriminator(
    options, path, make_method, make_loop, tmp_path
):
    held_out = batch_of(3)
    method = make_method(steps=len(path), held_out=held_out, ada_kimg=0.08, ada_limit=0.5, **options)
    seen = []

    class Log(RunLog):
        def scalars(self, stage, values, step):
            del stage, values, step
            seen.append(method.ada.p.item())

    make_loop(method, tmp_path, Log(None, quiet=True)).run()
    assert seen == pytest.approx(path, abs=1e-6)


@pytest.mark.parametrize("phase", ["G", "D", "D-r1"])
def test_images_are_augmented_with_the_p_of_the_moment(phase, make_method):
    method, seen = make_method(ada_start=0.3), []

    def augment(images, p):
        seen.append(float(p))
        return images

    method._augment = augment
    (chosen,) = (p for p in method.stages(24)[0].phases if p.name == phase)
    method.networks.requires_grad_(True)
    chosen.losses(batch_of())
    method.ada.p.fill_(0.7)
    chosen.losses(batch_of())
    assert {round(p, 6) for p in seen} == {0.3, 0.7}


# --- what the loop watches ---


def test_the_bourgain_prior_moves_and_is_kept_with_the_networks(make_method):
    method = make_method(prior="bourgain")
    assert method.networks["prior"] is method.prior
    assert any(name.startswith("prior.") for name in method.networks.state_dict())


def test_one_image_from_every_latent_is_a_collapse(make_method):
    method = make_method(style_mixing=0.0)
    (stage,) = method.stages(4)
    assert stage.problem == method._collapse
    method.measurements = 3
    assert method.stages(4)[0].measure_every == 3  # of 8 steps: after 3, 6 and at the end
    method.networks.requires_grad_(True)
    method._generator_losses(batch_of())
    assert method._collapse() is None
    with torch.no_grad():
        for layer in method.generator.mapping.parameters():
            layer.zero_()
    method._generator_losses(batch_of())
    assert method._collapse() == "the generator makes one image from every noise"
