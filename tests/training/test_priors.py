"""Priors against the distributions and distances that they promise."""

import math

import pytest
import torch
from scipy import stats

from kizu.training.priors import BourgainPrior, NormalPrior, TruncatedPrior, make_prior

LATENT = 128


def normalised(z):
    """What StyleGAN2's mapping makes of z first."""
    return z / z.square().mean(1, keepdim=True).sqrt()


def test_the_normal_prior_is_standard_normal():
    torch.manual_seed(0)
    z = NormalPrior(64).sample(500, "cpu")
    assert z.shape == (500, 64)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0, 4.0])
def test_the_truncated_prior_is_the_truncated_normal(threshold):
    torch.manual_seed(0)
    z = TruncatedPrior(64, threshold).sample(1000, "cpu")
    expected = stats.truncnorm(-threshold, threshold)
    assert z.shape == (1000, 64)
    assert z.dtype == torch.float32
    assert z.abs().max() <= threshold
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.var().item() == pytest.approx(expected.var(), rel=0.02)
    assert stats.kstest(z.flatten().numpy(), expected.cdf).pvalue > 0.01


def test_truncating_does_not_pile_up_latents_at_the_threshold():
    """As clipping would: 32 % of a normal are beyond 1."""
    torch.manual_seed(0)
    z = TruncatedPrior(64, 1.0).sample(1000, "cpu")
    assert (z.abs() > 0.999).float().mean() < 0.002


def test_a_threshold_that_nothing_exceeds_changes_nothing():
    torch.manual_seed(0)
    z = TruncatedPrior(64, 30.0).sample(1000, "cpu")
    assert torch.isfinite(z).all()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01


def test_no_uniform_number_leads_out_of_the_interval(monkeypatch):
    for extreme in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *shape, value=extreme, **kw: torch.full(shape, value, **kw))
        for threshold in (2.0, 30.0):
            assert TruncatedPrior(4, threshold).sample(2, "cpu").abs().max() <= threshold


def smooth(n, seed=0, size=16):
    """Images of low frequency [n, 1, size, size]."""
    coarse = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 0.3


@pytest.mark.parametrize("latent", [16, LATENT, 512])
def test_centres_are_on_the_sphere_that_the_mapping_leaves_alone(latent):
    prior = BourgainPrior(smooth(200), latent)
    radii = prior.rows.norm(dim=1)
    torch.testing.assert_close(radii, torch.full((200,), math.sqrt(latent * 0.99)))
    torch.manual_seed(0)
    z = prior.sample(2000, "cpu")
    assert z.shape == (2000, latent)
    assert z.square().mean().item() == pytest.approx(1, rel=0.01)


def of_two_factors(n, seed=0):
    """Images [n, 1, 16, 16] that two numbers describe, as two causes of variation would."""
    generator = torch.Generator().manual_seed(seed)
    factors, directions = torch.rand(n, 2, generator=generator), torch.randn(2, 256, generator=generator)
    return (factors @ directions).view(n, 1, 16, 16) * 0.3


@pytest.mark.parametrize("images", [smooth(200), of_two_factors(200), of_two_factors(50, seed=1)])
def test_distances_of_images_are_distorted_boundedly(images):
    """Bourgain: by a factor of O(log n) between the most and the least stretched pair, and far less between most."""
    prior = BourgainPrior(images, LATENT)
    stretch = torch.pdist(prior.rows) / torch.pdist(images.flatten(1))
    assert (stretch.max() / stretch.min()).item() < math.log2(len(images))
    assert (stretch.quantile(0.99) / stretch.quantile(0.01)).item() < 3.5
    kept = torch.pdist(normalised(prior.rows)) / torch.pdist(prior.rows)
    torch.testing.assert_close(kept, torch.full_like(kept, 0.99**-0.5))


@pytest.mark.parametrize("latent", [16, LATENT])
def test_more_similar_images_have_nearer_centres(latent):
    images = of_two_factors(200)
    rank = stats.spearmanr(torch.pdist(BourgainPrior(images, latent).rows), torch.pdist(images.flatten(1)))
    assert rank.statistic > 0.8


def test_two_clusters_stay_apart_even_a_rare_one():
    torch.manual_seed(0)
    common, rare = torch.full((190, 1, 8, 8), -0.5), torch.full((10, 1, 8, 8), 0.5)
    prior = BourgainPrior(torch.cat([common, rare]) + 0.01 * torch.randn(200, 1, 8, 8), LATENT)
    z = prior.sample(1000, "cpu")
    rarely = torch.cdist(z, prior.rows).argmin(1) >= 190
    assert rarely.float().mean().item() == pytest.approx(10 / 200, abs=0.02)
    distances = torch.cdist(normalised(z), normalised(z))
    between = distances[rarely][:, ~rarely].min()
    assert distances[rarely][:, rarely].max() < 0.5 * between
    assert distances[~rarely][:, ~rarely].max() < 0.5 * between


def test_coincident_images_and_a_set_of_one_image_only_give_no_nan():
    images = smooth(20).repeat(3, 1, 1, 1)
    for prior in (BourgainPrior(images, LATENT), BourgainPrior(torch.zeros(5, 3, 8, 8), LATENT)):
        assert torch.isfinite(prior.rows).all()
        assert torch.isfinite(prior.scale)
    prior = BourgainPrior(images, LATENT)
    assert prior.scale.item() == pytest.approx(BourgainPrior(images[:20], LATENT).scale.item(), rel=0.5)
    torch.testing.assert_close(prior.rows[prior.rows @ prior.rows[0] > LATENT * 0.99 - 1e-2].std(0).max().item(), 0.0)
    z, pixels = prior.sample(4, "cpu"), torch.zeros(4, 1, 16, 16, requires_grad=True)
    loss = prior.distance_loss(z, z.clone(), pixels, pixels * 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()


@pytest.mark.parametrize("n", [2, 3, 17])
def test_few_images_are_enough(n):
    """Most random subsets of two are empty, which a nearest member may not be asked of."""
    prior = BourgainPrior(torch.randn(n, 1, 8, 8), LATENT)
    assert len(torch.unique(prior.rows.round(decimals=2), dim=0)) == n


def test_the_embedding_is_of_the_seed_and_in_the_state():
    images = smooth(100)
    torch.manual_seed(1)
    first = BourgainPrior(images, LATENT, seed=3)
    torch.manual_seed(2)
    again, other = BourgainPrior(images, LATENT, seed=3), BourgainPrior(images, LATENT, seed=4)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.rows, other.rows)
    assert torch.equal(first.scale, other.scale)


def test_only_so_many_images_become_centres():
    assert BourgainPrior(smooth(100), LATENT, most=30).rows.shape == (30, LATENT)


def test_the_distance_loss_is_its_formula():
    torch.manual_seed(0)
    prior = BourgainPrior(smooth(100), LATENT)
    z1, z2 = prior.sample(6, "cpu"), prior.sample(6, "cpu")
    image1, image2 = torch.randn(6, 1, 16, 16), torch.randn(6, 1, 16, 16)
    of_images, of_latents = (image1 - image2).flatten(1).norm(dim=1), (z1 - z2).norm(dim=1)
    expected = (of_images.log() - (prior.scale * of_latents).log()).square().mean()
    torch.testing.assert_close(prior.distance_loss(z1, z2, image1, image2), expected, rtol=1e-4, atol=0)


def test_images_are_measured_at_32_pixels_as_the_training_images_were():
    small1, small2 = torch.randn(4, 3, 32, 16), torch.randn(4, 3, 32, 16)
    large1, large2 = (x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (small1, small2))
    prior, same = BourgainPrior(torch.cat([small1, small2]), 64), BourgainPrior(torch.cat([large1, large2]), 64)
    torch.testing.assert_close(prior.rows, same.rows, atol=1e-4, rtol=1e-4)
    z1, z2 = prior.sample(4, "cpu"), prior.sample(4, "cpu")
    torch.testing.assert_close(
        prior.distance_loss(z1, z2, small1, small2), prior.distance_loss(z1, z2, large1, large2), rtol=1e-4, atol=1e-5
    )


def tight_clusters():
    return torch.tensor([-0.5, 0.5]).repeat(50).view(100, 1, 1, 1) + 0.1 * smooth(100)


@pytest.mark.parametrize("images", [smooth(100), 0.1 * smooth(100), tight_clusters()])
def test_the_scale_suits_a_generator_that_draws_the_training_images(images):
    """Whatever their contrast: the mean of log ‖Δimage‖ − log(s‖Δz‖) is 0, so any other s gives a larger loss."""
    torch.manual_seed(0)
    prior = BourgainPrior(images, LATENT)
    z1, z2 = prior.sample(2000, "cpu"), prior.sample(2000, "cpu")
    centre1, centre2 = (torch.cdist(z, prior.rows).argmin(1) for z in (z1, z2))
    image1, image2 = images[centre1], images[centre2]
    different = centre1 != centre2
    pairs = (z1[different], z2[different], image1[different], image2[different])
    best = prior.distance_loss(*pairs)
    for factor in (0.9, 1.1):
        prior.scale.mul_(factor)
        assert prior.distance_loss(*pairs) > best
        prior.scale.div_(factor)


def test_the_distance_loss_pushes_a_collapsed_generators_images_apart():
    torch.manual_seed(0)
    prior = BourgainPrior(smooth(100), LATENT)
    theta = torch.tensor(0.01, requires_grad=True)
    prior.distance_loss(
        prior.sample(8, "cpu"), prior.sample(8, "cpu"), theta * smooth(8, 1), theta * smooth(8, 2)
    ).backward()
    assert theta.grad is not None
    assert theta.grad.item() < 0


def test_priors_by_name():
    assert isinstance(make_prior("normal", 8, images=None), NormalPrior)
    truncated = make_prior("truncated", 8, images=None, threshold=1.5)
    assert isinstance(truncated, TruncatedPrior)
    assert truncated.threshold == 1.5
    bourgain = make_prior("bourgain", 64, images=smooth(20), seed=1)
    assert isinstance(bourgain, BourgainPrior)
    assert torch.equal(bourgain.rows, BourgainPrior(smooth(20), 64, seed=1).rows)
    assert [p.latent for p in (truncated, bourgain)] == [8, 64]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="training images"):
        make_prior("bourgain", 8, images=None)
    with pytest.raises(ValueError, match="2 images"):
        BourgainPrior(smooth(1), 8)
    with pytest.raises(ValueError, match="positive"):
        TruncatedPrior(8, 0.0)
    with pytest.raises(ValueError, match="kind must be"):
        make_prior("uniform", 8, images=None)  # type: ignore[arg-type]
