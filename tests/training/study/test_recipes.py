"""What a recipe becomes for an arm, and which rows the arm sees."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from kizu.training.data.manifest import NG, OK, Row
from kizu.training.detectors import create_detector
from kizu.training.generators import check_keys
from kizu.training.recipe import AugmentSection, GeneratorSection, Recipe, parse_recipe
from kizu.training.study.arms import ALL, HALF, Arm, OneClassKind, RealData, Remedy, Source, known_arms
from kizu.training.study.recipes import quick_recipe, recipe_of, sample_rows

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
ROWS = [Row(f"ok/{i}.png", OK) for i in range(700)] + [Row(f"ng/{i}.png", NG) for i in range(300)]


def recipe(**sections: object) -> Recipe:
    detector = {"kind": "classifier", "epochs": 6, "options": {"features": 4}}
    return parse_recipe({"name": "x", "dataset": "boards", "detector": detector, **sections}, "test")


WITH_GAN = recipe(generator={"kind": "stylegan2-ada", "kimg": 30, "count": 50, "crop": 64, "options": {"r1": 0.2}})


def generator_of(arm: Arm, of: Recipe = WITH_GAN) -> GeneratorSection:
    section = recipe_of(arm, of, 0, ROWS, ROWS).generator
    assert section is not None
    return section


def by_label(rows: Iterable[Row]) -> Counter[str]:
    return Counter(row.label for row in rows)


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    for seed in (0, 1):
        sets = [{row.path for row in sample_rows(ROWS, RealData(ng_share=share), seed)} for share in (*SHARES, 1.0)]
        assert all(small < large for small, large in itertools.pairwise(sets))
        assert [len(one) - 700 for one in sets] == [3, 6, 15, 30, 75, 150, 300]


def test_arms_of_one_seed_share_their_sample_and_seeds_do_not() -> None:
    assert sample_rows(ROWS, HALF, 0) == sample_rows(list(reversed(ROWS)), HALF, 0)[::-1]
    first, second = ({row.path for row in sample_rows(ROWS, HALF, seed)} for seed in (0, 1))
    assert by_label(sample_rows(ROWS, HALF, 0)) == {OK: 350, NG: 150}
    assert 150 < len(first & second) < 350


def test_at_least_one_of_each_is_sampled_and_unlabelled_rows_stay() -> None:
    rows = [*ROWS[:3], *ROWS[-3:], Row("unknown.png", "")]
    assert by_label(sample_rows(rows, RealData(0.1, 0.1), 0)) == {OK: 1, NG: 1, "": 1}


@pytest.mark.parametrize("arm", known_arms(SHARES), ids=lambda arm: arm.label)
def test_every_arm_trains_as_many_updates_to_within_half_an_epoch(arm: Arm) -> None:
    seen = sample_rows(ROWS, arm.base, 0)
    section = recipe_of(arm, WITH_GAN, 3, ROWS, seen).detector[0]
    images = sum(row.label == OK for row in seen) if arm.one_class else len(seen)
    assert abs(section.epochs * images - 6 * len(ROWS)) <= images / 2


@pytest.mark.parametrize("arm", known_arms(SHARES), ids=lambda arm: arm.label)
def test_every_arm_is_a_recipe_that_can_run(arm: Arm) -> None:
    own = recipe_of(arm, WITH_GAN, 3, ROWS, sample_rows(ROWS, arm.base, 3))
    assert own.seed == 3
    assert (own.generator is None) == (arm.source is None)
    if own.generator is not None:
        check_keys(own.generator)
        assert own.generator.count == 50
        assert (own.generator.kind == "stylegan2-ada") == arm.trains_gan
        others = {"patches": "ng"} if arm.source is Source.REAL_PLACED else {}
        assert own.generator.options == ({"r1": 0.2} if arm.trains_gan else others)


def test_every_arm_with_its_data_is_another_recipe() -> None:
    arms = known_arms(SHARES)
    assert len({(arm.base, recipe_of(arm, WITH_GAN, 3, ROWS, ROWS).model_dump_json()) for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (Source.CLASSIC, "classic"),
        (Source.CUTPASTE, "cutpaste"),
        (Source.POISSON, "poisson"),
        (Source.PERLIN, "perlin"),
        (Source.REAL_PLACED, "poisson"),
        (Source.GAN_WHOLE, "stylegan2-ada"),
        (Source.GAN_PLACED, "stylegan2-ada"),
    ],
)
def test_a_source_is_a_kind_of_generator(source: Source, kind: str) -> None:
    assert generator_of(Arm(HALF, source)).kind == kind


@pytest.mark.parametrize(
    ("remedy", "field", "value"),
    [
        (Remedy.FILTERED_BY_D, "filter", "discriminator"),
        (Remedy.FILTERED_BY_CLASSIFIER, "filter", "classifier"),
        (Remedy.CLASSES_MIXED, "conditional", False),
        (Remedy.TRAINED_LONGER, "kimg", 90.0),
    ],
)
def test_a_remedy_changes_the_generator(remedy: Remedy, field: str, value: object) -> None:
    assert getattr(generator_of(Arm(HALF, Source.GAN_PLACED, remedy=remedy)), field) == value
    assert getattr(generator_of(Arm(HALF, Source.GAN_PLACED)), field) != value


def test_a_remedy_changes_the_detector() -> None:
    def detector(remedy: Remedy, source: Source = Source.GAN_PLACED) -> tuple[str, Mapping[str, object]]:
        section = recipe_of(Arm(HALF, source, remedy=remedy), WITH_GAN, 0, ROWS, ROWS).detector[0]
        return section.kind, section.options

    assert detector(Remedy.QUARTER_RATIO) == ("classifier", {"features": 4, "synthetic_ratio": 0.25})
    assert detector(Remedy.FALLING_WEIGHT) == ("classifier", {"features": 4, "synthetic_schedule": "falling"})
    assert detector(Remedy.OWN_CLASS, Source.GAN_WHOLE) == ("semi-supervised", {"features": 4})
    assert detector(Remedy.CLASSES_MIXED) == ("classifier", {"features": 4})


def test_a_detector_on_ok_alone_is_one_however_many_the_recipe_names() -> None:
    several = WITH_GAN.model_copy(update={"detector": WITH_GAN.detector * 3})
    [section] = recipe_of(Arm(one_class=OneClassKind.DRAEM), several, 0, ROWS, ROWS, 4).detector
    assert (section.kind, section.preset, section.epochs, section.options) == ("draem", "small", 4, {})
    assert len(recipe_of(Arm(ALL), several, 0, ROWS, ROWS).detector) == 3


@pytest.mark.parametrize("kind", OneClassKind)
def test_augmentation_is_left_out_where_a_detector_on_ok_alone_takes_none(kind: OneClassKind) -> None:
    mine = recipe(augment={"flip_vertical": True}, image={"size": 32, "channels": 1})
    own = recipe_of(Arm(one_class=kind), mine, 0, ROWS, ROWS, 1)
    method = create_detector(own.image.geometry, own.detector[0], own.augment, defects=[])
    assert (own.augment == mine.augment) == (method.augment is not None)
    assert (own.augment is None) == (method.augment is None)


def test_classic_augmentation_is_never_weaker_than_the_recipes() -> None:
    mine = recipe(augment={"flip_vertical": True, "noise": 0.5, "shift": 0.0})
    found = recipe_of(Arm(HALF, strong_augment=True), mine, 0, ROWS, ROWS).augment
    assert found == AugmentSection(flip_vertical=True, noise=0.5, shift=0.1, scale=0.1, brightness=0.1, contrast=0.3)
    assert recipe_of(Arm(ALL), mine, 0, ROWS, ROWS).augment == mine.augment


def test_crops_of_placed_defects_are_smaller_than_the_recipes_window() -> None:
    for source, crop in ((Source.GAN_WHOLE, 64), (Source.GAN_PLACED, 45)):
        assert generator_of(Arm(HALF, source)).crop == crop


def test_a_quick_recipe_is_never_larger() -> None:
    quick = quick_recipe(WITH_GAN, 1600)
    assert quick.generator is not None
    assert (quick.generator.kimg, quick.generator.count, quick.generator.measurements) == (4.0, 50, 0)
    assert quick.detector[0].epochs == 6
    assert quick_recipe(WITH_GAN, 100_000).detector[0].epochs == 1
