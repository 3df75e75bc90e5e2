"""Rendered boards, and what a detector makes of them after a short training."""

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

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning") / "boards"
    return render_boards(folder, boards=30, count_ok=500, count_ng=301, size=32, channels=1, seed=4)


def train_and_score(boards, section, folder, seed):
    """Train on 240 OK boards; AUROC on boards that the training did not see."""
    ok = [row for row in boards.rows if row.label == OK]
    ng = [row for row in boards.rows if row.label == NG]
    torch.manual_seed(seed)
    method = create_detector(GEOMETRY, section)
    batches = Batches(training_tensor(boards, ok[:240], GEOMETRY), section.batch_size, seed)
    TrainingLoop(method, batches, folder, identity="x", log=RunLog(None, quiet=True)).run()
    score = torch_scorer(Inspector(method.detector(), GEOMETRY))
    scores, _ = score(np.stack([boards.image(row) for row in ok[240:] + ng]))
    return auroc(scores[260:], scores[:260])


@pytest.fixture(scope="module")
def auroc_on_unseen(boards):
    """(section, folder, seed) → AUROC, as `train_and_score`."""

    def on_boards(section, folder, seed):
        return train_and_score(boards, section, folder, seed)

    return on_boards
