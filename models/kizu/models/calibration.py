"""`calibration.csv`: the scores that a bundle's threshold was chosen from, so that another can be chosen later.

Notable here:
- Scores are written so that they read back bit for bit: a rank depends on every digit.
- A certification split's scores are here although no one is to look at them: without them a reserved split could not
  certify another threshold. Rows are sorted and name no image, so that they tell little else.
- Imports no torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kizu.models.operating_point import CertifyingSplit

_COLUMNS = ["set", "label", "group", "score"]
_SETS = ("calibration", "certification")
_LABELS = ("OK", "NG")


class CalibrationScore(NamedTuple):
    """Score of one image that calibrated or certified."""

    split: str
    """`calibration` or `certification`."""
    label: str
    """`OK` or `NG`."""
    group: str
    """Physical unit (board, lot) that the image shows; empty where unknown."""
    score: float
    """Finite, exactly a float32; higher is more NG."""


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of the calibration split, and of the certification split where a recipe reserves one."""

    rows: tuple[CalibrationScore, ...] = ()

    def of(self, split: CertifyingSplit) -> CalibrationScores:
        """Return the rows of one split."""
        return CalibrationScores(tuple(row for row in self.rows if row.split == split))

    @property
    def ng(self) -> NDArray[np.float32]:
        """Scores of the NG, in the rows' order, shape [n]."""
        return np.array([row.score for row in self.rows if row.label == "NG"], dtype=np.float32)

    @property
    def ok(self) -> NDArray[np.float32]:
        """Scores of the OK parts, in the rows' order, shape [m]."""
        return np.array([row.score for row in self.rows if row.label == "OK"], dtype=np.float32)

    @property
    def ng_groups(self) -> list[str]:
        """Group of each NG, in the order of `ng`; empty where unknown."""
        return [row.group for row in self.rows if row.label == "NG"]

    def to_csv(self) -> bytes:
        """Serialise with the columns set, label, group and score: the same rows give the same bytes in any order."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([*row[:3], repr(float(row.score))] for row in sorted(self.rows))
        return text.getvalue().encode("utf-8")

    @classmethod
    def from_csv(cls, data: bytes) -> CalibrationScores:
        """Parse what `to_csv` wrote.

        Raises:
            ValueError: not UTF-8, other columns, an unknown set or label, or a score that is not a finite number.
        """
        lines: Iterable[list[str]] = csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True)
        try:
            header, *cells = list(lines) or [[]]
        except csv.Error as error:
            raise ValueError(f"it is not a CSV file: {error}") from error
        if header != _COLUMNS:
            raise ValueError(f"its columns are {', '.join(header) or 'none'}, not {', '.join(_COLUMNS)}")
        return cls(tuple(_row(number, row) for number, row in enumerate(cells, 2)))


def _row(number: int, cells: list[str]) -> CalibrationScore:
    if len(cells) != len(_COLUMNS):
        raise ValueError(f"row {number} has {len(cells)} cells instead of {len(_COLUMNS)}")
    split, label, group, written = cells
    if split not in _SETS or label not in _LABELS:
        raise ValueError(f"row {number} has the set {split!r} and the label {label!r}")
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"row {number} has the score {written!r}")
    return CalibrationScore(split, label, group, score)
