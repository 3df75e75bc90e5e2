"""Admission control: bounds on the requests in work and on the bytes that they hold in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kizu.service.inference.errors import OverloadedError


class Admission:
    """Counters of requests and bytes; lives in the event loop, so it needs no lock."""

    def __init__(self, max_requests: int, max_bytes: int):
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def request(self) -> Iterator[AdmittedRequest]:
        """Admit a request for the length of the block; raises OverloadedError at the limit."""
        if self.requests >= self._max_requests:
            raise OverloadedError("Too many inspections are in work.")
        self.requests += 1
        admitted = AdmittedRequest(self)
        try:
            yield admitted
        finally:
            self.requests -= 1
            self.bytes -= admitted.bytes

    @contextmanager
    def memory(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes for the length of the block; raises OverloadedError at the limit."""
        self.reserve(size)
        try:
            yield
        finally:
            self.bytes -= size

    def reserve(self, size: int) -> None:
        """Count `size` more bytes; raises OverloadedError at the limit. A request that is alone always gets them."""
        if self.bytes and self.bytes + size > self._max_bytes:
            raise OverloadedError("Too many large images are in work.")
        self.bytes += size


class AdmittedRequest:
    """A request in work, and the bytes that it holds until it ends."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self.bytes = 0

    def reserve(self, size: int) -> None:
        """Hold `size` more bytes; raises OverloadedError at the limit."""
        self._admission.reserve(size)
        self.bytes += size
