"""What `auto` stands for, by the NG in the train split."""

from __future__ import annotations

import pytest

from kizu.errors import UserError
from kizu.training.auto import HUNDREDS, resolve
from kizu.training.data.manifest import NG, OK, Row
from kizu.training.detectors import DETECTORS
from kizu.training.recipe import parse_recipe


def recipe(**sections):
    return parse_recipe({"name": "part", "dataset": "data", **sections}, "here")


def rows(ok=10, ng=0, synthetic=0):
    return (
        [Row(path=f"ok{i}.png", label=OK) for i in range(ok)]
        + [Row(path=f"ng{i}.png", label=NG) for i in range(ng)]
        + [Row(path=f"made{i}.png", label=NG, origin="classic") for i in range(synthetic)]
    )


def kinds(given, train):
    resolved, reason = resolve(given, train)
    assert reason is not None
    found = [section.kind for section in resolved.detector]
    assert " + ".join(found) in reason
    assert set(found) <= set(DETECTORS)
    return found


def test_a_recipe_that_names_no_detector_gets_auto():
    assert [section.kind for section in recipe().detector] == ["auto"]


def test_without_ng_three_views_of_ok_parts_are_combined():
    assert kinds(recipe(), rows()) == ["memory", "padim", "flow"]


def test_with_ng_what_learns_from_them_stands_beside_two_that_know_ok_parts():
    assert kinds(recipe(), rows(ng=1)) == ["supersimplenet", "memory", "padim"]
    assert kinds(recipe(), rows(ng=HUNDREDS - 1)) == ["supersimplenet", "memory", "padim"]


def test_with_hundreds_of_ng_a_backbone_trains_as_well():
    resolved, _ = resolve(recipe(), rows(ng=HUNDREDS))
    assert [section.kind for section in resolved.detector] == ["supersimplenet", "memory", "padim", "classifier"]
    assert resolved.detector[-1].options["backbone"] == "tf_efficientnet_lite0"


def test_synthetic_ng_teach_but_do_not_count_as_hundreds():
    assert kinds(recipe(), rows(synthetic=HUNDREDS)) == ["supersimplenet", "memory", "padim"]
    assert kinds(recipe(generator={"kind": "cutpaste"}), rows()) == ["supersimplenet", "memory", "padim"]


def test_in_tiles_ng_teach_only_where_their_defects_are_located():
    tiled = recipe(image={"size": 64, "tile": 64})
    assert kinds(tiled, rows(ng=3)) == ["memory", "padim", "flow"]
    located = [*rows(ng=3), Row(path="located.png", label=NG, mask="mask.png")]
    assert kinds(tiled, located) == ["supersimplenet", "memory", "padim"]


def test_all_detectors_get_its_options_and_its_epochs():
    resolved, _ = resolve(recipe(detector={"epochs": 3, "options": {"least_side": 64}}), rows(ng=2))
    assert [section.epochs for section in resolved.detector] == [3, 3, 3]
    assert [section.options for section in resolved.detector] == [{"least_side": 64}] * 3


def test_a_recipe_that_names_its_detectors_stays_as_it_is():
    named = recipe(detector={"kind": "memory"})
    assert resolve(named, rows()) == (named, None)


def test_augment_goes_to_those_who_learn_from_ng_and_is_said_to_alter_nothing_otherwise():
    given = recipe(augment={"flip_vertical": True})
    assert resolve(given, rows(ng=1))[0].augment == given.augment
    resolved, reason = resolve(given, rows())
    assert resolved.augment is None
    assert reason is not None
    assert "[augment] alters nothing" in reason


def test_auto_beside_other_detectors_is_refused():
    with pytest.raises(UserError, match="stands alone"):
        resolve(recipe(detector=[{"kind": "auto"}, {"kind": "memory"}]), rows())


def test_an_unknown_option_of_auto_is_told_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'least_side'"):
        resolve(recipe(detector={"options": {"least_sid": 64}}), rows())
