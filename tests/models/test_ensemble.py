"""Several detectors as one."""

import numpy as np
import pytest
import torch
from torch import nn

from kizu.models.bundle import InputGeometry, Session
from kizu.models.ensemble import Ensemble, RankScale
from kizu.models.inspector import Inspector
from kizu.training.export import export_onnx


class Brightness(nn.Module):
    """Scores an image by its mean, in units of its own."""

    def __init__(self, unit: float):
        super().__init__()
        self.unit = unit

    def forward(self, x):
        return x.mean((1, 2, 3)) * self.unit, x.mean(1, keepdim=True) * self.unit


def test_a_rank_is_the_share_of_ok_images_that_score_lower():
    rng = np.random.default_rng(0)
    ok = rng.gamma(2.0, 3.0, 5000)
    scale = RankScale.fitted(ok)
    asked = np.quantile(ok, [0.1, 0.35, 0.5, 0.77, 0.95])
    ranks = scale(torch.tensor(asked, dtype=torch.float32)).numpy()
    expected = [(ok < s).mean() for s in asked]
    assert ranks == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("ok", [[1.0, 2.0, 5.0], [3.0], [0.0] * 9, [1.0] * 50 + [2.0], list(range(1000))])
def test_a_rank_rises_with_its_score_everywhere_and_never_saturates(ok):
    scale = RankScale.fitted(ok)
    span = max(ok) - min(ok) + 1.0
    scores = torch.linspace(min(ok) - 3 * span, max(ok) + 3 * span, 601, dtype=torch.float32)
    assert (scale(scores).diff() > 0).all()


def test_ranks_do_not_depend_on_a_detectors_units():
    rng = np.random.default_rng(1)
    ok, others = rng.normal(size=300), torch.tensor(rng.normal(size=40), dtype=torch.float32)
    assert torch.allclose(RankScale.fitted(ok)(others), RankScale.fitted(ok * 50 - 7)(others * 50 - 7), atol=1e-3)


def test_a_scale_that_does_not_rise_is_refused():
    with pytest.raises(ValueError, match="rise"):
        RankScale(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]), torch.ones(2))


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_members_are_combined_by_rank(combine):
    members = [Brightness(1.0), Brightness(-300.0)]
    ok = np.linspace(-0.5, 0.5, 101)
    scales = [RankScale.fitted(ok), RankScale.fitted(-300 * ok)]
    x = torch.full((3, 1, 32, 32), 0.0) + torch.tensor([-0.4, 0.0, 0.4])[:, None, None, None]
    score, heatmap = Ensemble(members, scales, combine)(x)
    expected = [0.5, 0.5, 0.5] if combine == "mean" else [0.9, 0.5, 0.9]
    assert score.tolist() == pytest.approx(expected, abs=1e-3)
    assert heatmap.shape == (3, 1, 32, 32)
    assert heatmap.mean((1, 2, 3)).tolist() == pytest.approx(expected, abs=1e-3)


def test_an_ensemble_ships_as_one_graph_that_scores_the_same():
    ensemble = Ensemble(
        [Brightness(2.0), Brightness(5.0)],
        [RankScale.fitted(np.linspace(-1, 1, 33)), RankScale.fitted(np.linspace(-3, 4, 65))],
    )
    inspector = Inspector(ensemble, InputGeometry(height=32, width=32, channels=1))
    images = np.random.default_rng(0).integers(0, 256, (4, 48, 40, 1), dtype=np.uint8)
    score, heatmap = Session(export_onnx(inspector), "cpu").score(images)
    with torch.no_grad():
        expected, expected_map = inspector(torch.from_numpy(images))
    assert score == pytest.approx(expected.numpy(), rel=1e-4)
    assert heatmap == pytest.approx(expected_map.numpy(), rel=1e-3, abs=1e-4)
