"""Scripts behind the measured figures on the pages beside them; run as `python -m benchmarks.NAME` from the repository.

Not part of the wheel. Notable here:
- `gan`, `ganomaly` and `limited` are the commands; modules with such a prefix belong to that command.
- They import from `kizu`; nothing in `kizu` imports from here.
"""
