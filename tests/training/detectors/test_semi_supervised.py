"""The K + 1 detector's training: its terms against closed forms, who learns from what, resume, and that it learns."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.batches import LabelledBatches, Stratum
from kizu.training.data.labelled import UNKNOWN, UNSPECIFIED, defect_classes, labelled_images
from kizu.training.data.manifest import NG, OK, UNLABELLED, Manifest, Row
from kizu.training.data.render import render_boards
from kizu.training.data.splits import Splits
from kizu.training.data.synthetic import SyntheticBatch, write_synthetic
from kizu.training.detectors import create_detector
from kizu.training.detectors.classifier import dense_bce
from kizu.training.detectors.semi_supervised import (
    SemiSupervisedTraining,
    class_loss,
    feature_matching,
    generated_loss,
    possible_classes,
    real_loss,
)
from kizu.training.execution import Execution
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.pipeline import train
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, parse_recipe
from kizu.training.run import Run
from kizu.training.training_set import labelled_set

GEOMETRY = InputGeometry(height=32, width=32, channels=1)
AS_THEY_ARE = AugmentSection(shift=0, brightness=0, contrast=0, noise=0)


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Rendered boards of which every third label is left."""
    folder = tmp_path_factory.mktemp("semi-supervised") / "boards"
    whole = render_boards(folder, boards=30, count_ok=300, count_ng=150, size=32, channels=1, seed=4)
    return Manifest(folder, [row if i % 3 == 0 else unlabelled(row) for i, row in enumerate(whole.rows)])


def unlabelled(row):
    return replace(row, label=UNLABELLED, defect="", mask="", boxes=())


def section_of(**options):
    epochs = options.pop("epochs", 1)
    small = {"features": 4, "generator_features": 4, "latent": 8}
    return DetectorSection(kind="semi-supervised", epochs=epochs, batch_size=16, options={**small, **options})


def method_of(defects=("open", "short"), **options):
    torch.manual_seed(0)
    method = create_detector(GEOMETRY, section_of(**options), AS_THEY_ARE, defects=defects)
    method.stages(64)
    return method


def batch_of(labels, defects, synthetic=None, weights=None):
    """One batch of noise; the first NG's defect is located."""
    n = len(labels)
    labels, defects = torch.tensor(labels), torch.tensor(defects)
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    masks[1, :, 8:12, 8:12] = 255
    mask_of = torch.where(labels == 0, 0, -1)
    mask_of[(labels == 1).nonzero()[0]] = 1
    return LabelledBatches(
        torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
        0,
        labels=labels,
        masks=masks,
        mask_of=mask_of,
        weights=torch.ones(n) if weights is None else torch.tensor(weights),
        strata=[Stratum(torch.arange(n), n)],
        epoch=n,
        defects=defects,
        synthetic=None if synthetic is None else torch.tensor(synthetic),
    ).at(torch.arange(n))


def test_the_terms_are_those_of_a_softmax_over_k_plus_1_logits_whose_last_is_0():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double() * 4
    log_p = F.log_softmax(torch.cat([logits, torch.zeros(6, 1)], 1), 1)
    torch.testing.assert_close(generated_loss(logits), -log_p[:, 3])
    torch.testing.assert_close(real_loss(logits), -torch.log(1 - log_p[:, 3].exp()))
    lse = torch.logsumexp(logits, 1)
    torch.testing.assert_close(real_loss(logits), -lse + F.softplus(lse))  # as Salimans et al. write it
    for k in range(3):
        possible = torch.zeros(6, 3, dtype=torch.bool)
        possible[:, k] = True
        torch.testing.assert_close(class_loss(logits, possible) + real_loss(logits), -log_p[:, k])
        torch.testing.assert_close(
            class_loss(logits, possible), F.cross_entropy(logits, torch.full((6,), k), reduction="none")
        )
    # Any number may be added to all K + 1 logits: 0 for the last is no loss.
    shifted = F.log_softmax(torch.cat([logits + 5, torch.full((6, 1), 5.0)], 1), 1)
    torch.testing.assert_close(shifted, log_p)
    for extreme in (torch.full((1, 3), 500.0), torch.full((1, 3), -500.0)):
        assert torch.isfinite(real_loss(extreme) + generated_loss(extreme)).all()


def test_a_label_leaves_open_what_it_does_not_say():
    labels = torch.tensor([0, 1, 1, 1, UNKNOWN])
    defects = torch.tensor([0, 1, 2, UNSPECIFIED, UNSPECIFIED])
    assert possible_classes(labels, defects, 3).int().tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 1, 1],
        [1, 1, 1],
    ]
    assert possible_classes(labels, defects, 2).int().tolist() == [[1, 0], [0, 1], [0, 1], [0, 1], [1, 1]]
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = class_loss(logits, possible_classes(labels, defects, 3))
    torch.testing.assert_close(loss[3], -torch.softmax(logits[3], 0)[1:].sum().log())
    assert loss[4] == 0


def test_the_distance_of_mean_features_is_the_codes_or_the_papers():
    a, b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    assert feature_matching(a, b, "l1").item() == pytest.approx(4 / 3)
    assert feature_matching(a, b, "l2").item() == pytest.approx(10)


def test_each_term_is_of_its_own_images():
    labels, defects = [0, 1, 1, 1, UNKNOWN, UNKNOWN], [0, 1, UNSPECIFIED, 2, UNSPECIFIED, UNSPECIFIED]
    batch = batch_of(labels, defects, [False, False, False, True, False, False], [1, 1, 3, 0.5, 1, 1])
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    fakes = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    log_p = F.log_softmax(logits, 1)
    ok, first, either, second = -log_p[0, 0], -log_p[1, 1], -log_p[2, 1:].logsumexp(0), -log_p[3, 2]
    camera = torch.tensor([0, 1, 2, 4, 5])
    for options, classes, generated in (
        ({}, (ok + first + 3 * either) / 5, (generated_loss(fakes).mean() + generated_loss(logits[3:4])[0]) / 2),
        (
            {"synthetic_share": 0.2},
            (ok + first + 3 * either) / 5,
            0.8 * generated_loss(fakes).mean() + 0.2 * generated_loss(logits[3:4])[0],
        ),
        ({"synthetic": "ng"}, (ok + first + 3 * either + 0.5 * second) / 5.5, generated_loss(fakes).mean()),
    ):
        found = method_of(**options)._terms(logits, fakes, batch.labels, batch.truth)
        expected = classes, real_loss(logits[camera]).mean(), generated
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    none = batch_of(labels, defects)
    generated = method_of()._terms(logits, fakes, none.labels, none.truth)[2]
    torch.testing.assert_close(generated, generated_loss(fakes).mean())


def test_what_is_learned_without_labels_is_ramped_up():
    batch = batch_of([0, 1, UNKNOWN], [0, 1, UNSPECIFIED])
    method = method_of(ramp=0.5, unsupervised_weight=0.8, dense_weight=0.7)  # 4 steps
    for risen in (0, 0.5, 1, 1):
        losses = method._d_losses(batch)
        supervised = losses["classes"] + 0.7 * losses["dense"]
        torch.testing.assert_close(
            losses["total"], supervised + 0.8 * risen * 0.5 * (losses["real"] + losses["generated"])
        )
        method._optimizer.step()


@pytest.mark.parametrize("synthetic", ["generated", "ng"])
def test_the_discriminators_loss_is_of_labelled_unlabelled_synthetic_and_drawn_images(synthetic):
    labels, defects = [0, 1, 1, UNKNOWN], [0, 1, 2, UNSPECIFIED]
    batch = batch_of(labels, defects, [False, True, False, False], [1, 0.5, 2, 1])  # the synthetic NG is located
    method = method_of(synthetic=synthetic, unsupervised_weight=0.8, ramp=0.0, dense_weight=0.7, synthetic_share=0.2)
    method.discriminator.eval()  # so that images do not meet in batch norm
    torch.manual_seed(3)
    total = method._d_losses(batch)["total"]
    torch.manual_seed(3)
    drawn = method.generator(torch.randn(2, 8))
    heat = method.discriminator.logits(batch.images)
    logits, fakes = method.discriminator.pooled(heat), method.discriminator.pooled(method.discriminator.logits(drawn))
    ok, first, second = F.cross_entropy(logits[:3], torch.tensor([0, 1, 2]), reduction="none")
    real = F.softplus(-torch.logsumexp(logits[[0, 2, 3]], 1)).mean()  # the camera's
    generated = F.softplus(torch.logsumexp(fakes, 1)).mean()
    if synthetic == "ng":
        classes, weights = (ok + 0.5 * first + 2 * second) / 3.5, torch.tensor([1, 0.5, 2, 0])
    else:
        classes, weights = (ok + 2 * second) / 3, torch.tensor([1.0, 0, 2, 0])
        generated = 0.8 * generated + 0.2 * F.softplus(torch.logsumexp(logits[1], 0))
    odds = torch.logsumexp(heat[:, 1:], 1, keepdim=True) - heat[:, :1]
    dense = dense_bce(odds, batch.truth.masks / 255, batch.truth.located, weights)
    torch.testing.assert_close(total, classes + 0.8 * (real + generated) / 2 + 0.7 * dense)


def test_an_unlabelled_image_teaches_that_it_is_real_and_nothing_else():
    labels, defects = [0, 1, UNKNOWN], [0, 1, UNSPECIFIED]
    method = method_of()
    method.discriminator.eval()  # so that images do not meet in batch norm
    batch = batch_of(labels, defects)
    before = method._d_losses(batch)
    batch.images[2] = -batch.images[2]
    after = method._d_losses(batch)
    torch.testing.assert_close(after["classes"], before["classes"])
    torch.testing.assert_close(after["dense"], before["dense"])
    assert (after["real"] - before["real"]).abs() > 1e-6


def turn_of(method, images, fakes):
    """The discriminator's losses of these images and fakes, and its running statistics afterwards."""
    method._generate = lambda count, _device: fakes[:count]
    batch = batch_of([0, 1, 1, UNKNOWN], [0, 1, 2, UNSPECIFIED])
    batch.images.copy_(images)
    method.discriminator.train()
    losses = method._d_losses(batch)
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    return losses, {name: b.clone() for name, b in method.discriminator.named_buffers() if name.endswith(kinds)}


@pytest.mark.parametrize("options", [{}, {"backbone": "resnet18"}], ids=["plain", "resnet18"])
def test_apart_generated_images_change_no_real_images_logits_and_no_running_statistics(options):
    images, fakes = torch.rand(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    found = [turn_of(method_of(batch_norm="apart", **options), images, f) for f in (fakes, fakes * 0.1 - 0.8)]
    (losses, statistics), (others, other_statistics) = found
    for term in ("classes", "real", "dense"):
        assert torch.equal(losses[term], others[term])
    assert statistics
    assert all(torch.equal(value, other_statistics[name]) for name, value in statistics.items())
    assert all(value == 1 for name, value in statistics.items() if name.endswith("num_batches_tracked"))
    assert (losses["generated"] - others["generated"]).abs() > 1e-6
    other_images = turn_of(method_of(batch_norm="apart", **options), images * 0.5, fakes)[0]
    torch.testing.assert_close(other_images["generated"], losses["generated"])


def test_together_generated_images_change_both():
    images, fakes = torch.rand(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    (losses, statistics), (others, other_statistics) = [
        turn_of(method_of(), images, f) for f in (fakes, fakes * 0.1 - 0.8)
    ]
    assert not torch.equal(losses["classes"], others["classes"])
    assert not all(torch.equal(value, other_statistics[name]) for name, value in statistics.items())


@pytest.mark.parametrize("matching", ["l1", "l2"])
def test_the_generators_turn_moves_the_generator_alone(matching):
    method = method_of(matching=matching)
    discriminator, generator = method.discriminator, method.generator
    discriminator.train().requires_grad_(False)
    generator.train().requires_grad_(True)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    batch = batch_of([0, 0, 1, UNKNOWN], [0, 0, 1, UNSPECIFIED])
    method._g_losses(batch)["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    assert all(module.training for module in discriminator.modules())


def test_the_discriminators_turn_leaves_the_generators_weights_alone():
    method = method_of()
    method.networks.train().requires_grad_(True)
    method._d_losses(batch_of([0, 1, UNKNOWN], [0, 1, UNSPECIFIED]))["total"].backward()
    assert all(p.grad is None for p in method.generator.parameters())
    assert all(p.grad is not None for p in method.discriminator.parameters())


def test_the_generator_matches_unlabelled_images_or_else_the_cameras():
    for labels, defects, matched in (
        ([0, 1, UNKNOWN, UNKNOWN], [0, 1, UNSPECIFIED, UNSPECIFIED], [2, 3]),
        ([0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 2]),
    ):
        method = method_of(matching="l2")
        batch = batch_of(labels, defects, [False, False, False, labels[3] == 1])
        method.discriminator.eval()
        torch.manual_seed(3)
        loss = method._g_losses(batch)["total"]
        torch.manual_seed(3)
        fakes = method.generator(torch.randn(4, 8))
        real = method.discriminator.penultimate(batch.images[matched]).mean(0)
        torch.testing.assert_close(loss, (real - method.discriminator.penultimate(fakes).mean(0)).square().sum())


def test_images_may_vary_in_size_in_either_turn():
    method = method_of()
    method.augment = AugmentSection(scale=0.1)
    batch = batch_of([0, 1, 0, 1], [0, 1, 0, 2])
    for losses in (method._d_losses(batch), method._g_losses(batch)):
        assert torch.isfinite(losses["total"])


def test_defect_classes_become_logits_unless_one_will_do():
    assert method_of(defects=("a", "b", "c")).config.real_classes == 4
    assert method_of(defects=("a", "b", "c"), classes="binary").config.real_classes == 2
    assert method_of(defects=()).config.real_classes == 2


def set_of(boards, folder, drawn=None, unlabelled=True, batch_size=16, **options):
    detector = {"kind": "semi-supervised", "batch_size": batch_size, "options": options}
    recipe = parse_recipe({"name": "x", "dataset": "x", "detector": detector, "image": {"size": 32, "channels": 1}}, "")
    run = Run(recipe, boards, Splits(boards.rows, [], []), "data", folder, folder)
    execution = Execution(RunLog(None, quiet=True), torch.device("cpu"))
    sampling = SemiSupervisedTraining(**options)
    return labelled_set(run, recipe.detector[0], sampling, drawn, 0, execution, unlabelled=unlabelled)


def test_unlabelled_images_have_a_share_and_a_label_of_their_own(boards, tmp_path):
    found = set_of(boards, tmp_path, unlabelled_share=0.25)
    batches, held = found.batches, len(found.held_out.labels)
    assert batches.epoch == len(boards) - held
    classes = defect_classes(boards.rows)
    assert len(classes) > 1
    for _ in range(5):
        batch = batches.next()
        assert [int((batch.labels == label).sum()) for label in (0, 1, UNKNOWN)] == [6, 6, 4]
        unknown = batch.labels == UNKNOWN
        assert not batch.truth.located[unknown].any()
        assert (batch.truth.defects[unknown] == UNSPECIFIED).all()
        assert (batch.truth.defects[batch.labels == 0] == 0).all()
        ng = batch.truth.defects[batch.labels == 1]
        assert ((ng >= 1) & (ng <= len(classes))).all()
    without = set_of(boards, tmp_path, unlabelled=False, unlabelled_share=0.25).batches
    assert without.epoch == 150 - held
    assert set(without.labels.tolist()) == {0, 1}
    assert [s.per_batch for s in without.strata] == [8, 8]


def test_unlabelled_images_of_a_board_that_calibrates_do_not_train(tmp_path):
    whole = render_boards(tmp_path / "b", boards=60, count_ok=200, count_ng=100, size=32, channels=1, seed=4)
    manifest = Manifest(whole.root, [row if i % 7 else unlabelled(row) for i, row in enumerate(whole.rows)])
    found = set_of(manifest, tmp_path)
    held = len(found.held_out.labels)
    assert held > 0
    unknown = int((found.batches.labels == UNKNOWN).sum())
    kept = len(found.batches) - unknown
    assert kept + held == sum(bool(row.label) for row in manifest.rows)
    assert 0 < unknown < sum(not row.label for row in manifest.rows)


def test_an_image_of_several_defects_is_of_the_first_and_a_tile_of_any(boards):
    ng = [row for row in boards.rows if row.label == NG][:3]
    rows = [replace(ng[0], defect="short+open"), replace(ng[1], defect=""), replace(ng[2], defect="open")]
    rows.append(replace(ng[2], defect="hole", origin="g:r:1"))
    assert defect_classes(rows) == ["open", "short"]
    found = labelled_images(boards, rows, GEOMETRY, classes=["open", "short"])
    assert found.defects.tolist() == [2, UNSPECIFIED, 1, UNSPECIFIED]
    assert found.synthetic.tolist() == [False, False, False, True]
    tiles = InputGeometry(height=32, width=32, channels=1, tile=32, stride=32)
    assert labelled_images(boards, rows[:1], tiles, classes=["open", "short"]).defects.tolist() == [UNSPECIFIED]


def test_synthetic_ng_are_told_and_are_ng_or_generated_as_the_recipe_says(boards, tmp_path):
    pixels = torch.full((99, 1, 32, 32), 77, dtype=torch.uint8)
    named = SyntheticBatch(pixels, ["open"] * 99, list(range(99)))
    drawn = write_synthetic(tmp_path / "s", [named], kind="g", run="r", total=99)
    for options, counts in (
        ({"synthetic": "generated"}, [4, 4, 4]),  # OK, real NG, synthetic NG; and 6 unlabelled
        ({"synthetic": "ng"}, [6, 3, 3]),
        ({"synthetic_ratio": 0.0}, [6, 6, 0]),
    ):
        batches = set_of(boards, tmp_path, drawn, batch_size=18, unlabelled_share=1 / 3, **options).batches
        batch = batches.next()
        is_drawn = ((batch.images + 1) * 127.5).round().eq(77).flatten(1).all(1)
        assert torch.equal(batch.truth.synthetic, is_drawn)
        ng = batch.labels == 1
        assert [int(c.sum()) for c in (batch.labels == 0, ng & ~is_drawn, ng & is_drawn)] == counts
        assert (batch.labels == UNKNOWN).sum() == 6
    no_real = Manifest(boards.root, [row for row in boards.rows if row.label != NG])
    with pytest.raises(UserError, match="has no NG"):
        set_of(no_real, tmp_path, drawn)
    assert set_of(no_real, tmp_path, drawn, synthetic="ng").synthetic_ng == 99


def loop_of(boards, folder, log=None):
    training = set_of(boards, folder)
    torch.manual_seed(0)
    method = create_detector(GEOMETRY, section_of(), defects=defect_classes(boards.rows))
    torch.manual_seed(1)
    settings = LoopSettings(control_every=1, sample_every=10**9)
    log = log or RunLog(None, quiet=True)
    return TrainingLoop(method, training.batches, folder, identity="x", log=log, settings=settings)


def test_a_resumed_run_has_the_weights_of_one_left_alone(boards, resumed):
    few = Manifest(boards.root, boards.rows[::3][:75] + boards.rows[1::3][:45] + boards.rows[-60:])
    resumed(lambda folder, log: loop_of(few, folder, log=log), 4)


def test_a_picture_shows_images_heat_and_what_the_generator_draws():
    method = method_of()
    images = torch.rand(8, 1, 32, 32) * 2 - 1
    method.networks.eval()
    shown = method.samples(images)
    assert shown.shape == (24, 1, 32, 32)
    assert torch.equal(shown[:8], images)
    assert torch.equal(shown, method.samples(images))


def test_it_learns_from_few_labels_among_many_images(tmp_path):
    whole = render_boards(tmp_path / "boards", boards=24, count_ok=360, count_ng=200, size=32, channels=1, seed=4)
    given = {f"{row.path}" for label in (OK, NG) for row in [r for r in whole.rows if r.label == label][-80:]}
    boards = sorted({row.group for row in whole.rows})
    rows = []
    for row in whole.rows:
        split = "test" if row.group in boards[:5] else "calibration" if row.group in boards[5:8] else "train"
        row = replace(row, split=split)
        rows.append(row if split != "train" or row.path in given else unlabelled(row))
    Manifest(whole.root, rows).write()
    counts = {label: sum(row.split == "train" and row.label == label for row in rows) for label in (OK, NG, UNLABELLED)}
    assert counts[UNLABELLED] > counts[OK] + counts[NG] > 50
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "few"\ndataset = "boards"\ntarget_fnr = 0.1\n[image]\nsize = 32\nchannels = 1\n'
        '[detector]\nkind = "semi-supervised"\nepochs = 11\n'
        "[detector.options]\nfeatures = 8\nblocks = 1\nlatent = 16\ngenerator_features = 4\nema_decay = 0.98\n"
    )
    bundle = train(recipe, tmp_path / "run", quiet=True, device="cpu")
    assert bundle is not None
    assert bundle.manifest.metrics["auroc"]["lower"] > 0.6, bundle.manifest.metrics["auroc"]
    parity = bundle.manifest.parity  # of the exported graph with torch, on these very images
    assert parity.images == sum(row.split == "calibration" for row in rows)
    assert max(parity.score, parity.heatmap) <= 1e-4
    assert parity.verdicts_differing == 0


@pytest.mark.parametrize(
    "options",
    [
        {"synthetic": "both"},
        {"matching": "l3"},
        {"batch_norm": "alone"},
        {"classes": "all"},
        {"ng_share": 1.0},
        {"unlabelled_share": 1.5},
        {"ramp": -0.1},
        {"synthetic_share": 2.0},
        {"unsupervised_weight": -1.0},
        {"generator_rate": 0.0},
        {"real_classes": 3},
        {"latent": 0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        create_detector(GEOMETRY, section_of(**options))


def test_rows_of_no_class_make_one_class_of_ng():
    rows = [Row("a", OK), Row("b", NG), Row("c", UNLABELLED)]
    assert defect_classes(rows) == []
