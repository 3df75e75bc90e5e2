"""Splits: no physical thing on two sides, whatever the data look like."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, SPLITS, Manifest, Row
from kizu.training.data.splits import Splits, assign_splits


def split(rows: list[Row], seed: int = 0, **options: Any) -> Splits:
    return assign_splits(Manifest(Path("set"), rows), seed, **options)


def images(label: str, count: int, group: str = "", defect: str = "", given: str = "") -> list[Row]:
    return [Row(f"{group}/{label}{defect}{given}{number}", label, defect, group, given) for number in range(count)]


@st.composite
def data_sets(draw: st.DrawFn) -> list[Row]:
    """Rows with and without groups; at least three groups with OK images."""
    rows = [row for group in "abc" for row in images(OK, draw(st.integers(1, 9)), group)]
    for number in range(draw(st.integers(0, 60))):
        label = draw(st.sampled_from([OK, NG, ""]))
        defect = draw(st.sampled_from(["", "short", "open"])) if label == NG else ""
        rows.append(Row(f"{number:03}.png", label, defect, draw(st.sampled_from(["", "", "a", "d", "e", "f"]))))
    return rows


@settings(max_examples=150, deadline=None)
@given(data_sets(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_splits_are_complete_disjoint_grouped_deterministic_and_blind_to_order(rows, seed, random) -> None:
    splits = split(rows, seed)
    assert sorted(row.path for row in splits.rows) == sorted(row.path for row in rows)
    sides = defaultdict(set)
    for name in SPLITS:
        for row in getattr(splits, name):
            assert row.split == name
            if row.group:
                sides[row.group].add(name)
    assert all(len(found) == 1 for found in sides.values())
    for name in SPLITS:
        assert splits.counts[name]["OK"] >= 1

    shuffled = list(rows)
    random.shuffle(shuffled)
    again = split(shuffled, seed)
    assert again == splits
    assert again.fingerprint == splits.fingerprint


@st.composite
def synthetic_rows(draw: st.DrawFn) -> list[Row]:
    """Synthetic rows, some in the groups of real ones, some with a split given."""
    return [
        Row(
            f"{draw(st.sampled_from(['', 'z']))}made{number}",
            draw(st.sampled_from([OK, NG])),
            draw(st.sampled_from(["short", "new"])),
            draw(st.sampled_from(["", "a", "d", "made"])),
            draw(st.sampled_from(["", "train"])),
            origin=f"g:r:{number}",
        )
        for number in range(draw(st.integers(1, 40)))
    ]


@settings(max_examples=150, deadline=None)
@given(data_sets(), synthetic_rows(), st.integers(0, 5), st.booleans())
def test_synthetic_images_only_train_and_move_no_other_image(
    real: list[Row], made: list[Row], seed: int, given_splits: bool
) -> None:
    if given_splits:
        real = [*real, *images(OK, 9, "t", given="train"), *images(OK, 2, "tt", given="train")]
        real += [*images(OK, 3, "x", given="test"), *images(NG, 3, "x", given="test")]
    alone, joined = split(real, seed), split([*made, *real], seed)
    assert joined.calibration == alone.calibration
    assert joined.test == alone.test
    assert [row for row in joined.train if not row.synthetic] == alone.train
    assert {row.path for row in joined.train if row.synthetic} == {row.path for row in made}
    assert all(row.split == "train" for row in joined.train)
    assert joined.counts["train"] == alone.counts["train"] | {"synthetic": len(made)}


def test_synthetic_images_go_to_train_whatever_their_group_or_the_split_they_claim() -> None:
    made = [Row(f"{given}{group}", NG, "", group, given, origin="g:r:1") for given in ("", *SPLITS) for group in "xy"]
    splits = split([*images(OK, 30), *images(NG, 9, "x", given="test"), *images(OK, 9, given="calibration"), *made])
    assert sum(row.synthetic for row in splits.train) == len(made)
    assert not any(row.synthetic for row in splits.calibration + splits.test)


def test_synthetic_images_fill_no_split() -> None:
    made = [Row(f"made{number}", OK, origin=f"g:r:{number}") for number in range(50)]
    with pytest.raises(UserError, match="2 groups with labelled images cannot fill"):
        split([*images(OK, 9, "a"), *images(OK, 9, "b"), *made])
    with pytest.raises(UserError, match="no OK image is in the train split"):
        split([*images(NG, 30), *made])


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 300), st.integers(0, 200), st.integers(0, 3))
def test_single_images_are_split_as_wished_to_within_one(ok: int, ng: int, seed: int) -> None:
    counts = split(images(OK, ok) + images(NG, ng), seed).counts
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert abs(counts[name]["OK"] - share * ok) <= 1
        assert abs(counts[name]["NG"] - share * ng) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 5)), min_size=30, max_size=80), st.integers(0, 3))
def test_groups_are_split_near_the_wish(sizes: list[tuple[int, int]], seed: int) -> None:
    rows = [
        row
        for number, (ok, ng) in enumerate(sizes)
        for row in images(OK, ok, f"g{number}") + images(NG, ng, f"g{number}")
    ]
    total = split(rows, seed).counts
    ok = sum(count["OK"] for count in total.values())
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert abs(total[name]["OK"] / ok - share) < 0.1


def test_defect_classes_are_spread_over_the_splits() -> None:
    rows = images(OK, 100) + [row for name in ("a", "b", "c", "d") for row in images(NG, 20, defect=name)]
    splits = split(rows)
    for name in ("a", "b", "c", "d"):
        counts = [sum(row.defect == name for row in getattr(splits, side)) for side in SPLITS]
        assert counts[0] in range(11, 14)
        assert min(counts) >= 3


def test_a_handful_of_boards_fills_every_split() -> None:
    boards = {"a": 200, "b": 291, "c": 50, "d": 50, "e": 100}
    rows = [row for name, count in boards.items() for row in images(OK, count, name) + images(NG, count, name)]
    for seed in range(5):
        counts = split(rows, seed).counts
        assert 0.5 < counts["train"]["OK"] / 691 < 0.7
        assert counts["calibration"]["NG"] >= 50
        assert counts["test"]["NG"] >= 50


def test_few_ng_reach_every_split() -> None:
    assert [count["NG"] for count in split(images(OK, 100) + images(NG, 3)).counts.values()] == [1, 1, 1]


def test_the_seed_matters_and_the_fingerprint_tells() -> None:
    rows = images(OK, 50)
    assert len({split(rows, seed).fingerprint for seed in range(5)}) == 5


def test_given_splits_are_kept_and_pull_their_group_along() -> None:
    rows = [
        *images(OK, 10, "t", given="train"),
        *images(OK, 5, "c", given="calibration"),
        *images(NG, 5, "x", given="test"),
        *images(OK, 3, "x"),
        *images(OK, 30),
    ]
    splits = split(rows)
    assert {row.path for row in rows if row.split == "train"} <= {row.path for row in splits.train}
    assert all(row.group != "x" for row in splits.train + splits.calibration)
    assert sum(row.group == "x" for row in splits.test) == 8


def test_calibration_comes_out_of_given_train_by_group_and_test_is_untouched() -> None:
    rows = [row for number in range(40) for row in images(OK, 4, f"g{number}", given="train")]
    rows += images(OK, 20, given="test") + images(NG, 30, given="test")
    splits = split(rows)
    assert {row.path for row in splits.test} == {row.path for row in rows if row.split == "test"}
    assert splits.counts["calibration"] == {"OK": 40, "NG": 0, "unlabelled": 0}
    assert not {row.group for row in splits.train} & {row.group for row in splits.calibration}


def test_unlabelled_images_go_to_train_unless_their_group_is_elsewhere() -> None:
    rows = images(OK, 30) + images("", 7) + images("", 2, "x") + images(NG, 3, "x", given="test")
    rows += images(OK, 5, "c", given="calibration") + images(OK, 5, "t", given="train")
    counts = split(rows).counts
    assert [counts[name]["unlabelled"] for name in SPLITS] == [7, 0, 2]


@pytest.mark.parametrize(
    ("rows", "problem", "remedy"),
    [
        (images(OK, 9, "a") + images(OK, 9, "b"), "2 groups", "leave the group column empty"),
        (images(OK, 9, "a") + images(NG, 9, "a"), "1 group ", "give each row its split"),
        (images("", 9), "0 groups", "three"),
        (images(NG, 9), "no OK image is in the train split", "add OK images"),
        (
            images(OK, 9, given="test") + images(NG, 9, given="train") + images(NG, 2, given="calibration"),
            "no OK image is in the train split",
            "add OK",
        ),
        (images(OK, 9, given="train"), "test would have no labelled image", "Give some groups the split test"),
        (images(OK, 9, "a", given="train") + images(OK, 9, given="test"), "calibration would have no", "split calib"),
        (images(OK, 1, "a", given="train") + images(NG, 1, "a", given="test"), "group 'a' is in two splits", "one"),
    ],
)
def test_what_cannot_be_split_is_said_with_a_remedy(rows: list[Row], problem: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        split(rows)
    assert problem in caught.value.problem
    assert remedy in (caught.value.remedy or "")


def test_a_certification_split_takes_whole_groups_and_its_share() -> None:
    rows = [row for n in range(100) for row in images(OK, 6, f"g{n:02}") + images(NG, 2, f"g{n:02}")]
    splits = split(rows, fractions=(0.4, 0.2, 0.2), certification=0.2)
    assert splits == split(rows[::-1], fractions=(0.4, 0.2, 0.2), certification=0.2)
    assert splits.counts["certification"] == {"OK": 120, "NG": 40, "unlabelled": 0}
    sides = [{row.group for row in getattr(splits, name)} for name in (*SPLITS, "certification")]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 100
    assert {row.split for row in splits.certification} == {"certification"}
    assert len(splits.rows) == len(rows)
    other = split(rows, 1, fractions=(0.4, 0.2, 0.2), certification=0.2)
    assert other.certification != splits.certification


def test_without_a_certification_share_the_splits_are_as_they_always_were() -> None:
    rows = [row for n in range(40) for row in images(OK, 6, f"g{n:02}") + images(NG, n % 4, f"g{n:02}")]
    rows += images(OK, 50) + images(NG, 30, defect="short") + images("", 5)
    splits = split(rows, 3)
    assert splits.certification == []
    assert "certification" not in splits.counts
    assert splits.fingerprint == "645610637f21a0446faa81d0f92b431171c864dfe35e9827fe3440d04340b278"


def test_a_certification_split_is_kept_where_given_and_else_comes_out_of_train() -> None:
    given = [*images(OK, 30, given="train"), *images(NG, 30, given="train")]
    given += images(OK, 9, given="test") + images(NG, 9, given="test") + images(OK, 9, given="calibration")
    reserved = images(NG, 7, given="certification")
    assert {row.path for row in split([*given, *reserved]).certification} == {row.path for row in reserved}
    drawn = split(given, fractions=(0.4, 0.2, 0.2), certification=0.2).counts
    assert drawn["certification"] == {"OK": 10, "NG": 10, "unlabelled": 0}
    assert drawn["train"] == {"OK": 20, "NG": 20, "unlabelled": 0}
    assert drawn["test"] == {"OK": 9, "NG": 9, "unlabelled": 0}
    assert drawn["calibration"] == {"OK": 9, "NG": 0, "unlabelled": 0}


def test_a_certification_split_without_ng_is_refused() -> None:
    with pytest.raises(UserError, match="no NG is in the certification split"):
        split(images(OK, 40), fractions=(0.4, 0.2, 0.2), certification=0.2)
    with pytest.raises(UserError, match="no NG is in the certification split"):
        split(images(OK, 40) + images(OK, 4, given="certification") + images(OK, 9, "x", given="test"))


def test_fractions_are_checked() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split(images(OK, 9), fractions=(0.5, 0.2, 0.2))
