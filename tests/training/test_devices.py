"""Training on a GPU, on a pretended one: nothing mixes devices, and no step waits for the device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kizu.models.bundle import InputGeometry
from kizu.training import checkpoint, pipeline
from kizu.training.data.batches import Batches, LabelledBatches, Stratum
from kizu.training.data.crops import ng_crops
from kizu.training.data.render import render_boards
from kizu.training.data.synthetic import SyntheticBatch
from kizu.training.detectors import DETECTORS, create_detector
from kizu.training.detectors.method import DetectorMethod
from kizu.training.evaluation import features
from kizu.training.evaluation.features import InceptionExtractor
from kizu.training.execution import Execution
from kizu.training.generators.views import NgViews
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, GeneratorSection
from kizu.training.synthesis import filtering, generator_job
from kizu.training.synthesis.generator_job import DefectImages, GeneratorJob
from kizu.training.training_set import HeldOut, TrainingSet

from ..conftest import SMALL
from .pretended_gpu import GPU, HostWaitError, MixedDevicesError, pretended_gpu

GEOMETRY = InputGeometry(height=32, width=32, channels=1)
QUICK = LoopSettings(checkpoint_seconds=1e9, control_every=1, sample_every=2)
TINY = {"latent": 16, "mapping_layers": 2, "capacity": 128, "max_channels": 16, "r1_every": 2, "path_length_every": 2}
LABELLED = ("classifier", "semi-supervised", "supersimplenet")


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU that no training step may wait for."""
    with pretended_gpu() as pretended:
        run_step = TrainingLoop._run_step

        def watched(loop, stage):
            with pretended.step():
                return run_step(loop, stage)

        monkeypatch.setattr(TrainingLoop, "_run_step", watched)
        yield pretended


def noise(count=16):
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8)


def labelled_batches(device, count=16):
    """OK and NG, half of these synthetic, one of two classes each, with masks for some and an unlabelled stratum."""
    labels = (torch.arange(count) % 2) - (torch.arange(count) >= count - 4).long() * 2
    ng = torch.nonzero(labels == 1)[:, 0]
    mask_of = torch.where(labels == 1, torch.arange(count) % 3, 0)
    return LabelledBatches(
        noise(count),
        0,
        labels=labels.clamp(min=-1),
        masks=torch.cat([torch.zeros(1, 1, 32, 32), 255 * torch.ones(2, 1, 32, 32)]).to(torch.uint8),
        mask_of=mask_of,
        weights=torch.ones(count),
        defects=torch.where(labels == 1, 1 + torch.arange(count) % 2, 0),
        synthetic=(labels == 1) & (torch.arange(count) % 4 == 1),
        strata=[
            Stratum(torch.nonzero(labels == 0)[:, 0], 3),
            Stratum(ng, 3),
            Stratum(torch.nonzero(labels < 0)[:, 0], 2),
        ],
        epoch=count,
        device=device,
    )


def train(method, batches, folder):
    log = RunLog(None, quiet=True)
    method.networks.to(GPU)
    method.prepare(TrainingSet(batches), log)
    loop = TrainingLoop(method, batches, folder, identity="x", log=log, settings=QUICK)
    loop.run()
    return loop


@pytest.mark.usefixtures("gpu")
def test_the_pretended_gpu_refuses_to_mix_devices():
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.is_cuda
    assert (there * torch.tensor(2.0)).is_cuda
    with pytest.raises(MixedDevicesError, match="mul"):
        here * there
    with pytest.raises(MixedDevicesError, match="index"):
        here[torch.tensor([0], device="cuda")]
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    leaf = torch.ones(3, device="cuda", requires_grad=True)
    (leaf * leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.is_cuda


def test_a_step_on_the_pretended_gpu_cannot_wait_for_it(gpu):
    there = torch.ones(3, device="cuda")
    waits: list[Callable[[torch.Tensor], Any]] = [
        lambda x: bool(x.sum()),
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
    ]
    for wait in waits:
        wait(there)
        with gpu.step(), pytest.raises(HostWaitError):
            wait(there)


@pytest.mark.parametrize("kind", [kind for kind in DETECTORS if kind not in LABELLED])
@pytest.mark.usefixtures("gpu")
def test_a_detector_of_ok_parts_trains_on_a_gpu(kind, tmp_path):
    section = DetectorSection(kind=kind, options=dict(SMALL[kind]), epochs=2, batch_size=8)
    method = create_detector(GEOMETRY, section)
    batches = Batches(noise(), 8, 0, device=GPU)
    train(method, batches, tmp_path)
    method.finish(TrainingSet(batches))
    score, heatmap = method.detector().eval()(batches.at(torch.arange(4)).images)
    assert score.device == heatmap.device == GPU


@pytest.mark.usefixtures("gpu")
def test_a_resumed_run_has_its_optimisers_on_the_gpu(tmp_path):
    section = DetectorSection(kind="ganomaly", options=dict(SMALL["ganomaly"]), epochs=2, batch_size=8)
    batches = Batches(noise(), 8, 0, device=GPU)
    train(create_detector(GEOMETRY, section), batches, tmp_path)
    method = create_detector(GEOMETRY, section)
    method.networks.to(GPU)
    loop = TrainingLoop(method, batches, tmp_path, identity="x", log=RunLog(None, quiet=True), settings=QUICK)
    assert loop.resume()
    for phase in loop.stages[0].phases:
        moments = [state["exp_avg"] for state in phase.optimizer.state.values()]
        assert moments
        assert {moment.device for moment in moments} == {GPU}
    loop._run_step(loop.stages[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("classifier", {"loss": loss}) for loss in ("bce", "pauc", "neyman-pearson")]
    + [("semi-supervised", {"classes": "defects"}), ("semi-supervised", {"synthetic": "ng", "matching": "l2"})]
    + [("supersimplenet", {"views": 2}), ("supersimplenet", {"truncation": 0.5})],
)
@pytest.mark.usefixtures("gpu")
def test_a_detector_of_labelled_parts_trains_on_a_gpu(kind, options, tmp_path):
    section = DetectorSection(kind=kind, options=SMALL[kind] | options, epochs=2, batch_size=8)
    turned = AugmentSection(flip_horizontal=True, quarter_turns=True, scale=0.1)
    method = create_detector(GEOMETRY, section, turned, defects=("open", "short"))
    batches = labelled_batches(GPU)
    train(method, batches, tmp_path)
    held_out = HeldOut(noise(8), torch.arange(8), torch.arange(8) % 2)
    method.finish(TrainingSet(batches, held_out))
    assert method.detector()(batches.at(torch.arange(4)).images)[0].device == GPU


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Defects of rendered boards, 32×32."""
    root = tmp_path_factory.mktemp("boards") / "boards"
    manifest = render_boards(root, boards=4, count_ok=1, count_ng=20, size=48, channels=1)
    return ng_crops(manifest, manifest.rows, GEOMETRY, crop=24)


class Pooled:
    """Features for free: an image, reduced to 4×4."""

    name = "pooled"
    is_inception = False

    def __call__(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, 4).flatten(1).cpu()


def gan_job(crops, folder, *, conditional=True, resume=False, extractor=None, **changes):
    fields = {"kind": "stylegan2-ada", "kimg": 0.008, "batch_size": 4, "measurements": 0} | changes
    section = GeneratorSection.model_validate(fields | {"options": TINY | changes.get("options", {})})
    log = RunLog(None, quiet=True)
    execution = Execution(log, GPU, resume=resume, settings=QUICK)
    images = DefectImages.of(crops, conditional)
    return GeneratorJob(section, images, 0, folder, "small", execution, extractor=extractor or Pooled())


GANS: list[dict[str, Any]] = [
    {},
    {"conditional": False, "augment": "diffaugment", "options": {"loss": "hinge", "spectral_norm": True}},
    {"augment": "none", "options": {"loss": "wgan-gp", "critic_updates": 2, "consistency": "icr"}},
    {
        "options": {"ada_heuristic": "r_v", "ada_start": 0.5},
        "augmentations": {"band_filter": True, "noise": True, "cutout": True},
    },
    {"options": {"loss": "lsgan", "prior": "bourgain", "consistency": "bcr", "style_mixing": 0.0}},
]


@pytest.mark.parametrize("changes", GANS, ids=lambda changes: str(changes.get("options", "defaults")))
@pytest.mark.usefixtures("gpu")
def test_stylegan2_trains_on_a_gpu(crops, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(generator_job, "LEAST_MEASURED", 8)
    monkeypatch.setattr(generator_job, "MOST_MEASURED", 8)
    generator = gan_job(crops, tmp_path, measurements=1, **changes).train()
    assert {p.device for p in generator.network.parameters()} == {GPU}
    assert not generator.sample([1, 2], [0, 0], 0.7).images.is_cuda
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert {name.partition(".")[0] for name in state["networks"]} - {"prior"} == {"G", "D", "ada", "path_length"}


def test_measured_features_are_computed_on_the_gpu(gpu, crops, tmp_path, monkeypatch):
    true = features.train_extractor
    monkeypatch.setattr(generator_job, "train_extractor", lambda images, seed: true(images, seed=seed, steps=2))
    job = gan_job(crops, tmp_path)
    job.extractor = None
    extractor = job.measured_against.extractor
    assert isinstance(extractor, features.ContrastiveExtractor)
    assert {tensor.device for tensor in extractor.state_dict().values()} == {GPU}
    assert job.measured_against.compare(noise()).kid.value > 0
    assert "convolution" in gpu.seen


def test_inception_measures_on_the_gpu(crops, tmp_path, monkeypatch):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8))
    monkeypatch.setattr(generator_job, "load_inception", lambda _: InceptionExtractor("small", False, Scaled(network)))
    with pretended_gpu():
        job = gan_job(crops, tmp_path)
        job.extractor, job.inception = None, tmp_path / "weights.pth"
        assert job.measured_against.compare(noise()).n_fake == 16
        assert {p.device for p in network.parameters()} == {GPU}


class Scaled(nn.Module):
    """A network behind the scaling of bytes to [−1, 1]."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.float() / 127.5 - 1)


@pytest.mark.usefixtures("gpu")
def test_the_classifier_filters_on_a_gpu(tmp_path):
    execution = Execution(RunLog(None, quiet=True), GPU, settings=QUICK)
    masks = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    masks[:, :, 8:16, 8:16] = 255
    ng = NgViews(noise(4), masks, ["open"] * 4)
    rate = filtering.classifier_rating(noise(4), ng, GEOMETRY, tmp_path, execution, seed=0, steps=1)
    rating = rate(SyntheticBatch(noise(3), ["open"] * 3, [0, 1, 2]), [0, 0, 0])
    assert rating.device == GPU


RECIPE = """\
name = "gpu"
dataset = "boards"
target_fnr = 0.3

[image]
size = 32
channels = 1

[generator]
kind = "stylegan2-ada"
preset = "demo"
kimg = 0.016
count = 4
batch_size = 8
measurements = 0
crop = 24
placed = true
filter = "discriminator"

[generator.options]
capacity = 128
latent = 16
candidates = 64

[[detector]]
kind = "memory"
preset = "discriminator"
batch_size = 8
options = { memory = 20 }

[[detector]]
kind = "classifier"
epochs = 1
batch_size = 16
options = { features = 4, loss = "pauc" }
"""


@pytest.mark.usefixtures("gpu")
def test_a_run_with_placed_and_filtered_synthetic_ng_trains_on_a_gpu(tmp_path, monkeypatch):
    trained: list[DetectorMethod] = []
    # What follows runs on the CPU: ONNX export and the graph's session.
    monkeypatch.setattr(pipeline, "_finish", lambda _run, members, _ng, _notes, _log: trained.extend(members))
    render_boards(tmp_path / "boards", boards=8, count_ok=40, count_ng=40, size=32, channels=1)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    pipeline.train(tmp_path / "recipe.toml", tmp_path / "run", device="cuda", quiet=True)
    for method in trained:
        tensors = method.detector().state_dict()
        assert {name for name, tensor in tensors.items() if tensor.device != GPU} == set()
    assert len(trained) == 2
