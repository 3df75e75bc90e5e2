"""How StyleGAN2-ADA trains: phases, lazy penalties, augmentation everywhere, averages, options, exact resume, leaks."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from kizu.errors import UserError
from kizu.models.stylegan2 import StyleGAN2Config
from kizu.training.augment.ada import AugmentConfig
from kizu.training.data.batches import Batch, Batches
from kizu.training.generators import configure
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.loop import Interrupted, LoopSettings, TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection


class Recording(RunLog):
    """A log that keeps the losses, and looks at something each time."""

    def __init__(self, look=lambda: None):
        super().__init__(None, quiet=True)
        self.seen, self.looks, self.look = [], [], look

    def scalars(self, stage, values, step):
        self.seen.append((stage, step, values))
        self.looks.append(self.look())


def bits(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def parameters(module):
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def batch_of(method, n=4):
    return Batch(torch.rand(n, 1, 16, 16) * 2 - 1, torch.arange(n) % max(1, method.shape.classes))


# --- phases and their numbers ---


def test_a_step_is_the_generator_s_turn_then_the_discriminator_s_each_with_its_lazy_penalty(make_method):
    method = make_method(r1_every=16, path_length_every=4)
    (stage,) = method.stages(24)
    assert [(p.name, p.every) for p in stage.phases] == [("G", 1), ("G-path", 4), ("D", 1), ("D-r1", 16)]
    assert stage.phases[0].optimizer is stage.phases[1].optimizer
    assert stage.phases[2].optimizer is stage.phases[3].optimizer
    assert stage.steps == 8


@pytest.mark.parametrize(
    ("options", "c_g", "c_d"),
    [
        ({"path_length_every": 4, "r1_every": 16}, 4 / 5, 16 / 17),
        ({"path_length_every": 7, "r1_every": 3}, 7 / 8, 3 / 4),
        ({"path_length": 0.0, "r1_every": 16}, 1, 16 / 17),
        ({"path_length_every": 4, "r1": 0.0}, 4 / 5, 1),
        ({"path_length_every": 4, "r1_every": 16, "critic_updates": 2}, 4 / 5, 16 / 17),
    ],
)
def test_optimisers_make_up_for_the_steps_that_lazy_penalties_leave_out(options, c_g, c_d, make_method):
    method = make_method(learning_rate=0.002, discriminator_learning_rate=0.004, **options)
    phases = {phase.name: phase for phase in method.stages(24)[0].phases}
    for name, rate, c in (("G", 0.002, c_g), ("D", 0.004, c_d)):
        (group,) = phases[name].optimizer.param_groups
        assert group["lr"] == pytest.approx(rate * c)
        assert group["betas"] == pytest.approx((0.0, 0.99**c))
        assert group["eps"] == 1e-8
    assert ("G-path" in phases) == (c_g != 1)
    assert ("D-r1" in phases) == (c_d != 1)


@pytest.mark.parametrize("critic_updates", [1, 2, 4])
def test_r1_weighs_as_much_per_update_of_d_however_many_there_are(critic_updates, make_method):
    method = make_method(r1_every=4, critic_updates=critic_updates)
    (phase,) = (p for p in method.stages(24)[0].phases if p.name == "D-r1")
    method.networks.requires_grad_(True)
    losses = phase.losses(batch_of(method))
    updates_of_d = phase.every * critic_updates
    assert (losses["total"] / losses["r1"]).item() == pytest.approx(updates_of_d)
    assert updates_of_d == 4


def test_the_path_penalty_has_its_weight_times_its_interval_on_half_a_batch(make_method, monkeypatch):
    method = make_method(path_length=2.0, path_length_every=4)
    seen = []
    true = method.path_length.forward

    def forward(images, ws):
        seen.append(true(images, ws))
        return seen[-1]

    monkeypatch.setattr(method.path_length, "forward", forward)
    shapes = []
    method.generator.synthesis.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    losses = method._path_losses(batch_of(method, 6))
    assert losses["total"].item() == pytest.approx(8 * seen[0].item())
    assert shapes == [(3, 1, 16, 16)]


def test_gamma_follows_size_and_batch_unless_given():
    assert StyleGAN2ADAConfig(batch_size=32).gamma(64 * 64) == pytest.approx(0.0256)
    assert StyleGAN2ADAConfig(batch_size=16).gamma(48 * 80) == pytest.approx(0.0002 * 48 * 80 / 16)
    assert StyleGAN2ADAConfig(r1=0.0).gamma(64 * 64) == 0
    assert StyleGAN2ADAConfig(r1=10.0).gamma(64 * 64) == 10


def test_what_a_recipe_leaves_out_is_the_paper_s():
    def resolved(size=64, **keys):
        return configure(GeneratorSection(kind="stylegan2-ada", **keys), (size, size), 3, 0)[1]

    assert [resolved(size).batch_size for size in (64, 256, 512, 1024)] == [32, 16, 8, 4]
    assert [resolved(size).learning_rate for size in (64, 512, 1024)] == [0.0025, 0.0025, 0.002]
    plain, transferred = resolved(), resolved(start_from="other")
    assert (plain.ada_kimg, plain.ema_ramp_up) == (500, 0.05)
    assert (transferred.ada_kimg, transferred.ema_ramp_up) == (100, None)
    assert resolved(start_from="other", options={"ada_kimg": 7.0}).ada_kimg == 7


@pytest.mark.parametrize(
    ("side", "batch", "rate", "gamma", "ema", "group", "capacity"),
    [(256, 64, 0.0025, 1, 20, 8, 16384), (512, 64, 0.0025, 0.5, 20, 8, 32768), (1024, 32, 0.002, 2, 10, 4, 32768)],
)
def test_the_presets_of_the_paper_have_its_values(side, batch, rate, gamma, ema, group, capacity):
    """Those of its published code (`paper256` and so on), whatever the number of GPUs."""
    for processes in (1, 8):
        section = GeneratorSection(kind="stylegan2-ada", preset=f"paper{side}")
        shape, config, _ = configure(section, (side, side), 3, 0, processes)
        assert (config.batch_size, config.learning_rate) == (batch, rate)
        assert config.gamma(side * side) == gamma
        assert (config.ema_kimg, config.ema_ramp_up) == (ema, None)
        assert config.decay(0) == pytest.approx(0.5 ** (batch / (1000 * ema)))
        assert (shape.group, shape.capacity, shape.max_channels) == (group, capacity, 512)
        assert (shape.latent, shape.mapping_layers) == (512, 8)
        assert (config.style_mixing, config.path_length, config.ada_target, config.ada_kimg) == (0.9, 2, 0.6, 500)
    section = GeneratorSection(kind="stylegan2-ada", preset=f"paper{side}", batch_size=8, options={"r1": 7.0})
    config = configure(section, (side, side), 3, 0)[1]
    assert (config.batch_size, config.gamma(side * side)) == (8, 7)


@pytest.mark.parametrize(
    ("side", "processes", "batch"),
    [(64, 1, 32), (64, 2, 64), (64, 3, 63), (256, 1, 16), (256, 8, 64), (1024, 1, 4), (1024, 8, 32), (1024, 96, 96)],
)
def test_a_batch_that_is_left_out_counts_the_gpus(side, processes, batch):
    section = GeneratorSection(kind="stylegan2-ada", preset="auto")
    shape, config, _ = configure(section, (side, side), 3, 0, processes)
    assert config.batch_size == batch
    assert config.gamma(side * side) == pytest.approx(0.0002 * side**2 / batch)
    assert (shape.mapping_layers, shape.group, config.ema_ramp_up) == (2, 4, 0.05)
    assert shape.capacity == (32768 if side >= 512 else 16384)


def switched_on(**keys):
    augmentations = configure(GeneratorSection(kind="stylegan2-ada", **keys), (64, 64), 3, 0)[2]
    return {field.name for field in dataclasses.fields(augmentations) if getattr(augmentations, field.name)}


def test_switches_of_single_transformations_hold_for_diffaugment_too():
    every = {"brightness", "saturation", "contrast", "integer_translation", "cutout"}
    assert switched_on(augment="diffaugment") == every
    off = {"brightness": False, "cutout": False, "rot90": False}
    assert switched_on(augment="diffaugment", augmentations=off) == every - {"brightness", "cutout"}
    assert switched_on(augment="none", augmentations=off) == set()
    assert switched_on(augmentations={"cutout": True}) == switched_on() | {"cutout"}


@pytest.mark.parametrize(
    ("switch", "changes"),
    [
        ("brightness", lambda images: images.mean((1, 2, 3))),
        ("contrast", lambda images: images.amax((2, 3)) - images.amin((2, 3))),
        ("integer_translation", lambda images: images[:, :, 0].eq(0).all(2).any(1).float()),
        ("cutout", lambda images: images.eq(0).float().mean((1, 2, 3))),
    ],
)
def test_a_transformation_that_is_switched_off_changes_no_image(switch, changes, make_method):
    images = torch.linspace(-0.9, 0.9, 256).view(1, 1, 16, 16).repeat(64, 1, 1, 1)
    only = dict.fromkeys((field.name for field in dataclasses.fields(AugmentConfig)), False)
    for on in (True, False):
        torch.manual_seed(0)
        method = make_method(augment="diffaugment", augmentations=AugmentConfig(**only | {switch: on}))
        seen = method._augmented(images)
        assert (changes(seen) != changes(images)).any() == on


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "stylegan9"}, "Unknown generator 'stylegan9'"),
        ({"preset": "huge"}, "Unknown preset 'huge'"),
        ({"options": {"lattent": 5}}, "unknown key 'generator.options.lattent': did you mean 'latent'"),
        ({"options": {"height": 5}}, "unknown key 'generator.options.height'"),
        ({"options": {"batch_size": 5}}, "unknown key 'generator.options.batch_size'"),
        ({"options": {"latent": 0}}, "latent must be at least 1"),
        ({"options": {"latent": 2.5}}, "latent must be a whole number"),
        (
            {"options": {"loss": "minimax"}},
            "loss must be 'non-saturating', 'hinge', 'lsgan' or 'wgan-gp', not 'minimax'",
        ),
        ({"options": {"loss": "wgan-gp", "spectral_norm": True}}, "both bound D's slope"),
        ({"options": {"critic_updates": 0}}, "critic_updates must be at least 1"),
        ({"options": {"r1_every": 0}}, "r1_every must be at least 1"),
        ({"options": {"r1": -1}}, "r1 must be at least 0, not -1"),
        ({"options": {"style_mixing": 1.5}}, "style_mixing must be at most 1, not 1.5"),
        ({"options": {"ada_limit": 1.5}}, "ada_limit must be at most 1, not 1.5"),
        ({"options": {"ada_kimg": 0}}, "ada_kimg must be greater than 0, not 0"),
        ({"augmentations": {"blur": True}}, "unknown key 'generator.augmentations.blur'"),
        ({"augment": "diffaugment", "augmentations": {"hue": True}}, "augmentations.hue: .*diffaugment.*no such"),
        ({"augment": "none", "augmentations": {"cutout": True}}, "augmentations.cutout: .*none.*no such"),
        ({"freeze_discriminator": 14, "start_from": "other"}, "at most 13, not 14"),
        ({"freeze_discriminator": 2}, "generator.freeze_discriminator keeps the weights that training starts from"),
        ({"options": {"prior": "truncated"}}, r"options.prior: .*generator\.truncation below 1"),
        ({"options": {"prior": "gamma"}}, "options.prior must be 'normal' or 'bourgain', not 'gamma'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        configure(GeneratorSection(**({"kind": "stylegan2-ada"} | keys)), (64, 64), 3, 0)


# --- what D sees ---


@pytest.mark.parametrize("augment", ["ada", "diffaugment"])
@pytest.mark.parametrize("loss", ["non-saturating", "wgan-gp"])
def test_the_discriminator_sees_augmented_images_only_in_every_phase(loss, augment, make_method, make_loop, tmp_path):
    held_out = Batch(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64))
    method = make_method(steps=1, loss=loss, augment=augment, ada_heuristic="r_v", held_out=held_out)
    seen = []

    def mark(images, _p=None):
        return images + 1000

    method._augment = method._diffaugment = mark
    method.discriminator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().min().item()))
    log = Recording()
    make_loop(method, tmp_path, log).run()
    assert min(seen) > 900
    calls = {"G": 1, "D": 2 + (augment == "ada") + (loss == "wgan-gp"), "R1": loss != "wgan-gp"}
    assert len(seen) == sum(calls.values()), calls
    assert {name.partition("/")[0] for name in log.seen[0][2]} >= {"G", "G-path", "D"}


def test_r1_is_taken_through_the_augmentation(make_method):
    method = make_method(augment="ada", r1=2.0)
    batch = batch_of(method)
    method.networks.requires_grad_(True)
    method._augment = lambda images, _p: images
    plain = method._r1_losses(batch)["r1"].item()
    method._augment = lambda images, _p: 3 * (images / 3)
    torch.testing.assert_close(method._r1_losses(batch)["r1"].item(), plain, rtol=1e-3, atol=0)
    method._augment = lambda images, _p: images * 0
    assert method._r1_losses(batch)["r1"].item() == 0


def test_p_is_told_of_the_logits_of_both_of_the_discriminator_s_phases(make_method, monkeypatch):
    method = make_method()
    seen = []
    monkeypatch.setattr(method.ada, "observe", lambda logits: seen.append(len(logits)))
    method.networks.requires_grad_(True)
    method._discriminator_losses(batch_of(method))
    method._r1_losses(batch_of(method))
    method._generator_losses(batch_of(method))
    assert seen == [4, 4]


def test_fakes_for_the_discriminator_bring_no_gradient_to_the_generator(make_method):
    method = make_method(loss="wgan-gp", consistency="icr")
    method.networks.requires_grad_(True)
    method._discriminator_losses(batch_of(method))["total"].backward()
    assert all(p.grad is None for p in method.generator.parameters())
    assert any(p.grad is not None for p in method.discriminator.parameters())


@pytest.mark.parametrize("options", [{}, {"consistency": "icr", "prior": "bourgain"}])
def test_a_phase_changes_its_own_network_alone(options, make_method, make_loop, tmp_path):
    method = make_method(**options)
    loop = make_loop(method, tmp_path)
    method.networks.requires_grad_(False)
    for phase in loop.stages[0].phases:
        trained, other = (
            (method.generator, method.discriminator)
            if phase.name.startswith("G")
            else (method.discriminator, method.generator)
        )
        mine, theirs, average = parameters(trained), parameters(other), bits(method.average)
        loop._update(phase, loop.batches.next())
        assert changed(mine, parameters(trained)), phase.name
        assert not changed(theirs, parameters(other)), phase.name
        assert not changed(average, bits(method.average)), phase.name


def test_fakes_have_classes_as_often_as_the_training_images(make_method):
    method = make_method()
    method.labels = torch.tensor([0] * 90 + [1] * 10)
    n = 20_000
    share = method._fake_classes(n).float().mean().item()
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / n)


def test_r_v_compares_with_the_images_held_out(make_method, monkeypatch):
    held_out = Batch(torch.full((3, 1, 16, 16), 0.25), torch.tensor([0, 1, 1]))
    method = make_method(ada_heuristic="r_v", held_out=held_out)
    seen, observed = [], []
    method._augment = lambda images, _p: images
    method.discriminator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    true = method.ada.observe_validation

    def observe(*logits):
        observed.append(logits)
        return true(*logits)

    monkeypatch.setattr(method.ada, "observe_validation", observe)
    batch = batch_of(method)
    method._discriminator_losses(batch)
    assert (seen[-1] == 0.25).all()
    assert torch.equal(seen[-2], batch.images)
    assert [len(logits) for logits in observed[0]] == [4, 4, 4]
    assert not observed[0][1].requires_grad


# --- freeze, averages, spectral norm ---


def test_frozen_layers_of_the_discriminator_keep_their_bits_and_the_others_do_not(make_method, make_loop, tmp_path):
    method = make_method(steps=3, freeze=4)
    before = bits(method.discriminator)
    make_loop(method, tmp_path).run()
    different = changed(before, bits(method.discriminator))
    first = ("from_image.", "blocks.0.conv1.", "blocks.0.conv2.", "blocks.0.shortcut.")
    learned = {name for name, _ in method.discriminator.named_parameters()}
    assert different == {name for name in learned if not name.startswith(first)}


def test_layers_are_counted_as_the_image_passes_them(make_method):
    method = make_method()
    network = method.discriminator
    wanted = [network.from_image]
    for block in network.blocks:
        wanted += [block.conv1, block.conv2, block.shortcut]
    assert list(network.layers()) == [*wanted, network.head, network.mapping]
    assert {id(p) for layer in network.layers() for p in layer.parameters()} == {id(p) for p in network.parameters()}


def test_the_average_s_half_life_is_that_of_the_paper_s_code():
    config = StyleGAN2ADAConfig(batch_size=32)  # 10 thousand images
    late = 10**6
    assert config.decay(late) ** (10_000 / 32) == pytest.approx(0.5)
    assert StyleGAN2ADAConfig(batch_size=16, ema_kimg=2.0).decay(late) ** (2000 / 16) == pytest.approx(0.5)
    # before: 5 % of the images seen
    assert config.decay(99) == pytest.approx(0.5 ** (32 / (0.05 * 100 * 32)))
    assert dataclasses.replace(config, ema_ramp_up=None).decay(0) == config.decay(late)
    assert StyleGAN2ADAConfig(ema_kimg=0.0).decay(late) == 0


def test_the_average_follows_the_generator_by_that_half_life_and_copies_its_mean_w(make_method, make_loop, tmp_path):
    method = make_method(steps=5, ema_kimg=0.01, ema_ramp_up=None)
    expected = method.generator.synthesis.constant.detach().clone()
    log = Recording(lambda: method.generator.synthesis.constant.detach().clone())
    make_loop(method, tmp_path, log).run()
    beta = 0.5 ** (4 / 10)
    for seen in log.looks:
        expected = beta * expected + (1 - beta) * seen
    torch.testing.assert_close(method.average.synthesis.constant, expected)
    assert method.generator.mapping.average.abs().sum() > 0
    assert torch.equal(method.average.mapping.average, method.generator.mapping.average)


@pytest.mark.parametrize("consistency", ["none", "icr"])
def test_spectral_normalisation_makes_one_power_iteration_per_update(consistency, make_method, make_loop, tmp_path):
    method = make_method(spectral_norm=True, consistency=consistency)
    loop = make_loop(method, tmp_path)
    method.networks.requires_grad_(False)
    method.networks.train()
    name, vector = next((n, b) for n, b in method.discriminator.named_buffers() if n.endswith("_u"))
    norm = method.discriminator.get_submodule(name.rpartition(".")[0])
    assert isinstance(norm, parametrizations._SpectralNorm)
    for phase in loop.stages[0].phases:
        layer = method.discriminator.get_submodule(name.partition(".parametrizations")[0])
        weight = layer.parametrizations.weight.original.detach().flatten(1).clone()
        u, v = vector.clone(), norm._v.clone()
        loop._update(phase, loop.batches.next())
        if phase.name != "G-path":
            u = nn.functional.normalize(weight @ v, dim=0)
        torch.testing.assert_close(vector, u, rtol=1e-4, atol=1e-5)


# --- every option trains ---


TABLE = [
    *({"loss": loss} for loss in ("non-saturating", "hinge", "lsgan", "wgan-gp")),
    *({"loss": loss, "spectral_norm": True} for loss in ("non-saturating", "hinge", "lsgan")),
    *({"consistency": kind} for kind in ("cr", "bcr", "zcr", "icr")),
    {"prior": "bourgain"},
    *({"augment": augment} for augment in ("diffaugment", "none")),
    {"path_length": 0.0},
    {"r1": 0.0},
    {"r1": 0.0, "path_length": 0.0, "style_mixing": 0.0},
    {"critic_updates": 2},
    {"discriminator_learning_rate": 0.001},
    {"loss": "wgan-gp", "consistency": "icr", "prior": "bourgain", "critic_updates": 2, "classes": 0},
    {"loss": "hinge", "consistency": "icr", "spectral_norm": True, "augment": "diffaugment", "freeze": 2},
]


@pytest.mark.parametrize("options", TABLE, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_every_option_trains(options, make_method, make_loop, tmp_path):
    method = make_method(steps=3, **options)
    before = parameters(method.networks)
    log = Recording()
    make_loop(method, tmp_path, log).run()
    seen = {name: value for _, _, values in log.seen for name, value in values.items()}
    assert all(math.isfinite(value) for _, _, values in log.seen for value in values.values())
    assert {"G/adversarial", "D/adversarial"} <= seen.keys()
    assert ("D/penalty" in seen) == (options.get("loss") == "wgan-gp")
    assert ("D-r1/r1" in seen) == (options.get("loss") != "wgan-gp" and options.get("r1") != 0)
    assert ("G-path/path_length" in seen) == (options.get("path_length") != 0)
    assert ("D/consistency" in seen) == ("consistency" in options)
    assert ("G/consistency" in seen) == (options.get("consistency") in ("zcr", "icr"))
    assert ("G/distance" in seen) == (options.get("prior") == "bourgain")
    after = parameters(method.networks)
    assert all(tensor.isfinite().all() for tensor in after.values())
    different = changed(before, after)
    assert any(name.startswith("G.synthesis") for name in different)
    assert any(name.startswith("G.mapping") for name in different)
    assert any(name.startswith("D.") for name in different)
    assert not any(name.startswith(("ada", "path", "prior")) for name in different)


def test_pictures_are_of_the_average_and_of_real_images(make_method):
    method = make_method(prior="bourgain")
    real = torch.rand(8, 1, 16, 16)
    shown = method.samples(real)
    assert shown.shape == (32, 1, 16, 16)
    assert torch.equal(shown[24:], real)
    z = method._fixed_z
    torch.testing.assert_close(shown[:24], method.average(z, torch.arange(24) % 2, noise="const"))
    # drawn from the prior that the generator knows: near one of its centres
    assert torch.cdist(z, method.prior.rows).min(1).values.max() < 0.1 * 16


# --- resume ---


def state(loop):
    saved = {f"networks.{k}": v for k, v in loop.method.networks.state_dict().items()}
    saved |= {f"average.{k}": v for k, v in loop.method.average.state_dict().items()}
    for phase in loop.stages[0].phases:
        for number, entry in phase.optimizer.state_dict()["state"].items():
            saved |= {f"{phase.name}.{number}.{k}": v for k, v in entry.items()}
    return copy.deepcopy(saved)


@pytest.mark.parametrize("options", [{}, {"spectral_norm": True, "prior": "bourgain", "consistency": "zcr"}])
def test_a_stopped_and_resumed_run_is_one_left_alone_to_the_bit(options, make_method, make_loop, tmp_path, stop_at):
    options = options | {"steps": 8, "ada_target": -0.9, "ada_kimg": 0.1}
    log = Recording()
    whole = make_loop(make_method(**options), tmp_path / "whole", log)
    whole.run()
    wanted = state(whole)
    assert any(name.endswith("exp_avg_sq") for name in wanted)
    assert wanted["networks.path_length.mean"] != 0
    for stop_after in (1, 6):
        folder = tmp_path / str(stop_after)
        with pytest.raises(Interrupted):
            make_loop(make_method(**options), folder, stop_at(stop_after)).run()
        rest = Recording()
        second = make_loop(make_method(**options), folder, rest)
        torch.manual_seed(999)
        assert second.resume()
        second.run()
        found = state(second)
        assert wanted.keys() == found.keys()
        assert not {name for name in wanted if not torch.equal(wanted[name], found[name])}
        for (_, step, values), (_, at, all_values) in zip(rest.seen, log.seen[stop_after:], strict=True):
            assert step == at
            assert values.items() <= all_values.items()  # a lazy penalty's last value is not in a checkpoint


# --- leaks ---

SIDE = 16


def bars(n):
    """A bright bar of random width on the left."""
    generator = torch.Generator().manual_seed(0)
    images = 60 + 15 * torch.randn(n, 1, 1, 1, generator=generator).expand(n, 1, SIDE, SIDE)
    widths = torch.randint(3, 7, (n, 1, 1, 1), generator=generator)
    return (images + 120 * (torch.arange(SIDE) < widths)).clamp(0, 255).to(torch.uint8)


def share_on_the_left(images):
    """Of images [N, 1, 16, 16], how many have their brightest edge on the left."""
    edges = torch.stack([images[..., :4].mean((1, 2, 3)), images[..., -4:].mean((1, 2, 3))], 1)
    edges = torch.cat([edges, torch.stack([images[:, :, :4].mean((1, 2, 3)), images[:, :, -4:].mean((1, 2, 3))], 1)], 1)
    return (edges.argmax(1) == 0).float().mean().item()


def test_orientations_do_not_leak_into_the_images_at_a_moderate_p(tmp_path):
    pixels = bars(256)
    assert share_on_the_left(pixels.float()) == 1
    only = dict.fromkeys((field.name for field in dataclasses.fields(AugmentConfig)), False)
    torch.manual_seed(1)
    method = StyleGAN2ADAMethod(
        StyleGAN2Config(SIDE, SIDE, 1, latent=16, mapping_layers=2, capacity=256, max_channels=16),
        # p stays where it starts
        StyleGAN2ADAConfig(batch_size=16, ada_start=0.4, ada_kimg=1e9, r1=0.01, path_length=0.0, ema_kimg=0.3),
        AugmentConfig(**(only | {"xflip": True, "rot90": True})),
        3.0,
        torch.zeros(256, dtype=torch.int64),
    )
    judged = []
    method.discriminator.register_forward_pre_hook(lambda _module, inputs: judged.append(inputs[0].detach()))
    settings = LoopSettings(checkpoint_seconds=1e9, control_every=50, sample_every=10**9)
    log = RunLog(None, quiet=True)
    TrainingLoop(method, Batches(pixels, 16, 0), tmp_path, identity="x", log=log, settings=settings).run()
    assert method.ada.p.item() == pytest.approx(0.4, abs=1e-3)
    # There was something to leak: D saw as many as they are that are neither mirrored (p/2) nor turned (3p/4), or both
    # mirrored and turned by two quarters (p/4).
    assert share_on_the_left(torch.cat(judged[-200:])) == pytest.approx(0.8 * 0.7 + 0.2 * 0.1, abs=0.06)
    with torch.no_grad():
        images = method.average(torch.randn(400, 16))
    contrast = images[..., :4].mean() - images[..., -4:].mean()
    assert contrast > 0.5, "nothing was learned that could be turned"
    assert share_on_the_left(images) >= 0.9
