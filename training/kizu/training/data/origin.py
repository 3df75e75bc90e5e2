"""Origin of a synthetic image: `KIND:RUN:SEED`, one cell of the manifest.

Notable here:
- Kind and run hold no colon, so that the cell can be taken apart, and nothing that CSV or a log line would not survive.
"""

from __future__ import annotations

import re
import unicodedata

from kizu.errors import UserError

_SEED = re.compile(r"[0-9]{1,20}")
_ODD_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, line and paragraph breaks


def format_origin(kind: str, run: str, seed: int) -> str:
    """The origin of the image that the run `run` of a generator `kind` made from `seed`.

    Raises:
        UserError: kind or run is empty, or could not be told from the rest of the cell; the seed is negative.
    """
    for what, text in (("kind", kind), ("run", run)):
        if not _is_name(text):
            raise UserError(
                f"the generator's {what} {text!r} cannot be written as a synthetic image's origin",
                "Use a name without colons, control characters and outer spaces.",
            )
    if seed < 0:
        raise UserError(f"seed {seed}: a synthetic image's seed is not negative", "Use seeds from 0.")
    return f"{kind}:{run}:{seed}"


def is_origin(text: str) -> bool:
    """Tell whether a cell is what `format_origin` writes."""
    kind, _, rest = text.partition(":")
    run, _, seed = rest.partition(":")
    return _is_name(kind) and _is_name(run) and _SEED.fullmatch(seed) is not None


def _is_name(text: str) -> bool:
    odd = any(letter == ":" or unicodedata.category(letter) in _ODD_CATEGORIES for letter in text)
    return bool(text) and text == text.strip() and not odd
