"""f-AnoGAN learns what a good board looks like: on three seeds together, clearly better than chance."""

import math

import pytest

from kizu.training.recipe import DetectorSection


@pytest.mark.alone
@pytest.mark.timeout(1200)
def test_fanogan_separates_boards_after_about_a_minute_on_each_of_three_seeds(auroc_on_unseen, tmp_path):
    options = {"features": 16, "latent": 32}
    section = DetectorSection(kind="fanogan", epochs=40, batch_size=8, learning_rate=3e-4, options=options)
    found = [auroc_on_unseen(section, tmp_path / str(seed), seed) for seed in (0, 1, 2)]
    mean = sum(estimate.value for estimate in found) / 3
    half = math.hypot(*((estimate.upper - estimate.lower) / 2 for estimate in found)) / 3
    assert mean - half > 0.5, found
