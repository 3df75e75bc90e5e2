"""f-AnoGAN learns what a good board looks like: better than chance, on three seeds."""

import pytest

from kizu.training.recipe import DetectorSection


@pytest.mark.alone
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fanogan_separates_boards_after_about_a_minute(auroc_on_unseen, tmp_path, seed):
    options = {"features": 16, "latent": 32}
    section = DetectorSection(kind="fanogan", epochs=40, batch_size=8, learning_rate=3e-4, options=options)
    found = auroc_on_unseen(section, tmp_path, seed)
    assert found.lower > 0.5, found
