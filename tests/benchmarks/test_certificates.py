"""The simulations behind benchmarks/claims-certificates.md, with fewer runs: what failed before, and holds now."""

from __future__ import annotations

import math

import pytest

from benchmarks.certificates import TARGET, Boards, certificates, specificities

RUNS = 300
ROOM = 3 * math.sqrt(0.05 * 0.95 / RUNS)
"""Three standard errors of a share of 5 %."""


@pytest.mark.parametrize(
    ("scenario", "before_exceeded", "certifies"),
    [
        (Boards(3, 100, 0.5), 0.4, False),
        (Boards(10, 30, 0.5), 0.2, False),
        (Boards(59, 5, 0.9), 0.1, True),
        (Boards(100, 5, 0.5, uneven=True), 0.0, True),
    ],
    ids=lambda value: value.label if isinstance(value, Boards) else None,
)
def test_a_certificate_is_exceeded_on_new_boards_as_rarely_as_it_says(
    scenario: Boards, before_exceeded: float, certifies: bool
) -> None:
    before, after = certificates(scenario, RUNS)
    assert before.certified == TARGET
    assert before.exceeded >= before_exceeded
    assert after.exceeded <= 0.05 + ROOM
    assert after.these_exceeded <= 0.05 + ROOM
    assert after.certified == pytest.approx(TARGET if certifies else 1 - 0.05 ** (1 / scenario.boards))


def test_an_ensembles_specificity_is_bounded_by_ok_that_its_ranks_have_not_seen() -> None:
    before, after = specificities(100, RUNS, None), specificities(100, RUNS, 100)
    assert before.claimed == 1.0
    assert before.true == pytest.approx(0.971, abs=0.01)
    assert before.outside > 0.2
    assert after.claimed == pytest.approx(after.true, abs=0.01)
    assert after.outside <= 0.05 + ROOM
