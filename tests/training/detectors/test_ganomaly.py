"""GANomaly: its losses as they are assembled, each with its weight, and the discriminator that begins anew."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import Batch, Batches
from kizu.training.detectors import ganomaly as module
from kizu.training.detectors.ganomaly import GANomalyMethod
from kizu.training.detectors.method import DetectorContext
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


def make_method(scale: float = 4.0) -> GANomalyMethod:
    """Return a method whose weights are larger than at the start, so that every term of its loss shows."""
    torch.manual_seed(0)
    section = DetectorSection(kind="ganomaly", options={"features": 4, "latent": 4}, batch_size=4)
    method = GANomalyMethod(DetectorContext(GEOMETRY, section))
    with torch.no_grad():
        for weight in method.networks.parameters():
            if weight.ndim == 4:
                weight.mul_(scale)
    return method


def batch_of(count: int = 6) -> Batch:
    return Batch(torch.rand(count, 1, 32, 32) * 2 - 1, torch.zeros(count, dtype=torch.int64))


def gradients(total: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(network.parameters())))


def test_the_generator_pays_for_features_pixels_and_latents_by_the_papers_weights() -> None:
    method, x = make_method(), batch_of().images
    generator, features = method.networks.generator, method.networks.discriminator.pyramid
    total = method._g_losses(Batch(x, torch.zeros(6)))["total"]
    z = generator.encoder(x)[0]
    reconstruction = generator.decoder(z)
    terms = {  # w_adv, w_con and w_enc are 1, 50 and 1
        "adversarial": 1 * (features(x) - features(reconstruction)).square().mean(),
        "context": 50 * (x - reconstruction).abs().mean(),
        "encoder": 1 * (z - generator.second_encoder(reconstruction)[0]).square().mean(),
    }
    expected = torch.stack(list(terms.values())).sum()
    torch.testing.assert_close(total, expected)
    for name, term in terms.items():
        assert term > 1e-3 * expected, f"{name} is too small to be missed"
    for found, wanted in zip(gradients(total, generator), gradients(expected, generator), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_discriminator_tells_images_from_reconstructions_and_teaches_no_generator() -> None:
    method, x = make_method(), batch_of().images
    nets = method.networks
    total = method._d_losses(Batch(x, torch.zeros(6)))["total"]
    real, fake = nets.discriminator(x)[0], nets.discriminator(nets.generator.reconstruct(x))[0]
    expected = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    expected = (expected + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(total, expected)
    total.backward()
    assert all(weight.grad is None for weight in nets.generator.parameters())
    assert all(weight.grad is not None for weight in nets.discriminator.parameters())


@pytest.mark.parametrize(("vanished", "begins_anew"), [(1e9, True), (0.0, False)])
def test_a_discriminator_whose_loss_vanished_is_initialised_again(vanished, begins_anew, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(module, "VANISHED_LOSS", vanished)
    method = make_method()
    generator = method.networks.generator.encoder.head.weight.detach().clone()
    pixels = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    settings, log = LoopSettings(control_every=2, sample_every=10**9), RunLog(None, quiet=True)
    TrainingLoop(method, Batches(pixels, 4, 0), tmp_path, identity="x", log=log, settings=settings).run()
    weights = [w for w in method.networks.discriminator.parameters() if w.ndim == 4]
    for weight in weights:  # N(0, 0.02) at the start, four times that in `make_method`
        assert (weight.std().item() < 0.04) == begins_anew
    moved = (method.networks.generator.encoder.head.weight - generator).abs().max()
    assert 0 < moved < 0.02, "the generator goes on as it was"


def test_only_a_loss_below_the_authors_threshold_has_vanished() -> None:
    method = make_method()
    before = method.networks.discriminator.head.weight.detach().clone()
    method._revive({"D/total": 1.1e-5})
    assert torch.equal(method.networks.discriminator.head.weight, before)
    method._revive({"D/total": 0.9e-5})
    assert not torch.equal(method.networks.discriminator.head.weight, before)


@pytest.mark.parametrize(("given", "rate"), [(None, 2e-4), (1e-3, 1e-3)])
def test_a_step_is_one_update_of_each_network_by_the_papers_adam(given: float | None, rate: float) -> None:
    section = DetectorSection(kind="ganomaly", options={"features": 4}, batch_size=4, epochs=3, learning_rate=given)
    method = GANomalyMethod(DetectorContext(GEOMETRY, section))
    (stage,) = method.stages(20)
    assert stage.steps == 3 * 20 / 4
    assert stage.problem == method._collapse
    assert [(p.name, p.every, p.repeats) for p in stage.phases] == [("D", 1, 1), ("G", 1, 1)]
    for phase, network in zip(stage.phases, (method.networks.discriminator, method.networks.generator), strict=True):
        assert phase.trains is network
        (group,) = phase.optimizer.param_groups
        assert (group["lr"], group["betas"]) == (rate, (0.5, 0.999))
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


def test_a_set_of_one_image_trains_once() -> None:
    section = DetectorSection(kind="ganomaly", options={"features": 4}, batch_size=4, epochs=1)
    (stage,) = GANomalyMethod(DetectorContext(GEOMETRY, section)).stages(1)
    assert stage.steps == 1


def test_pictures_are_of_images_beside_their_reconstructions() -> None:
    method, images = make_method(), batch_of(3).images
    method.networks.eval()
    with torch.no_grad():
        reconstructions = method.networks.reconstruct(images)
        pictures = method.samples(images)
    torch.testing.assert_close(pictures, torch.cat([images, reconstructions, (images - reconstructions).abs() - 1]))


def test_the_latent_that_is_watched_holds_no_graph() -> None:
    method = make_method()
    method._g_losses(batch_of())
    assert method._last_latent is not None
    assert not method._last_latent.requires_grad


def test_one_latent_for_every_image_is_a_collapse() -> None:
    method = make_method()
    method._g_losses(batch_of())
    assert method._collapse() is None
    method.networks.generator.encoder.head.weight.data.zero_()
    method._g_losses(batch_of())
    assert method._collapse() == "all images get the same latent"
