"""Faults of the user: one is raised as it is, several are told at once, long lists are cut for people."""

import pytest

from kizu.errors import DivergedError, Faults, UserError, shortened


def test_without_a_fault_nothing_is_raised():
    faults = Faults()
    with faults.noted():
        pass
    faults.tell()


def test_a_single_fault_is_raised_as_it_is():
    fault, faults = DivergedError("the loss is NaN", "lower the rate"), Faults()
    with faults.noted():
        raise fault
    with pytest.raises(DivergedError) as caught:
        faults.tell()
    assert caught.value is fault


def test_several_faults_are_told_at_once_and_each_only_once():
    faults = Faults()
    for problem, remedy, details in (("a", "do x", ["1"]), ("b", None, []), ("a", "do x", []), ("c", "do y", ["2"])):
        with faults.noted():
            raise UserError(problem, remedy, details)
    with pytest.raises(UserError) as caught:
        faults.tell()
    assert (caught.value.problem, caught.value.remedy) == ("a\nb\nc", "do x\ndo y")
    assert caught.value.details == ("1", "2")


def test_other_errors_are_not_kept():
    with pytest.raises(ValueError, match="ours"), Faults().noted():
        raise ValueError("ours")


def test_ten_lines_of_a_list_are_shown():
    assert shortened(["a"] * 10) == ["a"] * 10
    assert shortened(["a"] * 12) == [*["a"] * 10, "… and 2 more (--json lists all)"]
    error = UserError("12 files are too small.", "Leave them out.", [f"{n}.png" for n in range(12)])
    assert str(error).splitlines()[0] == "12 files are too small."
    assert str(error).splitlines()[-3:] == ["9.png", "… and 2 more (--json lists all)", "Leave them out."]
