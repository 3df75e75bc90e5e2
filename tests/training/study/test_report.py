from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from kizu.models.rates import Rate
from kizu.training.study.arms import known_arms
from kizu.training.study.figures import summary
from kizu.training.study.findings import excludes_zero, findings, signed, verdict
from kizu.training.study.plot import render_svg
from kizu.training.study.report import render_markdown, write_report

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
ARMS = {arm.name: arm for arm in known_arms((0.01, 0.05))}
JITTER = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""Of specificity, by seed: what a plain arm scatters by."""
GOOD = {
    "all": 0.90,
    "half": 0.80,
    "half + poisson": 0.82,
    "half + GAN placed": 0.91,
    "1 % of the NG": 0.40,
    "1 % of the NG + GAN placed": 0.50,
    "5 % of the NG": 0.60,
    "5 % of the NG + GAN placed": 0.70,
}
BAD = {**GOOD, "half + GAN placed": 0.70, "1 % of the NG + GAN placed": 0.30, "5 % of the NG + GAN placed": 0.50}


def trained(name: str, seed: int, specificity: float) -> dict[str, Any]:
    arm = ARMS[name]
    at = [
        {
            "target_fnr": target,
            "threshold": 0.5,
            "resolution_limited": target == 0.001,
            "specificity": Rate(min(max(round(1000 * specificity), 0), 1000), 1000).as_dict(),
            "fnr": Rate(round(1500 * target), 500 * 3).as_dict(),
        }
        for target in (0.05, 0.01, 0.001)
    ]
    return {
        "arm": name,
        "seed": seed,
        "against": arm.against,
        "share": arm.share,
        "ng_share": arm.ng_share,
        "n_ok": round(1000 * arm.share),
        "n_ng": round(400 * arm.share * arm.ng_share),
        "synthetic_ng": 200 if arm.generator else 0,
        "seconds": {"total": 61.4},
        "interrupted": False,
        "figures": {"auroc": {"value": 0.5 + specificity / 2}, "at": at},
    }


def arms_of(means: dict[str, float], scatter: float = 0.5, seeds: int = 5) -> list[dict[str, Any]]:
    """Summaries; an arm with a generator scatters by `scatter` of what one without does."""
    return summary(
        [
            trained(name, seed, mean + JITTER[seed] * (scatter if ARMS[name].generator else 1.0))
            for name, mean in means.items()
            for seed in range(seeds)
        ]
    )


def result(means: dict[str, float] = GOOD, **changes: Any) -> dict[str, Any]:
    counts = {split: {"OK": 1000, "NG": 400, "unlabelled": 0} for split in ("train", "calibration", "test")}
    return {
        "benchmark": "scarce",
        "command": "kizu bench scarce tiles.toml --seeds 5",
        "environment": ENVIRONMENT,
        "settings": {"seeds": [0, 1, 2, 3, 4], "parallel": 2, "threads": 1, "quick": False},
        "recipe": {"name": "tiles", "dataset": "data/tiles"},
        "facts": {
            "name": "tiles",
            "counts": counts,
            "groups": 5,
            "fingerprint": "ab" * 32,
            "split_fingerprint": "cd" * 32,
        },
        "arms": arms_of(means),
        **changes,
    }


def sentence(arms: list[dict[str, Any]], start: str) -> str:
    [found] = [one for one in findings(arms) if one.startswith(start)]
    return found


def test_a_reached_goal_is_told_with_its_figures():
    arms = arms_of(GOOD)
    assert "+10.0 [+10.0, +10.0] points, better" in sentence(arms, "All real data against half")
    goal = sentence(arms, "Goal: half + synthetic ≥ all real")
    assert "all: 90.0 %" in goal
    assert "poisson no (82.0 %, −8.0 [" in goal
    assert "GAN placed yes (91.0 %, +1.0 [" in goal
    assert "GAN placed yes (0.79)" in sentence(arms, "Goal: spread")
    assert "1.58 points" in sentence(arms, "Goal: spread")
    five = sentence(arms, "Goal: at 5 % of the NG (20 images)")
    assert "AUROC yes (+0.0500 [" in five
    assert "specificity at FNR 1 % yes (+10.0 [" in five
    assert "better at 1 %, 5 % of the NG" in sentence(arms, "GAN placed along the curve, AUROC")
    assert not [one for one in findings(arms) if one.startswith("No arm of the table")]


def test_a_missed_goal_is_told_just_as_plainly():
    arms = arms_of({**BAD, "half + poisson": 0.79}, scatter=2.0)
    assert "GAN placed −10.0 [−12.0, −8.0] points, worse" in sentence(arms, "Gain over half, specificity at FNR 1 %")
    assert "GAN placed no (70.0 %" in sentence(arms, "Goal: half + synthetic ≥ all real")
    assert "GAN placed no (3.16)" in sentence(arms, "Goal: spread")
    assert "AUROC no, it is a loss" in sentence(arms, "Goal: at 5 % of the NG")
    assert "worse at 1 %, 5 % of the NG" in sentence(arms, "GAN placed along the curve, specificity")
    assert sentence(arms, "No arm of the table with synthetic NG is told to be better")


def test_a_gain_whose_interval_holds_zero_is_no_gain():
    arms = arms_of({**GOOD, "half + GAN placed": 0.802, "5 % of the NG + GAN placed": 0.602}, scatter=-1.0)
    assert "GAN placed +0.2 [−3.7, +4.1] points, not told from no difference" in sentence(
        arms, "Gain over half, specificity at FNR 1 %"
    )
    assert "specificity at FNR 1 % no (+0.2 [" in sentence(arms, "Goal: at 5 %")


@pytest.mark.parametrize(
    ("lower", "upper", "told", "goal"),
    [
        (0.01, 0.2, "better", "yes"),
        (-0.01, 0.2, "not told from no difference", "no"),
        (0.0, 0.2, "not told from no difference", "no"),
        (-0.2, -0.01, "worse", "no, it is a loss"),
        (None, None, "one pair, no interval", "not to be told from one pair"),
    ],
)
def test_verdicts_follow_the_interval(lower, upper, told, goal):
    gain = {"value": 0.1, "lower": lower, "upper": upper}
    assert (verdict(gain), excludes_zero(gain)) == (told, goal)


def test_differences_show_their_sign():
    assert signed({"value": -0.0123, "lower": -0.02, "upper": 0.001}, 100, 1) == "−1.2 [−2.0, +0.1]"
    assert signed({"value": 0.5, "lower": None, "upper": None}) == "+0.5000"


def test_few_seeds_are_said_to_be_few():
    assert "Only 2 seeds" in findings(arms_of(GOOD, seeds=2))[-1]
    assert "One seed alone" in findings(arms_of(GOOD, seeds=1))[-1]
    assert not [one for one in findings(arms_of(GOOD)) if "seeds:" in one and "Only" in one]


def test_what_was_not_run_is_not_claimed():
    assert findings(arms_of({"half": 0.8})) == []
    without = {name: mean for name, mean in GOOD.items() if not name.startswith("5 %")}
    assert sentence(arms_of(without), "Goal: at 5 % of the NG").endswith("not measured.")
    assert "curve" not in render_markdown(result(arms=arms_of({"half": 0.8, "all": 0.9}))).lower().split("![")[0]


def test_the_page_tells_what_ran_and_what_came_out():
    page = render_markdown(result())
    for phrase in (
        "`tiles`, 8 arms × 5 seeds",
        "calibration (1000 OK, 400 NG)",
        "scarce/arms.svg",
        "| half + GAN placed | 500 | 200 | 200 | 0.9550 ± 0.0040 |",
        "| 91.0 ± 0.8 % [",
        "† Not resolved: an FNR of 0.1 % needs 1000 NG in calibration, and there are 400.",
        "| half + GAN placed − half | +0.0550 [",
        "| all − half | +0.0500 [+0.0500, +0.0500] | +10.0 [",
        "| 5 % | 20 | 0.8000 ± 0.0079 | 0.8500 ± 0.0040 | +0.0500 [",
        "| 100 % | 400 | 0.9500 ± 0.0079 | – | – | 90.0 ± 1.6 % | – | – |",
        "| 61 |",
        "torch 2.15.0",
        "kizu bench scarce tiles.toml --seeds 5",
        "abababababababab",
        '"dataset": "data/tiles"',
        "Student's over seeds",
        "poisson",
    ):
        assert phrase in page, phrase
    assert "## Remedies" not in page
    assert "quick run" not in page


def test_bounds_are_the_outermost_of_the_seeds():
    lower, upper = Rate(900, 1000).lower, Rate(920, 1000).upper
    assert f"[{100 * lower:.1f}, {100 * upper:.1f}], FNR 1.00 %" in render_markdown(result())


def test_remedies_stand_apart():
    page = render_markdown(result({**GOOD, "half + GAN placed, ratio ¼": 0.85}))
    assert "| half + GAN placed, ratio ¼ |" in page.split("## Remedies")[1].split("## The curve")[0]
    assert "ratio ¼" not in page.split("## Arms")[1].split("## Remedies")[0]


def test_remedies_and_the_lowest_fnr_are_told_with_their_verdicts():
    arms = arms_of({**GOOD, "half + GAN placed, ratio ¼": 0.85, "half + perlin": 0.75})
    told = sentence(arms, "Remedies, specificity at FNR 1 %")
    assert "GAN placed, ratio ¼ 85.0 ± 0.8 %, +5.0 [" in told
    assert told.endswith("better.")
    lowest = sentence(arms, "Gain over half, specificity at FNR 0.1 %")
    better, worse = lowest.split("worse: ")
    assert "better: all +10.0 [" in better
    assert "GAN placed, ratio ¼ +5.0 [" in better
    assert worse.startswith("perlin −5.0 [")


def test_what_draws_without_training_is_held_against_the_gan():
    means = {**GOOD, "5 % of the NG + perlin": 0.72, "5 % of the NG + real defects placed": 0.65}
    arms = arms_of(means)
    told = sentence(arms, "What draws without training, less the GAN's placed defects, specificity")
    assert "With half: poisson −9.0 [−9.0, −9.0] points, worse." in told
    assert "With 5 % of the NG: perlin +2.0 [+2.0, +2.0] points, better; real defects placed −5.0 [" in told
    page = render_markdown(result(arms=arms))
    rivals = page.split("## Other synthetic NG")[1]
    assert "| 5 % of the NG + perlin | 20 | 0.8600 ± 0.0040 | +0.0600 [" in rivals
    assert "| 5 % | 20 | 0.8000 ± 0.0079 | 0.8500 ± 0.0040 | +0.0500 [" in page, "the curve is the GAN's still"
    assert "better at 1 %, 5 % of the NG." in sentence(arms, "GAN placed along the curve, AUROC")
    assert "yes (+10.0 [" in sentence(arms, "Goal: at 5 % of the NG"), "the GAN's gain, not another's"
    without = {name: mean for name, mean in means.items() if "placed" not in name or "real" in name}
    assert not [one for one in findings(arms_of(without)) if one.startswith("What draws")]


def test_a_quick_or_interrupted_run_is_said_to_be_one():
    quick = result()
    quick["settings"]["quick"] = True
    assert "**A quick run**" in render_markdown(quick)
    broken = result()
    broken["arms"][1]["interrupted"] = True
    assert "| ≥ 61 |" in render_markdown(broken)
    assert "it was interrupted" in render_markdown(broken)


@pytest.mark.parametrize("means", [GOOD, {"half": 0.8, "all": 0.9}, {**GOOD, "half + GAN placed, ratio ¼": 0.85}])
def test_tables_are_whole(means):
    rows = [row if row.startswith("|") else "" for row in render_markdown(result(means)).splitlines()]
    for row, before in zip(rows[1:], rows, strict=False):
        if row and before:
            assert row.count("|") == before.count("|")


def texts_of(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_shows_each_seed_of_each_arm_and_both_curves():
    svg = render_svg(result())
    titles = [node.text for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert "half + GAN placed, seed 3: 91.5 %" in titles
    assert len([title for title in titles if ", seed " in title]) == 4 * 5
    assert "real alone 0.8 [0.79, 0.81] at 20 NG" in titles
    assert len([title for title in titles if title.endswith(" NG")]) == 2 * (3 + 2)
    for text in ("AUROC", "Specificity at FNR 1 %, in %", "real alone", "+ GAN placed", "85 %"):
        assert text in texts_of(svg)
    first = next(iter(ET.fromstring(svg)))
    assert (first.tag.rpartition("}")[2], first.get("fill")) == ("rect", "#ffffff")
    assert "nan" not in svg


@pytest.mark.parametrize("means", [{"half": 0.8}, {"half": 1.0, "all": 1.0}, {"half": 0.0, "5 % of the NG": 0.0}])
def test_the_picture_takes_few_arms_and_figures_that_are_all_alike(means):
    svg = render_svg(result(arms=arms_of(means, seeds=1)))
    assert [text for text in texts_of(svg) if text.startswith("half")]
    assert "nan" not in svg


def test_names_in_the_picture_are_escaped():
    broken = result()
    broken["arms"][1]["arm"] = "<script>&"
    assert any(text.startswith("<script>&") for text in texts_of(render_svg(broken)))


def test_the_page_and_its_picture_are_written_beside_each_other(tmp_path):
    write_report(result(), tmp_path / "pages" / "scarce.md")
    assert (tmp_path / "pages" / "scarce.md").read_text() == render_markdown(result())
    assert (tmp_path / "pages" / "scarce" / "arms.svg").read_text() == render_svg(result())
    for name, folder in (("cells.md", "cells"), ("plain", "plain-pictures")):
        write_report(result(), tmp_path / "pages" / name)
        assert f"({folder}/arms.svg)" in (tmp_path / "pages" / name).read_text()
        assert (tmp_path / "pages" / folder / "arms.svg").exists(), "pages side by side keep their own"


def test_without_a_gan_the_curve_is_drawn_with_what_was_run_most():
    means = {
        "all": 0.9,
        "1 % of the NG": 0.4,
        "1 % of the NG + cutpaste": 0.5,
        "1 % of the NG + perlin": 0.45,
        "5 % of the NG": 0.6,
        "5 % of the NG + cutpaste": 0.7,
        "all + cutpaste": 0.91,
    }
    page = render_markdown(result(means))
    curve = page.split("## The curve")[1].split("##")[0]
    assert "| AUROC, real alone | + cutpaste | gain |" in curve
    assert "| 100 % | 400 |" in curve, "all of the NG are its end"
    assert curve.count(" – ") == 0
    rest = page.split("## Other synthetic NG")[1].split("##")[0]
    assert "1 % of the NG + perlin" in rest
    assert "cutpaste" not in rest
    assert "gain over half" not in page
    told = sentence(arms_of(means), "Cutpaste along the curve, AUROC")
    assert "better at 1 %, 5 %, 100 % of the NG." in told
    picture = render_svg(result(means))
    assert "+ cutpaste" in picture
    assert "+ GAN placed" not in picture
