"""Kizu (傷, "flaw"): automated optical inspection where good parts are plenty and defects scarce."""

__version__ = "0.1.0"
