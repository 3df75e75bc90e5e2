"""Leakage-free splits: what was photographed twice is never on both sides.

Notable here:
- The unit is the group (the board, lot or module); a row without a group is its own.
- Largest units first, each to the split that lacks most of what the unit holds: OK, NG and, weakly, each defect class.
- A function of the rows and the seed alone: no random generator, so neither row order nor platform matters.
- Given splits are kept. Where they lack a calibration split, or a certification split that is asked for, it comes out
  of train; test is never touched.
- Synthetic images train, whatever their group. They are set aside first, so they move no image from a camera.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kizu.errors import UserError
from kizu.training.data.manifest import (
    CERTIFICATION,
    FILE,
    NG,
    OK,
    SPLITS,
    UNLABELLED,
    Manifest,
    Row,
    check_groups,
    count_labels,
)

# A defect class may tip the scales between splits that want a unit equally, but not against OK or NG.
DEFECT_WEIGHT = 0.1


@dataclass(frozen=True)
class Splits:
    """The rows of each split, ordered by path, with their `split` filled in."""

    train: list[Row]
    calibration: list[Row]
    test: list[Row]
    certification: list[Row] = field(default_factory=list)
    """Reserved for the certificate; nothing else reads them."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted (path, split) pairs."""
        digest = hashlib.sha256()
        for row in sorted(self.rows, key=lambda row: row.path):
            digest.update(f"{row.path}\0{row.split}\n".encode())
        return digest.hexdigest()

    @property
    def rows(self) -> list[Row]:
        """All rows, train first."""
        return [*self.train, *self.calibration, *self.test, *self.certification]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and label: `{"train": {"OK": …, "NG": …, "unlabelled": …}, …}`, as `count_labels`."""
        names = (*SPLITS, CERTIFICATION) if self.certification else SPLITS
        return {split: count_labels(getattr(self, split)) for split in names}


def write_splits(path: Path, splits: Splits) -> None:
    """Write which row went where, as CSV with the columns path, label, group and split."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        writer.writerows([row.path, row.label, row.group, row.split] for row in splits.rows)


def read_split(path: Path, split: str) -> set[str]:
    """Paths of the images that `write_splits` put into `split`."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"] for row in csv.DictReader(file) if row["split"] == split}


class _Unit:
    """Rows that must stay together."""

    def __init__(self, key: str, rows: Sequence[Row], seed: int):
        self.rows = rows
        # OK and NG by label; a defect class has a name that no label can have.
        self.holds = Counter(row.label for row in rows if row.label != UNLABELLED)
        self.holds.update(f"class {name}" for row in rows for name in row.defects)
        self.given = next((row.split for row in rows if row.split), "")
        self.lot = hashlib.sha256(f"{seed}\0{key}".encode()).digest()

    def draw(self, splits: Iterable[str]) -> str:
        """One of equally fitting splits, by lot."""
        return min(splits, key=lambda split: hashlib.sha256(self.lot + split.encode()).digest())


def assign_splits(
    manifest: Manifest,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    certification: float = 0.0,
) -> Splits:
    """Split into train, calibration and test; `fractions` of OK and of NG, as near as whole groups allow.

    Rows whose `split` is given keep it, and pull the rest of their group along. If none is given `calibration`, that
    is drawn from the given train rows. Units without any label go to train and count nowhere. Synthetic rows go to
    train, and the others' splits are as they would be without them.

    Args:
        fractions: of train, calibration and test; with `certification`, they sum to 1.
        certification: fraction that is reserved for the certificate. 0: none but what the manifest gives, and the
            other splits are as they were before there was such a split.

    Raises:
        UserError: a group in two given splits, too few groups to fill every split, no OK in train, or no NG in a
            certification split that is asked for (synthetic rows count for none of these).
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) + certification - 1) > 1e-6:
        raise ValueError(f"fractions are three positive numbers that sum to 1, not {fractions}, {certification}")
    source = manifest.root / FILE
    check_groups(manifest.rows, source)
    share = dict(zip(SPLITS, fractions, strict=True)) | ({CERTIFICATION: certification} if certification else {})
    units = _units((row for row in manifest.rows if not row.synthetic), seed)
    synthetic = [row for row in manifest.rows if row.synthetic]
    placed: dict[str, list[_Unit]] = {
        split: [unit for unit in units if unit.given == split] for split in (*SPLITS, CERTIFICATION)
    }
    any_given = any(placed.values())

    lacking = [split for split in share if split in ("calibration", CERTIFICATION) and not placed[split]]
    if any_given and lacking:
        whole = share["train"] + sum(share[split] for split in lacking)
        placed.update(_distribute(placed["train"], {split: share[split] / whole for split in ("train", *lacking)}))
    for split, more in _distribute([unit for unit in units if not unit.given], share).items():
        placed[split].extend(more)

    _check(placed, units, any_given, source)
    if certification or placed[CERTIFICATION]:
        _check_certification(placed[CERTIFICATION], source)
    rows = {split: [row for unit in members for row in unit.rows] for split, members in placed.items()}
    rows["train"] += synthetic
    return Splits(*(_filled(rows[split], split) for split in (*SPLITS, CERTIFICATION)))


def _filled(rows: Iterable[Row], split: str) -> list[Row]:
    return sorted((replace(row, split=split) for row in rows), key=lambda row: row.path)


def _units(rows: Iterable[Row], seed: int) -> list[_Unit]:
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(f"group\0{row.group}" if row.group else f"path\0{row.path}", []).append(row)
    return [_Unit(key, members[key], seed) for key in sorted(members)]


def _distribute(units: Sequence[_Unit], share: dict[str, float]) -> dict[str, list[_Unit]]:
    """Greedy: each unit goes where the squared deviation from the wished shares falls most."""
    placed: dict[str, list[_Unit]] = {split: [] for split in share}
    placed["train"].extend(unit for unit in units if not unit.holds)
    labelled = [unit for unit in units if unit.holds]
    total: Counter[str] = Counter()
    for unit in labelled:
        total.update(unit.holds)
    weight = {what: (1.0 if what in (OK, NG) else DEFECT_WEIGHT) / count**2 for what, count in total.items()}
    has: dict[str, Counter[str]] = {split: Counter() for split in share}
    units_left = Counter(what for unit in labelled for what in (OK, NG) if unit.holds[what])

    def size(unit: _Unit) -> float:
        return sum(count / total[what] for what, count in unit.holds.items() if what in (OK, NG))

    for unit in sorted(labelled, key=lambda unit: (-round(size(unit), 12), unit.lot)):
        candidates = _candidates(unit, has, units_left)
        excess = {
            split: round(
                sum(
                    weight[what] * count * (has[split][what] - share[split] * total[what])
                    for what, count in sorted(unit.holds.items())
                ),
                14,
            )
            for split in candidates
        }
        least = min(excess.values())
        chosen = unit.draw(split for split in candidates if excess[split] == least)
        placed[chosen].append(unit)
        has[chosen].update(unit.holds)
        units_left.subtract(what for what in (OK, NG) if unit.holds[what])
    return placed


def _candidates(unit: _Unit, has: dict[str, Counter[str]], units_left: Counter[str]) -> list[str]:
    """Every split, unless the last units with OK (or NG) are needed for the splits that have none yet."""
    candidates = list(has)
    for what in (OK, NG):
        if unit.holds[what]:
            lacking = [split for split in candidates if not has[split][what]]
            if lacking and units_left[what] <= len(lacking):
                candidates = lacking
    return candidates


def _check(placed: dict[str, list[_Unit]], units: Sequence[_Unit], any_given: bool, source: object) -> None:
    empty = [split for split in SPLITS if not any(unit.holds for unit in placed[split])]
    if empty and not any_given:
        labelled = sum(1 for unit in units if unit.holds)
        raise UserError(
            f"{source}: {labelled} group{'s' * (labelled != 1)} with labelled images cannot fill train, calibration "
            f"and test",
            "At least three are needed, with OK images. Add groups, leave the group column empty if the images show "
            "different things, or give each row its split.",
        )
    if empty:
        raise UserError(
            f"{source}: with the given splits, {' and '.join(empty)} would have no labelled image",
            f"Give some groups the split {empty[0]}, or leave the split column empty and Kizu splits by group.",
        )
    if not any(unit.holds[OK] for unit in placed["train"]):
        raise UserError(
            f"{source}: no OK image is in the train split",
            "Detectors learn from OK images: give some OK rows the split train, or add OK images.",
        )


def _check_certification(units: Sequence[_Unit], source: object) -> None:
    if not any(unit.holds[NG] for unit in units):
        raise UserError(
            f"{source}: no NG is in the certification split, so it certifies nothing",
            "Add NG, give some NG rows the split certification, or leave splits.certification out of the recipe.",
        )
