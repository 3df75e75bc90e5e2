from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122

from kizu.service.identifiers import first_id_at, new_id, time_of


def test_identifiers_are_uuid7_unique_and_in_order() -> None:
    identifiers = [new_id() for _ in range(20_000)]
    assert identifiers == sorted(set(identifiers))
    assert {(identifier.version, identifier.variant) for identifier in identifiers} == {(7, RFC_4122)}
    assert abs(time_of(identifiers[0]) - datetime.now(UTC)) < timedelta(seconds=10)


def test_the_first_identifier_of_a_moment_includes_it() -> None:
    identifier = new_id()
    assert first_id_at(time_of(identifier)) <= identifier
    assert first_id_at(time_of(identifier) + timedelta(microseconds=1)) > identifier
