"""Arms: what is known, what is chosen, and what an arm's fields say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kizu.errors import UserError
from kizu.training.recipe import Recipe, parse_recipe
from kizu.training.study.arms import (
    ALL,
    HALF,
    QUICK,
    Arm,
    Choice,
    Group,
    OneClassKind,
    RealData,
    Remedy,
    Source,
    chosen_arms,
    known_arms,
    label_of,
    parse_choices,
)
from kizu.training.study.cli import _settings

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)


def recipe(**sections: object) -> Recipe:
    return parse_recipe({"name": "x", "dataset": "boards", "detector": {"kind": "classifier"}, **sections}, "test")


WITH_GAN = recipe(generator={"kind": "stylegan2-ada"})


def labels(
    names: Sequence[str], shares: Sequence[float] = SHARES, of: Recipe = WITH_GAN, *, located: bool = True
) -> list[str]:
    """Labels of the arms that are run for these names."""
    return [arm.label for arm in chosen_arms(parse_choices(names, shares), shares, of, located=located)]


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        (Arm(ALL), "all"),
        (Arm(HALF, strong_augment=True), "half + classic"),
        (Arm(ALL, Source.CLASSIC), "all + altered copies"),
        (Arm(HALF, Source.GAN_PLACED, strong_augment=True), "half + GAN placed + classic"),
        (Arm(HALF, Source.GAN_PLACED, remedy=Remedy.FILTERED_BY_D), "half + GAN placed, filtered by D"),
        (Arm(HALF, Source.GAN_WHOLE, remedy=Remedy.OWN_CLASS), "half + GAN whole as a class of its own"),
        (Arm(RealData(ng_share=0.1031), Source.REAL_PLACED), "10.31 % of the NG + real defects placed"),
        (Arm(one_class=OneClassKind.MEMORY), "memory on OK alone"),
    ],
)
def test_a_label_is_made_from_the_fields(arm: Arm, label: str) -> None:
    assert arm.label == label
    assert parse_choices([label], (0.1031,)) == (arm,)


def test_arms_are_told_apart_by_label_and_by_key() -> None:
    arms = known_arms((*SHARES, 0.1031))
    assert len({arm.label for arm in arms}) == len({arm.key for arm in arms}) == len(set(arms)) == len(arms)
    assert all(arm.key.isascii() and " " not in arm.key for arm in arms)


def test_a_key_does_not_change_with_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm(RealData(ng_share=0.05), Source.REAL_PLACED, strong_augment=True)
    assert arm.key == "ok1.0-ng0.05-real-placed-strong-augment"
    monkeypatch.setattr(Source.REAL_PLACED, "_value_", "another label")
    assert arm.key == "ok1.0-ng0.05-real-placed-strong-augment"


@pytest.mark.parametrize("arm", known_arms(SHARES), ids=lambda arm: arm.label)
def test_the_reference_is_the_same_real_data_alone(arm: Arm) -> None:
    plain = Arm(arm.base)
    assert arm.reference == (None if arm == plain else plain)
    assert plain in known_arms(SHARES)


def test_only_sources_without_training_added_alone_rival_the_gan() -> None:
    rivals = [arm for arm in known_arms((0.05,)) if arm.gan_rival is not None]
    bases = (ALL, HALF, RealData(ng_share=0.05))
    assert set(rivals) == {Arm(base, source) for base in bases for source in Source if not source.is_gan}
    assert all(arm.gan_rival == Arm(arm.base, Source.GAN_PLACED) for arm in rivals)


def test_the_table_is_all_and_half_with_each_addition() -> None:
    assert [arm.label for arm in known_arms(SHARES) if arm.is_in_table] == [
        "all",
        "half",
        "half + classic",
        "half + altered copies",
        "half + cutpaste",
        "half + poisson",
        "half + perlin",
        "half + real defects placed",
        "half + GAN whole",
        "half + GAN placed",
        "half + GAN placed + classic",
    ]


def test_arms_come_with_their_references() -> None:
    assert labels(["5 % of the NG + GAN placed"]) == ["5 % of the NG", "5 % of the NG + GAN placed"]
    assert labels(["memory on OK alone"]) == ["all", "memory on OK alone"]
    assert labels(["half + poisson", "all"]) == ["all", "half", "half + poisson"]


def test_without_names_the_table_and_the_curve_run_and_remedies_do_not() -> None:
    names = labels([], (0.05,))
    assert names[:2] == ["all", "half"]
    assert names[-2:] == ["5 % of the NG", "5 % of the NG + GAN placed"]
    assert "half + GAN placed + classic" in names
    assert not [arm for arm in chosen_arms((), (0.05,), WITH_GAN, located=True) if arm.remedy or arm.one_class]


def test_table_and_curve_can_be_asked_for_by_name_with_single_arms() -> None:
    both = labels([], (0.05,))
    assert labels(["curve", "table"], (0.05,)) == both
    more = labels(["table", "curve", "5 % of the NG + perlin"], (0.05,))
    assert [name for name in more if name not in both] == ["5 % of the NG + perlin"]


def test_without_boxes_or_masks_nothing_is_placed() -> None:
    arms = chosen_arms((), (0.05,), WITH_GAN, located=False)
    assert Arm(HALF, Source.GAN_WHOLE) in arms
    assert not [arm for arm in arms if arm.source in (Source.GAN_PLACED, Source.REAL_PLACED)]
    for name in ("half + GAN placed", "half + real defects placed"):
        with pytest.raises(UserError, match=f"'{name.replace('+', '.')}': the NG have neither boxes nor masks"):
            labels([name], (), located=False)


@pytest.mark.parametrize(
    ("names", "shares", "mine", "message"),
    [
        (["half + magic"], (), WITH_GAN, "Unknown arm 'half \\+ magic'.\nKnown: all; half; "),
        (["half + GAN whole"], (), recipe(), "no \\[generator\\]"),
        (["half + GAN whole"], (), recipe(generator={"kind": "poisson"}), "'poisson', no GAN"),
        (["all"], (1.5,), WITH_GAN, "1.5 is no share"),
    ],
)
def test_arms_that_cannot_run_are_refused(
    names: list[str], shares: tuple[float, ...], mine: Recipe, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        labels(names, shares, mine)


@pytest.mark.parametrize("choice", [*known_arms(SHARES), *Group], ids=label_of)
def test_choices_are_parsed_from_their_labels(choice: Choice) -> None:
    assert parse_choices([label_of(choice)], SHARES) == (choice,)


def test_a_quick_run_has_its_own_arms_and_leaves_what_was_asked_for() -> None:
    quick = _settings(True, None, None, None, None, 50, 1, None, "cpu")
    assert (quick.seeds, quick.shares, quick.most_ng, quick.arms) == ((0, 1), (0.05,), 50, QUICK)
    names = [arm.label for arm in chosen_arms(quick.arms, quick.shares, WITH_GAN, located=True)]
    assert names == [
        "all",
        "half",
        "half + classic",
        "half + poisson",
        "half + GAN whole",
        "half + GAN placed",
        "5 % of the NG",
        "5 % of the NG + GAN placed",
    ]
    asked = _settings(True, 3, ["all"], [0.2], None, None, 1, None, "cpu")
    assert (asked.seeds, asked.arms, asked.shares) == ((0, 1, 2), (Arm(ALL),), (0.2,))
    assert _settings(False, None, None, None, None, None, 1, None, "cpu").seeds == (0, 1, 2, 3, 4)
