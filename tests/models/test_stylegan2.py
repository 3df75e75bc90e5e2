"""The networks of StyleGAN2 against their definitions: modulation, resampling, statistics, noise, styles, any size."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kizu.models.layers import low_pass, scaled_leaky_relu, upsample
from kizu.models.stylegan2 import (
    PRESETS,
    Discriminator,
    Generator,
    Mapping,
    ModulatedConv,
    StyleGAN2Config,
    ToImage,
    mix,
    normalise,
)

TINY = {"latent": 16, "mapping_layers": 2, "capacity": 128, "max_channels": 16}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tiny(height=16, width=16, channels=1, classes=0, **changes):
    return StyleGAN2Config(height, width, channels, classes, **(TINY | changes))


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- shape ---


def test_the_paper_s_networks_have_the_published_numbers_of_parameters(monkeypatch):
    monkeypatch.setattr(torch, "randn", torch.empty)  # the meta device would do, but takes seconds to load
    config = StyleGAN2Config(256, 256, 3, **PRESETS["paper256"])
    assert count(Generator(config)) == 24_767_458
    assert count(Discriminator(config)) == 24_001_089


@pytest.mark.parametrize("side", [16, 32, 256, 1024])
def test_a_square_of_a_power_of_two_grows_from_4x4_with_the_paper_s_number_of_styles(side):
    config = StyleGAN2Config(side, side, 3, **PRESETS["paper1024"])
    assert config.base == (4, 4)
    assert config.layers == 2 * math.log2(side) - 2
    assert [config.features(level) for level in range(config.depth + 1)] == [
        min(32768 // r, 512) for r in (4 << level for level in range(config.depth + 1))
    ]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (50, 50), (33, 61)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_images_have_exactly_the_size_asked_for_and_the_discriminator_takes_them(size, channels):
    config = tiny(size[0], size[1], channels, classes=2)
    images = Generator(config)(torch.randn(2, 16), torch.tensor([0, 1]))
    assert images.shape == (2, channels, *size)
    logits = Discriminator(config)(images, torch.tensor([0, 1]))
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()


def test_an_image_below_16_pixels_is_refused():
    with pytest.raises(ValueError, match="12×64 pixels are smaller than 16"):
        tiny(64, 12)


@pytest.mark.parametrize("option", ["latent", "capacity", "max_channels", "group"])
def test_a_network_of_nothing_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option}\s+Input should be greater than or equal to 1"):
        tiny(**{option: 0})


# --- modulation ---


def by_definition(layer, x, w):
    """Each image with weights of its own, w' = s·w / √(Σ (s·w)² + ε), as one grouped convolution; then bias and act."""
    n, inputs, height, width = x.shape
    s = layer.style(w)
    weight = layer.weight[None] * s[:, None, :, None, None]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    outputs = weight.shape[1]
    x = x.reshape(1, n * inputs, height, width)
    if layer.up:
        transposed = weight.transpose(1, 2).reshape(n * inputs, outputs, 3, 3)
        y = F.conv_transpose2d(x, transposed, stride=2, groups=n).view(n, outputs, 2 * height + 1, 2 * width + 1)
        y = low_pass(y, padding=1, gain=4.0)  # held against its definition in test_layers
    else:
        y = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n).view(n, outputs, height, width)
    return scaled_leaky_relu(y + layer.bias[:, None, None])


@pytest.mark.parametrize("up", [False, True])
def test_a_modulated_convolution_is_that_with_weights_of_each_image_s_own(up):
    layer = ModulatedConv(6, 5, 8, (14, 10) if up else (7, 5), up=up)
    torch.nn.init.normal_(layer.bias)
    x, w = torch.randn(3, 6, 7, 5), torch.randn(3, 8)
    wanted = by_definition(layer, x, w)
    torch.testing.assert_close(layer(x, w), wanted, rtol=1e-5, atol=1e-5)


def linear_part(layer, x, w):
    """Without activation and bias."""
    y = layer(x, w, "none") / math.sqrt(2)
    return torch.where(y < 0, y / 0.2, y)


@pytest.mark.parametrize("up", [False, True])
def test_demodulation_gives_unit_variance_whatever_the_style(up):
    layer = ModulatedConv(32, 24, 8, (64, 64), up=up)
    with torch.no_grad():
        layer.style.weight.mul_(3)
        y = linear_part(layer, torch.randn(16, 32, 24, 24), torch.randn(16, 8))[:, :, 3:-3, 3:-3]
    # Zero insertion and filter of gain 4: the mean of the four phases' powers is 4·(Σ taps²)², with Σ taps² = 20/64,
    # if the convolution's output were white. Correlated it is, so the bounds are loose there.
    low, high = (0.9, 1.1) if not up else (0.25, 1.1)
    variance = y.var((0, 2, 3))
    assert low < variance.mean() < high
    if not up:
        torch.testing.assert_close(y.var((2, 3)), torch.ones(16, 24), rtol=0, atol=0.3)


@pytest.mark.parametrize("up", [False, True])
def test_the_scale_of_a_style_is_lost_in_demodulation(up):
    layer = ModulatedConv(6, 5, 8, (8, 8), up=up)
    x, w = torch.randn(2, 6, 4, 4), torch.randn(2, 8)
    before = layer(x, w, "none")
    with torch.no_grad():
        layer.style.weight.mul_(7)
        layer.style.bias.mul_(7)
    torch.testing.assert_close(layer(x, w, "none"), before, rtol=1e-4, atol=1e-5)


def test_a_shift_of_one_pixel_before_doubling_is_one_of_two_after_it():
    layer = ModulatedConv(4, 5, 8, (16, 16), up=True)
    x, w = torch.randn(1, 4, 8, 8), torch.randn(1, 8)
    for axis in (2, 3):
        inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))
        moved = layer(x.roll(1, axis), w, "none")[inside]
        torch.testing.assert_close(moved, layer(x, w, "none").roll(2, axis)[inside], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(upsample(x.roll(1, axis))[inside], upsample(x).roll(2, axis)[inside])


def test_styles_begin_at_one_and_the_rgb_layer_is_scaled_but_not_demodulated():
    layer = ToImage(6, 3, 8)
    torch.nn.init.normal_(layer.bias)
    assert torch.equal(layer.style.bias, torch.ones(6))
    assert torch.equal(ModulatedConv(6, 5, 8, (4, 4), up=False).style.bias, torch.ones(6))
    x, w = torch.randn(2, 6, 4, 4), torch.randn(2, 8)
    s = layer.style(w) / math.sqrt(6)
    wanted = torch.einsum("oi,ni,nihw->nohw", layer.weight[:, :, 0, 0], s, x) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, w), wanted)


def test_an_image_is_the_sum_of_what_the_levels_add_each_enlarged_and_has_no_tanh():
    network: Any = Generator(tiny(32, 32, 3)).synthesis
    ws = torch.randn(2, network.config.layers, 16)
    seen: list[torch.Tensor] = []
    for layer in network.to_image:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    image = network(ws, "none")
    total = seen[0]
    for added in seen[1:]:
        total = upsample(total) + added
    torch.testing.assert_close(image, total)
    with torch.no_grad():
        network.to_image[-1].bias.fill_(100.0)
    assert network(ws, "none").min() > 10


def test_each_layer_takes_its_own_w_and_the_rgb_layer_shares_the_next_level_s_first():
    network: Any = Generator(tiny(32, 32)).synthesis
    names = {}
    for level, layer in enumerate(network.to_image):
        names[layer] = f"rgb{level}"
    for k, layer in enumerate(network.convs):
        names[layer] = f"conv{k}"
    ws = torch.arange(network.config.layers, dtype=torch.float32)[None, :, None].expand(1, -1, 16)
    taken = {}
    for layer in names:
        layer.register_forward_hook(
            lambda module, inputs, _output: taken.update({names[module]: inputs[1][0, 0].item()})
        )
    network(ws)
    assert taken == {"conv0": 0, "rgb0": 1, "conv1": 1, "conv2": 2, "rgb1": 3, "conv3": 3, "conv4": 4, "rgb2": 5} | {
        "conv5": 5,
        "conv6": 6,
        "rgb3": 7,
    }


# --- noise ---


def test_noise_is_without_effect_until_its_strength_is_learned():
    network: Any = Generator(tiny())
    z = torch.randn(2, 16)
    assert all(layer.strength.item() == 0 for layer in network.synthesis.convs)
    assert torch.equal(network(z, noise="random"), network(z, noise="none"))
    assert torch.equal(network(z, noise="const"), network(z, noise="none"))


@pytest.fixture
def noisy():
    network: Any = Generator(tiny())
    with torch.no_grad():
        for layer in network.synthesis.convs:
            layer.strength.fill_(0.5)
    return network


def test_noise_is_one_map_shared_by_all_channels_and_comes_before_the_activation():
    layer = ModulatedConv(6, 5, 8, (4, 4), up=False)
    x, w = torch.randn(2, 6, 4, 4), torch.randn(2, 8)
    before = linear_part(layer, x, w)
    with torch.no_grad():
        layer.strength.fill_(0.5)
        after = layer(x, w, "const") / math.sqrt(2)
    after = torch.where(after < 0, after / 0.2, after)
    torch.testing.assert_close(after - before, (0.5 * layer.fixed_noise).expand(2, 5, 4, 4), rtol=1e-4, atol=1e-5)


def test_constant_noise_repeats_and_random_noise_does_not(noisy):
    z = torch.randn(1, 16).repeat(2, 1)
    images = noisy(z, noise="const")
    assert torch.equal(images, noisy(z, noise="const"))
    torch.testing.assert_close(images[0], images[1])
    drawn = noisy(z, noise="random")
    assert not torch.allclose(drawn[0], drawn[1])
    assert not torch.allclose(drawn, noisy(z, noise="random"))
    with pytest.raises(ValueError, match="'loud'"):
        noisy(z, noise="loud")


def test_with_a_generator_of_its_own_an_image_does_not_depend_on_its_batch(noisy):
    z = torch.randn(4, 16)

    def made(*numbers):
        return noisy(z[list(numbers)], noise=[torch.Generator().manual_seed(n) for n in numbers])

    together = made(0, 1, 2, 3)
    torch.testing.assert_close(together[2:3], made(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[[3, 1]], made(3, 1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made(2), noisy(z[2:3], noise="none"))


# --- mapping, styles ---


def test_the_scale_of_z_does_not_matter():
    mapping = Mapping(16, 16, 0, 3)
    z = torch.randn(5, 16)
    torch.testing.assert_close(mapping(z, None), mapping(z * 40, None), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalise(z).square().mean(1), torch.ones(5))


def test_the_mapping_is_its_definition_with_and_without_classes():
    z, classes = torch.randn(3, 6), torch.tensor([2, 0, 2])
    for number in (0, 3):
        mapping: Any = Mapping(6, 4, number, 2)
        x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
        if number:
            embedded = F.one_hot(classes, 3).float() @ mapping.embedding.weight.T / math.sqrt(3)
            x = torch.cat([x, embedded / (embedded.square().mean(1, keepdim=True) + 1e-8).sqrt()], 1)
        for layer in mapping.layers:
            x = scaled_leaky_relu(x @ layer.weight.T * (0.01 / math.sqrt(x.shape[1])) + 0.01 * layer.bias)
        torch.testing.assert_close(mapping(z, classes if number else None), x)


def test_the_mean_w_moves_by_half_a_percent_and_only_when_asked():
    mapping = Mapping(16, 16, 0, 2)
    z = torch.randn(8, 16)
    w = mapping(z, None)
    assert torch.equal(mapping.average, torch.zeros(16))
    mapping(z, None, track=True)
    torch.testing.assert_close(mapping.average, 0.005 * w.mean(0).detach())
    other = torch.randn(8, 16)
    wanted = 0.995 * mapping.average + 0.005 * mapping(other, None).mean(0).detach()
    mapping(other, None, track=True)
    torch.testing.assert_close(mapping.average, wanted)
    assert not mapping.average.requires_grad


def test_truncation_goes_from_the_mean_w_to_the_image_s_own():
    network: Any = Generator(tiny())
    torch.nn.init.normal_(network.mapping.average)
    w, mean = torch.randn(3, 16), network.mapping.average
    layers = network.config.layers
    assert torch.equal(network.styles(w), w[:, None].expand(-1, layers, -1))
    torch.testing.assert_close(network.styles(w, 0.0), mean.expand(3, layers, 16))
    torch.testing.assert_close(network.styles(w, 0.3), (mean + 0.3 * (w - mean))[:, None].expand(-1, layers, -1))
    cut = network.styles(w, 0.3, cutoff=2)
    torch.testing.assert_close(cut[:, :2], network.styles(w, 0.3)[:, :2])
    assert torch.equal(cut[:, 2:], network.styles(w)[:, 2:])


def test_mixing_takes_the_other_s_styles_from_one_layer_on_as_often_as_asked():
    n, layers, p = 4000, 8, 0.9
    mixed = mix(torch.zeros(n, layers, 2), torch.ones(n, layers, 2), p)
    assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])
    taken = mixed[:, :, 0]
    assert (taken.diff(dim=1) >= 0).all(), "once the other's, always the other's"
    assert (taken[:, 0] == 0).all()
    share = taken[:, -1].mean().item()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    cutoffs = (layers - taken.sum(1))[taken[:, -1] == 1].long()
    found = cutoffs.bincount(minlength=layers)[1:] / len(cutoffs)
    assert (found - 1 / (layers - 1)).abs().max() < 4 * math.sqrt(1 / (layers - 1) / len(cutoffs))
    assert torch.equal(mix(torch.zeros(9, 8, 2), torch.ones(9, 8, 2), 0.0), torch.zeros(9, 8, 2))
    assert (mix(torch.zeros(99, 8, 2), torch.ones(99, 8, 2), 1.0)[:, -1] == 1).all()


# --- classes ---


def test_the_projection_is_the_inner_product_with_the_class_over_the_root_of_its_length():
    network: Any = Discriminator(tiny(classes=3))
    images, classes = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 1])
    features = network.head(network.features(images)[-1])
    embedded = network.mapping(None, classes)
    assert features.shape == embedded.shape == (4, 16)
    torch.testing.assert_close(network(images, classes), (features * embedded).sum(1) / 4)


def test_the_class_makes_a_difference_to_image_and_verdict():
    generator, discriminator = Generator(tiny(classes=3)), Discriminator(tiny(classes=3))
    z = torch.randn(1, 16)
    images = [generator(z, torch.tensor([k])) for k in range(3)]
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    logits = [discriminator(images[0], torch.tensor([k])).item() for k in range(3)]
    assert len({round(logit, 4) for logit in logits}) == 3


def test_a_conditional_network_without_classes_and_an_unconditional_one_with():
    generator, discriminator = Generator(tiny(classes=2)), Discriminator(tiny(classes=2))
    with pytest.raises(ValueError, match="give each image a class"):
        generator(torch.randn(2, 16))
    with pytest.raises(ValueError, match="give each image a class"):
        discriminator(torch.randn(2, 1, 16, 16))
    plain, z = Generator(tiny()), torch.randn(2, 16)
    assert torch.equal(plain(z), plain(z, torch.tensor([0, 0])))


# --- derivatives and precision ---


def numeric_slope(f, x, direction, step):
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


def test_the_gradient_of_the_gradient_penalty_is_right():
    network: Any = Discriminator(tiny(capacity=64, max_channels=4)).double()
    network.head.forward = lambda x: network.head.out(  # in fp64, where the module insists on fp32
        scaled_leaky_relu(
            network.head.dense(scaled_leaky_relu(network.head.conv(network.head.statistic(x))).flatten(1))
        )
    )
    images = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    weight = network.blocks[0].conv2.weight

    def penalty():
        x = images.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    (found,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn_like(weight)

    def at(changed):
        with torch.no_grad():
            kept = weight.clone()
            weight.copy_(changed)
        value = penalty().item()
        with torch.no_grad():
            weight.copy_(kept)
        return value

    wanted = numeric_slope(at, weight.detach().clone(), direction, 1e-5)
    assert (found * direction).sum().item() == pytest.approx(wanted, rel=1e-3)


def test_path_lengths_have_a_gradient_in_every_weight_that_shapes_the_image():
    network: Any = Generator(tiny(32, 32, 3))
    ws = network.styles(network.mapping(torch.randn(2, 16), None))
    (gradient,) = torch.autograd.grad((network.synthesis(ws) * torch.randn(2, 3, 32, 32)).sum(), ws, create_graph=True)
    assert gradient.shape == ws.shape
    gradient.square().sum(2).mean(1).sqrt().sum().backward()
    for name, parameter in network.synthesis.named_parameters():
        if not name.endswith("strength") and not name.startswith("to_image.3.bias"):
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    for name in ("constant", "convs.1.weight", "convs.1.style.weight", "to_image.0.weight"):
        assert network.synthesis.get_parameter(name).grad.abs().sum() > 0, name
    assert network.mapping.layers[0].weight.grad.abs().sum() > 0


def test_under_autocast_the_image_the_mapping_and_the_verdict_are_fp32():
    generator, discriminator = Generator(tiny(32, 32, 3)), Discriminator(tiny(32, 32, 3))
    seen: dict[str, Any] = {}
    block: Any = discriminator.blocks[0]
    discriminator.head.conv.register_forward_hook(lambda _m, i, o: seen.update(head=(i[0].dtype, o.dtype)))
    block.conv1.register_forward_hook(lambda _m, _i, o: seen.update(block=o.dtype))
    generator.synthesis.to_image[0].register_forward_hook(lambda _m, _i, o: seen.update(rgb=o.dtype))
    z = torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w = generator.mapping(z, None)
        images = generator(z)
        logits = discriminator(images)
    assert w.dtype == images.dtype == logits.dtype == seen["rgb"] == torch.float32
    assert seen["head"] == (torch.float32, torch.float32)
    assert seen["block"] == torch.bfloat16, "the test did not run in bf16 at all"
    torch.testing.assert_close(w, generator.mapping(z, None))
    full = generator(z)
    assert (images - full).abs().mean() < 0.03 * full.abs().mean()


def test_under_autocast_the_sum_of_the_rgb_outputs_is_not_rounded_to_16_bits():
    network: Any = Generator(tiny(32, 32)).synthesis
    with torch.no_grad():
        for layer in network.to_image:
            layer.weight.zero_()
        network.to_image[0].bias.fill_(1 / 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = network(torch.randn(1, network.config.layers, 16))
    torch.testing.assert_close(image[:, :, 8:-8, 8:-8], torch.full((1, 1, 16, 16), 1 / 3), rtol=0, atol=1e-6)


def test_under_autocast_demodulation_is_not_rounded_to_16_bits(monkeypatch):
    layer = ModulatedConv(6, 5, 8, (4, 4), up=False)
    kept = []
    true = torch.Tensor.rsqrt

    def recorded(x):
        kept.append(x.dtype)
        return true(x)

    monkeypatch.setattr(torch.Tensor, "rsqrt", recorded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, 6, 4, 4), torch.randn(2, 8))
    assert kept == [torch.float32]


def test_under_autocast_styles_and_rgb_outputs_are_computed_in_fp32():
    network: Any = Generator(tiny(32, 32, 3)).synthesis
    styles, outputs = [], []
    for layer in [*network.convs, *network.to_image]:
        layer.style.register_forward_hook(lambda layer, inputs, made: styles.append((layer, inputs, made)))
    for layer in network.to_image:
        layer.register_forward_hook(lambda layer, inputs, made: outputs.append((layer, inputs, made)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.randn(4, network.config.layers, 16), "none")
    assert len(styles) == len(network.convs) + len(outputs)
    for layer, (w,), made in list(styles):
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, F.linear(w, layer.weight * layer.gain, layer.bias))
    for layer, (x, w), made in list(outputs):
        assert x.dtype == torch.bfloat16, "the test did not run in bf16 at all"
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, layer(x.float(), w))
