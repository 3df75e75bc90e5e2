"""f-AnoGAN: its losses as they are assembled, and that it learns what good images have in common."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Inspector
from kizu.training.data.batches import Batch, Batches
from kizu.training.detectors.fanogan import FAnoGANMethod
from kizu.training.detectors.method import DetectorContext
from kizu.training.evaluation.ranking import auroc
from kizu.training.export import torch_scorer
from kizu.training.loop import TrainingLoop
from kizu.training.penalties import gradient_penalty
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


def make_method(seed=0, **fields):
    torch.manual_seed(seed)
    section = DetectorSection(kind="fanogan", **({"options": {"features": 4, "latent": 4}} | fields))
    return FAnoGANMethod(DetectorContext(GEOMETRY, section))


def waves(count: int, seed: int) -> Tensor:
    """Return vertical waves of random phase, uint8 [count, 1, 32, 32]: a set of one dimension."""
    phases = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    rows = 0.7 * torch.sin(torch.linspace(0, 2 * math.pi, 32) + phases)
    return ((rows[:, None, None, :].expand(-1, 1, 32, 32) + 1) * 127.5).round().byte()


def with_inverted_patches(images: Tensor, seed: int) -> Tensor:
    """Return the images with a patch of 8×8 pixels inverted in each."""
    images, generator = images.clone(), torch.Generator().manual_seed(seed)
    for image in images:
        row, column = torch.randint(0, 24, (2,), generator=generator).tolist()
        patch = image[:, row : row + 8, column : column + 8]
        patch.copy_(255 - patch)
    return images


def batch_of(count: int = 6) -> Batch:
    return Batch(waves(count, 1).float() / 127.5 - 1, torch.zeros(count, dtype=torch.int64))


def test_the_critic_pays_ten_times_the_gradient_penalty_for_its_distance():
    method, batch = make_method(), batch_of()
    torch.manual_seed(5)
    losses = method._critic_losses(batch)
    torch.manual_seed(5)
    fake = method.networks.generator(torch.randn(6, 4)).detach()
    critic = method.networks.critic
    distance = critic(batch.images)[0].mean() - critic(fake)[0].mean()
    penalty = gradient_penalty(lambda images: critic(images)[0], batch.images, fake)
    torch.testing.assert_close(losses["total"], 10 * penalty - distance)
    torch.testing.assert_close(losses["distance"], distance)
    assert penalty > 1e-3


def test_the_generator_raises_the_critic_s_scores():
    method = make_method()
    torch.manual_seed(5)
    losses = method._generator_losses(batch_of())
    torch.manual_seed(5)
    scores = method.networks.critic(method.networks.generator(torch.randn(6, 4)))[0]
    torch.testing.assert_close(losses["total"], -scores.mean())


@pytest.mark.parametrize("kappa", [1.0, 0.25])
def test_the_encoder_brings_images_and_kappa_times_features_together(kappa):
    method, batch = make_method(options={"features": 4, "latent": 4, "kappa": kappa}), batch_of()
    nets = method.networks.eval()
    losses = method._encoder_losses(batch)
    reconstruction = nets.generator(torch.tanh(nets.encoder(batch.images)[0]))
    image = (batch.images - reconstruction).square().mean()
    features = (nets.critic(batch.images)[1] - nets.critic(reconstruction)[1]).square().mean()
    torch.testing.assert_close(losses["total"], image + kappa * features)
    assert features > 1e-3


def test_five_updates_of_the_critic_go_with_one_of_the_generator_and_the_encoder_trains_last():
    method = make_method(epochs=10, batch_size=4)
    nets, (gan, encoder) = method.networks, method.stages(20)
    assert (gan.steps, encoder.steps) == (10 * 20 / 4 / 5, 10 * 20 / 4)
    phases = [(p.trains, p.repeats, p.every) for p in (*gan.phases, *encoder.phases)]
    assert phases == [(nets.critic, 5, 1), (nets.generator, 1, 1), (nets.encoder, 1, 1)]
    for phase in gan.phases:
        (group,) = phase.optimizer.param_groups
        assert (group["lr"], group["betas"]) == (1e-4, (0.0, 0.9))
    assert (gan.problem, encoder.problem) == (method._collapse, None)
    assert isinstance(encoder.phases[0].optimizer, torch.optim.RMSprop)
    assert encoder.phases[0].optimizer.param_groups[0]["lr"] == pytest.approx(5e-5)


def test_a_set_of_one_image_trains_each_stage_once():
    assert [stage.steps for stage in make_method(epochs=1, batch_size=4).stages(1)] == [1, 1]


def test_pictures_are_of_the_same_noise_and_of_images_beside_their_reconstructions():
    method, images = make_method(), batch_of(3).images
    method.networks.eval()
    with torch.no_grad():
        pictures = method.samples(images)
        reconstructions = method.networks.reconstruct(images)
        assert torch.equal(pictures[:8], method.samples(images)[:8])
    assert torch.equal(method._fixed_noise, make_method(seed=1)._fixed_noise)
    assert pictures.shape == (8 + 3 * 3, 1, 32, 32)
    torch.testing.assert_close(pictures[8:], torch.cat([images, reconstructions, (images - reconstructions).abs() - 1]))


def test_one_image_from_every_noise_is_a_collapse():
    method = make_method()
    method._generator_losses(batch_of())
    assert method._collapse() is None
    method.networks.generator.stem.weight.data.zero_()
    method._generator_losses(batch_of())
    assert method._collapse() == "the generator makes one image from every noise"


def test_no_step_teaches_a_network_that_has_not_its_turn():
    method, batch = make_method(), batch_of()
    nets = method.networks
    method._critic_losses(batch)["total"].backward()
    assert all(p.grad is None for p in nets.generator.parameters())
    assert all(p.grad is not None for p in nets.critic.parameters() if p.ndim > 1)


def test_it_learns_what_good_images_have_in_common(tmp_path):
    method = make_method(epochs=20, batch_size=16, learning_rate=1e-3)
    batches = Batches(waves(256, 100), 16, 0)
    TrainingLoop(method, batches, tmp_path, identity="x", log=RunLog(None, quiet=True)).run()
    # The penalty held: between good images and generated ones the critic's slope is about 1.
    nets = method.networks.eval()
    real = waves(64, 2).float() / 127.5 - 1
    fake = nets.generator(torch.randn(64, 4)).detach()
    between = torch.lerp(fake, real, torch.rand(64, 1, 1, 1)).requires_grad_()
    (slope,) = torch.autograd.grad(nets.critic(between)[0].sum(), between)
    assert slope.flatten(1).norm(dim=1).mean().item() == pytest.approx(1, abs=0.4)
    good, bad = waves(200, 3), with_inverted_patches(waves(200, 4), 5)
    score = torch_scorer(Inspector(method.detector(), GEOMETRY))
    scores, _ = score(torch.cat([bad, good]).permute(0, 2, 3, 1).numpy())
    found = auroc(scores[:200], scores[200:])
    assert found is not None
    assert found.lower > 0.75, found
    assert np.isfinite(scores).all()
