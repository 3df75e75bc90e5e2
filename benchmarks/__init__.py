"""Scripts behind the measured figures on this folder's pages; run as `python -m benchmarks.NAME`.

Not part of the wheel. Notable here:
- `gan`, `ganomaly` and `limited` are the commands; modules with such a prefix belong to that command.
- They import from `kizu`; nothing in `kizu` imports from here.
"""
