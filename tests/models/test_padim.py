"""Gaussians: distances against their definition."""

from __future__ import annotations

import pytest
import torch

from kizu.models.backbones import PretrainedBackbone
from kizu.models.padim import Padim, PadimConfig, place_score, pooled_distance, principal_directions


def test_the_pooled_distance_is_that_of_the_shrunk_covariance():
    z = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis, gains = principal_directions(z, rank=8, shrinkage=0.2)
    covariance = 0.8 * z.T @ z / len(z) + 0.2 * torch.eye(8, dtype=torch.float64)
    expected = torch.einsum("ni,ij,nj->n", z, torch.linalg.inv(covariance), z).sqrt()
    torch.testing.assert_close(pooled_distance(z, basis, gains, 0.2), expected, rtol=1e-3, atol=0)


def test_fewer_images_than_features_leave_the_other_directions_to_the_identity():
    z = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis, gains = principal_directions(z, rank=9, shrinkage=0.3)
    assert basis.shape == (9, 4)
    across = torch.linalg.svd(basis)[0][:, 4:].T
    expected = across.square().sum(1).div(0.3).sqrt()
    torch.testing.assert_close(pooled_distance(across, basis, gains, 0.3), expected, rtol=1e-2, atol=0)


def test_places_score_as_the_mean_of_their_farthest_hundredth():
    distances = torch.arange(200.0).reshape(1, 10, 20)
    assert place_score(distances).item() == pytest.approx((199 + 198) / 2)
    assert place_score(torch.arange(9.0).reshape(1, 3, 3)).item() == 8


def test_nothing_scores_before_it_is_fitted():
    config = PadimConfig(64, 64, 1, least_side=64)
    with pytest.raises(RuntimeError, match="fitted"):
        Padim(config, PretrainedBackbone(config.of_backbone))(torch.zeros(1, 1, 64, 64))
