"""What all tests share: a fixed seed, `kizu` as a function, detectors of every kind, small."""

import io
import os
import signal
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
import torch

from kizu import cli
from kizu.training.data.batches import Batches
from kizu.training.detectors import DETECTORS, create_detector
from kizu.training.loop import Interrupted
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection
from kizu.training.training_set import TrainingSet

SMALL: dict[str, dict[str, Any]] = {
    "ganomaly": {"features": 4, "latent": 8},
    "fanogan": {"features": 4, "latent": 8},
    "classifier": {"features": 4},
    "semi-supervised": {"features": 4},
    "draem": {"features": 4, "segmentation_features": 4},
    "memory": {"features": "self-supervised", "filters": 4, "memory": 20},
    "padim": {"least_side": 64},
    "supersimplenet": {"least_side": 64, "map_width": 8, "score_width": 4, "steps": 2},
    "flow": {"least_side": 64, "blocks": 2, "dimensions": 8, "steps": 2},
}
assert SMALL.keys() == DETECTORS.keys(), "a kind of detector without a small one to test"


@pytest.fixture(autouse=True)
def fixed_seed():
    """Start every test from the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def kizu(monkeypatch):
    """(arguments) → exit code, stdout and stderr of the command; in this process, for one of its own takes seconds."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["kizu", *map(str, arguments)])
        code, out, err = 0, io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def small_method():
    """(kind, geometry, section's fields, …options) → a method with weights from seed 0, or fitted to noise."""

    def make(kind, geometry, fields=None, **options):
        torch.manual_seed(0)
        section = DetectorSection(kind=kind, options=SMALL[kind] | options, **(fields or {}))
        method = create_detector(geometry, section)
        if kind in ("memory", "padim"):
            shape = (4, geometry.channels, geometry.height, geometry.width)
            noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            method.finish(TrainingSet(Batches(noise, 4, 0)))
        return method

    return make


@pytest.fixture(scope="session")
def assert_depends_on_its_image_alone():
    """(detector, images [6, 1, H, W], least spread of the scores): the same whatever the batch, order or neighbours."""

    def check(detector, x, spread=1e-3):
        with torch.no_grad():
            score, heatmap = detector(x)
            alone = torch.cat([detector(image[None])[0] for image in x])
            order = torch.tensor([3, 0, 5, 1, 4, 2])
            shuffled, shuffled_maps = detector(x[order])
        assert score.shape == (6,)
        assert heatmap.shape == x.shape
        torch.testing.assert_close(score, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(score[order], shuffled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heatmap[order], shuffled_maps, rtol=1e-4, atol=1e-4)
        assert score.std() > spread

    return check


class StopAt(RunLog):
    """A log that asks for a stop, as a signal would, after so many control points whose figures hold `name`."""

    def __init__(self, points, name="total"):
        super().__init__(None, quiet=True)
        self.left, self.name = points, name

    def scalars(self, stage, values, step):
        del stage, step
        self.left -= any(key.endswith(self.name) for key in values)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="session")
def stop_at():
    """(control points, name of a figure) → a log that stops the run there."""
    return StopAt


@pytest.fixture
def resumed(tmp_path, stop_at):
    """(folder and log → loop, control points) → two loops with the same weights: left alone; stopped and resumed."""

    def run(make_loop, points):
        whole = make_loop(tmp_path / "whole", RunLog(None, quiet=True))
        whole.run()
        with pytest.raises(Interrupted):
            make_loop(tmp_path / "parts", stop_at(points)).run()
        second = make_loop(tmp_path / "parts", RunLog(None, quiet=True))
        torch.manual_seed(99)
        assert second.resume()
        second.run()
        for name, value in whole.method.networks.state_dict().items():
            assert torch.equal(value, second.method.networks.state_dict()[name]), name
        return whole, second

    return run
