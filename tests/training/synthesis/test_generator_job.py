"""From NG crops to a trained generator: what is measured and written, held-out images, and runs that are cut short."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch import nn

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training import checkpoint
from kizu.training.data.batches import Batches
from kizu.training.data.crops import Crops, ng_crops
from kizu.training.data.render import render_boards
from kizu.training.evaluation import features
from kizu.training.execution import Execution
from kizu.training.generators import configure
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAMethod
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.loop import Interrupted, LoopSettings
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection
from kizu.training.run import GENERATOR_FILE, METRICS_FILE
from kizu.training.synthesis import generator_job
from kizu.training.synthesis.generator_job import DefectImages, GeneratorJob
from kizu.training.synthesis.metrics import append_metrics, read_metrics
from kizu.training.synthesis.report import interpolation

QUICK = LoopSettings(checkpoint_seconds=1e9, control_every=1, sample_every=10**9)
TINY = {"latent": 16, "mapping_layers": 2, "capacity": 128, "max_channels": 16, "r1_every": 4, "path_length_every": 2}


class Pooled:
    """Features for free: an image, reduced to 4×4."""

    name = "pooled"
    is_inception = False

    def __call__(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, 4).flatten(1)


class Said(RunLog):
    """A log that keeps what it is told."""

    def __init__(self):
        super().__init__(None, quiet=True)
        self.lines, self.seen = [], []

    def say(self, text):
        self.lines.append(text)

    def scalars(self, stage, values, step):
        del stage
        self.seen.append((step, values))


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Defects of rendered boards, 32×32."""
    root = tmp_path_factory.mktemp("boards") / "boards"
    manifest = render_boards(root, boards=4, count_ok=1, count_ng=28, size=48, channels=1)
    return ng_crops(manifest, manifest.rows, InputGeometry(height=32, width=32, channels=1), crop=24)


def job(crops, folder, *, conditional=True, steps=8, log=None, seed=0, extractor=True, resume=False, **changes):
    options = TINY | changes.pop("options", {})
    section = GeneratorSection(
        **({"kind": "stylegan2-ada", "kimg": steps * 4 / 1000, "batch_size": 4, "measurements": 0} | changes),
        options=options,
    )
    images = DefectImages.of(crops, conditional)
    found = Pooled() if extractor else None
    log = log or RunLog(None, quiet=True)
    execution = Execution(log, torch.device("cpu"), resume=resume, settings=QUICK)
    return GeneratorJob(section, images, seed, folder, "boards", execution, extractor=found)


def tensors(folder):
    return torch.load(folder / GENERATOR_FILE, weights_only=True)["network"]


def assert_identical(a, b):
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_crops_become_classes_by_name_and_by_the_first_of_several(crops):
    found = DefectImages.of(crops, True)
    assert found.conditional
    assert found.classes == sorted(set(crops.classes))
    assert [found.classes[k] for k in found.labels] == crops.classes
    assert sum(found.counts) == len(crops) == len(found.pixels)
    several = Crops(crops.images[:3], ["short+open", "open", "short"], crops.sources[:3])
    assert DefectImages.of(several, True).labels.tolist() == [1, 0, 1]
    assert DefectImages.of(several, True).counts == [1, 2]
    plain = DefectImages.of(crops, False)
    assert not plain.conditional
    assert not plain.labels.any()
    alike = Crops(crops.images[:3], ["open"] * 3, crops.sources[:3])
    assert not DefectImages.of(alike, True).conditional, "one class is none"


def test_a_generator_of_boards_is_trained_measured_and_written(crops, tmp_path):
    log = Said()
    made = job(crops, tmp_path / "new" / "generator", measurements=2, log=log)
    generator = made.train()
    lines = read_metrics(made.folder)
    assert [line["step"] for line in lines] == [4, 8]
    for line in lines:
        assert line["kimg"] == pytest.approx(line["step"] * 4 / 1000)
        assert line["kid"]["lower"] <= line["kid"]["value"] <= line["kid"]["upper"]
        assert line["floor"]["lower"] <= line["floor"]["value"] <= line["floor"]["upper"]
        assert 0 <= line["p"] <= 0.8
        assert -1 <= line["r"] <= 1
        assert line["extractor"] == "pooled"
        assert line["fid"] is None
        assert (line["n_real"], line["n_fake"]) == (len(crops), 200)
        assert line["nearest"]["median_ratio"] >= 0
    assert [step for step, values in log.seen if "kid" in values] == [4, 8]
    assert generator.classes == sorted(set(crops.classes))
    assert generator.run == made.run
    assert made.run.startswith("boards@")
    assert_identical(tensors(made.folder), generator.network.state_dict())
    loaded = TrainedGenerator.load(made.folder)
    numbers = loaded.class_numbers(4)
    assert torch.equal(loaded.images(range(4), numbers), generator.images(range(4), numbers))
    walk = interpolation(loaded, stations=3, between=4)
    assert walk.shape == (12, 1, 32, 32)
    assert (walk[0].int() - walk[1].int()).abs().float().mean() <= (walk[0].int() - walk[4].int()).abs().float().mean()


def test_the_features_of_real_images_are_computed_once(crops, tmp_path):
    made = job(crops, tmp_path, measurements=3)
    seen = []

    class Counting(Pooled):
        def __call__(self, images):
            seen.append(len(images))
            return super().__call__(images)

    made.extractor = Counting()
    made.train()
    assert len(read_metrics(tmp_path)) == 3
    assert seen == [len(crops), 200, 200, 200]


def test_measuring_leaves_no_trace_in_the_weights(crops, tmp_path, monkeypatch):
    true = features.train_extractor
    monkeypatch.setattr(generator_job, "train_extractor", lambda images, seed: true(images, seed=seed, steps=2))
    job(crops, tmp_path / "0", steps=5).train()
    job(crops, tmp_path / "2", steps=5, measurements=2, extractor=False).train()
    assert not (tmp_path / "0" / METRICS_FILE).exists()
    assert [line["step"] for line in read_metrics(tmp_path / "2")] == [3, 5]
    assert_identical(tensors(tmp_path / "0"), tensors(tmp_path / "2"))


def test_a_measurement_that_is_repeated_takes_the_place_of_the_old_one(tmp_path):
    for step, value in ((5, 0.1), (10, 0.2), (15, 0.3), (10, 0.4), (20, 0.5)):
        append_metrics(tmp_path, {"step": step, "value": value})
    assert read_metrics(tmp_path) == [
        {"step": 5, "value": 0.1},
        {"step": 10, "value": 0.4},
        {"step": 20, "value": 0.5},
    ]
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_metrics(tmp_path, {"step": 30, "value": float("nan")})
    assert len(read_metrics(tmp_path)) == 3
    assert read_metrics(tmp_path / "nowhere") == []


class Watched(Batches):
    """Batches that remember what they gave."""

    given: list

    def at(self, indices):
        batch = super().at(indices)
        self.given.extend(batch.images)
        return batch


def test_images_held_out_for_r_v_never_appear_in_a_batch(crops, tmp_path, monkeypatch):
    methods: list[StyleGAN2ADAMethod] = []

    class Kept(StyleGAN2ADAMethod):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            methods.append(self)

    Watched.given = []
    monkeypatch.setattr(generator_job, "Batches", Watched)
    monkeypatch.setattr(generator_job, "StyleGAN2ADAMethod", Kept)
    job(crops, tmp_path, steps=8, options={"ada_heuristic": "r_v"}).train()
    held_out = methods[0].held_out
    assert held_out is not None
    assert len(held_out.images) == round(0.1 * len(crops))
    whole = {image.numpy().tobytes() for image in crops.images}
    assert len(whole) == len(crops), "the test needs images that differ"

    def pixels(images):
        return {((image + 1) * 127.5).round().to(torch.uint8).numpy().tobytes() for image in images}

    apart = pixels(held_out.images)
    assert len(apart) == len(held_out.images)
    assert pixels(Watched.given) == whole - apart, "every other image was seen"
    names = {image.numpy().tobytes(): name for image, name in zip(crops.images, crops.classes, strict=True)}
    classes = sorted(set(crops.classes))
    for image, label in zip(held_out.images, held_out.labels, strict=True):
        assert names[next(iter(pixels([image])))] == classes[label]


def test_no_class_loses_its_last_image_to_the_images_held_out(crops, tmp_path):
    names = [f"class{min(k, 8)}" for k in range(10)]
    few = Crops(crops.images[:10], names, crops.sources[:10])
    for seed in range(8):
        made = job(few, tmp_path, seed=seed, options={"ada_heuristic": "r_v"})
        config = configure(made.section, (32, 32), 1, 9)[1]
        training, held_out = made._held_out(config)
        assert held_out is not None
        assert (training.labels.bincount(minlength=9) >= 1).all()
        assert held_out.labels.tolist() == [8]
    alone = Crops(crops.images[:2], ["open", "short"], crops.sources[:2])
    with pytest.raises(UserError, match="too few NG images to hold any out"):
        job(alone, tmp_path, options={"ada_heuristic": "r_v"}).train()


def test_one_image_is_not_enough(crops, tmp_path):
    with pytest.raises(UserError, match="One NG image is not enough"):
        job(Crops(crops.images[:1], ["open"], crops.sources[:1]), tmp_path).train()


def test_what_decides_the_weights_is_in_the_identity_and_nothing_else(crops, tmp_path):
    plain = job(crops, tmp_path).identity
    for same in ({"measurements": 3}, {"count": 9}, {"truncation": 0.5}, {"inception": "x.pt"}, {"placed": True}):
        assert job(crops, tmp_path, **same).identity == plain
    assert job(crops, tmp_path, filter="discriminator", keep=0.2).identity == plain
    assert job(crops, tmp_path, placed=True, options={"blend": "poisson"}).identity == plain
    others = [
        job(crops, tmp_path, seed=1),
        job(crops, tmp_path, conditional=False),
        job(crops, tmp_path, steps=9),
        job(crops, tmp_path, augment="none"),
        job(crops, tmp_path, options={"r1": 3.0}),
        job(Crops(crops.images.flip(0), crops.classes, crops.sources), tmp_path),
    ]
    assert len({plain, *(other.identity for other in others)}) == 1 + len(others)


def test_a_checkpoint_of_another_recipe_is_refused(crops, tmp_path):
    job(crops, tmp_path, steps=1).train()
    with pytest.raises(UserError, match="belongs to another recipe or data set"):
        job(crops, tmp_path, steps=2, resume=True).train()


def test_a_run_starts_from_another_and_says_what_it_took(crops, tmp_path):
    job(crops, tmp_path / "first" / "generator", steps=2).train()
    log = Said()
    second = job(crops, tmp_path / "second", steps=1, log=log, start_from="first")
    second.start = tmp_path / "first"
    second.train()
    assert any("tensors match" in line for line in log.lines)
    other = job(crops, tmp_path / "third", start_from="first", options={"latent": 8})
    other.start = tmp_path / "first"
    with pytest.raises(UserError, match="are not those of this recipe"):
        other.train()


def test_a_job_that_is_stopped_and_resumed_leaves_what_one_left_alone_does(crops, tmp_path, stop_at):
    job(crops, tmp_path / "whole", measurements=4).train()
    with pytest.raises(Interrupted):
        job(crops, tmp_path / "parts", measurements=4, log=stop_at(5, "G/total")).train()
    assert not (tmp_path / "parts" / GENERATOR_FILE).exists()
    job(crops, tmp_path / "parts", measurements=4, resume=True).train()
    assert_identical(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_a_job_killed_with_9_and_resumed_leaves_what_one_left_alone_does(crops, tmp_path):
    steps = 40
    torch.save({"images": crops.images, "classes": crops.classes}, tmp_path / "crops.pt")
    section = job(crops, tmp_path, steps=steps).section
    (tmp_path / "section.json").write_text(json.dumps(section.model_dump(mode="json")))
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, sys, torch
        from pathlib import Path
        from kizu.training.data.crops import Crops
        from kizu.training.execution import Execution
        from kizu.training.loop import LoopSettings
        from kizu.training.progress import RunLog
        from kizu.training.recipe import GeneratorSection
        from kizu.training.synthesis.generator_job import DefectImages, GeneratorJob

        class Pooled:
            name, is_inception = "pooled", False
            def __call__(self, images):
                return torch.nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, 4).flatten(1)

        torch.set_num_threads({torch.get_num_threads()})
        root = Path(sys.argv[1])
        found = torch.load(root / "crops.pt", weights_only=True)
        section = GeneratorSection(**json.loads((root / "section.json").read_text()))
        images = DefectImages.of(Crops(found["images"], found["classes"], []), True)
        settings = LoopSettings(checkpoint_seconds=0, control_every=3, sample_every=10**9)
        execution = Execution(RunLog(None, quiet=True), torch.device("cpu"), settings=settings)
        GeneratorJob(section, images, 0, root / "killed", "boards", execution, extractor=Pooled()).train()
        """)
    )
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    try:
        while not (killed / checkpoint.FILE).exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    state = checkpoint.load(killed)
    assert state is not None
    assert 0 < state["step"] < steps
    job(crops, killed, steps=steps, resume=True).train()
    job(crops, tmp_path / "whole", steps=steps).train()
    assert_identical(tensors(tmp_path / "whole"), tensors(killed))
