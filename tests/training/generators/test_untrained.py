"""Kinds that do not train: what every one of them keeps to, and what is special in each."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from kizu.errors import UserError
from kizu.training.data.crops import SPECK
from kizu.training.generators.classic import Classic, ClassicConfig
from kizu.training.generators.cutpaste import CutPaste, CutPasteConfig, jittered, rectangle
from kizu.training.generators.perlin import Perlin, PerlinConfig
from kizu.training.generators.poisson import Poisson, PoissonConfig
from kizu.training.generators.sampling import VISIBLE, visible_change
from kizu.training.generators.stored import open_generator, read_source, save_untrained
from kizu.training.generators.untrained import UntrainedGenerator
from kizu.training.generators.views import Materials, NgViews

SIZE = 40


def striped(count, seed, channels=1):
    """Views with stripes of their own period, direction and two shades."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    views = []
    for _ in range(count):
        angle, period, phase = rng.uniform(0, np.pi), rng.uniform(6, 14), rng.uniform(0, 6)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase) > 0
        low, high = rng.uniform(20, 90), rng.uniform(150, 230)
        views.append(np.tile(np.where(wave, high, low), (channels, 1, 1)))
    return torch.from_numpy(np.stack(views).round().astype(np.uint8))


@pytest.fixture(scope="module")
def materials():
    """Twelve OK views and six NG of two classes: a black disc and a white square on stripes."""
    images, masks = striped(6, 7), torch.zeros(6, 1, SIZE, SIZE, dtype=torch.uint8)
    disc = torch.from_numpy(np.hypot(*np.mgrid[-20:20, -20:20]) < 5)
    for number in range(6):
        if number % 2:
            images[number, 0, 10:16, 24:30] = 255
            masks[number, 0, 10:16, 24:30] = 255
        else:
            images[number, 0, disc] = 0
            masks[number, 0, disc] = 255
    return Materials(striped(12, 1), NgViews(images, masks, ["disc", "square"] * 3))


KINDS = {
    "classic": (Classic, ClassicConfig()),
    "cutpaste": (CutPaste, CutPasteConfig()),
    "poisson": (Poisson, PoissonConfig()),
    "poisson of ng": (Poisson, PoissonConfig(patches="ng")),
    "perlin": (Perlin, PerlinConfig()),
}
IN_OK_VIEWS = [name for name in KINDS if name != "classic"]


def generator(name, materials, **changes):
    sampler, config = KINDS[name]
    if changes:
        config = type(config)(**changes)
    classes = ("disc", "square") if name in ("classic", "poisson of ng") else ("NG",)
    used = Materials(None if name == "classic" else materials.ok, materials.ng if len(classes) > 1 else None)
    return UntrainedGenerator(
        name.split()[0], "run", config, used, sampler(config, used), classes, tuple(3 for _ in classes)
    )


def backgrounds(images, views):
    """The OK view that each image was made in: the one that most of its pixels are of."""
    same = (images[:, None] == views[None]).flatten(2).float().mean(2)
    return views[same.argmax(1)]


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_that_of_its_seed_and_class_whatever_the_batch(name, materials):
    made = generator(name, materials)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    together = made.sample([5, 6, 7, 8], [0, 0, 0, 0])
    assert torch.equal(state, torch.get_rng_state())
    assert together.images.dtype == together.masks.dtype == torch.uint8
    assert together.masks.shape == (4, 1, SIZE, SIZE)
    torch.manual_seed(99)
    apart = made.sample([8, 6], [0, 0])
    assert torch.equal(apart.images, together.images[[3, 1]])
    assert torch.equal(apart.masks, together.masks[[3, 1]])
    assert len({image.numpy().tobytes() for image in together.images}) >= 3
    sizes = [torch.cat([b.images for b in made.batches(7, seed=100, size=size)]) for size in (2, 32)]
    assert torch.equal(*sizes)


@pytest.mark.parametrize("name", IN_OK_VIEWS)
def test_masks_are_what_changed_and_outside_of_them_nothing_visible_did(name, materials):
    made = generator(name, materials).sample(range(24), [0] * 24)
    views = backgrounds(made.images, materials.ok)
    change = (made.images.int() - views.int()).abs().amax(1)
    masks = made.masks[:, 0] > 0
    assert (masks.flatten(1).sum(1) >= SPECK).all()
    assert (change[~masks] <= VISIBLE + 1).all()
    assert change[masks].float().mean() > VISIBLE
    far = torch.from_numpy(np.stack([ndimage.distance_transform_edt(~mask) > SIZE / 2 for mask in masks.numpy()]))
    assert (change[far] == 0).all()


def test_visible_changes_are_those_of_the_region_with_gaps_closed():
    before = np.zeros((2, 8, 8), np.float32)
    after = before.copy()
    after[1, 2:5, 2:5] = VISIBLE
    after[1, 3, 3] = VISIBLE - 1
    after[0, 6, 6] = 99
    within = np.ones((8, 8), bool)
    within[6] = False
    found = visible_change(before, after, within)
    assert found.sum() == 9
    assert found[2:5, 2:5].all()


def test_what_cannot_be_seen_is_never_passed_off_as_ng():
    flat = Materials(torch.full((3, 1, SIZE, SIZE), 90, dtype=torch.uint8))
    config = PoissonConfig()
    made = UntrainedGenerator("poisson", "run", config, flat, Poisson(config, flat))
    with pytest.raises(UserError, match="nothing was drawn that can be seen"):
        made.sample([0], [0])


@pytest.mark.parametrize("name", ["classic", "poisson of ng"])
def test_real_defects_keep_their_class_and_their_look(name, materials):
    made = generator(name, materials)
    assert made.class_numbers(4) == [0, 1, 0, 1]
    samples = made.sample(range(20), made.class_numbers(20, "square"))
    assert set(samples.classes) == {"square"}
    assert (samples.masks.flatten(1) > 0).any(1).all()
    with pytest.raises(UserError, match="never saw the defect class 'dent'"):
        made.class_numbers(1, "dent")


def test_a_classic_image_moves_its_mask_with_its_defect(materials):
    made = generator("classic", materials, brightness=0.0, contrast=0.0, noise=0.0, scale=0.0, shift=0.2)
    samples = made.sample(range(20), [0] * 20)
    assert (samples.images[samples.masks > 0] == 0).all(), "the disc is black, and the mask lies on it"
    assert len({mask.numpy().tobytes() for mask in samples.masks}) > 10


def test_ng_without_a_mask_stays_without(materials):
    unknown = NgViews(materials.ng.images, torch.zeros_like(materials.ng.masks), materials.ng.classes)
    samples = generator("classic", Materials(None, unknown)).sample(range(4), [0] * 4)
    assert not samples.masks.any()


def test_rectangles_keep_to_their_areas_and_ratios():
    rng = np.random.default_rng(0)
    sides = np.array([rectangle(rng, 200, 300, 0.02, 0.1) for _ in range(300)])
    area, ratio = sides.prod(1) / 60_000, sides[:, 0] / sides[:, 1]
    assert 0.018 < area.min() < 0.025 < 0.08 < area.max() < 0.105
    assert 0.3 < ratio.min() < 0.5 < 2 < ratio.max() < 3.2


def test_jitter_changes_level_and_contrast_and_nothing_else():
    piece = np.random.default_rng(0).uniform(100, 150, (1, 6, 6)).astype(np.float32)
    found = jittered(piece, np.random.default_rng(1), 0.1)
    slope, level = np.polyfit(piece.ravel(), found.ravel(), 1)
    assert found.ravel() == pytest.approx(slope * piece.ravel() + level, abs=1e-2)
    assert 0.9 <= slope <= 1.1
    assert abs(found.mean() - piece.mean()) <= 25.5 + 1e-3
    assert jittered(piece, np.random.default_rng(1), 0) == pytest.approx(piece)


def test_cutpaste_pastes_the_image_s_own_pixels(materials):
    samples = generator("cutpaste", materials, jitter=0.0).sample(range(12), [0] * 12)
    for image, view in zip(samples.images, backgrounds(samples.images, materials.ok), strict=True):
        assert set(image.unique().tolist()) <= set(view.unique().tolist())


@pytest.mark.parametrize(
    ("config", "changes", "problem"),
    [
        (CutPasteConfig, {"smallest": 0.2}, "smallest must be at most largest, 0.15, not 0.2"),
        (CutPasteConfig, {"scars": 2.0}, r"scars\s+Input should be less than or equal to 1"),
        (PoissonConfig, {"patches": "all"}, r"patches\s+Input should be 'ok' or 'ng'"),
        (PerlinConfig, {"faintest": 0.0}, r"faintest\s+Input should be greater than 0"),
        (PerlinConfig, {"boldest": 0.05}, "faintest must be at most boldest, 0.05, not 0.1"),
        (PoissonConfig, {"smallest": 0.2}, "smallest must be at most largest, 0.15, not 0.2"),
        (ClassicConfig, {"shift": 0.9}, r"shift\s+Input should be less than or equal to 0\.5"),
    ],
)
def test_values_out_of_range_are_refused(config, changes, problem):
    with pytest.raises(ValueError, match=problem):
        config(**changes)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_draws_the_same(name, materials, tmp_path):
    made = generator(name, materials)
    save_untrained(made, tmp_path)
    again = open_generator(tmp_path)
    assert isinstance(again, UntrainedGenerator)
    assert (again.kind, again.run, again.config, again.classes) == (made.kind, made.run, made.config, made.classes)
    assert torch.equal(again.sample([3], [0]).images, made.sample([3], [0]).images)


def test_a_file_that_is_missing_damaged_or_newer_is_named(materials, tmp_path):
    with pytest.raises(UserError, match=r"holds no drawing\.pt"):
        read_source(tmp_path)
    path = save_untrained(generator("cutpaste", materials), tmp_path)
    state = torch.load(path, weights_only=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        read_source(tmp_path)
    torch.save(state | {"format": 99}, path)
    with pytest.raises(UserError, match="has format 99"):
        read_source(tmp_path)
