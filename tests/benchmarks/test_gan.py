"""`benchmarks.gan`: the plain networks agree with Kizu's, and the command measures what it says."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gan, gan_ideas, gan_report, gan_training, plain_stylegan2
from benchmarks.gan_training import GanBenchmarkSettings
from kizu.models import stylegan2 as ours

TINY = GanBenchmarkSettings(sizes=(16,), presets=("demo",), batch_size=4, steps=1, repeats=2, memory=False)
WIDTHS = {"latent": 24, "mapping_layers": 2, "capacity": 256, "max_channels": 24}


@pytest.fixture(
    params=[(32, 32, 1, 0), (24, 40, 3, 3)], ids=["grey square", "RGB, conditional, neither square nor a power of two"]
)
def pair(request):
    """Both generators and discriminators, of the same weights."""
    height, width, channels, classes = request.param
    shape = ours.StyleGAN2Config(height, width, channels, classes, **WIDTHS)
    torch.manual_seed(0)
    kizu = torch.nn.ModuleList([ours.Generator(shape), ours.Discriminator(shape)])
    for name, parameter in kizu.named_parameters():
        if name.endswith(("bias", "strength")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    plain = torch.nn.ModuleList([plain_stylegan2.Generator(shape), plain_stylegan2.Discriminator(shape)])
    plain.load_state_dict(kizu.state_dict())
    return shape, kizu.to(memory_format=torch.channels_last), plain


def inputs(shape, n=5):
    z = torch.randn(n, shape.latent, generator=torch.Generator().manual_seed(1))
    return z, torch.arange(n) % max(1, shape.classes)


def test_images_and_logits_agree(pair):
    shape, kizu, plain = pair
    z, classes = inputs(shape)
    images = [g(z, classes, noise="const") for g, _ in (kizu, plain)]
    torch.testing.assert_close(images[0], images[1], rtol=1e-4, atol=1e-4)
    assert images[0].std() > 0.1
    logits = [d(images[0], classes) for _, d in (kizu, plain)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    assert logits[0].std() > 0.1


@pytest.mark.parametrize("which", ["losses", "path length", "R1"])
def test_gradients_agree_second_derivatives_included(pair, which):
    shape, kizu, plain = pair
    z, classes = inputs(shape)
    found = []
    for g, d in (kizu, plain):
        ws = g.styles(g.mapping(z, classes))
        images = g.synthesis(ws, "const")
        if which == "path length":
            pattern = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
            (slope,) = torch.autograd.grad((images * pattern).mean(), ws, create_graph=True)
            loss = slope.square().sum().sqrt()
        elif which == "R1":
            real = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
            (slope,) = torch.autograd.grad(d(real, classes).sum(), real, create_graph=True)
            loss = slope.square().sum()
        else:
            loss = torch.nn.functional.softplus(-d(images, classes)).mean()
        weights = dict(torch.nn.ModuleList([g, d]).named_parameters())
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        found.append(dict(zip(weights, gradients, strict=True)))
    for name, gradient in found[0].items():
        other = found[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            error = (gradient - other).abs().max() / max(1e-4, other.abs().max().item())
            # Rounding may put a value that is all but 0 on the other side of the activation's kink.
            assert error < (1e-2 if which == "R1" else 1e-3), name


def test_only_the_networks_differ(tmp_path):
    loops = [gan_training.make_loop(arm, TINY, 16, "demo", tmp_path) for arm in gan_training.ARMS]
    for _ in range(2):  # with noise, augmentation, path length and R1
        for loop in loops:
            torch.manual_seed(7)
            loop.advance(1)
    kizu, plain = (loop.method.networks.state_dict() for loop in loops)
    assert kizu.keys() == plain.keys()
    assert isinstance(loops[1].method.networks.get_submodule("G"), plain_stylegan2.Generator)
    for name in ("G.synthesis.to_image.2.bias", "D.head.out.weight", "G.mapping.average", "path_length.mean"):
        torch.testing.assert_close(kizu[name], plain[name], rtol=2e-2, atol=2e-4)


def test_every_phase_is_weighted_by_how_often_it_runs(tmp_path):
    loop = gan_training.make_loop(gan_training.KIZU, TINY, 16, "demo", tmp_path)
    assert loop.cycle == 16
    timing = loop.advance(2)
    assert loop.step == 2
    assert {name: len(seconds) for name, seconds in loop._seconds.items()} == {
        "G": 2,
        "G-path": 1,
        "D": 2,
        "D-r1": 1,
    }
    assert timing.phases["G-path"] == pytest.approx(loop._seconds["G-path"][0] / 4)
    assert timing.phases["D-r1"] == pytest.approx(loop._seconds["D-r1"][0] / 16)
    loop.advance(1)
    assert loop.step == 17, "the next repeat begins where every phase runs"


def test_the_command_end_to_end(tmp_path):
    page = tmp_path / "gan.md"
    options = "--size 16 --preset demo --batch-size 4 --steps 1 --threads 1 --device cpu --repeats 2 --no-memory --json"
    done = CliRunner().invoke(gan.app, [*options.split(), "--report", str(page)], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    (found,) = result["figures"]
    assert (found["size"], found["preset"]) == (16, "demo")
    assert len(found["speedups"]) == 2
    assert found["speedup"]["lowest"] <= found["speedup"]["median"] <= found["speedup"]["highest"]
    assert set(found["speedup_by_phase"]) == {"G", "G-path", "D", "D-r1"}
    for arm in found["arms"]:
        assert sum(arm["phase_shares"].values()) == pytest.approx(1)
        assert arm["images_per_second"] * arm["seconds_per_kimg"] == pytest.approx(1000)
        assert arm["memory"] is None
    text = page.read_text(encoding="utf-8")
    assert result["command"] in text
    assert "every other repeat in reverse order" in text
    assert str(tmp_path) not in text


def test_memory_is_that_of_a_process_of_its_own():
    memory = gan_training.peak_memory(gan_training.KIZU, TINY, 16, "demo")
    peak, before = memory["peak"], memory["before"]
    assert peak is not None
    assert before is not None
    assert peak >= before > 0


def test_an_unknown_preset_is_named():
    done = CliRunner().invoke(gan.app, ["--preset", "huge"])
    assert "huge" in str(done.exception)


def test_ideas_agree_and_are_compared():
    entries = gan_ideas.run_ideas(TINY, 16, "demo", lambda _: None)
    assert len({entry["idea"] for entry in entries}) == 9
    assert all(entry["ratio"]["lowest"] > 0 for entry in entries)
    (table,) = [t for t in gan_report.tables({"figures": [_figures()], "ideas": entries}) if t.title == "Ideas"]
    assert len(table.rows) == len(entries)


def test_ways_that_disagree_are_refused():
    x = torch.ones(2)
    with pytest.raises(ArithmeticError, match="twice"):
        gan_ideas.try_out(gan_ideas.Idea("sum", {"once": lambda: x, "twice": lambda: 2 * x}), TINY, 16, "demo")


def test_a_slower_kizu_is_said_to_be_slower():
    found = _figures(kizu=2.0, plain=1.0)
    assert "SLOWER, 0.50 [0.50, 0.50]" in gan_report.headline({"figures": [found]})[0]


def _figures(kizu: float = 1.0, plain: float = 2.0):
    names = ("G", "G-path", "D", "D-r1", gan_training.REST)
    seconds = {gan_training.KIZU: kizu, gan_training.PLAIN: plain}
    timings = {arm: [gan_training.Timing(dict.fromkeys(names, took))] for arm, took in seconds.items()}
    return gan_training.figures(TINY, 16, "demo", timings, {})
