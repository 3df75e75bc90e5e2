from __future__ import annotations

import numpy as np

from kizu.service.inspections.heatmap import colour_map


def test_the_colour_map_is_even_in_lightness() -> None:
    linear = np.where((c := colour_map() / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(np.cbrt(luminance)) > 0).mean() > 0.97
    assert len(np.unique(colour_map(), axis=0)) > 250
