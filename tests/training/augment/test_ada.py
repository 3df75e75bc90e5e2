"""The pipeline of ADA: identity, order, closed forms, frequencies, derivatives and independence from the host."""

import dataclasses
import math

import pytest
import torch

from kizu.training.augment.ada import AdaAugment, AugmentConfig, Draws

NAMES = [field.name for field in dataclasses.fields(AugmentConfig)]
OFF = dict.fromkeys(NAMES, False)
ALL = AugmentConfig(**dict.fromkeys(NAMES, True))
EXACT = ("xflip", "rot90", "integer_translation")
SIZES = [(1, 8, 8), (3, 8, 12), (4, 13, 7)]


def only(*names):
    return AugmentConfig(**(OFF | dict.fromkeys(names, True)))


def augment(*names, channels=3):
    return AdaAugment(only(*names), channels)


def filled(draws):
    return {k: v for k, v in vars(draws).items() if v is not None}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- What stays as it is


def test_geometry_and_colour_are_on_by_default_and_corruption_is_not():
    assert {name for name in NAMES if not getattr(AugmentConfig(), name)} == {"band_filter", "noise", "cutout"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("p", [0.0, torch.tensor(0.0)])
def test_with_p_zero_every_image_is_the_same_to_the_bit(size, p):
    images = torch.rand(16, *size) * 2 - 1
    assert torch.equal(AdaAugment(ALL, size[0])(images, p), images)


@pytest.mark.parametrize("config", [AugmentConfig(), ALL])
def test_each_image_left_alone_by_every_draw_is_the_same_to_the_bit(config):
    images = torch.rand(400, 3, 8, 8)
    model = AdaAugment(config, 3)
    result = model(images, 0.03)
    alone = (result == images).flatten(1).all(1).float().mean().item()
    assert 0.5 < alone < 0.9  # about 0.97^14 = 0.65


@pytest.mark.parametrize("size", SIZES)
def test_without_any_transform_p_one_changes_nothing(size):
    images = torch.rand(4, *size)
    assert torch.equal(AdaAugment(only(), size[0])(images, 1.0), images)


@pytest.mark.parametrize("size", SIZES)
def test_with_p_one_sizes_are_kept_and_values_finite(size):
    images = torch.rand(64, *size) * 2 - 1
    result = AdaAugment(ALL, size[0])(images, 1.0)
    assert result.shape == images.shape
    assert result.isfinite().all()
    assert not (result == images).flatten(1).all(1).any()


def test_channels_other_than_those_announced_are_refused():
    with pytest.raises(ValueError, match="3 channels"):
        augment()(torch.zeros(1, 1, 8, 8), 0.5)


# ---- Each transform alone, with fixed draws


def test_a_flip_mirrors_left_and_right_and_undoes_itself():
    images = torch.rand(2, 3, 6, 9)
    draws = Draws(flip=torch.tensor([True, False]))
    result = augment().transform(images, draws)
    assert torch.equal(result, torch.stack([images[0].flip(2), images[1]]))
    assert torch.equal(augment().transform(result, draws), images)


@pytest.mark.parametrize("side", [6, 7])
def test_quarter_turns_are_those_of_rot90(side):
    images = torch.rand(4, 3, side, side)
    result = augment().transform(images, Draws(quarter_turns=torch.arange(4.0)))
    assert torch.equal(result, torch.stack([torch.rot90(x, k, (1, 2)) for k, x in enumerate(images)]))


def test_images_that_are_not_square_are_drawn_half_turns_only():
    images = torch.rand(64, 3, 6, 9)
    turns = augment("rot90").sample(images, 1.0).quarter_turns
    assert set(turns.tolist()) == {0.0, 2.0}
    result = augment().transform(images[:1], Draws(quarter_turns=torch.tensor([2.0])))
    assert torch.equal(result, images[:1].flip(2, 3))


def test_a_shift_moves_whole_pixels_and_reflects_at_the_border():
    images = torch.arange(6.0).expand(1, 1, 6, 6) + 10 * torch.arange(6.0)[:, None]
    result = augment(channels=1).transform(images, Draws(shift=torch.tensor([[2.0, -1.0]])))[0, 0]
    assert (result[0] - 10).tolist() == [2, 1, 0, 1, 2, 3]
    assert (result[:, 2] / 10).tolist() == [1, 2, 3, 4, 5, 4]


def test_moves_of_whole_pixels_compose_to_the_bit_in_the_order_of_the_paper():
    images = torch.rand(1, 3, 8, 8)
    model = augment()
    flip = Draws(flip=torch.tensor([True]))
    turn = Draws(quarter_turns=torch.tensor([1.0]))
    both = Draws(flip=flip.flip, quarter_turns=turn.quarter_turns)
    assert torch.equal(model.transform(images, both), model.transform(model.transform(images, flip), turn))


def test_half_a_turn_by_angle_is_two_quarter_turns():
    images = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 24, 28), 5, 1)
    model = augment()
    warped = model.transform(images, Draws(pre_angle=torch.tensor([math.pi])))
    assert (warped - images.flip(2, 3)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("draws", "inverse"),
    [
        (Draws(scale=torch.tensor([1.25])), [[0.8, 0.0, 0.0], [0.0, 0.8, 0.0]]),
        (Draws(stretch=torch.tensor([1.25])), [[0.8, 0.0, 0.0], [0.0, 1.25, 0.0]]),
        (Draws(pre_angle=torch.tensor([math.pi / 6])), [[0.75**0.5, -0.5, 0.0], [0.5, 0.75**0.5, 0.0]]),
        (Draws(post_angle=torch.tensor([math.pi / 6])), [[0.75**0.5, -0.5, 0.0], [0.5, 0.75**0.5, 0.0]]),
        (Draws(drift=torch.tensor([[0.05, -0.03]])), [[1.0, 0.0, -2.4], [0.0, 1.0, 1.2]]),
        (
            Draws(stretch=torch.tensor([1.25]), post_angle=torch.tensor([math.pi / 2])),
            [[0.0, -0.8, 0.0], [1.25, 0.0, 0.0]],
        ),
        (
            Draws(pre_angle=torch.tensor([math.pi / 2]), stretch=torch.tensor([1.25])),
            [[0.0, -1.25, 0.0], [0.8, 0.0, 0.0]],
        ),
    ],
    ids=["scale", "stretch", "pre-rotation", "post-rotation", "drift", "stretch then turn", "turn then stretch"],
)
def test_a_continuous_transform_of_a_smooth_image_is_the_field_at_the_inverse_positions(draws, inverse):
    def field(x, y):
        return torch.sin(0.21 * x + 0.4) + 0.5 * torch.cos(0.17 * y - 0.1 * x)

    y, x = torch.arange(40.0)[:, None] - 19.5, torch.arange(48.0)[None] - 23.5
    (a, b, c), (d, e, f) = inverse
    expected = field(a * x + b * y + c, d * x + e * y + f)
    result = augment(channels=1).transform(field(x, y)[None, None], draws)[0, 0]
    inside = (slice(13, -13), slice(13, -13))
    assert (result - expected)[inside].abs().max() < 0.004


def test_a_move_of_whole_pixels_and_a_warp_are_one_map():
    images = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 24, 24), 5, 1)
    model = augment()
    blits = {"flip": torch.tensor([True]), "quarter_turns": torch.tensor([1.0]), "shift": torch.tensor([[2.0, 1.0]])}
    nearly = model.transform(images, Draws(**blits, scale=torch.tensor([1 + 1e-6])))
    assert (nearly - model.transform(images, Draws(**blits))).abs().max() < 0.05


def test_brightness_and_contrast_change_any_number_of_channels():
    for channels in (1, 2, 3, 4):
        images = torch.rand(2, channels, 5, 6)
        amount, factor = torch.tensor([0.3, -0.1]), torch.tensor([2.0, 0.5])
        result = augment(channels=channels).transform(images, Draws(brightness=amount, contrast=factor))
        expected = (images + amount[:, None, None, None]) * factor[:, None, None, None]
        assert torch.allclose(result, expected, atol=1e-6)


def test_the_luma_flip_of_a_grey_image_is_its_negative():
    images = torch.rand(2, 1, 5, 6)
    result = augment(channels=1).transform(images, Draws(luma_flip=torch.tensor([True, False])))
    assert torch.allclose(result, images * torch.tensor([-1.0, 1.0])[:, None, None, None])


def test_saturation_zero_leaves_the_luma_and_hue_leaves_it_too():
    images = torch.rand(1, 3, 5, 6)
    grey = augment().transform(images, Draws(saturation=torch.tensor([0.0])))
    assert torch.allclose(grey, images.mean(1, keepdim=True).expand_as(images), atol=1e-6)
    turned = augment().transform(images, Draws(hue=torch.tensor([1.0])))
    assert torch.allclose(turned.mean(1), images.mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, {"luma_flip"}), (3, {"luma_flip", "hue", "saturation"}), (4, set())]
)
def test_colour_that_the_channels_do_not_have_is_never_drawn(channels, expected):
    draws = AdaAugment(AugmentConfig(), channels).sample(torch.zeros(2, channels, 8, 8), 1.0)
    assert {"luma_flip", "hue", "saturation"} & set(filled(draws)) == expected


def test_noise_is_added_and_a_cut_out_rectangle_is_zero_after_everything_else():
    images, noise = torch.rand(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    cut = {"cutout": torch.tensor([True]), "cutout_centre": torch.tensor([[0.5, 0.5]])}
    result = augment().transform(images, Draws(noise=noise, **cut))
    expected = images + noise
    expected[:, :, 2:6, 2:6] = 0
    assert torch.equal(result, expected)


# ---- What is drawn


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "done", "share"),
    [
        ("xflip", lambda d: d.flip, 1 / 2),  # mirrored or not, at random
        ("rot90", lambda d: d.quarter_turns != 0, 3 / 4),
        ("integer_translation", lambda d: (d.shift != 0).any(1), 1 - 1 / 256),  # −8…8, ends half as likely
        ("scale", lambda d: d.scale != 1, 1),
        ("rotation", lambda d: (d.pre_angle != 0) | (d.post_angle != 0), 1),
        ("anisotropic_scale", lambda d: d.stretch != 1, 1),
        ("fractional_translation", lambda d: (d.drift != 0).any(1), 1),
        ("brightness", lambda d: d.brightness != 0, 1),
        ("contrast", lambda d: d.contrast != 1, 1),
        ("luma_flip", lambda d: d.luma_flip, 1 / 2),
        ("hue", lambda d: d.hue != 0, 1),
        ("saturation", lambda d: d.saturation != 1, 1),
        ("noise", lambda d: (d.noise != 0).flatten(1).any(1), 1),
        ("cutout", lambda d: d.cutout, 1),
    ],
)
def test_each_transform_happens_with_probability_p(name, done, share, p):
    n = 4000
    images = torch.zeros(1).expand(n, 3, 64, 64) if name != "noise" else torch.zeros(n, 3, 2, 2)
    count = done(augment(name).sample(images, p)).sum().item()
    chance = p * share
    assert abs(count - n * chance) <= 4.5 * math.sqrt(n * chance * (1 - chance)) + 1e-9


def test_each_of_the_two_rotations_happens_with_one_minus_the_root_of_one_minus_p():
    n, p = 4000, 0.36
    draws = augment("rotation").sample(torch.zeros(1).expand(n, 3, 8, 8), p)
    for theta in (draws.pre_angle, draws.post_angle):
        assert abs((theta != 0).sum().item() - n * 0.2) < 4.5 * math.sqrt(n * 0.16)


def test_bands_are_each_amplified_with_probability_p():
    n, p = 4000, 0.3
    gains = augment("band_filter").sample(torch.zeros(1).expand(n, 3, 8, 8), p).band_gains
    chance = 1 - (1 - p) ** 4
    assert abs((gains != 1).any(1).sum().item() - n * chance) < 4.5 * math.sqrt(n * chance * (1 - chance))


@pytest.mark.parametrize(
    ("name", "value", "mean", "deviation"),
    [
        ("integer_translation", lambda d: d.shift[:, 0], 0, math.sqrt(16**2 / 12 + 1 / 12)),
        ("scale", lambda d: torch.log2(d.scale), 0, 0.2),
        ("rotation", lambda d: d.pre_angle, 0, math.pi / math.sqrt(3)),
        ("anisotropic_scale", lambda d: torch.log2(d.stretch), 0, 0.2),
        ("fractional_translation", lambda d: d.drift[:, 1], 0, 0.125),
        ("brightness", lambda d: d.brightness, 0, 0.2),
        ("contrast", lambda d: torch.log2(d.contrast), 0, 0.5),
        ("hue", lambda d: d.hue, 0, math.pi / math.sqrt(3)),
        ("saturation", lambda d: torch.log2(d.saturation), 0, 1),
        ("noise", lambda d: d.noise[:, 0, 0, 0], 0, 0.1),
        ("cutout", lambda d: d.cutout_centre[:, 0], 0.5, 1 / math.sqrt(12)),
    ],
)
def test_drawn_values_have_the_papers_mean_and_deviation(name, value, mean, deviation):
    n = 20000
    shape = (n, 3, 64, 64) if name != "noise" else (n, 3, 1, 1)
    drawn = value(augment(name).sample(torch.zeros(1).expand(shape), 1.0))
    assert drawn.mean().item() == pytest.approx(mean, abs=4.5 * deviation / math.sqrt(n))
    assert drawn.std().item() == pytest.approx(deviation, rel=0.05)


def test_a_shift_is_of_up_to_an_eighth_of_each_side():
    shift = augment("integer_translation").sample(torch.zeros(1).expand(4000, 3, 16, 64), 1.0).shift
    assert shift.abs().amax(0).tolist() == [8.0, 2.0]
    assert torch.equal(shift, shift.round())


# ---- Independence


def test_each_result_depends_on_its_own_image_and_draws_only():
    images = torch.rand(6, 3, 9, 9)
    model = AdaAugment(ALL, 3)
    draws = model.sample(images, 0.7)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    permuted = Draws(**{name: value[order] for name, value in filled(draws).items()})
    result = model.transform(images, draws)
    assert torch.allclose(model.transform(images[order], permuted), result[order], atol=1e-5)
    single = Draws(**{name: value[2:3] for name, value in filled(draws).items()})
    assert torch.allclose(model.transform(images[2:3], single), result[2:3], atol=1e-5)


def test_the_same_seed_draws_the_same_with_p_as_a_number_and_as_a_tensor():
    images = torch.rand(8, 3, 9, 9)
    model = AdaAugment(ALL, 3)
    torch.manual_seed(1)
    a = model(images, 0.5)
    torch.manual_seed(1)
    assert torch.equal(model(images, torch.tensor(0.5)), a)


# Operations that read a value, have a size that depends on values, or begin with a copy from the host.
WAITS = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "lift_fresh"}


def operations(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key.removeprefix("aten::") for event in profile.key_averages()}


def test_reading_a_value_would_be_seen():
    assert operations(lambda: bool(torch.ones(1))) & WAITS
    assert operations(lambda: torch.tensor([1.0])) & WAITS
    assert operations(lambda: torch.ones(2)[torch.arange(2) > 0]) & WAITS


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_asks_the_device_for_a_value(channels):
    images = torch.rand(4, channels, 9, 12, requires_grad=True)
    model, p = AdaAugment(ALL, channels), torch.tensor(0.5)
    seen = operations(lambda: model(images, p).sum().backward())
    assert {"grid_sampler_2d", "gather"} <= seen
    assert not seen & WAITS


# ---- Derivatives and precision


@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_through_every_transform(name):
    images = torch.rand(8, 3, 8, 8, requires_grad=True)
    model = augment(name)
    (gradient,) = torch.autograd.grad(model(images, 1.0).square().sum(), images)
    assert gradient.isfinite().all()
    assert (gradient != 0).flatten(1).any(1).all()


def test_the_penalty_of_gradients_can_be_trained_through_everything():
    model = AdaAugment(ALL, 3)
    images = torch.rand(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    draws = model.sample(images, 0.7)
    assert draws.scale is not None
    assert draws.scale.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: model.transform(x, draws), images)
    assert torch.autograd.gradgradcheck(lambda x: model.transform(x, draws).tanh(), images, fast_mode=True)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(given):
    model = AdaAugment(ALL, 3)
    images = (torch.rand(4, 3, 12, 12) * 2 - 1).to(given)
    draws = model.sample(images, 1.0)
    expected = model.transform(images, draws)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(2)
        inside = model(images, 1.0)
        assert torch.equal(model.transform(images, draws), expected)
    torch.manual_seed(2)
    assert torch.equal(model(images, 1.0), inside)


def test_there_is_nothing_to_save():
    assert AdaAugment(ALL, 3).state_dict() == {}
