"""The tables of a Markdown page."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of every table of `page` whose first column is headed `heading`, without the heading itself."""
    found: list[list[str]] = []
    inside = False
    for line in (REPOSITORY / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == heading:
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            found.append(cells)
    assert found, f"{page} has no table headed '{heading}'"
    return found


def code(cell: str) -> list[str]:
    """The texts in backticks of a cell."""
    return re.findall(r"`([^`]+)`", cell)
