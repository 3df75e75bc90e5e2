"""Scenarios of production and review that put the FNR's bounds to the test.

Notable here:
- A scenario draws parts (NG or not, flagged or passed, audited or not) and says which are reviewed, and as what.
- Where a bias must show above the chance of the audits, there are many parts and many audits.
- `truth` is the FNR of the process: the expected number of missed NG over the expected number of NG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
RECHECK_RATE = 0.5
Curve = Callable[[Array], Array]


@dataclass(frozen=True)
class Parts:
    """Parts in the order of their inspection; every array has shape [N]."""

    time: Array
    """In [0, 1)."""
    ng: Mask
    flagged: Mask
    audited: Mask
    order: Array
    """Place in the random order of the queue, uniform in [0, 1)."""
    reviewed: Mask
    called_ng: Mask
    """The label that a reviewer gives or would give; of a pass, the one that two reviewers agree on."""
    probability: float
    """Probability with which a pass becomes an audit sample."""
    doubtful: Mask | None = None
    """Passes that one reviewer found NG and that nobody has reviewed again; None: none."""
    rechecked: Mask | None = None
    """Audit samples that the first reviewer found OK and that others reviewed again; None: none."""

    @property
    def queued(self) -> Mask:
        """Parts that the queue hands out."""
        return self.flagged | self.audited


@dataclass(frozen=True)
class Scenario:
    """A named draw of parts and the FNR behind it."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator], Parts]


def produce(
    rng: np.random.Generator,
    *,
    fnr: Curve,
    overkill: Curve,
    count: int = 4000,
    ng_rate: float = 0.05,
    audit: float = 0.1,
) -> Parts:
    """Draw `count` parts with everything in the queue reviewed without error."""
    time = np.sort(rng.random(count))
    ng = rng.random(count) < ng_rate
    flagged = np.where(ng, rng.random(count) >= fnr(time), rng.random(count) < overkill(time))
    audited = ~flagged & (rng.random(count) < audit)
    return Parts(time, ng, flagged, audited, rng.random(count), flagged | audited, ng, audit)


def first(among: Mask, by: Array, share: float) -> Mask:
    """Return the `share` of the parts `among` that come first in the order `by`."""
    places = np.flatnonzero(among)
    chosen = np.zeros_like(among)
    chosen[places[np.argsort(by[places], kind="stable")[: round(share * len(places))]]] = True
    return chosen


def constant(value: float) -> Curve:
    """Return a curve that stays at `value`."""
    return lambda time: np.full_like(time, value)


def ramp(start: float, end: float) -> Curve:
    """Return a curve that climbs from `start` to `end`."""
    return lambda time: start + (end - start) * time


def by_queue(parts: Parts, queue: str) -> Array:
    """Return the order in which the queue hands parts out: `fifo` or `random`."""
    return parts.time if queue == "fifo" else parts.order


def backlog(rng: np.random.Generator, queue: str) -> Parts:
    """Overkill drifts from 2 to 30 % and reviewers manage half of the queue."""
    parts = produce(rng, fnr=constant(0.2), overkill=ramp(0.02, 0.3), count=20_000, audit=0.3)
    return replace(parts, reviewed=first(parts.queued, by_queue(parts, queue), 0.5))


def audits_wait(rng: np.random.Generator, queue: str) -> Parts:
    """FNR drifts from 5 to 40 %, every flagged part is reviewed and half of the audit samples are."""
    parts = produce(rng, fnr=ramp(0.05, 0.4), overkill=constant(0.05), count=20_000, audit=0.3)
    return replace(parts, reviewed=parts.flagged | first(parts.audited, by_queue(parts, queue), 0.5))


def likely_ng_first(rng: np.random.Generator, *, audits: bool) -> Parts:
    """Reviewers take the half of the flagged parts, and with `audits` of the audit samples, that looks most like NG."""
    parts = produce(rng, fnr=constant(0.2), overkill=constant(0.1), count=20_000, audit=0.3)
    looks = -1.0 * parts.ng + rng.normal(0, 0.5, len(parts.ng))
    taken = first(parts.audited, looks, 0.5) if audits else parts.audited
    return replace(parts, reviewed=first(parts.flagged, looks, 0.5) | taken)


def flood(rng: np.random.Generator, extra: int) -> Parts:
    """Add `extra` flagged OK parts at the end, which nobody has reviewed yet."""
    parts = produce(rng, fnr=constant(0.2), overkill=constant(0.02))
    yes, no = np.ones(extra, bool), np.zeros(extra, bool)
    return Parts(
        np.concatenate([parts.time, np.full(extra, 0.999)]),
        np.concatenate([parts.ng, no]),
        np.concatenate([parts.flagged, yes]),
        np.concatenate([parts.audited, no]),
        np.concatenate([parts.order, rng.random(extra)]),
        np.concatenate([parts.reviewed, no]),
        np.concatenate([parts.called_ng, no]),
        parts.probability,
    )


def flagged_missing(rng: np.random.Generator, share: float) -> Parts:
    """Every pass is reviewed, and a random `share` of the flagged parts."""
    parts = produce(rng, fnr=constant(0.2), overkill=constant(0.02), count=1000)
    return replace(parts, reviewed=~parts.flagged | first(parts.flagged, rng.random(1000), share))


def false_alarms(rng: np.random.Generator, *, again: bool) -> Parts:
    """No NG is missed, and each reviewer calls 1 % of the OK parts NG; second and third reviews are done or not."""
    parts = produce(rng, fnr=constant(0.0), overkill=constant(0.02), ng_rate=0.01)
    first_call = parts.ng | (rng.random(len(parts.ng)) < 0.01)
    passes = parts.audited & first_call
    if not again:
        return replace(parts, called_ng=first_call, doubtful=passes)
    others = rng.random((2, len(parts.ng))) < 0.01
    return replace(parts, called_ng=np.where(passes, others.any(axis=0), first_call))


def overlooked(rng: np.random.Generator, share: float) -> Parts:
    """Reviewers pass a `share` of the NG among the audit samples, and everybody agrees on the others."""
    parts = produce(rng, fnr=constant(0.2), overkill=constant(0.02), audit=0.5)
    return replace(parts, called_ng=parts.ng & ~(parts.audited & (rng.random(len(parts.ng)) < share)))


def overlooked_rechecked(rng: np.random.Generator, again: float) -> Parts:
    """Reviewers pass 30 % of the NG; half of what they find OK is reviewed again by some who pass a share `again`."""
    parts = produce(rng, fnr=constant(0.2), overkill=constant(0.02), audit=0.5)
    first_call = parts.ng & (rng.random(len(parts.ng)) >= 0.3)
    second, third = parts.ng & (rng.random((2, len(parts.ng))) >= again)
    rechecked = parts.audited & ~first_call & (rng.random(len(parts.ng)) < RECHECK_RATE)
    agreed = np.where(first_call, second | third, rechecked & second & third)
    return replace(parts, called_ng=np.where(parts.audited, agreed, parts.ng), rechecked=rechecked)


def audits(rng: np.random.Generator, rate: float) -> Parts:
    """Everything in the queue is reviewed, without error."""
    return produce(rng, fnr=constant(0.2), overkill=constant(0.02), audit=rate)


def scenarios() -> list[Scenario]:
    """Return every scenario."""
    queues = ("fifo", "random")
    return [
        *(Scenario(f"overkill 2 → 30 %, half reviewed, {q}", 0.2, partial(backlog, queue=q)) for q in queues),
        *(Scenario(f"FNR 5 → 40 %, half of audits, {q}", 0.225, partial(audits_wait, queue=q)) for q in queues),
        Scenario("likely NG first among flagged", 0.2, partial(likely_ng_first, audits=False)),
        Scenario("likely NG first among all", 0.2, partial(likely_ng_first, audits=True)),
        *(Scenario(f"flood of {n} flagged", 0.2, partial(flood, extra=n)) for n in (0, 50, 500, 5000)),
        *(
            Scenario(f"all passes, {s:.0%} of flagged reviewed", 0.2, partial(flagged_missing, share=s))
            for s in (0.8, 0.9, 1.0)
        ),
        Scenario("no miss, 1 % of OK called NG once", 0.0, partial(false_alarms, again=False)),
        Scenario("no miss, 1 % of OK called NG, reviewed again", 0.0, partial(false_alarms, again=True)),
        Scenario("30 % of audited NG overlooked", 0.2, partial(overlooked, share=0.3)),
        *(
            Scenario(f"the same, rechecked by some who overlook {a:.0%}", 0.2, partial(overlooked_rechecked, again=a))
            for a in (0.0, 0.1, 0.3)
        ),
        *(Scenario(f"all reviewed, audit rate {a}", 0.2, partial(audits, rate=a)) for a in (0.02, 0.1, 0.5)),
    ]
