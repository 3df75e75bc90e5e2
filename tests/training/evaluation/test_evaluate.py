from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from kizu.errors import UserError
from kizu.models.bundle import Bundle
from kizu.training.data.manifest import Manifest
from kizu.training.data.splits import assign_splits
from kizu.training.evaluation.evaluate import choose_rows, evaluate_bundle, evaluate_rows
from kizu.training.evaluation.report import OPTIMISTIC

from .conftest import MakeData, brightness

MakeBundle = Callable[..., Bundle]


def test_its_own_data_set_is_judged_by_the_test_split(make_data: MakeData, make_bundle: MakeBundle) -> None:
    manifest = make_data(20, 15)
    progress: list[int] = []
    bundle = make_bundle(manifest)
    chosen = choose_rows(bundle, manifest, "auto")
    found = evaluate_rows(bundle, manifest, chosen, device="cpu", progress=progress.append)
    expected = assign_splits(manifest, 3).test
    assert {row.path for row in found.scored.rows} == {row.path for row in expected}
    assert found.evaluated == "test split"
    assert not any(note.startswith(OPTIMISTIC) for note in found.notes)
    assert sum(progress) == len(chosen.rows) == len(expected)
    for row, score in zip(found.scored.rows, found.scored.scores, strict=True):
        assert score == pytest.approx(brightness(manifest.image(row)[None])[0][0])
    assert found.metrics.auroc is not None
    assert found.metrics.auroc.value == 1.0
    assert found.metrics.pixels is not None
    assert found.metrics.pixels.auroc == pytest.approx(1.0, abs=1e-3)
    assert found.provider == "CPUExecutionProvider"
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["metrics"]["operating_point"]["fnr"]["total"] == found.metrics.n_ng
    assert "plates" in found.report_html


def test_the_recipes_own_shares_are_used(make_data: MakeData, make_bundle: MakeBundle) -> None:
    manifest = make_data(20, 15)
    shares = {"train": 0.4, "calibration": 0.2, "test": 0.4}
    found = evaluate_bundle(make_bundle(manifest, splits=shares), manifest, device="cpu")
    assert len(found.scored.rows) == len(assign_splits(manifest, 3, (0.4, 0.2, 0.4)).test)


@pytest.mark.parametrize("split", ["train", "calibration", "all"])
def test_images_that_training_saw_raise_a_loud_caveat(make_data: MakeData, make_bundle: MakeBundle, split: str) -> None:
    manifest = make_data()
    found = evaluate_bundle(make_bundle(manifest), manifest, split=split, device="cpu")  # type: ignore[arg-type]
    assert found.notes[0].startswith(OPTIMISTIC)
    assert OPTIMISTIC in found.report_html
    if split == "all":
        assert len(found.scored.rows) == len(manifest)


def test_another_data_set_is_used_whole_without_its_unlabelled(make_data: MakeData, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(make_data())
    other = make_data(5, 4, name="others")
    other.rows[0] = dataclasses.replace(other.rows[0], label="")
    found = evaluate_bundle(bundle, other, device="cpu")
    assert (found.metrics.n_ok, found.metrics.n_ng) == (4, 4)
    assert "not the data set that the model was trained on" in found.notes[0]
    with pytest.raises(UserError, match="puts no image in the test split"):
        evaluate_bundle(bundle, other, split="test", device="cpu")
    given = make_data(5, 4, name="given", split="test")
    assert evaluate_bundle(bundle, given, split="test", device="cpu").evaluated == "test split"


def test_a_split_that_comes_out_different_is_refused(make_data: MakeData, make_bundle: MakeBundle) -> None:
    manifest = make_data()
    bundle = make_bundle(manifest)
    bundle.manifest.recipe["seed"] = 4
    with pytest.raises(UserError, match="splits cannot be found again"):
        evaluate_bundle(bundle, manifest, device="cpu")
    bundle.manifest.recipe["seed"] = "four"
    with pytest.raises(UserError, match="seed or splits cannot be read"):
        evaluate_bundle(bundle, manifest, device="cpu")


def test_ng_with_an_empty_mask_take_no_part_in_pixel_metrics(make_data: MakeData, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(make_data())
    other = make_data(4, 6, name="others")
    masked = [row for row in other.rows if row.mask]
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(other.root / masked[0].mask)
    pixels = evaluate_bundle(bundle, other, device="cpu").metrics.pixels
    assert pixels is not None
    assert (pixels.masked_images, pixels.ok_images) == (len(masked) - 1, 4)


def test_nothing_labelled_is_a_user_error(make_data: MakeData, make_bundle: MakeBundle) -> None:
    manifest = make_data()
    bundle = make_bundle(manifest)
    unlabelled = Manifest(manifest.root, [dataclasses.replace(row, label="") for row in manifest.rows])
    with pytest.raises(UserError, match="no image labelled OK or NG"):
        evaluate_bundle(bundle, unlabelled, device="cpu")


@pytest.mark.parametrize(("ok", "ng"), [(3, 0), (0, 3), (1, 0), (0, 1), (1, 1)])
def test_one_sided_and_tiny_sets_still_make_a_report(
    make_data: MakeData, make_bundle: MakeBundle, ok: int, ng: int
) -> None:
    bundle = make_bundle(make_data())
    found = evaluate_bundle(bundle, make_data(ok, ng, name="other"), device="cpu")
    assert (found.metrics.n_ok, found.metrics.n_ng) == (ok, ng)
    assert found.report_html.endswith("</html>\n") or found.report_html.endswith("</html>")
    assert np.isfinite(found.scored.scores).all()


def test_torch_is_never_imported() -> None:
    code = "import sys, kizu.training.evaluation.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
