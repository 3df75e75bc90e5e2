"""Running a study: which rows arms see, what is done once, and what is refused before anything trains."""

from __future__ import annotations

import csv
import json
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.render import render_boards
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.recipe import Recipe, SplitsSection, parse_recipe
from kizu.training.run import GENERATOR_FILE as TRAINED_FILE
from kizu.training.study.arms import HALF, Arm, Remedy, Source, known_arms, parse_choices
from kizu.training.study.cli import bench_app
from kizu.training.study.generator_cache import add_generator_cost, generator_key
from kizu.training.study.results import ArmResult, summary
from kizu.training.study.run import Study, StudySettings, base_splits, run


def labels_of(splits: Splits) -> dict[str, Counter[str]]:
    return {name: Counter(row.label for row in getattr(splits, name)) for name in ("train", "calibration", "test")}


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def with_detector(**section: Any) -> Recipe:
    return parse_recipe(tomllib.loads(TINY_TOML) | {"detector": section}, "test")


def study_of(recipe: Recipe, boards: Path, folder: Path, settings: StudySettings) -> Study:
    return Study(recipe, boards.parent, boards, settings, folder)


def silent(line: str) -> None:
    del line


def test_caps_hold_in_each_split_and_keep_groups_apart(boards: Path) -> None:
    manifest = Manifest.read(boards)
    capped = base_splits(manifest, TINY, StudySettings(most_ok=20, most_ng=7))
    assert all(counts == {OK: 20, NG: 7} for counts in labels_of(capped).values())
    groups = [{row.group for row in rows} for rows in (capped.train, capped.calibration, capped.test)]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert labels_of(base_splits(manifest, TINY, StudySettings())) == labels_of(assign_splits(manifest))


def test_synthetic_rows_of_a_data_set_take_no_part(boards: Path) -> None:
    manifest = Manifest.read(boards)
    made = Row("made.png", NG, origin="stylegan2-ada:run@0:1")
    more = base_splits(Manifest(boards, [*manifest.rows, made]), TINY, StudySettings())
    assert more == base_splits(manifest, TINY, StudySettings())


def refused(recipe: Recipe, boards: Path, folder: Path, message: str, arm: Arm, **settings: Any) -> None:
    with pytest.raises(UserError, match=message):
        run(study_of(recipe, boards, folder, StudySettings(seeds=(0,), arms=(arm,), **settings)), silent)
    assert not list(folder.rglob("*.json"))


def test_what_no_arm_could_use_is_refused_before_anything_trains(boards: Path, tmp_path: Path) -> None:
    refused(with_detector(kind="ganomaly"), boards, tmp_path, "learns from OK parts alone", Arm(HALF))
    [few] = parse_choices(["1 % of the NG + GAN placed"], (0.01,))
    assert isinstance(few, Arm)
    refused(TINY, boards, tmp_path, r"'1 % of the NG \+ GAN placed' leaves 1 NG", few, shares=(0.01,))
    refused(TINY, boards, tmp_path, "train split has no NG", Arm(HALF), most_ng=0)
    refused(with_detector(kind="classifier", preset="huge"), boards, tmp_path, "huge", Arm(HALF))


PLACED, QUARTER = Arm(HALF, Source.GAN_PLACED), Arm(HALF, Source.GAN_PLACED, remedy=Remedy.QUARTER_RATIO)
Finished = tuple[Study, list[ArmResult], list[str]]


@pytest.fixture(scope="module")
def finished(boards: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three arms × two seeds, really run."""
    settings = StudySettings(seeds=(0, 1), arms=(PLACED, QUARTER), shares=(), device="cpu")
    study = study_of(TINY, boards, tmp_path_factory.mktemp("scarce-out"), settings)
    said: list[str] = []
    return study, run(study, said.append), said


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_arm_runs_with_every_seed_and_progress_is_shown(finished: Finished) -> None:
    _, results, said = finished
    arms = (Arm(HALF), PLACED, QUARTER)
    assert [(found.arm, found.seed) for found in results] == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert said[1] == "3 arms × 2 seeds, 1 at a time"
    assert sorted(line[:4] for line in said[2:]) == [f"{n}/6 " for n in range(1, 7)]
    assert all("specificity" in line for line in said[2:])
    assert [found.synthetic_ng for found in results] == [0, 0, 6, 6, 6, 6]


def test_arms_differ_in_what_they_train_on_and_in_nothing_that_judges_them(finished: Finished, boards: Path) -> None:
    study, results, _ = finished
    splits = base_splits(Manifest.read(boards), TINY, study.settings)
    seen = {}
    for path in sorted(study.folder.glob("seed*/*/splits.csv")):
        lines = lines_of(path)
        seen[path.parent] = {line["path"] for line in lines if line["split"] == "train"}
        for part in ("calibration", "test"):
            rows = getattr(splits, part)
            assert [line["path"] for line in lines if line["split"] == part] == [row.path for row in rows]
            scored = [line["path"] for line in lines_of(path.parent / "scores.csv") if line["set"] == part]
            assert scored == [row.path for row in rows]
    whole = {row.path for row in splits.train}
    by_seed = {seed: [p for folder, p in seen.items() if folder.parent.name == f"seed{seed}"] for seed in (0, 1)}
    for one in by_seed.values():
        assert len(one) == 3
        assert one[0] == one[1] == one[2] < whole
    assert by_seed[0][0] != by_seed[1][0]
    assert results[0].n_ng == round(labels_of(splits)["train"][NG] / 2)


def test_the_study_leaves_the_certification_split_alone(boards: Path) -> None:
    manifest = Manifest.read(boards)
    shares = SplitsSection(train=0.4, calibration=0.2, test=0.2, certification=0.2)
    recipe = TINY.model_copy(update={"splits": shares})
    reserved = assign_splits(manifest, recipe.seed, shares.fractions, shares.certification).certification
    splits = base_splits(manifest, recipe, StudySettings())
    assert reserved
    assert not splits.certification
    assert not {row.path for row in splits.rows} & {row.path for row in reserved}


def files_of(study: Study) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in study.folder.glob("seed*/**/*") if path.is_file()}


def test_what_is_done_is_not_run_again(finished: Finished) -> None:
    study, results, _ = finished
    before = files_of(study)
    said: list[str] = []
    assert run(study, said.append) == results
    assert said[1].endswith("; 6 are done")
    assert before == files_of(study)


def test_a_folder_with_arms_of_another_recipe_or_process_is_refused(finished: Finished) -> None:
    study, _, _ = finished
    with pytest.raises(UserError, match="arms of another recipe"):
        run(replace(study, recipe=TINY.model_copy(update={"target_fnr": 0.2})), silent)
    with FileLock(study.folder / ".lock"), pytest.raises(UserError, match="Another process"):
        run(study, silent)


def test_a_folder_of_an_earlier_format_is_refused_and_left_alone(boards: Path, tmp_path: Path) -> None:
    earlier = json.dumps([{"recipe": TINY.model_dump(mode="json"), "most": [None, None]}, "ab" * 32], indent=1)
    (tmp_path / "settings.json").write_text(earlier)
    study = study_of(TINY, boards, tmp_path, StudySettings(seeds=(0,), arms=(Arm(HALF),), device="cpu"))
    with pytest.raises(UserError, match="another version of Kizu") as refusal:
        run(study, silent)
    assert "Give --out a new folder" in str(refusal.value.remedy)
    assert (tmp_path / "settings.json").read_text() == earlier


def command_options(boards: Path, study: Study) -> list[str]:
    written = boards.with_name("tiny.toml")
    written.write_text(TINY_TOML)
    arms = ["--arm", "half + GAN placed", "--arm", "half + GAN placed, ratio ¼"]
    return ["scarce", str(written), "--seeds", "2", *arms, "--parallel", "1", "--out", str(study.folder)]


def test_the_command_resumes_and_writes_result_and_page(finished: Finished, boards: Path, tmp_path: Path) -> None:
    study, results, _ = finished
    page = tmp_path / "scarce.md"
    ran = CliRunner().invoke(bench_app(), [*command_options(boards, study), "--json", "--report", str(page)])
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    assert result == json.loads((study.folder / "result.json").read_text())
    assert result["results"] == [found.as_dict() for found in results]
    assert result["arms"] == [found.as_dict() for found in summary(results)]
    assert result["settings"]["arms"] == ["half + GAN placed", "half + GAN placed, ratio ¼"]
    assert result["command"].startswith("kizu bench scarce tiny.toml --seeds 2 --arm 'half + GAN placed' --arm ")
    assert "12 groups" in page.read_text()
    assert str(study.folder) not in page.read_text() + ran.stdout
    assert (tmp_path / "scarce" / "arms.svg").exists()


def test_without_json_the_command_prints_the_findings(finished: Finished, boards: Path) -> None:
    study, _, _ = finished
    ran = CliRunner().invoke(bench_app(), command_options(boards, study))
    assert ran.exit_code == 0, ran.output
    assert "half + GAN placed, ratio ¼" in ran.stdout
    assert "Only 2 seeds" in ran.stdout


def test_arms_of_a_seed_share_a_generator_and_each_counts_what_it_cost(finished: Finished) -> None:
    study, results, _ = finished
    for seed in (0, 1):
        files = [path.read_bytes() for path in study.folder.glob(f"seed{seed}/*/generator/{TRAINED_FILE}")]
        assert len(files) == 2
        assert files[0] == files[1]
        first, second = (found for found in results if found.seed == seed and found.synthetic_ng)
        assert first.seconds["generator"] == second.seconds["generator"] > 0
        assert [stage for stage in first.stages if stage.startswith("generator/")]
        assert not [stage for stage in second.stages if stage.startswith("generator/")]
        assert second.seconds["total"] > second.seconds["generator"]
        assert not first.interrupted
        assert not second.interrupted


def test_the_cost_of_an_interrupted_generator_is_not_given_as_the_whole(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    first = {"total": 9.0}
    assert not add_generator_cost(tmp_path, first, {"classifier": 5.0, "generator/adversarial": 2.0}, complete=False)
    assert first == {"total": 9.0, "generator": 2.0}
    second = {"total": 1.0}
    assert not add_generator_cost(tmp_path, second, {"classifier": 1.0}, complete=True)
    assert second == {"total": 3.0, "generator": 2.0}


def test_arms_share_a_generator_only_where_it_is_trained_alike() -> None:
    sharing: dict[str | None, list[str]] = {}
    for arm in known_arms((0.05,)):
        sharing.setdefault(generator_key(arm), []).append(arm.label)
    del sharing[None]
    placed = "half + GAN placed"
    alike = ["", " + classic", ", filtered by D", ", filtered by a classifier", ", ratio ¼", ", falling weight"]
    assert sorted(sharing.values()) == sorted(
        [
            [placed + suffix for suffix in alike],
            [f"{placed}, classes mixed"],
            [f"{placed}, trained 3 times as long"],
            ["half + GAN whole", "half + GAN whole as a class of its own"],
            *([f"{base} + {source}"] for base in ("all", "5 % of the NG") for source in ("GAN placed", "GAN whole")),
        ]
    )


def test_the_command_lists_its_arms() -> None:
    listed = CliRunner().invoke(bench_app(), ["scarce", "--list", "--share", "0.07"])
    assert listed.exit_code == 0
    assert listed.output.splitlines() == [arm.label for arm in known_arms((0.07,))]
