from __future__ import annotations

import csv
import itertools
import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.render import render_boards
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.detectors import create_detector
from kizu.training.generators import check_keys
from kizu.training.generators.trained import FILE as TRAINED_FILE
from kizu.training.recipe import AugmentSection, Recipe, parse_recipe
from kizu.training.study import run as scarce
from kizu.training.study.arms import HALF, chosen_arms, drawn, known_arms, quickened, recipe_of
from kizu.training.study.cli import _settings, bench_app
from kizu.training.study.figures import summary
from kizu.training.study.run import Settings, base_splits, run

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
ROWS = [Row(f"ok/{i}.png", OK) for i in range(700)] + [Row(f"ng/{i}.png", NG) for i in range(300)]


def recipe(**sections) -> Recipe:
    detector = {"kind": "classifier", "epochs": 6, "options": {"features": 4}}
    return parse_recipe({"name": "x", "dataset": "boards", "detector": detector, **sections}, "test")


WITH_GAN = recipe(generator={"kind": "stylegan2-ada", "kimg": 30, "count": 50, "crop": 64, "options": {"r1": 0.2}})


def by_label(rows) -> Counter:
    return Counter(row.label for row in rows)


def test_a_smaller_share_is_part_of_a_larger_one():
    for seed in (0, 1):
        sets = [{row.path for row in drawn(ROWS, 1.0, share, seed)} for share in (*SHARES, 1.0)]
        assert all(small < large for small, large in itertools.pairwise(sets))
        assert [len(one) - 700 for one in sets] == [3, 6, 15, 30, 75, 150, 300]


def test_arms_of_one_seed_share_their_draw_and_seeds_do_not():
    assert drawn(ROWS, 0.5, 1.0, 0) == drawn(list(reversed(ROWS)), 0.5, 1.0, 0)[::-1]
    first, second = ({row.path for row in drawn(ROWS, 0.5, 1.0, seed)} for seed in (0, 1))
    assert by_label(drawn(ROWS, 0.5, 1.0, 0)) == {OK: 350, NG: 150}
    assert 150 < len(first & second) < 350


def test_at_least_one_of_each_is_drawn_and_unlabelled_rows_stay():
    rows = [*ROWS[:3], *ROWS[-3:], Row("unknown.png", "")]
    assert by_label(drawn(rows, 0.1, 0.1, 0)) == {OK: 1, NG: 1, "": 1}


@pytest.mark.parametrize("arm", known_arms(SHARES), ids=lambda arm: arm.name)
def test_every_arm_trains_as_many_updates_to_within_half_an_epoch(arm):
    taken = drawn(ROWS, arm.share, arm.ng_share, 0)
    section = recipe_of(arm, WITH_GAN, 3, ROWS, taken).detector[0]
    seen = sum(row.label == OK for row in taken) if arm.ok_alone else len(taken)
    assert abs(section.epochs * seen - 6 * len(ROWS)) <= seen / 2


@pytest.mark.parametrize("arm", known_arms(SHARES), ids=lambda arm: arm.name)
def test_every_arm_is_a_recipe_that_can_be_told_from_the_others(arm):
    own = recipe_of(arm, WITH_GAN, 3, ROWS, drawn(ROWS, arm.share, arm.ng_share, 3))
    assert own.seed == 3
    assert (own.generator is None) == (arm.generator is None)
    if own.generator is not None:
        check_keys(own.generator)
        assert own.generator.count == 50
        options = {"r1": 0.2} if own.generator.kind == "stylegan2-ada" else arm.generator.get("options", {})
        assert own.generator.options == options
    assert [one.name for one in known_arms(SHARES)].count(arm.name) == 1
    if arm.against:
        plain = next(one for one in known_arms(SHARES) if one.name == arm.against)
        assert (plain.subset, plain.generator) == (arm.subset, None)


def test_a_detector_on_ok_alone_is_one_however_many_the_recipe_names():
    several = WITH_GAN.model_copy(update={"detector": WITH_GAN.detector * 3})
    arms = {arm.name: arm for arm in known_arms(())}
    [section] = recipe_of(arms["draem on OK alone"], several, 0, ROWS, ROWS, 4).detector
    assert (section.kind, section.preset, section.epochs, section.options) == ("draem", "small", 4, {})
    assert len(recipe_of(arms["all"], several, 0, ROWS, ROWS).detector) == 3


@pytest.mark.parametrize("arm", [arm for arm in known_arms(()) if arm.ok_alone], ids=lambda arm: arm.name)
def test_augmentation_is_left_out_where_a_detector_on_ok_alone_takes_none(arm):
    mine = recipe(augment={"flip_vertical": True}, image={"size": 32, "channels": 1})
    own = recipe_of(arm, mine, 0, ROWS, ROWS, 1)
    method = create_detector(own.image.geometry, own.detector[0], own.augment, defects=[])
    assert (own.augment == mine.augment) == (method.augment is not None)
    assert (own.augment is None) == (method.augment is None)


def test_classic_augmentation_is_never_weaker_than_the_recipes():
    strong = next(arm for arm in known_arms(()) if arm.strong)
    mine = recipe(augment={"flip_vertical": True, "noise": 0.5, "shift": 0.0})
    found = recipe_of(strong, mine, 0, ROWS, ROWS).augment
    assert found == AugmentSection(flip_vertical=True, noise=0.5, shift=0.1, scale=0.1, brightness=0.1, contrast=0.3)
    assert recipe_of(known_arms(())[0], mine, 0, ROWS, ROWS).augment == mine.augment


def test_crops_of_placed_defects_are_smaller_than_the_recipes_window():
    arms = {arm.name: arm for arm in known_arms(())}
    for name, crop in (("half + GAN whole", 64), ("half + GAN placed", 45)):
        assert recipe_of(arms[name], WITH_GAN, 0, ROWS, ROWS).generator.crop == crop


def test_arms_come_with_those_that_they_are_held_against():
    found = chosen_arms(["5 % of the NG + GAN placed"], SHARES, WITH_GAN, located=True)
    assert [arm.name for arm in found] == ["5 % of the NG", "5 % of the NG + GAN placed"]
    found = chosen_arms(["memory on OK alone"], SHARES, WITH_GAN, located=True)
    assert [arm.name for arm in found] == ["all", "memory on OK alone"]
    found = chosen_arms(["half + poisson", "all"], SHARES, WITH_GAN, located=True)
    assert [arm.name for arm in found] == ["all", HALF, "half + poisson"]


def test_without_names_the_table_and_the_curve_run_and_remedies_do_not():
    names = [arm.name for arm in chosen_arms([], (0.05,), WITH_GAN, located=True)]
    assert names[:2] == ["all", HALF]
    assert names[-2:] == ["5 % of the NG", "5 % of the NG + GAN placed"]
    assert "half + GAN placed + classic" in names
    assert not [name for name in names if "filtered" in name or "ratio" in name]


def test_table_and_curve_can_be_asked_for_by_name_beside_single_arms():
    both = chosen_arms([], (0.05,), WITH_GAN, located=True)
    assert chosen_arms(["curve", "table"], (0.05,), WITH_GAN, located=True) == both
    more = chosen_arms(["table", "curve", "5 % of the NG + perlin"], (0.05,), WITH_GAN, located=True)
    assert [arm.name for arm in more if arm not in both] == ["5 % of the NG + perlin"]


def test_without_boxes_or_masks_nothing_is_placed():
    names = [arm.name for arm in chosen_arms([], (0.05,), WITH_GAN, located=False)]
    assert "half + GAN whole" in names
    assert not [name for name in names if "placed" in name]
    with pytest.raises(UserError, match="neither boxes nor masks"):
        chosen_arms(["half + GAN placed"], (), WITH_GAN, located=False)


@pytest.mark.parametrize(
    ("names", "shares", "of", "message"),
    [
        (["half + magic"], (), WITH_GAN, "Unknown arm 'half \\+ magic'.\nKnown: all; half; "),
        (["half + GAN whole"], (), recipe(), "no \\[generator\\]"),
        (["half + GAN whole"], (), recipe(generator={"kind": "poisson"}), "'poisson', no GAN"),
        (["all"], (1.5,), WITH_GAN, "1.5 is no share"),
    ],
)
def test_arms_that_cannot_run_are_refused(names, shares, of, message):
    with pytest.raises(UserError, match=message):
        chosen_arms(names, shares, of, located=True)


def test_a_quick_recipe_is_never_larger():
    quick = quickened(WITH_GAN, 1600)
    assert (quick.generator.kimg, quick.generator.count, quick.generator.measurements) == (4.0, 50, 0)
    assert quick.detector[0].epochs == 6
    assert quickened(WITH_GAN, 100_000).detector[0].epochs == 1


def labels_of(splits: Splits) -> dict[str, Counter]:
    return {name: by_label(getattr(splits, name)) for name in ("train", "calibration", "test")}


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scarce") / "boards"
    render_boards(folder, boards=12, count_ok=150, count_ng=90, size=32, channels=1)
    return folder


TINY_TOML = """\
name = "x"
dataset = "boards"
image = { size = 32, channels = 1 }
detector = { kind = "classifier", epochs = 1, options = { features = 4, blocks = 1 } }

[generator]
kind = "stylegan2-ada"
preset = "demo"
kimg = 0.032
count = 6
measurements = 0
batch_size = 8
"""
TINY = parse_recipe(tomllib.loads(TINY_TOML), "test")


def test_caps_hold_in_each_split_and_keep_groups_apart(boards):
    manifest = Manifest.read(boards)
    capped = base_splits(manifest, TINY, Settings(most_ok=20, most_ng=7))
    assert all(counts == {OK: 20, NG: 7} for counts in labels_of(capped).values())
    groups = [{row.group for row in rows} for rows in (capped.train, capped.calibration, capped.test)]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert labels_of(base_splits(manifest, TINY, Settings())) == labels_of(assign_splits(manifest))


def test_synthetic_rows_of_a_data_set_take_no_part(boards):
    manifest = Manifest.read(boards)
    made = Row("made.png", NG, origin="stylegan2-ada:run@0:1")
    more = base_splits(Manifest(boards, [*manifest.rows, made]), TINY, Settings())
    assert more == base_splits(manifest, TINY, Settings())


def refused(of: Recipe, boards: Path, folder: Path, message: str, **settings) -> None:
    with pytest.raises(UserError, match=message):
        run(of, boards.parent, boards, Settings(seeds=(0,), **settings), folder, lambda _: None)
    assert not list(folder.rglob("*.json"))


def test_what_no_arm_could_use_is_refused_before_anything_trains(boards, tmp_path):
    ganomaly = TINY.model_copy(update={"detector": recipe(detector={"kind": "ganomaly"}).detector})
    refused(ganomaly, boards, tmp_path, "learns from OK parts alone", arms=("half",))
    refused(TINY, boards, tmp_path, "leaves 1 NG", arms=("1 % of the NG + GAN placed",))
    refused(TINY, boards, tmp_path, "train split has no NG", arms=("half",), most_ng=0)
    wrong = TINY.model_copy(update={"detector": recipe(detector={"kind": "classifier", "preset": "huge"}).detector})
    refused(wrong, boards, tmp_path, "huge", arms=("half",))


@pytest.fixture(scope="module")
def finished(boards, tmp_path_factory):
    """Three arms × two seeds, really run."""
    folder = tmp_path_factory.mktemp("scarce-out")
    settings = Settings(seeds=(0, 1), arms=("half + GAN placed", "half + GAN placed, ratio ¼"), shares=(), device="cpu")
    said: list[str] = []
    return folder, settings, run(TINY, boards.parent, boards, settings, folder, said.append), said


def scores(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_arm_runs_with_every_seed_and_progress_is_told(finished):
    _, _, results, said = finished
    arms = ("half", "half + GAN placed", "half + GAN placed, ratio ¼")
    assert [(found["arm"], found["seed"]) for found in results] == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert said[1] == "3 arms × 2 seeds, 1 at a time"
    assert sorted(line[:4] for line in said[2:]) == [f"{n}/6 " for n in range(1, 7)]
    assert all("specificity" in line for line in said[2:])
    assert [found["synthetic_ng"] for found in results] == [0, 0, 6, 6, 6, 6]


def test_arms_differ_in_what_they_train_on_and_in_nothing_that_judges_them(finished, boards):
    folder, settings, results, _ = finished
    splits = base_splits(Manifest.read(boards), TINY, settings)
    seen = {}
    for path in sorted(folder.glob("seed*/*/splits.csv")):
        lines = scores(path)
        seen[path.parent] = {line["path"] for line in lines if line["split"] == "train"}
        for part in ("calibration", "test"):
            rows = getattr(splits, part)
            assert [line["path"] for line in lines if line["split"] == part] == [row.path for row in rows]
            scored = [line["path"] for line in scores(path.parent / "scores.csv") if line["set"] == part]
            assert scored == [row.path for row in rows]
    whole = {row.path for row in splits.train}
    by_seed = {seed: [p for folder, p in seen.items() if folder.parent.name == f"seed{seed}"] for seed in (0, 1)}
    for one in by_seed.values():
        assert len(one) == 3
        assert one[0] == one[1] == one[2] < whole
    assert by_seed[0][0] != by_seed[1][0]
    assert results[0]["n_ng"] == round(labels_of(splits)["train"][NG] / 2)


def test_what_is_done_is_not_run_again(finished, boards):
    folder, settings, results, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("seed*/**/*") if path.is_file()}
    said: list[str] = []
    assert run(TINY, boards.parent, boards, settings, folder, said.append) == results
    assert said[1].endswith("; 6 are done")
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("seed*/**/*") if path.is_file()}


def test_a_folder_with_arms_of_another_recipe_or_process_is_refused(finished, boards):
    folder, settings, _, _ = finished
    other = TINY.model_copy(update={"target_fnr": 0.2})
    with pytest.raises(UserError, match="arms of another recipe"):
        run(other, boards.parent, boards, settings, folder, lambda _: None)
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="Another process"):
        run(TINY, boards.parent, boards, settings, folder, lambda _: None)


def test_the_command_resumes_and_writes_result_and_page(finished, boards, tmp_path):
    folder, _, results, _ = finished
    written = boards.with_name("tiny.toml")
    written.write_text(TINY_TOML)
    page = tmp_path / "scarce.md"
    arms = ["--arm", "half + GAN placed", "--arm", "half + GAN placed, ratio ¼"]
    options = ["--seeds", "2", *arms, "--parallel", "1", "--json"]
    ran = CliRunner().invoke(
        bench_app(), ["scarce", str(written), *options, "--out", str(folder), "--report", str(page)]
    )
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    assert result == json.loads((folder / "result.json").read_text())
    assert result["results"] == results
    assert result["arms"] == json.loads(json.dumps(summary(results)))
    assert result["command"].startswith("kizu bench scarce tiny.toml --seeds 2 --arm 'half + GAN placed' --arm ")
    assert "12 groups" in page.read_text()
    assert str(folder) not in page.read_text() + ran.stdout
    assert (tmp_path / "scarce" / "arms.svg").exists()


def test_a_quick_run_has_its_own_arms_and_leaves_what_was_asked_for():
    quick = _settings(True, None, None, None, None, 50, 1, None, "cpu")
    assert (quick.seeds, quick.shares, quick.most_ng) == ((0, 1), (0.05,), 50)
    names = [arm.name for arm in chosen_arms(quick.arms, quick.shares, WITH_GAN, located=True)]
    assert names[-2:] == ["5 % of the NG", "5 % of the NG + GAN placed"]
    asked = _settings(True, 3, ["all"], [0.2], None, None, 1, None, "cpu")
    assert (asked.seeds, asked.arms, asked.shares) == ((0, 1, 2), ("all",), (0.2,))
    assert _settings(False, None, None, None, None, None, 1, None, "cpu").seeds == (0, 1, 2, 3, 4)


def test_arms_of_a_seed_share_a_generator_and_each_counts_what_it_cost(finished):
    folder, _, results, _ = finished
    for seed in (0, 1):
        files = [path.read_bytes() for path in folder.glob(f"seed{seed}/*/generator/{TRAINED_FILE}")]
        assert len(files) == 2
        assert files[0] == files[1]
        first, second = (found for found in results if found["seed"] == seed and found["synthetic_ng"])
        assert first["seconds"]["generator"] == second["seconds"]["generator"] > 0
        assert [stage for stage in first["stages"] if stage.startswith("generator/")]
        assert not [stage for stage in second["stages"] if stage.startswith("generator/")]
        assert second["seconds"]["total"] > second["seconds"]["generator"]
        assert not first["interrupted"]
        assert not second["interrupted"]


def test_the_cost_of_an_interrupted_generator_is_not_told_as_the_whole(tmp_path):
    lent, own = tmp_path / "lent", {"total": 9.0}
    lent.mkdir()
    assert not scarce._count_generator(lent, own, {"classifier": 5.0, "generator/adversarial": 2.0}, whole=False)
    assert own == {"total": 9.0, "generator": 2.0}
    borrower = {"total": 1.0}
    assert not scarce._count_generator(lent, borrower, {"classifier": 1.0}, whole=True)
    assert borrower == {"total": 3.0, "generator": 2.0}


def test_the_command_lists_its_arms():
    listed = CliRunner().invoke(bench_app(), ["scarce", "--list", "--share", "0.07"])
    assert listed.exit_code == 0
    assert listed.output.splitlines() == [arm.name for arm in known_arms((0.07,))]
