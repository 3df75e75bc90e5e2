from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kizu.errors import UserError
from kizu.training.data.render import render_boards
from kizu.training.evaluation import features
from kizu.training.evaluation.features import (
    CONTRASTIVE,
    DIMENSIONS,
    ContrastiveExtractor,
    load_extractor,
    load_inception,
    nt_xent,
    train_extractor,
)
from kizu.training.evaluation.kid_fid import compare_images, kid, real_floor


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> Tensor:
    """120 NG images of rendered boards, in random order."""
    manifest = render_boards(tmp_path_factory.mktemp("ng") / "boards", boards=12, count_ok=1, count_ng=120, size=32)
    rows = [row for row in manifest.rows if row.label == "NG"]
    images = [torch.from_numpy(np.array(Image.open(manifest.root / row.path))).permute(2, 0, 1) for row in rows]
    return torch.stack(images)[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def extractor(boards: Tensor) -> ContrastiveExtractor:
    return train_extractor(boards[:60], steps=60)


def blurred(images: Tensor, weight: float) -> Tensor:
    """Images mixed with their 3 × 3 mean."""
    mean = F.avg_pool2d(F.pad(images.float(), (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    return torch.lerp(images.float(), mean, weight).round().byte()


def shuffled(images: Tensor) -> Tensor:
    quarters = [images[..., i : i + 16, j : j + 16] for i in (0, 16) for j in (0, 16)]
    top, bottom = torch.cat([quarters[3], quarters[0]], -1), torch.cat([quarters[1], quarters[2]], -1)
    return torch.cat([top, bottom], -2)


def test_features_are_standardised_over_their_training_images(extractor: ContrastiveExtractor, boards: Tensor) -> None:
    of = extractor(boards[:60])
    assert (of.shape, of.dtype, of.requires_grad) == ((60, DIMENSIONS), torch.float32, False)
    assert of.mean(dim=0).abs().max() < 1e-4
    assert (of.std(dim=0) - 1).abs().max() < 1e-3
    assert extractor.name == CONTRASTIVE
    assert not extractor.is_inception
    # Batches are not seen in the features.
    torch.testing.assert_close(extractor(boards[:1]), of[:1], atol=1e-4, rtol=1e-4)


def test_degraded_images_lie_above_the_real_floor_by_degree(extractor: ContrastiveExtractor, boards: Tensor) -> None:
    real, fresh = extractor(boards[:60]), boards[60:]
    floor = real_floor(real, seed=0)
    values = [kid(real, extractor(blurred(fresh, weight)), seed=0) for weight in (0.0, 0.5, 1.0)]
    assert floor.lower < values[0].value < floor.upper
    assert values[0].value < values[1].value < values[2].value
    assert values[2].lower > floor.upper
    for degraded in (shuffled(fresh), fresh.flip(-1), fresh[:1].expand(60, -1, -1, -1)):
        assert kid(real, extractor(degraded), seed=0).lower > floor.upper


def test_copies_of_the_training_images_are_found_and_fresh_images_are_not(
    extractor: ContrastiveExtractor, boards: Tensor
) -> None:
    train = boards[:60]
    copies = compare_images(train, train.clone(), extractor, train=train)
    assert copies.nearest is not None
    assert copies.nearest.memorised
    assert copies.fid is None
    assert copies.frechet == pytest.approx(0, abs=1e-3)
    fresh = compare_images(train, boards[60:], extractor, train=train)
    assert fresh.nearest is not None
    assert not fresh.nearest.memorised
    assert fresh.nearest.median_ratio == pytest.approx(1, abs=0.3)


def numpy_state() -> Any:
    """Return the words of NumPy's global random state."""
    state = np.random.get_state()  # noqa: NPY002
    assert isinstance(state, tuple)
    return state[1].copy()


def test_the_seed_decides_and_the_callers_random_state_stays(boards: Tensor) -> None:
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), numpy_state()
    seen: list[int] = []
    with torch.no_grad():
        first = train_extractor(boards[:20], seed=1, steps=3, progress=seen.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert (numpy_state() == numpy_before).all()
    assert seen == [1, 1, 1]
    torch.manual_seed(6)
    again, other = train_extractor(boards[:20], seed=1, steps=3), train_extractor(boards[:20], seed=2, steps=3)
    assert torch.equal(first(boards[20:30]), again(boards[20:30]))
    assert not torch.equal(first(boards[20:30]), other(boards[20:30]))


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 32, 32), (4, 100, 256), (3, 40, 20)])
def test_any_channels_and_sizes(channels: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, channels, height, width), generator=generator, dtype=torch.uint8)
    extractor = train_extractor(images, steps=2)
    assert max(extractor.size) <= 64
    assert extractor(images).isfinite().all()
    with pytest.raises(ValueError, match="channels"):
        extractor(images.repeat(1, 2, 1, 1))


def test_images_that_are_all_alike_give_finite_features() -> None:
    images = torch.full((20, 1, 32, 32), 90, dtype=torch.uint8)
    extractor = train_extractor(images, steps=2)
    assert extractor(images).abs().max() < 1e-3
    assert extractor(images // 2).isfinite().all()


@pytest.mark.parametrize("images", [torch.zeros(4, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8)])
def test_what_is_not_uint8_images_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        train_extractor(images)
    with pytest.raises(ValueError, match="told from others"):
        train_extractor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_saved_extractor_gives_the_same_features(
    extractor: ContrastiveExtractor, boards: Tensor, tmp_path: Path
) -> None:
    extractor.save(tmp_path / "extractor.pt")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = load_extractor(tmp_path / "extractor.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded(boards), extractor(boards))


@pytest.mark.parametrize("content", [None, b"", b"not a file of tensors", [1, 2], {"format": "kizu-contrastive-v0"}])
def test_other_files_are_no_extractors(content: object, tmp_path: Path) -> None:
    path = tmp_path / "extractor.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"extractor\.pt") as caught:
        load_extractor(path)
    assert caught.value.remedy


def test_a_damaged_extractor_is_named(extractor: ContrastiveExtractor, tmp_path: Path) -> None:
    path = tmp_path / "extractor.pt"
    extractor.save(path)
    saved = torch.load(path, weights_only=True)
    del saved["state"]["scale"]
    torch.save(saved, path)
    with pytest.raises(UserError, match="damaged"):
        load_extractor(path)


def test_nt_xent_by_its_definition() -> None:
    z = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = z / z.norm(dim=1, keepdim=True)
    similarity = (unit @ unit.T / 0.2).exp()
    losses = []
    for i in range(10):
        others = sum(similarity[i, k] for k in range(10) if k != i)
        losses.append(-torch.log(similarity[i, (i + 5) % 10] / others))
    torch.testing.assert_close(nt_xent(z), torch.stack(losses).mean())


def inception_weights(kind: str) -> dict[str, Tensor]:
    """Random weights of the shapes of either network, without a download."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    if kind == "torchvision":
        return inception_v3(weights=None, init_weights=False).state_dict()
    skeleton = object.__new__(fidelity.FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch:
        # Its constructor cannot do without weights; an empty state dict passes while loading is off.
        patch.setattr(torch, "load", lambda *_args, **_kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_args, **_kwargs: None)
        fidelity.FeatureExtractorInceptionV3.__init__(skeleton, "x", ["2048"], feature_extractor_weights_path="x")
    return skeleton.state_dict()


@pytest.mark.parametrize(("kind", "name"), [("fidelity", features.INCEPTION), ("torchvision", features.TORCHVISION)])
def test_inception_from_a_local_file(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save(inception_weights(kind), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(features._PUBLISHED, name, (digest,))
    before = torch.get_rng_state()
    published = load_inception(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert published.name == name
    assert published.is_inception == (kind == "fidelity")
    images = torch.randint(256, (2, 1, 40, 40), dtype=torch.uint8)
    of = published(images)
    assert (of.shape, of.dtype, of.requires_grad) == ((2, 2048), torch.float32, False)
    assert torch.equal(of, published(images.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="channels"):
        published(images.repeat(1, 2, 1, 1))


@pytest.mark.parametrize(("classes", "name"), [(1008, features.INCEPTION), (1000, features.TORCHVISION)])
def test_only_the_published_file_bears_the_name_alone(
    classes: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything may be in a file of the right shapes, random weights among it."""
    for network in ("_FidelityInception", "_TorchvisionInception"):
        monkeypatch.setattr(features, network, lambda _weights: torch.nn.Identity())
    path = tmp_path / "weights.pth"
    torch.save({"fc.bias": torch.zeros(classes)}, path)
    extractor = load_inception(path)
    assert extractor.name == f"{name}+{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert not extractor.is_inception


@pytest.mark.parametrize(
    "content", [None, b"", b"garbage", [1], {"fc.bias": torch.zeros(1008)}, {"weight": torch.zeros(3)}]
)
def test_other_files_are_no_inception(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        load_inception(path)
    assert caught.value.remedy is not None
    assert "built-in extractor" in caught.value.remedy


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"fc.bias": Trap(), "format": CONTRASTIVE}, tmp_path / "weights.pth")
    for load in (load_inception, load_extractor):
        with pytest.raises(UserError):
            load(tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()
