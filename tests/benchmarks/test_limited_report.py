from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks.limited_gap import Gap, gaps_of, growth
from benchmarks.limited_report import picture_name, render_markdown, render_svg, write_report
from kizu.models.rates import Rate

ENVIRONMENT = {
    "date": "2026-11-22 20:00 UTC",
    "system": "Linux x86_64",
    "cpu": "a CPU",
    "cores": 2,
    "memory_gib": 23.5,
    "gpus": [],
    "load": 0.1,
    "python": "3.11.7",
    "versions": {"kizu": "0.1.0", "torch": "2.15.0"},
}
KIDS = {
    ("ada", 900): 0.03,
    ("none", 900): 0.03,
    ("ada", 500): 0.04,
    ("none", 500): 0.10,
    ("ada", 100): 0.05,
    ("none", 100): 0.40,
}


def estimate(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "lower": value - half, "upper": value + half, "confidence": 0.95, "method": "bootstrap"}


def line(kimg: float, kid: float, augment: str, memorised: bool) -> dict[str, Any]:
    return {
        "step": int(kimg * 10),
        "kimg": kimg,
        "p": 0.25 if augment == "ada" else 0.0,
        "r": 0.5 if augment == "ada" else 0.0,
        "extractor": "kizu-contrastive-v1",
        "n_real": 900,
        "n_fake": 900,
        "kid": estimate(kid, 0.01),
        "floor": estimate(0.0, 0.02),
        "fid": None,
        "frechet": 9.5,
        "frechet_biased": True,
        "precision": 0.75,
        "recall": 0.5,
        "nearest": {
            "near_copies": Rate(450 if memorised else 5, 900).as_dict(),
            "fresh_share": 0.01,
            "memorised": memorised,
        },
    }


def arm(augment: str, images: int, seed: int = 0, shift: float = 0.0) -> dict[str, Any]:
    last = KIDS[augment, images] + shift
    memorised = augment == "none" and images == 100
    curve = [line(kimg, last + rest, augment, memorised) for kimg, rest in ((5.0, 3.0), (10.0, -0.02), (20.0, 0.0))]
    count = 0 if images == 900 else images
    return {"count": count, "augment": augment, "seed": seed, "images": images, "seconds": 61.4, "curve": curve}


def result(*arms: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "limited",
        "command": "python -m benchmarks.limited board --kimg 20",
        "environment": ENVIRONMENT,
        "settings": {"size": 32, "counts": [100, 500, 0], "inception": "/secret/place/inception.pth"},
        "facts": {"crops": 900, "split_fingerprint": "ab" * 32, "floor": estimate(0.0, 0.02)},
        "arms": list(arms) or [arm(augment, images) for augment, images in KIDS],
    }


def test_the_page_tells_what_ran_and_what_came_out():
    page = render_markdown(result())
    for phrase in (
        "Date: 2026-11-22",
        "torch 2.15.0",
        "python -m benchmarks.limited board --kimg 20",
        "abababababababab",
        "| 100 | 0.0500 [0.0400, 0.0600] | 0.4000 [0.3900, 0.4100] |",
        "| 20 | 0.0500 [0.0400, 0.0600] | 0.4000 [0.3900, 0.4100] |",
        "| none, 100 images, seed 0 | 0.4000 [0.3900, 0.4100] | 0.3800 [0.3700, 0.3900] | 10 |",
        "Memorised, by the share of near copies: none, 100 images, seed 0.",
        "One training per arm",
        "limited-data/ada-100.png",
        "limited-data/none-all.png",
        "limited-data/real.png",
        "limited-data/curves.svg",
        "| 0.25 | 0.50 | 9.5 | 61 |",
        "not FID",
    ):
        assert phrase in page, phrase
    assert "/secret" not in page


def test_tables_are_whole():
    rows = [row for row in render_markdown(result()).splitlines() if row.startswith("|")]
    blocks: list[set[int]] = []
    for row, before in zip(rows, ["", *rows], strict=False):
        if not before or row.count("|") != before.count("|"):
            blocks.append(set())
        blocks[-1].add(row.count("|"))
    assert all(len(block) == 1 for block in blocks)


def test_the_gap_has_an_interval_from_both():
    gaps = dict(gaps_of(result()["arms"], "ada"))
    assert list(gaps) == [900, 500, 100]
    assert gaps[100].value == pytest.approx(0.35)
    assert gaps[100].half == pytest.approx(0.01 * 2**0.5)
    step = gaps[100] - gaps[500]
    assert (step.value, step.half) == (pytest.approx(0.29), pytest.approx(0.02))


def test_several_seeds_give_mean_and_range():
    arms = [
        arm(augment, 100, seed, 0.02 * seed * (augment == "none")) for augment in ("ada", "none") for seed in (0, 1)
    ]
    [(images, gap)] = gaps_of(arms, "ada")
    assert images == 100
    assert gap.value == pytest.approx(0.36)
    assert gap.seeds == (pytest.approx(0.35), pytest.approx(0.37))
    assert gap.half == pytest.approx(0.01)
    page = render_markdown(result(*arms))
    assert "| 100 | 0.0500 (0.0500 to 0.0500) | 0.4100 (0.4000 to 0.4200) |" in page
    assert "The mean of 2 seeds" in page
    assert "One training per arm" not in page
    assert page.count("limited-data/none-100.png") == 1


@pytest.mark.parametrize(
    ("values", "half", "phrases"),
    [
        ((0.0, 0.1, 0.3), 0.01, ["grows at every step (", "in all, 900 → 100: +0.3000"]),
        ((0.0, 0.1, 0.3), 0.2, ["not beyond the intervals"]),
        ((0.0, 0.3, 0.1), 0.01, ["does NOT grow at every step"]),
        ((0.3, 0.2, 0.1), 0.01, ["does NOT grow ("]),
        ((-0.3, -0.2, -0.1), 0.01, ["there is NO gap"]),
        ((-0.3, -0.2, 0.1), 0.15, ["does not differ significantly from zero"]),
    ],
)
def test_growth_is_told_as_it_is(values: tuple[float, ...], half: float, phrases: list[str]):
    told = growth("ada", [(n, Gap(v, half, (v,))) for n, v in zip((900, 500, 100), values, strict=True)])
    for phrase in phrases:
        assert phrase in told


def test_without_an_arm_to_compare_with_nothing_is_claimed():
    page = render_markdown(result(arm("ada", 100)))
    assert "no gap to measure" in page
    assert "grows" not in page


def test_the_picture_is_well_formed_and_small():
    svg = render_svg(result())
    root = ET.fromstring(svg)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in (
        "900 training images",
        "500 training images",
        "100 training images",
        "ada",
        "none",
        "real against real",
    ):
        assert text in texts
    assert len(svg) < 100_000
    first = next(iter(root))
    assert (first.tag.rpartition("}")[2], first.get("fill")) == ("rect", "#ffffff")
    assert "nan" not in svg


def test_the_picture_takes_kids_below_zero_and_several_seeds():
    arms = [arm("ada", 100, seed, -0.09) for seed in (0, 1)]
    svg = render_svg(result(*arms))
    ET.fromstring(svg)
    assert "mean of 2 seeds" in svg


def test_names_in_the_picture_are_escaped():
    broken = arm("ada", 100)
    broken["augment"] = "<b>&"
    for entry in broken["curve"]:
        entry["extractor"] = "<script>"
    ET.fromstring(render_svg(result(broken)))


def test_picture_names():
    assert picture_name(arm("ada", 100)) == "ada-100.png"
    assert picture_name(arm("none", 900)) == "none-all.png"


def test_the_page_and_a_folder_of_its_name_are_written(tmp_path):
    run = tmp_path / "run"
    (run / "ada-100-seed0").mkdir(parents=True)
    (run / "real.png").write_bytes(b"real")
    (run / "ada-100-seed0" / "samples.png").write_bytes(b"samples")
    found = result(arm("ada", 100))
    for name, folder in (("crops.md", "crops"), ("plain", "plain-pictures")):
        write_report(found, run, tmp_path / "pages" / name)
        page = (tmp_path / "pages" / name).read_text()
        assert page == render_markdown(found, folder)
        assert f"({folder}/curves.svg)" in page
        pictures = {path.name: path.read_bytes() for path in (tmp_path / "pages" / folder).iterdir()}
        assert pictures == {"curves.svg": render_svg(found).encode(), "real.png": b"real", "ada-100.png": b"samples"}
