"""The page and the plot of a study, and its findings, on results made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kizu.models.rates import Rate
from kizu.training.study.arms import Arm, Source, known_arms
from kizu.training.study.findings import findings_table, sentences, signed
from kizu.training.study.plot import render_svg
from kizu.training.study.report import render_markdown, write_report
from kizu.training.study.results import ArmResult, ArmSummary, Gain, summary

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
COUNTS = {split: {"OK": 1000, "NG": 400, "unlabelled": 0} for split in ("train", "calibration", "test")}
RESULT: dict[str, Any] = {
    "benchmark": "scarce",
    "command": "kizu bench scarce tiles.toml --seeds 5",
    "environment": ENVIRONMENT,
    "settings": {"seeds": [0, 1, 2, 3, 4], "parallel": 2, "threads": 1, "quick": False},
    "recipe": {"name": "tiles", "dataset": "data/tiles"},
    "facts": {
        "name": "tiles",
        "counts": COUNTS,
        "groups": 5,
        "fingerprint": "ab" * 32,
        "split_fingerprint": "cd" * 32,
    },
}
ARMS = {arm.label: arm for arm in known_arms((0.01, 0.05))}
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


def trained(arm: Arm, seed: int, specificity: float) -> ArmResult:
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
    return ArmResult(
        arm=arm,
        seed=seed,
        n_ok=round(1000 * arm.base.share),
        n_ng=round(400 * arm.base.share * arm.base.ng_share),
        synthetic_ng=200 if arm.source else 0,
        seconds={"total": 61.4},
        stages={},
        interrupted=False,
        figures={"auroc": {"value": 0.5 + specificity / 2}, "at": at},
    )


def arms_of(means: dict[str, float], scatter: float = 0.5, seeds: int = 5) -> list[ArmSummary]:
    """Summaries; an arm with synthetic NG scatters by `scatter` of what one without does."""
    return summary(
        [
            trained(ARMS[name], seed, mean + JITTER[seed] * (scatter if ARMS[name].source else 1.0))
            for name, mean in means.items()
            for seed in range(seeds)
        ]
    )


def page_of(means: dict[str, float] = GOOD) -> str:
    return render_markdown(RESULT, arms_of(means))


def findings(arms: Sequence[ArmSummary]) -> dict[str, dict[str, str]]:
    """Cells of the findings by arm and column."""
    table = findings_table(arms)
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


AT_1, AT_01 = "specificity at FNR 1 %", "specificity at FNR 0.1 %"
REACHES, SMALLER = "mean at FNR 1 % ≥ all real", "spread at FNR 1 % smaller, points"


def test_the_page_tells_what_ran_and_what_came_out():
    page = page_of()
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
    assert f"[{100 * lower:.1f}, {100 * upper:.1f}], FNR 1.00 %" in page_of()


def test_remedies_stand_apart():
    page = page_of({**GOOD, "half + GAN placed, ratio ¼": 0.85})
    assert "| half + GAN placed, ratio ¼ |" in page.split("## Remedies")[1].split("## The curve")[0]
    assert "ratio ¼" not in page.split("## Arms")[1].split("## Remedies")[0]


def test_a_reached_goal_shows_in_the_findings():
    found = findings(arms_of(GOOD))
    assert found["all"]["compared with"] == "half"
    assert found["all"][AT_1] == "+10.0 [+10.0, +10.0] points, better"
    assert found["half + poisson"][REACHES].startswith("no, −8.0 [")
    assert found["half + GAN placed"][REACHES].startswith("yes, +1.0 [")
    assert found["half + GAN placed"][SMALLER] == "yes, 0.79 < 1.58"
    five = found["5 % of the NG + GAN placed"]
    assert five["compared with"] == "5 % of the NG"
    assert five["AUROC"].startswith("+0.0500 [")
    assert five["AUROC"].endswith(", better")
    assert five[AT_1].startswith("+10.0 [")
    assert five[AT_1].endswith(" points, better")
    assert (five[REACHES], five[SMALLER]) == ("–", "yes, 0.79 < 1.58")
    assert found["1 % of the NG + GAN placed"]["AUROC"].endswith(", better")
    assert not found.keys() & {"half", "1 % of the NG", "5 % of the NG"}, "nothing is added to these"
    assert sentences(arms_of(GOOD)) == [
        "Specificity at FNR 1 %, 4 arms against the same real data alone: 4 better, 0 worse, 0 without significant "
        "difference.",
        "Half of the real data with synthetic NG reaches the mean of all real data (90.0 %) in 1 of 2 arms.",
        "5 seeds: of twenty intervals at 95 %, one is expected to miss the true difference.",
    ]


def test_a_missed_goal_shows_just_as_plainly():
    arms = arms_of({**BAD, "half + poisson": 0.79}, scatter=2.0)
    found = findings(arms)
    assert found["half + GAN placed"][AT_1] == "−10.0 [−12.0, −8.0] points, worse"
    assert found["half + GAN placed"][REACHES].startswith("no, −20.0 [")
    assert found["half + GAN placed"][SMALLER] == "no, 3.16 ≥ 1.58"
    for share in ("1 %", "5 %"):
        assert found[f"{share} of the NG + GAN placed"]["AUROC"].endswith(", worse")
        assert found[f"{share} of the NG + GAN placed"][AT_1].endswith(", worse")
    told = sentences(arms)
    assert "4 arms against the same real data alone: 0 better, 3 worse, 1 without significant difference" in told[0]
    assert told[1].endswith("(90.0 %) in 0 of 2 arms.")


def test_a_gain_whose_interval_holds_zero_is_no_gain():
    arms = arms_of({**GOOD, "half + GAN placed": 0.802, "5 % of the NG + GAN placed": 0.602}, scatter=-1.0)
    found = findings(arms)
    assert found["half + GAN placed"][AT_1] == "+0.2 [−3.7, +4.1] points, no significant difference"
    assert found["5 % of the NG + GAN placed"][AT_1].startswith("+0.2 [")
    assert found["5 % of the NG + GAN placed"][AT_1].endswith("no significant difference")
    assert sentences(arms)[0].endswith("1 better, 0 worse, 3 without significant difference.")


def test_remedies_and_the_lowest_fnr_have_their_verdicts():
    arms = arms_of({**GOOD, "half + GAN placed, ratio ¼": 0.85, "half + perlin": 0.75})
    found = findings(arms)
    for column in (AT_1, AT_01):
        assert found["half + GAN placed, ratio ¼"][column].startswith("+5.0 [")
        assert found["half + GAN placed, ratio ¼"][column].endswith(", better")
        assert found["half + perlin"][column].startswith("−5.0 [")
        assert found["half + perlin"][column].endswith(", worse")
    assert found["all"][AT_01] == "+10.0 [+10.0, +10.0] points, better"
    assert "| half + GAN placed, ratio ¼ | 500 | 200 | 200 | 0.9250 ± 0.0040 |" in render_markdown(RESULT, arms)


def test_differences_show_their_sign():
    assert signed(Gain(-0.0123, -0.02, 0.001), 100, 1) == "−1.2 [−2.0, +0.1]"
    assert signed(Gain(0.5, None, None)) == "+0.5000"


def test_few_seeds_are_said_to_be_few():
    assert "Only 2 seeds" in sentences(arms_of(GOOD, seeds=2))[-1]
    one = arms_of(GOOD, seeds=1)
    assert sentences(one)[-1].startswith("One seed: there are no intervals")
    assert findings(one)["half + GAN placed"][AT_1] == "+12.0 points, one pair, no interval"
    assert findings(one)["half + GAN placed"][SMALLER] == "–"
    assert sentences(one)[0].endswith("0 better, 0 worse, 0 without significant difference; 4 have one seed alone.")


def test_what_was_not_run_is_not_claimed():
    alone = arms_of({"half": 0.8})
    assert not findings(alone)
    assert sentences(alone) == []
    assert findings(arms_of({"half": 0.8, "half + perlin": 0.9}))["half + perlin"][REACHES] == "–"
    assert len(sentences(arms_of({"half": 0.8, "half + perlin": 0.9}))) == 2
    page = render_markdown(RESULT, arms_of({"half": 0.8, "all": 0.9}))
    assert "curve" not in page.lower().split("![")[0]
    assert "## The curve" not in page


def test_the_page_has_the_findings():
    page = page_of()
    lead = page.split("![")[0]
    assert (
        "- Half of the real data with synthetic NG reaches the mean of all real data (90.0 %) in 1 of 2 arms." in lead
    )
    assert "| half + GAN placed | half | +0.0550 [+0.0501, +0.0599], better |" in lead


def test_sources_without_training_are_compared_with_the_gan():
    means = {**GOOD, "5 % of the NG + perlin": 0.72, "5 % of the NG + real defects placed": 0.65}
    page = page_of(means)
    rivals = {
        line.split(" | ")[0].removeprefix("| "): line for line in page.split("## Other synthetic NG")[1].splitlines()
    }
    assert rivals["half + poisson"].endswith("| −9.0 [−9.0, −9.0] points, worse |")
    assert rivals["5 % of the NG + perlin"].startswith("| 5 % of the NG + perlin | 20 | 0.8600 ± 0.0040 | +0.0600 [")
    assert rivals["5 % of the NG + perlin"].endswith("| +2.0 [+2.0, +2.0] points, better |")
    assert " | −5.0 [" in rivals["5 % of the NG + real defects placed"].removesuffix(" points, worse |")
    assert "| 5 % | 20 | 0.8000 ± 0.0079 | 0.8500 ± 0.0040 | +0.0500 [" in page, "the curve is the GAN's still"
    without = {name: mean for name, mean in means.items() if ARMS[name].source is not Source.GAN_PLACED}
    assert "over GAN placed" not in page_of(without)


def test_a_quick_or_interrupted_run_is_said_to_be_one():
    arms = arms_of(GOOD)
    quick = RESULT | {"settings": RESULT["settings"] | {"quick": True}}
    assert "**A quick run**" in render_markdown(quick, arms)
    arms[1] = replace(arms[1], interrupted=True)
    page = render_markdown(RESULT, arms)
    assert "| ≥ 61 |" in page
    assert "it was interrupted" in page


@pytest.mark.parametrize("means", [GOOD, {"half": 0.8, "all": 0.9}, {**GOOD, "half + GAN placed, ratio ¼": 0.85}])
def test_tables_are_whole(means):
    rows = [row if row.startswith("|") else "" for row in page_of(means).splitlines()]
    for row, before in zip(rows[1:], rows, strict=False):
        if row and before:
            assert row.count("|") == before.count("|")


def titles_of(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]


def texts_of(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_plot_shows_each_seed_of_each_arm_and_both_curves():
    svg = render_svg(arms_of(GOOD))
    titles = titles_of(svg)
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
def test_the_plot_takes_few_arms_and_figures_that_are_all_alike(means):
    svg = render_svg(arms_of(means, seeds=1))
    assert [text for text in texts_of(svg) if text.startswith("half")]
    assert "nan" not in svg


COLOURS = {"half": "#3d3d46", "half + poisson": "#b4581a", "half + GAN placed": "#1f6fb8"}


def test_arms_of_a_kind_have_its_colour_and_shape():
    dots = {}
    for path in ET.fromstring(render_svg(arms_of(GOOD))).iter("{http://www.w3.org/2000/svg}path"):
        for title in path.iter("{http://www.w3.org/2000/svg}title"):
            shape = path.get("d", "").partition(",")[2].lstrip("-.0123456789")
            dots[(title.text or "").partition(", seed")[0]] = (path.get("fill"), shape[0])
    assert {name: dots[name] for name in COLOURS} == {
        name: (colour, shape) for (name, colour), shape in zip(COLOURS.items(), "ahl", strict=True)
    }


def test_labels_in_the_plot_are_escaped(monkeypatch):
    monkeypatch.setattr(Arm, "label", property(lambda arm: f"<script>&{arm.key}"))
    assert any(text.startswith("<script>&") for text in texts_of(render_svg(arms_of(GOOD))))


def without(text: str, names: Sequence[str]) -> str:
    """The text with an arm's name replaced wherever a cell or a title begins with it."""
    for name in sorted(names, key=len, reverse=True):
        for before, after in (("| ", " |"), ("| ", " − "), (" − ", " |"), (">", "<"), (">", ", seed")):
            text = text.replace(before + name + after, f"{before}ARM{after}")
    return text


def test_no_figure_column_or_selection_depends_on_a_label(monkeypatch):
    means = {
        **GOOD,
        "half + GAN placed, ratio ¼": 0.85,
        "5 % of the NG + perlin": 0.72,
        "draem on OK alone": 0.5,
        "half + classic": 0.8,
    }
    arms = arms_of(means)
    page, plot = render_markdown(RESULT, arms), render_svg(arms)
    renamed = {found.arm: f"GAN placed + all, half {index}" for index, found in enumerate(arms)}
    monkeypatch.setattr(Arm, "label", property(renamed.get))
    assert "| GAN placed + all, half 0 | 1000 |" in render_markdown(RESULT, arms)
    assert without(render_markdown(RESULT, arms), [*renamed.values()]) == without(page, [*means])
    assert without(render_svg(arms), [*renamed.values()]) == without(plot, [*means])


def test_the_page_and_its_plot_are_written_side_by_side(tmp_path: Path):
    arms = arms_of(GOOD)
    write_report(RESULT, arms, tmp_path / "pages" / "scarce.md")
    assert (tmp_path / "pages" / "scarce.md").read_text() == render_markdown(RESULT, arms)
    assert (tmp_path / "pages" / "scarce" / "arms.svg").read_text() == render_svg(arms)
    for name, folder in (("cells.md", "cells"), ("plain", "plain-pictures")):
        write_report(RESULT, arms, tmp_path / "pages" / name)
        assert f"({folder}/arms.svg)" in (tmp_path / "pages" / name).read_text()
        assert (tmp_path / "pages" / folder / "arms.svg").exists(), "pages side by side keep their own"


def test_without_a_gan_the_curve_is_that_of_what_was_run_most():
    means = {
        "all": 0.9,
        "1 % of the NG": 0.4,
        "1 % of the NG + cutpaste": 0.5,
        "1 % of the NG + perlin": 0.45,
        "5 % of the NG": 0.6,
        "5 % of the NG + cutpaste": 0.7,
        "all + cutpaste": 0.91,
    }
    page = page_of(means)
    curve = page.split("## The curve")[1].split("##")[0]
    assert "| AUROC, real alone | + cutpaste | gain |" in curve
    assert "| 100 % | 400 |" in curve, "all of the NG are its end"
    assert curve.count(" – ") == 0
    rest = page.split("## Other synthetic NG")[1].split("##")[0]
    assert "1 % of the NG + perlin" in rest
    assert "cutpaste" not in rest
    assert "gain over half" not in page
    found = findings(arms_of(means))
    assert all(
        found[f"{of} + cutpaste"]["AUROC"].endswith(", better") for of in ("1 % of the NG", "5 % of the NG", "all")
    )
    plot = render_svg(arms_of(means))
    assert "+ cutpaste" in plot
    assert "+ GAN placed" not in plot
