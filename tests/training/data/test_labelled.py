"""OK images held out for the ranks of several detectors."""

from __future__ import annotations

from kizu.training.data.labelled import hold_out_ok
from kizu.training.data.manifest import NG, OK, Row


def images(label: str, count: int, group: str = "", origin: str = "") -> list[Row]:
    return [Row(f"{group}/{label}{number:03}{origin}", label, group=group, origin=origin) for number in range(count)]


def test_a_tenth_is_held_out_but_at_least_twenty_and_at_most_half() -> None:
    assert [len(hold_out_ok(images(OK, n), 0)) for n in (500, 200, 60, 30, 2, 1)] == [50, 20, 20, 15, 1, 0]


def test_only_ok_of_the_camera_are_held_out() -> None:
    rows = images(OK, 100) + images(NG, 100) + images("", 100) + images(OK, 100, origin="g:r:1")
    held = hold_out_ok(rows, 0)
    assert len(held) == 20
    assert all(row.label == OK and not row.synthetic for row in held)


def test_whole_groups_without_ng_are_held_out_where_they_fit() -> None:
    rows = [row for n in range(40) for row in images(OK, 5, f"ok{n:02}")] + images(NG, 9, "bad") + images(OK, 99, "bad")
    held = hold_out_ok(rows, 0)
    groups = {row.group for row in held}
    assert len(held) == 30
    assert "bad" not in groups
    assert all(row in held for row in rows if row.group in groups)


def test_single_images_are_held_out_where_every_group_has_ng() -> None:
    rows = [row for n in range(20) for row in images(OK, 10, f"g{n:02}") + images(NG, 1, f"g{n:02}")]
    assert len(hold_out_ok(rows, 0)) == 20


def test_the_choice_follows_from_rows_and_seed() -> None:
    rows = images(OK, 100)
    assert {row.path for row in hold_out_ok(rows[::-1], 3)} == {row.path for row in hold_out_ok(rows, 3)}
    assert {row.path for row in hold_out_ok(rows, 4)} != {row.path for row in hold_out_ok(rows, 3)}
