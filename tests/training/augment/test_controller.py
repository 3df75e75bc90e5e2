"""The controller of p: closed forms, bounds, checkpoints, and a discriminator that overfits on purpose."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kizu.training.augment.ada import AdaAugment, AugmentConfig
from kizu.training.augment.controller import AdaController

OVERFITTED, FRESH = torch.ones(8, 1), torch.tensor([1.0, -1.0] * 4)


def run(controller, logits, steps, batch_size=8):
    for _ in range(steps):
        controller.observe(logits)
        controller.update(batch_size)
    return controller.p.item()


def test_p_changes_every_few_steps_by_the_share_of_images_seen():
    controller = AdaController(speed_kimg=1.0, every=4)
    assert run(controller, OVERFITTED, 3) == 0
    assert run(controller, OVERFITTED, 1) == pytest.approx(8 * 4 / 1000)
    assert run(controller, OVERFITTED, 4) == pytest.approx(2 * 8 * 4 / 1000)
    assert run(controller, FRESH, 4) == pytest.approx(8 * 4 / 1000)


def test_p_goes_from_zero_to_one_in_the_images_of_speed_kimg():
    controller = AdaController(speed_kimg=0.32, max_p=1.0, every=2)
    assert run(controller, OVERFITTED, 39) < 1
    assert run(controller, OVERFITTED, 1) == pytest.approx(1)


def test_p_stays_within_its_bounds():
    controller = AdaController(speed_kimg=0.01)
    assert run(controller, OVERFITTED, 40) == pytest.approx(0.8)
    assert run(controller, FRESH, 40) == 0


def test_p_holds_at_the_target():
    controller = AdaController(initial_p=0.3, target=0.5)
    assert run(controller, torch.tensor([1.0, 1.0, 1.0, -1.0]), 8) == pytest.approx(0.3)
    assert controller.r.item() == 0.5


def test_r_t_is_the_mean_sign_over_all_logits_since_the_last_change():
    controller = AdaController(every=2)
    controller.observe(torch.tensor([5.0, 0.1, -3.0]))
    controller.update(4)
    controller.observe(torch.tensor([[2.0], [9.0]]))
    controller.update(4)
    assert controller.r.item() == pytest.approx((4 - 1) / 5)
    controller.observe(torch.tensor([-1.0]))
    controller.update(4)
    controller.update(4)
    assert controller.r.item() == -1


def test_r_v_is_how_far_validation_images_are_from_training_images_towards_generated_ones():
    controller = AdaController(heuristic="r_v", every=1, target=0.5, speed_kimg=1.0, initial_p=0.4)
    controller.observe_validation(torch.tensor([3.0, 1.0]), torch.tensor([-1.0]), torch.tensor([-2.0, -2.0, -2.0]))
    controller.update(10)
    assert controller.r.item() == pytest.approx((2 - -1) / (2 - -2))
    assert controller.p.item() == pytest.approx(0.41)
    controller.observe_validation(torch.tensor([2.0]), torch.tensor([2.0]), torch.tensor([-2.0]))
    controller.update(10)
    assert controller.r.item() == 0
    assert controller.p.item() == pytest.approx(0.4)


@pytest.mark.parametrize("heuristic", ["r_t", "r_v"])
def test_without_observations_p_and_r_stay(heuristic):
    controller = AdaController(heuristic=heuristic, initial_p=0.2, speed_kimg=0.01)
    for _ in range(8):
        controller.update(8)
    assert controller.p.item() == pytest.approx(0.2)
    assert controller.r.item() == 0


def test_logits_that_are_not_numbers_spoil_neither_p_nor_what_follows():
    controller = AdaController(speed_kimg=1.0, every=1)
    assert run(controller, torch.tensor([float("nan"), 1.0]), 1) == 0
    assert run(controller, OVERFITTED, 1) == pytest.approx(0.008)


def test_a_resumed_run_goes_on_as_the_first_would():
    torch.manual_seed(0)
    logits = torch.randn(30, 8) + 0.7
    whole, first = AdaController(speed_kimg=1.0), AdaController(speed_kimg=1.0)
    for values in logits:
        whole.observe(values)
        whole.update(8)
    for values in logits[:14]:  # in between two changes
        first.observe(values)
        first.update(8)
    second = AdaController(speed_kimg=1.0)
    second.load_state_dict(first.state_dict())
    for values in logits[14:]:
        second.observe(values)
        second.update(8)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_the_sums_are_averaged_over_processes_and_the_averaging_is_not_saved():
    other = torch.tensor([[-4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])  # a process whose four images were all negative
    controller = AdaController(every=1, reduce=lambda sums: (sums + other) / 2)
    controller.observe(torch.ones(12))
    controller.update(16)
    assert controller.r.item() == pytest.approx((12 - 4) / 16)
    assert set(controller.state_dict()) == {"p", "r", "steps", "sums"}


def test_p_is_one_tensor_that_changes_in_place():
    controller = AdaController(speed_kimg=0.1)
    p = controller.p
    run(controller, OVERFITTED, 4)
    assert p is controller.p
    assert p.item() > 0


def test_the_speed_may_change_on_the_way():
    controller = AdaController(speed_kimg=1.0, every=1)
    run(controller, OVERFITTED, 1)
    controller.speed_kimg = 0.5
    assert run(controller, OVERFITTED, 1) == pytest.approx(0.008 + 0.016)


def test_nothing_asks_the_device_for_a_value():
    controller = AdaController()
    controller.to("meta")  # where there are no values
    logits = torch.zeros(8, device="meta")
    for _ in range(5):
        controller.observe(logits)
        controller.observe_validation(logits, logits, logits)
        controller.update(8)


@pytest.mark.parametrize("options", [{"heuristic": "r"}, {"initial_p": 0.9}, {"max_p": 1.2}, {"every": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdaController(**options)


def blobs(n):
    """Smooth random images; training and generated ones are of the same kind, so that only memory tells them apart."""
    return F.interpolate(torch.randn(n, 1, 4, 4), size=12, mode="bicubic", align_corners=False).clamp(-1, 1)


def overfit(controller, steps, seed=0):
    """A discriminator on few images against a fixed generator; p and r after each step."""
    torch.manual_seed(seed)
    real = blobs(24)
    d = nn.Sequential(nn.Flatten(), nn.Linear(144, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    optimizer = torch.optim.Adam(d.parameters(), lr=2e-3, betas=(0.0, 0.99))
    # Without those that resample, which cost the most.
    config = AugmentConfig(scale=False, rotation=False, anisotropic_scale=False, fractional_translation=False)
    augment = AdaAugment(config, 1)
    trace = []
    for _ in range(steps):
        reals = d(augment(real[torch.randint(24, (24,))], controller.p))
        fakes = d(augment(blobs(24), controller.p))
        loss = F.softplus(-reals).mean() + F.softplus(fakes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.observe(reals)
        controller.update(24)
        trace.append((controller.p.item(), controller.r.item()))
    return torch.tensor(trace)


def test_a_discriminator_that_overfits_is_held_at_the_target():
    without = overfit(AdaController(max_p=0.0), 200)
    assert without[-50:, 1].mean() > 0.95
    trace = overfit(AdaController(speed_kimg=4.0), 700)
    assert trace[:100, 1].max() > 0.7  # it overfits at first, and p rises
    assert trace[-300:, 1].mean().item() == pytest.approx(0.6, abs=0.05)
    assert trace[-300:, 0].min() > 0.1  # it takes augmentation to get there, short of the bound
    assert trace[-300:, 0].max() < 0.8
