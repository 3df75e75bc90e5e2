"""GANomaly learns what a good board looks like: clearly better than chance, on two seeds."""

import pytest

from kizu.training.recipe import DetectorSection, Option


@pytest.mark.parametrize("seed", [0, 1])
def test_ganomaly_separates_boards_after_less_than_a_minute(auroc_on_unseen, tmp_path, seed):
    options: dict[str, Option] = {"features": 16, "latent": 32, "score": "peak"}
    section = DetectorSection(kind="ganomaly", epochs=40, batch_size=16, options=options)
    found = auroc_on_unseen(section, tmp_path, seed)
    assert found.lower > 0.65, found
