from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import RFC_4122

import pytest

from kizu.service.identifiers import first_id_at, new_id, time_of


def test_identifiers_are_uuid7_unique_and_in_order() -> None:
    identifiers = [new_id() for _ in range(20_000)]
    assert identifiers == sorted(set(identifiers))
    assert {(identifier.version, identifier.variant) for identifier in identifiers} == {(7, RFC_4122)}
    assert abs(time_of(identifiers[0]) - datetime.now(UTC)) < timedelta(seconds=10)


def test_a_clock_that_was_ahead_is_followed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = new_id(), time.time_ns()
    time.sleep(0.002)
    monkeypatch.setattr(time, "time_ns", lambda: now + 365 * 86_400 * 10**9)
    assert time_of(new_id()) > datetime.now(UTC) + timedelta(days=364)
    monkeypatch.undo()
    identifiers = [new_id() for _ in range(10_000)]
    assert identifiers == sorted(set(identifiers))
    assert before < identifiers[0]
    assert abs(time_of(identifiers[-1]) - datetime.now(UTC)) < timedelta(seconds=10)


def test_a_small_step_of_the_clock_back_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: clock)
    first = [new_id() for _ in range(100)]
    clock -= 5 * 10**9
    second = [new_id() for _ in range(100)]
    assert first + second == sorted({*first, *second})
    assert time_of(second[-1]) - time_of(first[0]) < timedelta(seconds=1)


def test_an_identifier_comes_after_the_one_that_it_follows() -> None:
    ahead = first_id_at(datetime.now(UTC) + timedelta(days=365))
    following = new_id(after=ahead)
    assert ahead < following < new_id(after=following)
    assert new_id(after=first_id_at(datetime.now(UTC) - timedelta(days=365))) < ahead
    assert abs(time_of(new_id()) - datetime.now(UTC)) < timedelta(seconds=10)


def test_the_first_identifier_of_a_moment_includes_it() -> None:
    identifier = new_id()
    assert first_id_at(time_of(identifier)) <= identifier
    assert first_id_at(time_of(identifier) + timedelta(microseconds=1)) > identifier
