"""Starting from another run: all of it, or what fits when asked for, and never silently less."""

import pytest
import torch

from kizu.errors import UserError
from kizu.training.generators.transfer import start_from
from kizu.training.run import GENERATOR_FOLDER


@pytest.fixture
def run(make_method, make_loop, tmp_path):
    """A finished run's folder, and its method."""
    method = make_method(steps=3, ada_start=0.3, ema_ramp_up=None)
    make_loop(method, tmp_path / "run" / GENERATOR_FOLDER).run()
    return tmp_path / "run", method


def different(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    return {name for name, tensor in a.state_dict().items() if not torch.equal(tensor, b.state_dict()[name])}


@pytest.mark.parametrize("inner", [False, True])
def test_a_run_of_the_same_networks_gives_all_its_bits_the_average_s_included(inner, run, make_method):
    folder, source = run
    method = make_method(learning_rate=0.001)
    with torch.no_grad():
        for parameter in method.networks.parameters():
            parameter.add_(1)
    report = start_from(method, folder / GENERATOR_FOLDER if inner else folder)
    assert not different(method.generator, source.generator)
    assert not different(method.discriminator, source.discriminator)
    assert not different(method.average, source.average)
    assert different(source.generator, source.average)
    assert method.ada.p == 0
    assert method.path_length.mean == 0
    assert source.path_length.mean > 0
    tensors = len(source.generator.state_dict())
    assert f"G: {tensors} of {tensors} tensors match" in report
    assert f"average of G: {tensors} of {tensors} tensors match" in report


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shape": {"mapping_layers": 3}}, "mapping.layers.2.weight (16, 16) is not there"),
        ({"shape": {"mapping_layers": 1}}, "mapping.layers.1.weight has no place"),
        ({"classes": 3}, "mapping.embedding.weight is (16, 2), not (16, 3)"),
        ({"shape": {"latent": 8}}, "mapping.layers.0.weight is (16, 32), not (8, 16)"),
        ({"spectral_norm": True}, "from_image.parametrizations.weight.original (8, 1, 1, 1) is not there"),
    ],
)
def test_networks_that_differ_are_refused_with_the_tensors_in_which_they_do(changes, named, run, make_method):
    folder, _ = run
    with pytest.raises(UserError, match="are not those of this recipe") as refused:
        start_from(make_method(**changes), folder)
    assert named in str(refused.value)
    assert "start_partly" in str(refused.value.remedy)


def test_long_lists_are_cut_short(run, make_method):
    with pytest.raises(UserError) as refused:
        start_from(make_method(shape={"capacity": 64, "max_channels": 8}), run[0])
    assert "… and" in str(refused.value)
    assert len(str(refused.value).splitlines()) < 35


def test_a_partial_start_takes_what_fits_and_says_what_does_not(run, make_method):
    folder, source = run
    method = make_method(classes=3)
    before = method.generator.mapping.embedding.weight.clone()
    report = start_from(method, folder, partly=True)
    tensors = len(source.generator.state_dict())
    assert f"G: {tensors - 1} of {tensors} tensors match" in report
    assert "mapping.embedding.weight is (16, 2), not (16, 3)" in report
    own, theirs = method.generator.state_dict(), source.generator.state_dict()
    assert torch.equal(own.pop("mapping.embedding.weight"), before)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


def test_a_run_that_is_not_there_or_shares_nothing_is_refused(run, make_method, tmp_path):
    with pytest.raises(UserError, match="holds no generator to start from"):
        start_from(make_method(), tmp_path / "nowhere")
    folder, _ = run
    path = folder / GENERATOR_FOLDER / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"networks": {}, "averages": {}}, path)
    with pytest.raises(UserError, match="are not those of this recipe"):
        start_from(make_method(), folder, partly=True)
