from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kizu.models.rates import Rate
from kizu.training.evaluation.generator_report import (
    TABLE_ROWS,
    judge,
    mosaic,
    nearest_pairs,
    plots,
    render_generator_report,
)
from kizu.training.evaluation.kid_fid import nearest_training_distance

VOID = {"meta", "img", "br", "rect", "line", "circle", "path"}


class Page(HTMLParser):
    """Checks nesting and collects what a browser would fetch, and the text a reader would see."""

    def __init__(self, html: str):
        super().__init__()
        self.stack: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def estimate(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "lower": value - half, "upper": value + half, "confidence": 0.95, "method": "bootstrap"}


def line(step: int = 8, kid: float = 0.01, half: float = 0.005, **changed: Any) -> dict[str, Any]:
    return {
        "step": step,
        "kimg": 5.0 * step,
        "p": 0.1,
        "r": 0.5,
        "extractor": "kizu-contrastive-v1",
        "n_real": 300,
        "n_fake": 250,
        "kid": estimate(kid, half),
        "floor": estimate(0.0, 0.02),
        "fid": None,
        "frechet": 9.25,
        "frechet_biased": True,
        "precision": 0.8,
        "recall": 0.4,
        "nearest": {
            "median": 9.0,
            "train_median": 8.0,
            "median_ratio": 1.1,
            "threshold": 3.0,
            "near_copies": Rate(3, 250).as_dict(),
            "fresh_share": 0.01,
            "memorised": False,
        },
        **changed,
    }


def copied() -> dict[str, Any]:
    return {**line()["nearest"], "near_copies": Rate(100, 250).as_dict(), "memorised": True}


def pictures(count: int, channels: int = 1, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


def render(**changed: Any) -> str:
    given: dict[str, Any] = {
        "title": "board",
        "facts": {"Preset": "demo"},
        "metrics": [line(step, 2.0 / step) for step in range(1, 9)],
        "real": pictures(20),
        "fake": pictures(20),
        "strip": pictures(32),
        "classes": [("open", 12), ("short", 8)],
        "nearest": torch.stack([pictures(3), pictures(3)], dim=1),
    }
    return render_generator_report(**{**given, **changed})


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_one_file_that_asks_for_nothing():
    html = render()
    page = Page(html)
    assert page.fetched
    assert all(address.startswith("data:image/png;base64,") for address in page.fetched)
    assert "script" not in page.tags
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert page.tags.count("svg") == 5


def test_names_from_outside_are_escaped():
    hostile = "<script>alert(1)</script>"
    html = render(
        title=hostile,
        facts={hostile: hostile},
        classes=[(hostile, 3)],
        notes=[hostile],
        real_classes=[hostile] * 20,
        fake_classes=[hostile] * 20,
        metrics=[line(extractor=hostile)],
    )
    assert "<script" not in html
    assert hostile in Page(html).words


def test_frechet_is_fid_only_where_it_is():
    words = Page(render()).words
    assert "Fréchet distance, by kizu-contrastive-v1" in words
    assert "9.25" in words
    assert not re.search(r"FID (is|, by)|\bFID \d", words)
    words = Page(render(metrics=[line(fid=12.5, frechet=None, extractor="inception")])).words
    assert "FID, by inception" in words
    assert "FID is 12.5, too large for want of 2048 images" in words
    assert "Fréchet" not in words


def test_nothing_measured_is_said():
    words = Page(render(metrics=[], nearest=None)).words
    assert "Nothing was measured" in words
    assert "there are no curves" in words
    assert "No pairs of generated and training images" in words
    assert "At the end of training" not in words


def test_a_row_for_each_class_even_without_images():
    html = render(
        real_classes=["open"] * 12 + ["short"] * 8, fake_classes=["open"] * 20, classes=[("open", 12), ("short", 1)]
    )
    words = Page(html).words
    assert "open 12 training images" in words
    assert "short 1 training image none to show" in words
    with pytest.raises(ValueError, match="classes for"):
        render(real_classes=["open"], fake_classes=["open"] * 20)


@pytest.mark.parametrize(
    ("last", "status", "phrase"),
    [
        (line(kid=0.01), "good", "within the floor"),
        (line(kid=-0.03), "good", "within the floor"),
        (line(kid=0.03, half=0.02), "warn", "reaches into it"),
        (line(kid=0.3, half=0.02), "warn", "differ from real ones"),
        (line(kid=0.01, nearest=copied()), "bad", "Memorised: 100 of 250"),
        (line(kid=0.01, nearest=None), "warn", "was not measured"),
        (line(floor=None), "warn", "too few real images"),
    ],
)
def test_the_verdict(last: dict[str, Any], status: str, phrase: str):
    verdict = judge([last])
    assert verdict.status == status
    assert phrase in " ".join(verdict.sentences)
    assert phrase in Page(render(metrics=[last])).words.replace("\xa0", " ")


def test_a_kid_that_rose_again_is_told():
    assert "KID was smaller on the way" in " ".join(judge([line(1, 0.02), line(2, 0.3)]).sentences)
    assert "on the way" not in " ".join(judge([line(1, 0.02), line(2, 0.021)]).sentences)


def test_other_extractors_are_left_out():
    words = Page(render(metrics=[line(1, 777.0, extractor="other"), line(2)])).words
    assert "One earlier measurement is left out" in words
    assert "777" not in words


def test_p_is_plotted_only_where_it_was_adapted():
    assert len(plots([line()])) == 5
    fixed = plots([line(p=0.0, r=0.0)])
    assert [plot.title for plot in fixed][-1] == "Near copies of training images"


def test_many_measurements_stay_small():
    html = render(metrics=[line(step, 1 / step) for step in range(1, 3001)])
    assert len(html) < 600_000
    assert f"{TABLE_ROWS} of 3000 measurements" in Page(html).words


@pytest.mark.parametrize("channels", [1, 3])
def test_mosaic_shows_the_pixels_as_they_are(channels: int):
    images = pictures(3, channels)
    picture = mosaic(images, 2)
    sheet = decoded(picture.uri)
    assert picture.pixelated
    assert sheet.shape == (33, 33, channels + 1)
    assert np.array_equal(sheet[:16, 17:, :channels], images[1].permute(1, 2, 0).numpy())
    assert not sheet[17:, 17:].any()


def test_large_images_are_made_smaller():
    picture = mosaic(pictures(2, 3, 300), 2)
    assert decoded(picture.uri).shape == (128, 261, 4)
    assert not picture.pixelated


def test_nearest_pairs_begin_with_the_nearest():
    train, fake = pictures(5), pictures(4)
    features = torch.arange(5, dtype=torch.float64)[:, None] * 10
    found = nearest_training_distance(features, torch.tensor([[23.0], [10.1], [41.0], [4.0]]))
    pairs = nearest_pairs(fake, train, found, 2)
    assert torch.equal(pairs[0, 0], fake[1])
    assert torch.equal(pairs[0, 1], train[1])
    assert torch.equal(pairs[1], torch.stack([fake[2], train[4]]))
