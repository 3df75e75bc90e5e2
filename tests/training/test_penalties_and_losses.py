"""Losses and penalties against their closed forms."""

import math

import pytest
import torch
from torch import nn

from kizu.training.losses import bce_discriminator, wasserstein_critic, wasserstein_generator
from kizu.training.penalties import gradient_penalty


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7)])
def test_the_penalty_of_a_linear_critic_is_the_squared_distance_of_its_norm_from_one(scale, shape):
    torch.manual_seed(0)
    w = torch.randn(shape) * scale
    real, fake = torch.randn(6, *shape), torch.randn(6, *shape)
    penalty = gradient_penalty(lambda x: (x * w).flatten(1).sum(1), real, fake)
    assert penalty.item() == pytest.approx((w.norm().item() - 1) ** 2, rel=1e-4)


def test_the_penalty_is_evaluated_between_real_and_fake_with_one_epsilon_per_image():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    torch.manual_seed(0)
    gradient_penalty(critic, torch.ones(64, 1, 2, 2), torch.zeros(64, 1, 2, 2))
    (points,) = seen
    assert torch.equal(points, points[:, :, :1, :1].expand_as(points))
    assert 0 <= points.min() < 0.1
    assert 0.9 < points.max() <= 1
    assert points[:, 0, 0, 0].unique().numel() == 64


def test_the_penalty_trains_the_critic():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        gradient_penalty(critic, torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)).backward()
        optimizer.step()
    assert critic[1].weight.norm().item() == pytest.approx(1, abs=1e-2)


def test_adversarial_losses():
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [3.0]])
    sigmoid = torch.sigmoid
    expected = -0.5 * (torch.log(sigmoid(real)).mean() + torch.log(1 - sigmoid(fake)).mean())
    torch.testing.assert_close(bce_discriminator(real, fake), expected)
    assert bce_discriminator(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert torch.isfinite(bce_discriminator(torch.full((2,), -1e4), torch.full((2,), 1e4)))
    assert wasserstein_critic(real, fake).item() == pytest.approx(1 - 1)
    assert wasserstein_generator(fake).item() == pytest.approx(-1)
