"""Placing: the surroundings decide where, only the defect is taken over, and its mask is where it shows."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from kizu.errors import UserError
from kizu.models.stylegan2 import Generator, StyleGAN2Config
from kizu.training.data.crops import Crops
from kizu.training.generators.placing import (
    DefectStatistics,
    PlacedGenerator,
    PlacingConfig,
    defect_statistics,
    differing,
    place_crop,
    size_in_view,
    statistics_by_class,
)
from kizu.training.generators.positions import LIGHT, find_positions, laid_out, ring_difference
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.priors import make_prior
from kizu.training.synthesis.filtering import candidates, filtered, kept_seeds

SIDE = 48


def textures(seed=0):
    """Three views of smooth noise, of different light; the second is what crops are taken from."""
    rng = np.random.default_rng(seed)
    views = ndimage.gaussian_filter(rng.normal(size=(3, SIDE, SIDE)), (0, 2, 2))
    return 60 * views / views.std() + np.array([110, 130, 120])[:, None, None]


@pytest.fixture
def views():
    return torch.from_numpy(textures().clip(0, 255).round().astype(np.uint8))[:, None]


def disc(side, radius):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.hypot(y, x) <= radius


CENTRAL = DefectStatistics(torch.from_numpy(disc(24, 5)).float(), (10.0, 10.0))


def crop_of(views, top, left, dark=90, shade=0):
    """24×24 pixels of the second view with a dark disc in the middle, all of it `shade` brighter."""
    piece = views[1, :, top : top + 24, left : left + 24].numpy().astype(np.float32)
    piece[:, disc(24, 4)] -= dark
    return piece + shade


def test_a_crop_finds_the_place_that_it_was_taken_from(views):
    piece = crop_of(views, 11, 17)
    ring = CENTRAL.ring
    places = np.array([(view, top, left) for view in range(3) for top in range(25) for left in range(25)])
    difference, offset = ring_difference(piece, ring, views, places)
    best = int(difference.argmin())
    assert places[best].tolist() == [1, 11, 17]
    assert difference[best] == pytest.approx(0)
    assert offset[best] == pytest.approx(0)


def test_light_is_taken_out_up_to_a_bound(views):
    place = np.array([(1, 11, 17)])
    for shade in (20, -25):
        difference, offset = ring_difference(crop_of(views, 11, 17, shade=shade), CENTRAL.ring, views, place)
        assert offset[0] == pytest.approx(-shade)
        assert difference[0] == pytest.approx(abs(shade) / 4)
    difference, offset = ring_difference(crop_of(views, 11, 17, shade=60), CENTRAL.ring, views, place)
    assert offset[0] == pytest.approx(-LIGHT)
    assert difference[0] == pytest.approx(60 - LIGHT + LIGHT / 4)


def test_the_search_comes_near_the_best_place(views):
    piece = crop_of(views, 11, 17)
    alone = views[1:2]  # with several views, only a third stands for election
    found = find_positions(piece, CENTRAL.ring, alone, np.random.default_rng(0), candidates=600)
    assert (found[0].top, found[0].left) == (11, 17)
    assert [p.difference for p in found] == sorted(p.difference for p in found)
    again = find_positions(piece, CENTRAL.ring, alone, np.random.default_rng(0), candidates=600)
    assert [(p.top, p.left) for p in again] == [(p.top, p.left) for p in found]


def test_a_ring_that_hardly_shows_is_no_match(views):
    difference, _ = ring_difference(
        crop_of(views, 0, 0), CENTRAL.ring, views, np.array([(1, -20, -20), (1, -4, 0), (1, 0, 0)])
    )
    assert np.isinf(difference[0])
    assert np.isfinite(difference[1:]).all()


def test_a_piece_is_laid_out_with_its_edges_repeated():
    piece = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    frame, inside = laid_out(piece, 1, -1, 4, 4)
    assert frame[0].tolist() == [[1, 2, 2, 2], [1, 2, 2, 2], [4, 5, 5, 5], [4, 5, 5, 5]]
    assert inside.astype(int).tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("blend", ["feather", "poisson"])
def test_the_defect_and_nothing_else_is_taken_over(views, blend):
    piece = crop_of(views, 11, 17, shade=12)
    config = PlacingConfig(blend=blend, candidates=600)
    placed = place_crop(piece, CENTRAL, views[1:2], np.random.default_rng(0), config)
    assert placed is not None
    truth = np.zeros((SIDE, SIDE), bool)
    truth[11:35, 17:41] = disc(24, 4)
    assert (placed.mask & truth).sum() >= 0.9 * truth.sum()
    assert not (placed.mask & ~ndimage.binary_dilation(truth, iterations=4)).any()
    change = np.abs(placed.image.astype(int) - views[1].numpy().astype(int))[0]
    assert change[ndimage.binary_erosion(truth, iterations=2)].min() > 40
    assert not change[~ndimage.binary_dilation(placed.mask, iterations=3)].any(), "beyond the border nothing changes"


def test_edges_that_meet_a_pixel_off_are_no_defect():
    view = np.full((1, 20, 20), 40, np.float32)
    view[:, :, 10:] = 200
    source = np.roll(view, 1, axis=2)
    source[:, :, 0] = 40
    source[:, 8:12, 3:7] = 220
    every = np.ones((20, 20), bool)
    mask = differing(view, source, every, every, every, 6)
    assert mask[8:12, 3:7].all()
    assert not mask[:, 9:].any()


def test_only_parts_that_touch_where_defects_lie_count():
    view = np.full((1, 30, 30), 100, np.float32)
    source = view.copy()
    source[:, 13:17, 13:17] = 200
    source[:, 2:5, 22:25] = 200
    every, centre = np.ones((30, 30), bool), np.zeros((30, 30), bool)
    centre[10:20, 10:20] = True
    mask = differing(view, source, ~centre, centre, every, 6)
    assert mask[13:17, 13:17].all()
    assert not mask[:8].any()
    assert not differing(view, view, ~centre, centre, every, 6).any()


def test_a_crop_without_a_defect_gives_none_or_what_can_be_seen_of_it_where_it_does_not_match(views):
    piece = views[1, :, 11:35, 17:41].numpy().astype(np.float32)
    config = PlacingConfig(candidates=600)
    assert place_crop(piece, CENTRAL, views[1:2], np.random.default_rng(0), config, force=False) is None
    placed = place_crop(piece, CENTRAL, views[1:2], np.random.default_rng(0), config)
    assert placed is not None
    assert 4 <= placed.mask.sum() <= 1.15 * np.pi * 25
    assert (placed.image != views[1].numpy())[:, placed.mask].mean() > 0.8


def test_no_image_without_a_defect_is_called_ng():
    flat = torch.full((3, 1, SIDE, SIDE), 200, dtype=torch.uint8)
    piece = np.full((1, 24, 24), 200, np.float32)
    with pytest.raises(UserError, match="cannot be told from OK"):
        place_crop(piece, CENTRAL, flat, np.random.default_rng(0), PlacingConfig(candidates=50))


def test_a_crop_as_large_as_the_view_may_stick_out_and_its_mask_never_does(views):
    whole = DefectStatistics(torch.from_numpy(disc(SIDE, 6)).float(), (12.0, 12.0))
    piece = views[1].numpy().astype(np.float32)
    piece[:, disc(SIDE, 6)] -= 90
    centres = []
    for seed in range(8):
        placed = place_crop(piece, whole, views[[0, 2]], np.random.default_rng(seed), PlacingConfig())
        assert placed is not None
        assert placed.image.shape == (1, SIDE, SIDE)
        assert placed.mask.any()
        centres.append(ndimage.center_of_mass(placed.mask))
    assert np.ptp(np.array(centres), axis=0).min() > 2, "defects are not always in the middle"


def test_where_defects_lie_is_learned_from_real_masks():
    masks = torch.zeros(4, 1, 20, 20, dtype=torch.uint8)
    for number in range(4):
        masks[number, 0, 8:12, 6 + number : 14] = 255
    found = defect_statistics(masks)
    assert found.size == (4, pytest.approx((7 + 6) / 2))
    assert found.frequency[9, 13] == 1
    assert found.frequency[9, 6] == 0.25
    assert found.centre[8:12, 6:14].all()
    assert not found.centre[:6].any()
    assert found.ring[0].all()
    assert not found.ring[8:12, 6:14].any()
    everywhere = DefectStatistics(torch.full((8, 8), 0.3), (3, 3))
    assert everywhere.ring.all(), "where defects lie anywhere, all of the crop is compared"


def test_crops_have_to_fit_and_to_be_located():
    assert size_in_view((64, 48), (0.5, 0.5), (40, 40)) == (32, 24)
    with pytest.raises(UserError, match="do not fit"):
        size_in_view((64, 64), (1, 1), (40, 80))
    with pytest.raises(UserError, match="too few to show"):
        size_in_view((64, 64), (0.1, 0.1), (64, 64))
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(UserError, match="has boxes or a mask"):
        statistics_by_class(Crops(images, ["a", "a"], []), (16, 16))
    with pytest.raises(UserError, match="has boxes or a mask"):
        statistics_by_class(Crops(images, ["a", "a"], [], torch.zeros_like(images)), (16, 16))
    masks = torch.zeros_like(images)
    masks[0, 0, 4:8, 4:8] = 255
    found = statistics_by_class(Crops(images, ["a+b", "c"], [], masks), (32, 32))
    assert set(found) == {"", "a"}
    assert found["a"].size == (8, 8)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    shape = StyleGAN2Config(16, 16, 1, 2, latent=16, mapping_layers=2, capacity=128, max_channels=16)
    network = Generator(shape).eval().requires_grad_(False)
    return TrainedGenerator(
        network, ["hole", "short"], [3, 1], make_prior("normal", 16, images=None), "stylegan2-ada", "r@1", True
    )


@pytest.fixture
def placed(trained, views):
    places = {"": DefectStatistics(torch.from_numpy(disc(20, 4)).float(), (8.0, 8.0))}
    return PlacedGenerator(trained, views, (20, 20), places, PlacingConfig(candidates=64), "r@2")


def test_a_placed_image_is_that_of_its_seed_and_class_whatever_the_batch(placed):
    together = placed.sample([5, 6, 7], [0, 1, 0])
    assert together.images.shape == (3, 1, SIDE, SIDE)
    assert together.classes == ["hole", "short", "hole"]
    assert together.seeds == [5, 6, 7]
    apart = placed.sample([7, 6], [0, 1])
    # The batch's size decides how the generator's convolutions round.
    assert (apart.images.int() - together.images[[2, 1]].int()).abs().max() <= 2
    assert (apart.masks != together.masks[[2, 1]]).float().mean() < 0.01
    again = PlacedGenerator.from_content(placed.crops, placed.content(), placed.config, placed.run)
    assert torch.equal(again.sample([5, 6, 7], [0, 1, 0]).images, together.images)
    assert (placed.kind, placed.run) == ("stylegan2-ada", "r@2")


def test_a_filter_keeps_the_best_of_each_class_in_its_share():
    assert [candidates(10, keep) for keep in (1.0, 0.5, 0.3)] == [10, 20, 34]
    ratings = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.7, 0.2])
    assert kept_seeds(ratings, [0, 0, 0, 1, 0, 1], [0, 0, 1], 100) == [(101, 0), (103, 1), (104, 0)]
    assert kept_seeds(torch.zeros(4), [0, 0, 0, 0], [0, 0], 7) == [(7, 0), (8, 0)]


def test_filtered_images_are_those_of_their_seeds(trained):
    def brightness(batch, numbers):
        assert batch.classes == [trained.name(n) for n in numbers]
        return batch.images.float().mean((1, 2, 3))

    kept = list(filtered(trained, trained, brightness, count=8, keep=0.25, seed=40))
    seeds = [seed for batch in kept for seed in batch.seeds]
    names = [name for batch in kept for name in batch.classes]
    assert [names.count(name) for name in ("hole", "short")] == [6, 2]
    assert set(seeds) <= set(range(40, 72))
    numbers = trained.class_numbers(32)
    everything = trained.sample(range(40, 72), numbers)
    means = everything.images.float().mean((1, 2, 3))
    holes = [i for i, n in enumerate(numbers) if n == 0]
    worst_kept = min(means[s - 40] for s in seeds if numbers[s - 40] == 0)
    assert sum(bool(means[i] > worst_kept + 0.1) for i in holes) <= 6
    images = torch.cat([batch.images for batch in kept])
    assert (images.int() - everything.images[[s - 40 for s in seeds]].int()).abs().max() <= 1
