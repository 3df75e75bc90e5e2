from __future__ import annotations

import pytest

from kizu.service.identifiers import new_id
from kizu.service.inspections.audit import AuditDecision, AuditSampler, uniform


def test_sampling_is_uniform_and_needs_the_key() -> None:
    identifiers = [new_id() for _ in range(20_000)]
    sampled = sum(uniform(b"key", identifier) < 0.02 for identifier in identifiers)
    assert abs(sampled - 400) < 5 * (20_000 * 0.02 * 0.98) ** 0.5
    assert uniform(b"key", identifiers[0]) == uniform(b"key", identifiers[0]) != uniform(b"other", identifiers[0])


def test_only_passed_inspections_are_sampled_with_the_probability_that_is_stored() -> None:
    sampler = AuditSampler(b"key", 0.3)
    for identifier in (new_id() for _ in range(200)):
        assert sampler.decide(identifier, "OK") == AuditDecision(0.3, uniform(b"key", identifier) < 0.3)
        assert sampler.decide(identifier, "NG") == AuditDecision(None, False)
        assert sampler.decide(identifier, "REVIEW") == AuditDecision(None, False)


def test_rechecks_are_drawn_by_themselves() -> None:
    sampler = AuditSampler(b"key", 0.5, recheck_rate=0.5)
    identifiers = [new_id() for _ in range(4000)]
    both = sum(sampler.decide(found, "OK").selected and sampler.rechecks(found) for found in identifiers)
    assert abs(both - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert not any(AuditSampler(b"key", 0.5).rechecks(found) for found in identifiers)


@pytest.mark.parametrize(("rate", "selected"), [(0.0, False), (1.0, True)])
def test_rates_at_the_ends_are_certain(rate: float, selected: bool) -> None:
    sampler = AuditSampler(b"key", rate)
    assert {sampler.decide(new_id(), "OK") for _ in range(1000)} == {AuditDecision(rate, selected)}
