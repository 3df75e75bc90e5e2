"""Losses and penalties against their closed forms."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kizu.training.losses import ADVERSARIAL, bce_discriminator, wasserstein_critic, wasserstein_generator
from kizu.training.penalties import PathLength, gradient_penalty, r1, r1_penalty, spectral_normalised


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


def test_the_penalty_teaches_nobody_but_the_critic():
    torch.manual_seed(0)
    w = torch.randn(1, 4, 4, requires_grad=True)
    real, fake = (torch.randn(3, 1, 4, 4, requires_grad=True) for _ in range(2))
    gradient_penalty(lambda x: (x.square() * w).flatten(1).sum(1), real, fake).backward()
    assert w.grad is not None
    assert real.grad is None
    assert fake.grad is None


def test_the_penalty_is_computed_in_fp32_under_autocast():
    torch.manual_seed(0)
    linear = nn.Linear(64, 1)
    critic = nn.Sequential(nn.Flatten(), linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = gradient_penalty(critic, *torch.randn(2, 4, 1, 8, 8).bfloat16())
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, (linear.weight.norm() - 1).square())


def test_the_penalty_trains_the_critic():
    torch.manual_seed(0)
    linear = nn.Linear(16, 1)
    critic = nn.Sequential(nn.Flatten(), linear)
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        gradient_penalty(critic, torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)).backward()
        optimizer.step()
    assert linear.weight.norm().item() == pytest.approx(1, abs=1e-2)


def test_adversarial_losses():
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [3.0]])
    sigmoid = torch.sigmoid
    expected = -0.5 * (torch.log(sigmoid(real)).mean() + torch.log(1 - sigmoid(fake)).mean())
    torch.testing.assert_close(bce_discriminator(real, fake), expected)
    assert bce_discriminator(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert torch.isfinite(bce_discriminator(torch.full((2,), -1e4), torch.full((2,), 1e4)))
    assert wasserstein_critic(real, fake).item() == pytest.approx(1 - 1)
    assert wasserstein_generator(fake).item() == pytest.approx(-1)


REAL, FAKE = torch.tensor([[2.0], [0.0], [-0.5]]), torch.tensor([[-1.5], [3.0], [0.25]])


def log_sigmoid(x):
    return torch.log(torch.sigmoid(x))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        (
            "non-saturating",
            -log_sigmoid(REAL).mean() - torch.log(1 - torch.sigmoid(FAKE)).mean(),
            -log_sigmoid(FAKE).mean(),
        ),
        # max(0, 1 − r): 0, 1, 1.5; max(0, 1 + f): 0, 4, 1.25
        ("hinge", torch.tensor(2.5 / 3 + 5.25 / 3), -FAKE.mean()),
        ("lsgan", 0.5 * ((REAL - 1) ** 2).mean() + 0.5 * (FAKE**2).mean(), 0.5 * ((FAKE - 1) ** 2).mean()),
        ("wasserstein", FAKE.mean() - REAL.mean(), -FAKE.mean()),
    ],
)
def test_every_adversarial_loss_is_its_formula(name, discriminator, generator):
    loss = ADVERSARIAL[name]
    torch.testing.assert_close(loss.discriminator(REAL, FAKE), discriminator)
    torch.testing.assert_close(loss.generator(FAKE), generator)
    assert set(ADVERSARIAL) == {"non-saturating", "hinge", "lsgan", "wasserstein"}


@pytest.mark.parametrize(
    ("name", "optimum"),
    [
        ("non-saturating", (math.log(3), -math.log(3))),  # log p/q
        ("lsgan", (0.75, 0.25)),  # (b·p + a·q)/(p + q)
        ("hinge", (1.0, -1.0)),  # sign(p − q), and no further
    ],
)
def test_the_best_discriminator_of_two_points_is_the_one_that_the_paper_derives(name, optimum):
    """Of 8 images each, reals are at point 0 six times and fakes twice; at point 1 it is the other way round."""
    real, fake = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])

    def loss_at(logits):
        return ADVERSARIAL[name].discriminator(logits[real], logits[fake])

    best = torch.tensor(optimum, requires_grad=True)
    loss = loss_at(best)
    for step in torch.randn(100, 2, generator=torch.Generator().manual_seed(0)):
        assert loss_at(best.detach() + step) >= loss.detach() - 1e-6
    if name != "hinge":  # whose optimum is a kink
        (gradient,) = torch.autograd.grad(loss, best)
        torch.testing.assert_close(gradient, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["non-saturating", "hinge", "wasserstein"])
def test_a_confident_discriminator_does_not_silence_the_generator(name):
    logits = torch.full((4,), -60.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(ADVERSARIAL[name].generator(logits), logits)
    torch.testing.assert_close(gradient, torch.full((4,), -0.25))


def test_hinge_leaves_alone_what_is_beyond_the_margin():
    real, fake = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-1.5, -0.5], requires_grad=True)
    of_real, of_fake = torch.autograd.grad(ADVERSARIAL["hinge"].discriminator(real, fake), (real, fake))
    torch.testing.assert_close(of_real, torch.tensor([0.0, -0.5]))
    torch.testing.assert_close(of_fake, torch.tensor([0.0, 0.5]))


def linear(w):
    return lambda x: (x * w).flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7)])
@pytest.mark.parametrize("n", [1, 6])
def test_r1_of_a_linear_discriminator_is_half_gamma_times_its_squared_norm(shape, n):
    torch.manual_seed(0)
    w = torch.randn(shape, requires_grad=True)
    penalty, logits = r1_penalty(linear(w), torch.randn(n, *shape), gamma=3.0)
    torch.testing.assert_close(penalty, 1.5 * w.square().sum())
    assert logits.shape == (n,)
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 3.0 * w)


def test_r1_of_a_quadratic_discriminator_averages_over_the_batch():
    """D(x) = ½‖x‖² has the gradient x."""
    torch.manual_seed(0)
    real = torch.randn(5, 2, 3, 3)
    penalty, logits = r1_penalty(lambda x: 0.5 * x.square().flatten(1).sum(1, keepdim=True), real, gamma=0.2)
    torch.testing.assert_close(penalty, 0.1 * real.square().flatten(1).sum(1).mean())
    assert logits.requires_grad, "one forward pass serves the adversarial loss and the penalty"
    assert not real.requires_grad


def test_r1_goes_through_the_augmentation():
    """D(A(x)) of linear D and A has the gradient Aᵀw."""
    torch.manual_seed(0)
    w, matrix = torch.randn(48), torch.randn(48, 48)

    def augmented(x):
        return (x.flatten(1) @ matrix.T) @ w

    penalty, _ = r1_penalty(augmented, torch.randn(4, 3, 4, 4), gamma=1.0)
    torch.testing.assert_close(penalty, 0.5 * (matrix.T @ w).square().sum())
    doubled, _ = r1_penalty(lambda x: linear(w.view(3, 4, 4))(2 * x.flip(3)), torch.randn(4, 3, 4, 4), gamma=1.0)
    torch.testing.assert_close(doubled, 0.5 * 4 * w.square().sum())


def test_r1_of_a_forward_pass_that_the_step_has_made():
    torch.manual_seed(0)
    w, images = torch.randn(1, 4, 4), torch.randn(3, 1, 4, 4, requires_grad=True)
    torch.testing.assert_close(r1(linear(w)(images)[:, None], images, 2.0), w.square().sum())


def test_r1_is_computed_in_fp32_under_autocast():
    torch.manual_seed(0)
    linear = nn.Linear(64, 1)
    critic = nn.Sequential(nn.Flatten(), linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty, logits = r1_penalty(critic, torch.randn(4, 1, 8, 8).bfloat16(), gamma=2.0)
    assert penalty.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(penalty, linear.weight.square().sum())


def test_path_lengths_of_a_generator_of_rank_one_are_those_of_a_half_normal():
    """images = u·(a·w): Jᵀy = a·(u·y), u·y ~ N(0, ‖u‖²/HW); |N(0, s²)| has mean s√(2/π) and variance s²(1 − 2/π)."""
    torch.manual_seed(0)
    n, num_ws, u, a = 20000, 3, torch.randn(2, 4, 6), torch.randn(3, 5)
    ws = torch.randn(n, num_ws, 5, requires_grad=True)
    images = (ws * a).sum((1, 2))[:, None, None, None] * u
    path_length = PathLength(decay=1.0)
    penalty = path_length(images, ws)
    s = u.norm() / math.sqrt(4 * 6) * a.norm() / math.sqrt(num_ws)
    torch.testing.assert_close(path_length.mean, s * math.sqrt(2 / math.pi), rtol=0.02, atol=0)
    torch.testing.assert_close(penalty.detach(), s.square() * (1 - 2 / math.pi), rtol=0.05, atol=0)


def test_path_length_of_a_linear_generator_is_that_of_its_transpose_times_noise():
    torch.manual_seed(0)
    n, matrix = 4000, torch.randn(3 * 4 * 4, 2 * 6)
    ws = torch.randn(n, 2, 6, requires_grad=True)
    path_length = PathLength(decay=1.0)
    path_length((ws.flatten(1) @ matrix.T).view(n, 3, 4, 4), ws)
    noise = torch.randn(n, 48) / 4
    expected = (noise @ matrix).view(n, 2, 6).square().sum(2).mean(1).sqrt().mean()
    torch.testing.assert_close(path_length.mean, expected, rtol=0.02, atol=0)


@pytest.fixture
def noise_of_ones(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda x, **_: torch.ones_like(x))


def scaled(theta, ws):
    """Images [2, 1, 4, 4] of equal pixels θ·Σw: with y = ¼, Jᵀy = 4θ in each of the w's 3 dimensions."""
    return (theta * ws.sum((1, 2)))[:, None, None, None].expand(-1, 1, 4, 4)


@pytest.mark.usefixtures("noise_of_ones")
def test_the_running_mean_approaches_the_length_and_the_penalty_is_the_squared_rest():
    path_length = PathLength().eval()
    length = 4 * 0.5 * math.sqrt(3)
    for step in range(1, 5):
        ws = torch.randn(2, 7, 3, requires_grad=True)
        penalty = path_length(scaled(torch.tensor(0.5), ws), ws)
        assert path_length.mean.item() == pytest.approx(length * (1 - 0.99**step), rel=1e-4)
        assert penalty.item() == pytest.approx((length * 0.99**step) ** 2, rel=1e-4)
    assert path_length.state_dict().keys() == {"mean"}
    assert not path_length.mean.requires_grad


@pytest.mark.usefixtures("noise_of_ones")
def test_the_gradient_of_the_path_penalty_reaches_the_generator_and_takes_the_mean_for_a_constant():
    theta, ws = torch.tensor(0.5, requires_grad=True), torch.randn(2, 7, 3, requires_grad=True)
    path_length = PathLength(decay=0.25)
    path_length(scaled(theta, ws), ws).backward()
    per_theta = 4 * math.sqrt(3)
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(2 * 0.75 * (0.5 * per_theta) * per_theta, rel=1e-4)


def test_a_generator_that_ignores_its_latents_gets_no_nan():
    theta, ws = torch.zeros((), requires_grad=True), torch.randn(2, 7, 3, requires_grad=True)
    PathLength()(scaled(theta, ws), ws).backward()
    assert theta.grad is not None
    assert torch.isfinite(theta.grad)


@pytest.mark.usefixtures("noise_of_ones")
def test_the_running_mean_is_of_all_processes():
    ws = torch.randn(2, 7, 3, requires_grad=True)
    seen = []

    def reduce(value):
        seen.append(value)
        return value + 10

    path_length = PathLength(decay=1.0, reduce=reduce)
    penalty = path_length(scaled(torch.tensor(1.0), ws), ws)
    assert seen[0].item() == pytest.approx(4 * math.sqrt(3), rel=1e-4)
    assert penalty.item() == pytest.approx(100, rel=1e-4)


class EqualisedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, 3, 3))
        self.bias = nn.Parameter(torch.randn(8))
        self.gain = 1 / 6

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight * self.gain, self.bias, padding=1)


def sigma(weight):
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item()


def vectors(module):
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.fixture
def normalised():
    torch.manual_seed(0)
    network = nn.Sequential(EqualisedConv(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 3))
    return spectral_normalised(network)


def test_effective_weights_have_a_largest_singular_value_of_one(normalised):
    x = torch.randn(2, 4, 4, 4)
    for _ in range(50):
        normalised(x)
    conv, norm, _, head = normalised
    assert sigma(conv.weight * conv.gain) == pytest.approx(1, abs=1e-3)
    assert sigma(head.weight) == pytest.approx(1, abs=1e-3)
    assert sigma(conv.parametrizations.weight.original) > 5
    assert not hasattr(norm, "parametrizations")
    assert len(list(normalised.parameters())) == 6, "what is trained keeps its number"
    assert spectral_normalised(normalised) is normalised
    assert len(conv.parametrizations.weight) == 1, "the second time changes nothing"


def test_the_gradient_goes_through_sigma(normalised):
    """W/σ(W) does not change with the scale of W, so its gradient is orthogonal to W."""
    head = normalised[3].eval()
    head.weight.square().sum().backward()
    original = head.parametrizations.weight.original
    assert original.grad.abs().max() > 1e-3
    assert (original * original.grad).sum().item() == pytest.approx(0, abs=1e-4)


def test_singular_vectors_move_in_train_mode_only_and_once_per_cached_block(normalised):
    x = torch.randn(2, 4, 4, 4)
    normalised[1].eval()
    before = vectors(normalised)
    normalised(x)
    once = vectors(normalised)
    assert all(not torch.equal(before[k], once[k]) for k in before if k.endswith(("_u", "_v")))
    normalised.eval()
    normalised(x)
    assert all(torch.equal(once[k], v) for k, v in vectors(normalised).items())

    repeated = copy.deepcopy(normalised).train()
    normalised.train()[1].eval()
    repeated[1].eval()
    with parametrize.cached():
        for _ in range(3):
            normalised(x)
    repeated(x)
    assert all(torch.equal(repeated.state_dict()[k], v) for k, v in vectors(normalised).items())
