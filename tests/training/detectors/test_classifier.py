"""The classifier's training: sampling, losses against their formulas, calibration, resume, and that it learns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Inspector
from kizu.training.data.batches import Batches, LabelledBatch, LabelledBatches, Stratum, Truth, apportion
from kizu.training.data.labelled import UNCLEAR, hold_out, joined, labelled_images, rasterised
from kizu.training.data.manifest import NG, OK, Box, Row
from kizu.training.data.render import render_boards
from kizu.training.data.splits import Splits
from kizu.training.data.synthetic import write_synthetic
from kizu.training.detectors import create_detector
from kizu.training.detectors.calibration import fit_logit
from kizu.training.detectors.classifier import (
    SCHEDULES,
    ClassifierMethod,
    ClassifierTraining,
    bce,
    dense_bce,
    neyman_pearson,
    partial_auc,
)
from kizu.training.evaluation.ranking import auroc
from kizu.training.execution import Execution
from kizu.training.export import torch_scorer
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.optimisers import CosineAdamW, cosine
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, parse_recipe
from kizu.training.run import Run
from kizu.training.training_set import HeldOut, TrainingSet, labelled_set

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "boards"
    return render_boards(folder, boards=30, count_ok=400, count_ng=190, size=32, channels=1, seed=4)


def batches_of(images, strata, seed=0, epoch=None, **options):
    return LabelledBatches(
        images.images,
        seed,
        labels=images.labels.clamp(min=0),
        masks=images.masks,
        mask_of=images.mask_of,
        weights=torch.ones(len(images)),
        strata=strata,
        epoch=epoch or len(images),
        **options,
    )


def numbered(counts, per_batch, **options):
    """Batches of images whose value is their place in the set."""
    total = sum(counts)
    pixels = torch.arange(total, dtype=torch.uint8)[:, None, None, None].expand(total, 1, 32, 32)
    places = torch.arange(total).split(counts)
    strata = [Stratum(members, n) for members, n in zip(places, per_batch, strict=True)]
    empty = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    labels = (torch.arange(total) >= counts[0]).long()
    unknown = torch.full((total,), -1)
    return LabelledBatches(
        pixels,
        1,
        labels=labels,
        masks=empty,
        mask_of=unknown,
        weights=torch.ones(total),
        strata=strata,
        epoch=9,
        **options,
    )


def values(batch):
    return ((batch.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_every_batch_holds_the_exact_share_and_every_image_comes_once_before_any_comes_twice():
    batches = numbered([20, 3, 10], [8, 3, 5])
    seen = [values(batches.next()) for _ in range(20)]
    for batch in seen:
        assert [sum(low <= v < high for v in batch) for low, high in ((0, 20), (20, 23), (23, 33))] == [8, 3, 5]
        assert sorted(v for v in batch if 20 <= v < 23) == [20, 21, 22]
    ok = [v for batch in seen for v in sorted(batch, key=batch.index) if v < 20]
    assert all(sorted(ok[i : i + 40]) == sorted([*range(20)] * 2) for i in range(0, 160, 40))
    assert len({tuple(batch) for batch in seen}) == 20


def test_the_order_is_a_function_of_seed_and_position():
    first = numbered([20, 3], [5, 3])
    whole = [values(first.next()) for _ in range(9)]
    later = numbered([20, 3], [5, 3])
    later.position = 6
    assert [values(later.next()) for _ in range(3)] == whole[6:]


def test_processes_share_a_batch_and_its_ng():
    whole = values(numbered([20, 9], [4, 4]).next())
    halves = [values(numbered([20, 9], [4, 4], rank=rank, world_size=2).next()) for rank in (0, 1)]
    assert halves[0] + halves[1] == whole
    assert [sum(v >= 20 for v in half) for half in halves] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((32, 0.5, 40, 0, 1.0), (16, 16, 0)),
        ((32, 0.5, 40, 500, 1.0), (16, 8, 8)),
        ((32, 0.25, 40, 500, 3.0), (24, 2, 6)),
        ((32, 0.5, 40, 500, 0.0), (16, 16, 0)),
        ((32, 0.5, 40, 10, 1.0), (16, 13, 3)),  # no synthetic image comes more often than a real one
        ((32, 0.5, 0, 10, 1.0), (16, 0, 16)),
        ((4, 0.01, 5, 0, 1.0), (3, 1, 0)),
        ((4, 0.99, 5, 500, 100.0), (1, 1, 2)),
    ],
)
def test_a_batch_is_apportioned(arguments, expected):
    assert apportion(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((30, 0.5, 40, 0, 1.0), (15, 15, 0)),
        ((30, 0.5, 40, 500, 1.0), (10, 10, 10)),
        ((30, 0.5, 40, 10, 1.0), (13, 14, 3)),  # 30 · ⅛ / 1⅛ = 3.3
        ((30, 0.5, 40, 500, 1000.0), (3, 2, 25)),  # none comes more often than a real one
    ],
)
def test_synthetic_ng_that_are_not_ng_stand_beside_the_labelled_images(arguments, expected):
    ok, ng, synthetic = apportion(*arguments, synthetic_is_ng=False)
    assert (ok, ng, synthetic) == expected


def test_bce_is_its_formula():
    s, y, w = torch.tensor([1.2, -0.7, 3.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.5])
    p, t = torch.sigmoid(s), y * 0.8 + 0.1
    expected = (-(t * p.log() + (1 - t) * (1 - p).log()) * w).sum() / w.sum()
    torch.testing.assert_close(bce(s, y, w, 0.2), expected)


def test_partial_auc_ranks_the_lowest_ng_against_every_ok():
    s = torch.tensor([2.0, -1.0, 0.5, 0.3, -2.0], requires_grad=True)
    y, w = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0])
    loss = partial_auc(s, y, w, 0.5)  # ⌈1.5⌉: the NG at −1.0 and 0.5
    pairs = [(3.0 * wo * math.log1p(math.exp(o + 1.0)), 3.0 * wo) for o, wo in ((0.3, 1), (-2.0, 2))]
    pairs += [(wo * math.log1p(math.exp(o - 0.5)), wo) for o, wo in ((0.3, 1), (-2.0, 2))]
    assert loss.item() == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs))
    loss.backward()
    assert s.grad is not None
    assert s.grad[0] == 0
    assert (s.grad[1:3] < 0).all()
    assert (s.grad[3:] > 0).all()
    assert s.grad.sum().abs() < 1e-6
    full = partial_auc(s, y, torch.ones(5), 1.0)
    torch.testing.assert_close(full, F.softplus(s[None, 3:] - s[:3, None]).mean())
    assert partial_auc(s, torch.zeros(5), w, 0.5).item() == 0


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 1.0])
def test_partial_auc_is_the_mean_over_the_pairs_picked_by_topk(share):
    generator = torch.Generator().manual_seed(0)
    for ng in range(13):
        s = torch.randn(12, generator=generator, requires_grad=True)
        y = (torch.randperm(12, generator=generator) < ng).float()
        w = torch.rand(12, generator=generator)
        expected = s.sum() * 0
        if 0 < ng < 12:
            lowest = s[y == 1].topk(max(1, math.ceil(share * ng - 1e-9)), largest=False)
            of_pairs = w[y == 1][lowest.indices][:, None] * w[y == 0][None]
            pairs = F.softplus(s[y == 0][None] - lowest.values[:, None])
            expected = (pairs * of_pairs).sum() / of_pairs.sum()
        loss = partial_auc(s, y, w, share)
        torch.testing.assert_close(loss, expected)
        for mine, other in zip(torch.autograd.grad(loss, s), torch.autograd.grad(expected, s), strict=True):
            torch.testing.assert_close(mine, other)


def test_neyman_pearson_lowers_false_calls_once_the_bound_on_misses_is_kept():
    y, w = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4)
    for s, violated in ((torch.tensor([0.1, -0.4, 0.3, -1.0]), True), (torch.tensor([6.0, 7.0, 0.3, -1.0]), False)):
        s.requires_grad_()
        missed = np.log2(1 + np.exp(-s.detach().numpy()[:2])).mean()
        false_calls = np.log2(1 + np.exp(s.detach().numpy()[2:])).mean()
        loss = neyman_pearson(s, y, w, 0.1, 4.0)
        assert loss.item() == pytest.approx(false_calls + 4 * max(0.0, missed - 0.1), rel=1e-5)
        loss.backward()
        assert s.grad is not None
        assert (s.grad[:2] < 0).all().item() is violated
        assert (s.grad[2:] > 0).all()


def test_the_dense_loss_pulls_at_the_defect_and_pushes_everywhere_else():
    logits = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    masks = torch.zeros(4, 1, 16, 16)
    masks[0, 0, 4:7, 8:12] = 1  # place (1, 2) of the first
    masks[1, 0, 0, 0] = 0.3  # less than half a pixel: neither
    located, weights = torch.tensor([True, True, True, False]), torch.tensor([1.0, 1.0, 2.0, 1.0])
    loss = dense_bce(logits, masks, located, weights)
    clear = torch.ones(3, 4, 4)
    clear[0, 1, 2] = clear[1, 0, 0] = 0
    clear[2] = 2
    expected = F.softplus(-logits[0, 0, 1, 2]) + (F.softplus(logits[:3, 0]) * clear).sum() / clear.sum()
    torch.testing.assert_close(loss, expected / 2)
    loss.backward()
    assert logits.grad is not None
    gradient = logits.grad[:, 0]
    assert gradient[0, 1, 2] < 0
    assert gradient[1, 0, 0] == 0
    assert (gradient[3] == 0).all()
    assert ((gradient[:3] > 0) == (clear > 0)).all()


def test_the_rate_warms_up_falls_to_nothing_and_survives_a_restart():
    assert cosine(0, 100) == pytest.approx(1 / 6)
    assert cosine(5, 100) == 1
    assert cosine(52, 99) == pytest.approx(0.5, abs=0.02)
    assert cosine(100, 100) == pytest.approx(0, abs=1e-9)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = CosineAdamW([{"params": [weight]}], 0.1, 100)
    for _ in range(7):
        weight.grad = torch.ones(1)
        optimizer.step()
    other = CosineAdamW([{"params": [weight]}], 0.1, 100)
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.1 * cosine(7, 100))


@pytest.mark.parametrize(("schedule", "factors"), [("constant", [1, 1]), ("falling", [1, 0.75]), ("rising", [0, 0.25])])
def test_synthetic_images_weigh_by_their_schedule_and_the_cameras_do_not(schedule, factors):
    method = make(section_of(features=4, epochs=1, synthetic_schedule=schedule))
    optimizer = method.stages(32 * 4)[0].phases[0].optimizer
    synthetic = torch.tensor([False, True, True])
    nothing = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    truth = Truth(nothing, ~synthetic, torch.tensor([1.0, 1.0, 0.5]), torch.tensor([0, 1, 1]), synthetic)
    for factor in factors:
        assert method._weights(truth).tolist() == [1.0, factor, 0.5 * factor]
        optimizer.step()
    resumed = make(section_of(features=4, epochs=1, synthetic_schedule=schedule))
    resumed.stages(32 * 4)[0].phases[0].optimizer.load_state_dict(optimizer.state_dict())
    assert resumed._weights(truth)[1].item() == SCHEDULES[schedule](0.5)


def test_a_schedule_moves_the_loss_by_the_weights_it_gives(boards):
    rows = [row for row in boards.rows if row.label == OK][:4] + [row for row in boards.rows if row.label == NG][:4]
    images = labelled_images(boards, rows, GEOMETRY)
    made = torch.arange(8) >= 4  # with no weight left for NG, only OK teach
    batches = batches_of(images, [Stratum(torch.arange(8), 8)], synthetic=made)
    method = make(section_of(features=4, synthetic_schedule="rising", dense_weight=0))
    method.augment = AugmentSection(shift=0, brightness=0, contrast=0, noise=0)
    method.stages(8)
    batch = batches.next()
    loss = method._losses(batch)["total"]
    logits = method.classifier.pooled(method.classifier.logits(batch.images))
    torch.testing.assert_close(loss, F.softplus(logits[batch.labels == 0]).mean())


@pytest.mark.parametrize("kind", ["bce", "pauc", "neyman-pearson"])
@pytest.mark.parametrize("dense_weight", [0.0, 0.7])
def test_the_loss_is_of_pooled_logits_and_map_with_the_weights_of_synthetic_images(kind, dense_weight):
    options = {"loss": kind, "dense_weight": dense_weight, "fnr": 0.4, "multiplier": 3.0, "label_smoothing": 0.2}
    method = make(section_of(features=4, synthetic_schedule="rising", epochs=1, **options))
    method.augment = AugmentSection(shift=0, brightness=0, contrast=0, noise=0)
    optimizer = method.stages(32 * 4)[0].phases[0].optimizer  # 4 steps, of which one is done
    optimizer.step()
    images = torch.rand(8, 1, 32, 32) * 2 - 1
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    synthetic = torch.tensor([False] * 5 + [True] * 3)
    masks = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    masks[3, :, 8:16, 8:16] = masks[5, :, 16:24, :8] = 255
    located = torch.tensor([True, True, True, True, False, True, False, False])
    truth = Truth(masks, located, torch.tensor([1.0] * 5 + [2.0] * 3), y, synthetic)
    losses = method._losses(LabelledBatch(images, y, truth))

    weights = torch.tensor([1.0] * 5 + [2.0 * 0.25] * 3)  # a quarter of the way up
    heat = method.classifier.logits(images)
    s = method.classifier.pooled(heat)
    targets = 0.1 + 0.8 * y
    cross_entropy = targets * F.softplus(-s) + (1 - targets) * F.softplus(s)
    expected = (cross_entropy * weights).sum() / weights.sum()
    if kind == "pauc":
        lowest = s[3:].argsort()[:2] + 3  # two fifths of five
        pairs = F.softplus(s[:3, None] - s[lowest])
        expected = expected + (pairs * weights[lowest]).sum() / (3 * weights[lowest].sum())
    if kind == "neyman-pearson":
        missed = (F.softplus(-s[3:]) * weights[3:]).sum() / weights[3:].sum() / math.log(2)
        assert missed > 0.4
        expected = F.softplus(s[:3]).mean() / math.log(2) + 3 * (missed - 0.4)
    if dense_weight:
        dense = dense_bce(heat, masks / 255, located, weights)
        assert not torch.allclose(dense, dense_bce(heat, masks / 255, located, torch.ones(8)), rtol=1e-3)
        expected = expected + 0.7 * dense
    torch.testing.assert_close(losses["total"], expected)


def log_loss(logits, labels):
    return np.mean(np.logaddexp(0, logits) - labels * logits)


def test_calibration_improves_log_loss_and_keeps_the_order():
    random = np.random.default_rng(0)
    labels = random.random(4000) < 0.2
    truth = random.normal(size=4000) + 2 * labels  # log-odds: 2x − 2 + log(0.2 / 0.8)
    slope, offset = fit_logit(7 * truth + 30, labels)
    assert slope * 7 == pytest.approx(2, abs=0.25)
    assert slope * 30 + offset == pytest.approx(-2 + math.log(0.25), abs=0.25)
    given = 7 * truth + 30
    assert log_loss(slope * given + offset, labels) < log_loss(given, labels)
    assert log_loss(slope * given + offset, labels) < log_loss(np.full(4000, math.log(0.25)), labels)
    assert np.array_equal(np.argsort(slope * given + offset), np.argsort(given))
    for scores, y in ((truth, 1 - labels), ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]), ([1.0, 1.0], [0, 1])):
        slope, offset = fit_logit(scores, y)
        assert slope > 0
        assert math.isfinite(slope + offset)


def test_boxes_and_masks_become_the_same_places_and_tiles_know_what_they_hold(tmp_path):
    row = Row("a", NG, boxes=(Box(3.2, 5, 7, 8.5, "x"),))
    mask = rasterised(row, 12, 10)
    assert mask.sum() == 4 * 4
    assert mask[5:9, 3:7].all()
    tiles = InputGeometry(height=32, width=32, channels=1, tile=32, stride=32)
    large = render_boards(tmp_path / "large", boards=3, count_ok=2, count_ng=4, size=96, channels=1)
    found = labelled_images(large, large.rows, tiles)
    assert len(found) == 6 * 9
    for i, row in enumerate(large.rows):
        own = found.labels[found.owners == i]
        if row.label == OK:
            assert (own == 0).all()
            assert (found.mask_of[found.owners == i] == 0).all()
            continue
        pixels = torch.from_numpy(large.mask(row)).unfold(0, 32, 32).unfold(1, 32, 32).flatten(2).any(2).flatten()
        assert torch.equal(own == 1, pixels)
        assert (own != UNCLEAR).all()


def test_joined_sets_keep_their_masks(boards):
    rows = [row for row in boards.rows if row.label == NG][:4]
    a, b = labelled_images(boards, rows[:2], GEOMETRY), labelled_images(boards, rows[2:], GEOMETRY)
    both, whole = joined(a, b), labelled_images(boards, rows, GEOMETRY)
    for name in ("images", "labels", "masks", "mask_of", "owners", "synthetic", "defects"):
        assert torch.equal(getattr(both, name), getattr(whole, name)), name


def test_a_tenth_is_held_out_by_whole_groups_or_not_at_all():
    rows = [Row(f"{i}", OK if i % 2 else NG, group=f"g{i // 4}") for i in range(200)]
    rows += [Row("s", NG, origin="a:b:1")]
    train, held = hold_out(rows, 0)
    assert len(held) == 20
    assert sum(row.label == NG for row in held) == 10
    assert not {row.group for row in held} & {row.group for row in train}
    assert rows[-1] in train
    assert hold_out(rows, 0)[1] == held
    assert hold_out(rows, 1)[1] != held
    assert hold_out(rows[:60], 0) == (rows[:60], [])
    straddling = [Row(f"{i}", OK if i % 2 else NG, group="one") for i in range(200)]
    assert len(hold_out(straddling, 0)[1]) == 20


def test_synthetic_ng_are_in_every_batch_with_their_weight_and_nowhere_else(boards, tmp_path):
    pixels = torch.full((30, 1, 32, 32), 77, dtype=torch.uint8)
    samples: list[Any] = [(pixels, ["open"] * 30, list(range(30)))]
    drawn = write_synthetic(tmp_path / "s", samples, kind="g", run="r", total=30)
    options: dict[str, Any] = {"synthetic_ratio": 1.0, "synthetic_weight": 0.25}
    content = {"name": "x", "dataset": "x", "detector": {"kind": "classifier", "batch_size": 16, "options": options}}
    recipe = parse_recipe(content | {"image": {"size": 32, "channels": 1}}, "here")
    run = Run(recipe, boards, Splits(boards.rows, [], []), "data", tmp_path, tmp_path)
    execution = Execution(RunLog(None, quiet=True), torch.device("cpu"))
    found = labelled_set(run, recipe.detector[0], ClassifierTraining(**options), drawn, 0, execution)
    assert found.synthetic_ng == 30
    assert found.held_out is not None
    assert found.held_out.labels.tolist().count(1) == 19
    assert not (found.held_out.images == 77).flatten(1).all(1).any()
    assert found.batches.epoch == 590 - 59
    for _ in range(20):
        batch = found.batches.next()
        assert isinstance(batch, LabelledBatch)
        is_drawn = ((batch.images + 1) * 127.5).round().eq(77).flatten(1).all(1)
        assert is_drawn.sum() == 1  # 30 drawn for 171 real: 8 · 0.175 / 1.175, rounded down
        assert batch.labels.sum() == 8
        assert (batch.labels[is_drawn] == 1).all()
        assert torch.equal(batch.truth.weights, torch.where(is_drawn, 0.25, 1.0))
        assert torch.equal(batch.truth.located, ~is_drawn)
        assert ((batch.truth.masks > 0).flatten(1).any(1) == (batch.labels == 1) & ~is_drawn).all()
    none = labelled_set(run, recipe.detector[0], ClassifierTraining(synthetic_ratio=0.0), drawn, 0, execution)
    assert none.synthetic_ng == 0
    assert len(none.batches.images) == 590 - 59
    other = labelled_set(run, recipe.detector[0], ClassifierTraining(**options), drawn, 1009, execution)
    assert other.held_out is not None
    assert not torch.equal(other.held_out.images[:40], found.held_out.images[:40]), "a seed of its own spares others"
    assert not torch.equal(other.batches.next().images, none.batches.next().images)


def section_of(**options):
    return DetectorSection(kind="classifier", epochs=options.pop("epochs", 12), options=options)


def make(section: DetectorSection) -> ClassifierMethod:
    method = create_detector(GEOMETRY, section)
    assert isinstance(method, ClassifierMethod)
    return method


def training(boards, folder, section, ng=40, seed=0, log=None):
    ok = [row for row in boards.rows if row.label == OK][:240]
    rows = ok + [row for row in boards.rows if row.label == NG][:ng]
    images = labelled_images(boards, rows, GEOMETRY)
    strata = [Stratum(torch.arange(240), 16), Stratum(torch.arange(240, 240 + ng), 16)]
    torch.manual_seed(seed)
    method = create_detector(GEOMETRY, section)
    torch.manual_seed(seed + 1)
    settings = LoopSettings(control_every=1, sample_every=10**9)
    log = log or RunLog(None, quiet=True)
    return TrainingLoop(method, batches_of(images, strata, seed), folder, identity="x", log=log, settings=settings)


def test_it_learns_from_forty_ng_what_ganomaly_does_not(boards, tmp_path):
    loop = training(boards, tmp_path, section_of())
    loop.run()
    ok = [row for row in boards.rows if row.label == OK][240:]
    ng = [row for row in boards.rows if row.label == NG][40:]
    score = torch_scorer(Inspector(loop.method.detector(), GEOMETRY))
    scores, _ = score(np.stack([boards.image(row) for row in ok + ng]))
    found = auroc(scores[len(ok) :], scores[: len(ok)])
    assert found is not None
    assert found.value > 0.85, found


@pytest.mark.parametrize("loss", ["bce", "pauc", "neyman-pearson"])
def test_a_resumed_run_has_the_weights_of_one_left_alone(boards, resumed, loss):
    section = section_of(epochs=1, features=4, loss=loss)
    resumed(lambda folder, log: training(boards, folder, section, log=log), 4)


def test_held_out_images_calibrate_the_average_and_an_image_is_its_worst_tile():
    method = make(section_of(features=4))
    images = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    owners, labels = torch.arange(6).repeat_interleave(2), torch.tensor([0, 1, 0, 1, 0, 1])
    with torch.no_grad():
        raw = method.average.eval()(images.float() / 127.5 - 1)[0].view(6, 2).amax(1)
    for _ in range(2):  # the second time changes nothing
        method.finish(TrainingSet(Batches(images, 2, 0), HeldOut(images, owners, labels)))
        slope, offset = fit_logit(raw.numpy(), labels.numpy())
        assert method.average.slope.item() == pytest.approx(slope, rel=1e-3)
        assert method.average.offset.item() == pytest.approx(offset, rel=1e-3)
    assert method.classifier.slope == 1


def test_weights_of_a_backbone_come_from_a_file_and_must_fit(tmp_path):
    torch.manual_seed(1)
    network = models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    section = DetectorSection(kind="classifier", preset="resnet18", options={"weights": str(tmp_path / "resnet18.pth")})
    method = make(section)
    loaded = method.classifier.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items() if name in loaded)
    assert "not needed of it: fc, layer4" in method.notes[0]
    with pytest.raises(UserError, match="does not fit"):
        create_detector(GEOMETRY, section.model_copy(update={"preset": "resnet34"}))
    with pytest.raises(UserError, match="cannot be read"):
        create_detector(GEOMETRY, section.model_copy(update={"options": {"weights": "nowhere.pth"}}))
    with pytest.raises(UserError, match="no file of weights fits"):
        create_detector(GEOMETRY, section.model_copy(update={"preset": "small"}))


@pytest.mark.parametrize(
    "options",
    [
        {"synthetic_schedule": "never"},
        {"loss": "focal"},
        {"ng_share": 0},
        {"ng_share": 1},
        {"fnr": 2},
        {"synthetic_ratio": -1},
        {"pool": "mean"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        create_detector(GEOMETRY, section_of(**options))


def test_unlabelled_batches_are_all_ok():
    method = make(section_of(features=4))
    images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    losses = method._losses(Batches(images, 4, 0).next())
    assert set(losses) == {"total"}
    assert torch.isfinite(losses["total"])
