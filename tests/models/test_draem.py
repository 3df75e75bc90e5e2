"""DRAEM: what its networks see, what its scores mean, and that its graph says the same."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter

from kizu.models.bundle import InputGeometry, Session
from kizu.models.draem import DRAEM, PRESETS, DRAEMConfig, Pyramid, highest_mean
from kizu.models.inspector import Inspector
from kizu.models.layers import peak
from kizu.training.export import export_onnx, relative_difference, torch_scorer


def make(height=32, width=32, channels=1, **options):
    torch.manual_seed(0)
    network = DRAEM(DRAEMConfig(height, width, channels, **{"features": 4, "segmentation_features": 4} | options))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
    return network.eval()


def random_images(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("height", "width", "side"), [(32, 40, 3), (100, 64, 5), (256, 300, 21), (512, 512, 41)])
def test_the_published_score_is_the_highest_local_mean(height, width, side):
    heatmap = random_images(2, 1, height, width) * 5
    r = side // 2
    means = [uniform_filter(h.numpy().astype(np.float64), side)[r:-r, r:-r].max() for h in heatmap[:, 0]]
    np.testing.assert_allclose(highest_mean(heatmap).numpy(), means, rtol=1e-4)


@pytest.mark.parametrize("score", ["peak", "mean-filter"])
def test_the_score_is_a_pool_of_the_map_that_one_pixel_moves_less_than_a_defect(score):
    network = make(score=score)
    x = random_images(3, 1, 32, 32)
    found, heatmap = network(x)
    torch.testing.assert_close(found, {"peak": peak, "mean-filter": highest_mean}[score](heatmap))
    pool = {"peak": peak, "mean-filter": highest_mean}[score]
    quiet = torch.full((1, 1, 32, 32), -6.0)
    pixel, defect = quiet.clone(), quiet.clone()
    pixel[..., 10, 10] = 4.0
    defect[..., 10:13, 10:13] = 4.0
    assert pool(quiet) < pool(pixel) < pool(defect)
    assert pool(defect) - pool(pixel) > pool(pixel) - pool(quiet)


def test_scores_still_rank_where_probabilities_have_saturated():
    heatmap = torch.tensor([30.0, 31.0])[:, None, None, None].expand(2, 1, 32, 32)
    assert torch.sigmoid(heatmap).unique().numel() == 1
    for pool in (peak, highest_mean):
        low, high = pool(heatmap)
        assert low < high


def test_the_segmentation_sees_image_and_reconstruction_side_by_side():
    network = make(40, 48, 3)
    x = random_images(2, 3, 40, 48)
    reconstruction, logits = network.both(x)
    torch.testing.assert_close(reconstruction, network.reconstruction(x))
    torch.testing.assert_close(logits, network.segmentation(torch.cat([x, reconstruction], 1)))
    torch.testing.assert_close(network(x)[1], logits)


def test_what_is_reconstructed_goes_through_the_bottleneck_and_the_segmentation_has_skips():
    for skips in (False, True):
        network = Pyramid(1, 1, [4, 8, 8], skips=skips).eval()
        network.down[-1].register_forward_hook(lambda _module, _inputs, output: output * 0)
        a, b = network(random_images(2, 1, 16, 16))
        assert torch.allclose(a, b) is not skips


def test_the_papers_preset_has_the_papers_widths_and_small_images_a_shallower_one():
    with torch.device("meta"):
        network: Any = DRAEM(DRAEMConfig(256, 256, 3, **PRESETS["paper"]))
        small: Any = DRAEM(DRAEMConfig(32, 32, 1, **PRESETS["small"]))
    widths = [block[0].out_channels for block in network.reconstruction.down]
    assert widths == [128, 256, 512, 1024, 1024]
    assert [block[0].out_channels for block in network.segmentation.down] == [64, 128, 256, 512, 512, 512]
    assert network.segmentation.down[0][0].in_channels == 6
    assert len(small.reconstruction.down) == len(small.segmentation.down) == 4  # 32 → 4 pixels


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 57), (64, 47), (150, 129)])
def test_any_size_is_padded_and_cropped_and_what_fits_is_left_alone(height, width):
    network = make(height, width, 3)
    x = random_images(2, 3, height, width)
    score, heatmap = network(x)
    assert score.shape == (2,)
    assert heatmap.shape == (2, 1, height, width)
    assert network.both(x)[0].shape == x.shape
    tall, wide = network.padded
    assert 0 <= tall - height < 32
    assert 0 <= wide - width < 32
    whole = F.pad(x, (0, wide - width, 0, tall - height), mode="replicate")
    parts = network.segmentation(torch.cat([whole, network.reconstruction(whole)], 1))
    torch.testing.assert_close(heatmap, parts[:, :, :height, :width])


@pytest.mark.parametrize("score", ["peak", "mean-filter"])
def test_a_score_depends_on_nothing_but_its_image(score):
    network = make(48, 40, score=score)
    x = random_images(6, 1, 48, 40)
    with torch.no_grad():
        found, heatmap = network(x)
        alone = torch.cat([network(image[None])[0] for image in x])
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        shuffled, shuffled_maps = network(x[order])
        beside_others, _ = network(torch.cat([x[:1], torch.ones(3, 1, 48, 40)]))
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[order], shuffled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(heatmap[order], shuffled_maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:1], beside_others[:1], rtol=1e-5, atol=1e-5)


def test_the_exported_graph_scores_as_torch_does():
    geometry = InputGeometry(height=36, width=52, channels=3)
    inspector = Inspector(make(36, 52, 3, score="mean-filter"), geometry).eval()
    exported, reference = Session(export_onnx(inspector), "cpu"), torch_scorer(inspector)
    random = np.random.default_rng(0)
    for shape in [(1, 36, 52, 3), (3, 80, 61, 1)]:
        images = random.integers(0, 256, shape, dtype=np.uint8)
        for ours, theirs in zip(exported.score(images), reference(images), strict=True):
            assert relative_difference(ours, theirs) < 1e-4


def test_an_unknown_score_is_refused_by_name():
    with pytest.raises(ValueError, match=r"score\s+Input should be 'mean-filter' or 'peak'"):
        make(score="max")
