"""Both detectors learn what a good board looks like: clearly better than chance, on three seeds each."""

import numpy as np
import pytest
import torch

from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Inspector
from kizu.training.data.batches import Batches
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import NG, OK
from kizu.training.data.render import render_boards
from kizu.training.detectors import create_detector
from kizu.training.evaluation.ranking import auroc
from kizu.training.export import torch_scorer
from kizu.training.loop import TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning") / "boards"
    return render_boards(folder, boards=30, count_ok=500, count_ng=301, size=32, channels=1, seed=4)


def auroc_on_unseen(boards, folder, section, seed):
    ok = [row for row in boards.rows if row.label == OK]
    ng = [row for row in boards.rows if row.label == NG]
    torch.manual_seed(seed)
    method = create_detector(GEOMETRY, section)
    batches = Batches(training_tensor(boards, ok[:240], GEOMETRY), section.batch_size, seed)
    TrainingLoop(method, batches, folder, identity="x", log=RunLog(None, quiet=True)).run()
    score = torch_scorer(Inspector(method.detector(), GEOMETRY))
    scores, _ = score(np.stack([boards.image(row) for row in ok[240:] + ng]))
    return auroc(scores[260:], scores[:260])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ganomaly_separates_boards_after_less_than_a_minute(boards, tmp_path, seed):
    options = {"features": 16, "latent": 32, "score": "peak"}
    section = DetectorSection(kind="ganomaly", epochs=40, batch_size=16, options=options)
    found = auroc_on_unseen(boards, tmp_path, section, seed)
    assert found.lower > 0.65, found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fanogan_separates_boards_after_about_a_minute(boards, tmp_path, seed):
    options = {"features": 16, "latent": 32}
    section = DetectorSection(kind="fanogan", epochs=40, batch_size=8, learning_rate=3e-4, options=options)
    found = auroc_on_unseen(boards, tmp_path, section, seed)
    assert found.lower > 0.5, found
