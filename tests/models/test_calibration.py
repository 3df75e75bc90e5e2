from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kizu.models.calibration import CalibrationScore, CalibrationScores

ROWS = st.lists(
    st.builds(
        CalibrationScore,
        st.sampled_from(["calibration", "certification"]),
        st.sampled_from(["OK", "NG"]),
        st.text(st.characters(exclude_categories=["Cs", "Cc"])),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)


@given(ROWS, st.randoms())
def test_scores_read_back_bit_for_bit_and_rows_in_any_order_give_the_same_file(rows, random) -> None:
    data = CalibrationScores(tuple(rows)).to_csv()
    again = CalibrationScores.from_csv(data)
    assert sorted(again.rows) == sorted(rows)
    assert sorted(again.ng.tolist()) == sorted(row.score for row in rows if row.label == "NG")
    random.shuffle(rows)
    shuffled = CalibrationScores(tuple(rows))
    assert CalibrationScores.from_csv(shuffled.to_csv()).to_csv() == shuffled.to_csv()


def test_the_file_is_sorted_so_that_no_row_can_be_traced_to_its_image() -> None:
    rows = (
        CalibrationScore("certification", "NG", "b,1", float(np.float32(0.1))),
        CalibrationScore("calibration", "OK", "", 2.0),
        CalibrationScore("certification", "NG", "a", 0.5),
    )
    expected = (
        "set,label,group,score\n"
        "calibration,OK,,2.0\n"
        "certification,NG,a,0.5\n"
        'certification,NG,"b,1",0.10000000149011612\n'
    )
    assert CalibrationScores(rows).to_csv().decode() == expected
    assert CalibrationScores(rows[::-1]).to_csv().decode() == expected


def test_each_split_gives_its_own_scores_and_groups() -> None:
    rows = (
        CalibrationScore("calibration", "NG", "a", 0.5),
        CalibrationScore("calibration", "OK", "a", 0.25),
        CalibrationScore("certification", "NG", "", 1.0),
    )
    calibration = CalibrationScores(rows).of("calibration")
    assert (calibration.ng.tolist(), calibration.ok.tolist(), calibration.ng_groups) == ([0.5], [0.25], ["a"])
    assert CalibrationScores(rows).of("certification").ng_groups == [""]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its columns are none"),
        (b"label,score\n", "its columns are label, score"),
        (b"set,label,group,score\ncalibration,NG,\n", "row 2 has 3 cells"),
        (b"set,label,group,score\ntest,NG,,1.0\n", "row 2 has the set 'test'"),
        (b"set,label,group,score\ncalibration,,,1.0\n", "the label ''"),
        (b"set,label,group,score\ncalibration,NG,,1.0\ncalibration,NG,,nan\n", "row 3 has the score 'nan'"),
        (b"set,label,group,score\ncalibration,NG,,high\n", "row 2 has the score 'high'"),
        (b'set,label,group,score\ncalibration,NG,"a,1.0\n', "not a CSV"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_what_to_csv_did_not_write_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CalibrationScores.from_csv(content)
