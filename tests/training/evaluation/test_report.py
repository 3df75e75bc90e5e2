from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kizu.models.bundle import BundleManifest, DatasetReference, Parity, PretrainedWeights, new_manifest
from kizu.models.calibration import CalibrationScores
from kizu.models.operating_point import OperatingPoint, choose_operating_point
from kizu.training.data.manifest import Manifest, Row
from kizu.training.evaluation import charts
from kizu.training.evaluation.detection import at_operating_point, compute_metrics
from kizu.training.evaluation.evaluate import build_report
from kizu.training.evaluation.gallery import PER_SIDE, pick_gallery
from kizu.training.evaluation.report import headline, render_report
from kizu.training.evaluation.scoring import Scored

from .conftest import GEOMETRY, MakeData, brightness, point

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting and collects what a browser would fetch, and the text a reader would see."""

    def __init__(self, html: str):
        super().__init__()
        self.stack: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def bundle_manifest(operating_point: OperatingPoint, name: str = "plates") -> BundleManifest:
    return new_manifest(
        b"model",
        CalibrationScores(),
        recipe={"name": name, "seed": 0},
        geometry=GEOMETRY,
        operating_point=operating_point,
        dataset=DatasetReference(
            fingerprint="f" * 64, split_fingerprint="5" * 64, counts={"test": {"OK": 7, "NG": 3, "unlabelled": 1}}
        ),
        metrics={},
        parity=Parity(images=5, score=1e-7, heatmap=2e-7, verdicts_differing=0),
    )


def synthetic(ng: list[float], ok: list[float]) -> Scored:
    rows = [Row(f"n{i}", "NG", "dent") for i in range(len(ng))] + [Row(f"o{i}", "OK") for i in range(len(ok))]
    labels = np.array([1] * len(ng) + [0] * len(ok), dtype=np.int64)
    return Scored(tuple(rows), np.array([*ng, *ok], dtype=np.float32), labels)


def page(scored: Scored, operating_point: OperatingPoint, **options: object) -> Page:
    metrics = compute_metrics(scored, operating_point)
    return Page(render_report(bundle_manifest(operating_point), scored, metrics, **options))  # type: ignore[arg-type]


def test_a_whole_report_is_one_small_file_that_fetches_nothing(make_data: MakeData) -> None:
    manifest = make_data(30, 20)
    scored = _scored(manifest)
    metrics = compute_metrics(scored, point(0.6, 0.55))
    html = build_report(
        bundle_manifest(point(0.6, 0.55)), brightness, manifest, scored, metrics, evaluated="test split"
    )
    read = Page(html)
    assert len(html) < 1_000_000
    assert read.fetched
    assert all(target.startswith("data:image/jpeg;base64,") for target in read.fetched)
    assert not re.search(r"https?://|url\(|@import|<script", html)
    assert "default-src 'none'" in html
    assert {"svg", "img", "table"} <= read.tags
    assert str(metrics.operating_point.fnr.count) in read.words
    for said in ("missed", "dent", "scratch", "threshold 0.6", "How to read this", "f" * 64):
        assert said in read.words


DEGENERATE = {
    "no NG": ([], [0.1, 0.2, 0.3], "There are no NG images in this set: FNR and AUROC are unknown."),
    "no OK": ([0.1, 0.9], [], "There are no OK images in this set: specificity and AUROC are unknown."),
    "nothing": ([], [], "There are no labelled images in this set"),
    "one image": ([0.7], [], "There are no OK images"),
    "one of each": ([0.7], [0.2], "Only 1 NG image was scored"),
    "all tied": ([0.5] * 4, [0.5] * 4, "Only 4 NG images were scored"),
    "zeros": ([0.0] * 4, [0.0] * 4, "threshold"),
    "huge": ([1e30] * 40, [-1e30] * 40, "threshold"),
    "inverted": ([0.0] * 40, [1.0] * 40, "ranks the wrong way round"),
    "outlier": ([*np.linspace(0.4, 1, 300), 1e6], list(np.linspace(0, 0.5, 300)), "1 far score is counted"),
    "many": (list(np.linspace(0.4, 1, 50)), list(np.linspace(0, 0.5, 20000) ** 4), "logarithmic"),
}


@pytest.mark.parametrize(("ng", "ok", "said"), DEGENERATE.values(), ids=DEGENERATE.keys())
def test_every_degenerate_set_renders_and_says_why(ng: list[float], ok: list[float], said: str) -> None:
    found = page(synthetic(ng, ok), point(0.5, 0.45))
    assert said in found.words
    assert "nan" not in found.words.lower().split()


@pytest.mark.parametrize("ng", [0, 5, 100])
def test_the_certificate_is_said_in_plain_words(ng: int) -> None:
    operating_point = choose_operating_point(np.linspace(1, 2, ng), np.linspace(0, 1, 50), target_fnr=0.05)
    found = page(synthetic([1.5] * 40, [0.2] * 40), operating_point)
    headline = {
        0: "The FNR is unknown",
        5: "The target FNR of 5 % is not certified",
        100: "certified to be at most 5 %",
    }
    assert headline[ng] in found.words
    assert operating_point.statement() in found.words.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("boards", "status", "said"),
    [(60, "good", "certified to be at most 5 %"), (10, "warn", "The target FNR of 5 % is not certified")],
)
def test_the_headline_is_green_only_for_new_parts(boards: int, status: str, said: str) -> None:
    groups = [f"board-{number % boards}" for number in range(300)]
    operating_point = choose_operating_point(np.linspace(1, 2, 300), [0.5], target_fnr=0.05, ng_groups=groups)
    assert headline(operating_point)[0] == status
    words = page(synthetic([1.5] * 40, [0.2] * 40), operating_point).words.replace("\u00a0", " ")
    assert said in words
    assert "For parts of these groups only, in the mixture seen here: at most 5 %" in words


def test_a_certificate_that_counted_parts_of_groups_is_not_green() -> None:
    before = choose_operating_point(np.linspace(1, 2, 300), [0.5], target_fnr=0.05)
    before = before.model_copy(update={"independence": None, "n_ng_groups": 10})
    assert headline(before) == (
        "warn",
        "FNR certified to be at most 5 % for parts of the groups that were seen, not for new ones",
    )


def test_a_test_set_that_contradicts_the_certificate_is_called_out() -> None:
    found = page(synthetic([0.1] * 30 + [0.9] * 30, [0.2] * 40), point(0.5))
    assert "These images contradict the certificate" in found.words
    assert "contradict" not in page(synthetic([0.1] + [0.9] * 59, [0.2] * 40), point(0.5)).words


def of_boards(boards: int, passed: int) -> Scored:
    """20 NG and 20 OK of each board; all NG of the first `passed` boards score below 0.5."""
    names = [f"board-{number // 20}" for number in range(20 * boards)]
    rows = [Row(f"{label}{i}", label, group=name) for label in ("NG", "OK") for i, name in enumerate(names)]
    ng = [0.1] * 20 * passed + [0.9] * 20 * (boards - passed)
    labels = np.array([1] * len(names) + [0] * len(names), dtype=np.int64)
    return Scored(tuple(rows), np.array([*ng, *[0.2] * len(names)], dtype=np.float32), labels)


def test_a_few_boards_do_not_contradict_a_certificate_for_new_ones() -> None:
    few = page(of_boards(10, passed=2), point(0.5))
    assert "contradict the certificate" not in few.words
    assert "So few groups do not contradict it" in few.words
    many = page(of_boards(40, passed=20), point(0.5))
    assert "These images contradict the certificate" in many.words
    assert "(mean of 40 groups)" in many.words


def test_images_of_groups_have_intervals_for_new_groups_and_others_have_not() -> None:
    data = of_boards(10, passed=1)
    found, new = page(data, point(0.5)).words, compute_metrics(data, point(0.5)).new_groups
    assert f"For parts of new groups: FNR {new.fnr}, specificity {new.specificity}." in found
    assert found.count("parts of new groups:") == 3  # the remark, and a line under each of the two figures
    assert "new groups" not in page(synthetic([0.9] * 40, [0.1] * 40), point()).words


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>\"'&.png"
    defect = "</td><script>alert(1)</script>"
    for name in (hostile, "fine.png"):
        Image.fromarray(np.full((40, 40), 90, dtype=np.uint8)).save(tmp_path / name)
    manifest = Manifest(tmp_path, [Row(hostile, "NG", defect), Row("fine.png", "OK")])
    scored = _scored(manifest)
    metrics = compute_metrics(scored, point())
    html = build_report(
        bundle_manifest(point(), "<b>name"), brightness, manifest, scored, metrics, evaluated="<i>split", notes=["<u>x"]
    )
    read = Page(html)
    assert not {"script", "u"} & read.tags
    assert all(target.startswith("data:") for target in read.fetched)
    for text in (hostile, defect, "<b>name", "<i>split", "<u>x"):
        assert text in read.words
        assert text not in html


def test_the_gallery_shows_the_worst_first_on_one_scale(make_data: MakeData) -> None:
    manifest = make_data(15, 12)
    scored = _scored(manifest)
    gallery = pick_gallery(brightness, GEOMETRY, manifest, scored, point(0.56, 0.45))
    assert len(gallery.misses) == len(gallery.false_calls) == PER_SIDE
    assert [e.score for e in gallery.misses] == sorted(scored.ng.tolist())[:PER_SIDE]
    assert [e.score for e in gallery.false_calls] == sorted(scored.ok.tolist(), reverse=True)[:PER_SIDE]
    assert [e.verdict for e in gallery.misses] == [point(0.56, 0.45).verdict(e.score) for e in gallery.misses]
    assert gallery.low < gallery.high == pytest.approx(max(e.score for e in gallery.misses))
    assert max(gallery.misses[0].width, gallery.misses[0].height) <= 192
    assert all(len(e.image_uri) + len(e.heatmap_uri) < 80_000 for e in (*gallery.misses, *gallery.false_calls))


@pytest.mark.parametrize("shape", [(300, 40), (2000, 3000), (32, 32), (5000, 33)])
def test_thumbnails_of_any_shape_fit(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full(shape, 90, dtype=np.uint8)).save(tmp_path / "a.png")
    manifest = Manifest(tmp_path, [Row("a.png", "NG")])
    exhibit = pick_gallery(brightness, GEOMETRY, manifest, _scored(manifest), point()).misses[0]
    assert 1 <= min(exhibit.width, exhibit.height) <= max(exhibit.width, exhibit.height) <= 192


def test_the_operating_point_lies_on_the_roc_curve() -> None:
    rng = np.random.default_rng(0)
    ng, ok = rng.normal(1, 1, 100).astype(np.float32), rng.normal(0, 1, 200).astype(np.float32)
    scored = synthetic(ng.tolist(), ok.tolist())
    operating_point = point(float(ng[0]), float(ng[0]) - 0.5)
    chart = charts.roc_chart(scored, at_operating_point(ng, ok, operating_point, 0.95))
    assert chart is not None
    false_calls, detections = charts.roc_points(ng, ok)
    curve = np.stack([charts.LEFT + charts.WIDTH * false_calls, charts.TOP + charts.HEIGHT * (1 - detections)], axis=1)
    assert np.abs(curve - chart.marker).sum(axis=1).min() < 1e-6
    assert (false_calls[0], detections[0], false_calls[-1], detections[-1]) == (0, 0, 1, 1)
    assert (np.diff(false_calls) >= 0).all()
    assert (np.diff(detections) >= 0).all()
    assert np.trapezoid(detections, false_calls) == pytest.approx(
        ((ng[:, None] > ok) + 0.5 * (ng[:, None] == ok)).mean()
    )


def test_every_image_is_in_a_bar_of_the_histogram() -> None:
    scored = synthetic([0.5, 1e6, 0.7], [0.1, 0.2, 0.3, -1e6])
    chart = charts.histogram(scored, point())
    assert chart is not None
    assert sum(int(bar.title.split()[0]) for bar in chart.ok) == 4
    assert sum(int(bar.title.split()[0]) for bar in chart.ng) == 3
    for bar in (*chart.ok, *chart.ng):
        assert bar.y >= charts.TOP - 1e-6
        assert bar.y + bar.height <= charts.TOP + charts.HEIGHT + 1e-6


def test_a_curve_of_many_points_stays_small() -> None:
    rng = np.random.default_rng(1)
    scored = synthetic(rng.normal(1, 1, 50_000).tolist(), rng.normal(0, 1, 50_000).tolist())
    chart = charts.roc_chart(scored, at_operating_point(scored.ng, scored.ok, point(), 0.95))
    assert chart is not None
    assert len(chart.path) < 100_000


def _scored(manifest: Manifest) -> Scored:
    scores = np.array([brightness(manifest.image(row)[None])[0][0] for row in manifest.rows], dtype=np.float32)
    labels = np.array([row.label == "NG" for row in manifest.rows], dtype=np.int64)
    return Scored(tuple(manifest.rows), scores, labels)


def test_the_report_names_the_pretrained_weights_inside_the_model() -> None:
    scored = synthetic([0.7, 0.9], [0.1, 0.2])
    metrics = compute_metrics(scored, point(0.6))
    own = bundle_manifest(point(0.6))
    weights = PretrainedWeights(
        name="lite0", origin="a <package>", licence="Apache-2.0", sha256="ab" * 32, frozen=False
    )
    named = Page(render_report(own.model_copy(update={"pretrained": [weights]}), scored, metrics)).words
    for said in ("Pretrained weights", "lite0", "a <package>", "Apache-2.0", "trained further", "ab" * 32):
        assert said in named
    assert "Pretrained weights" not in Page(render_report(own, scored, metrics)).words
