from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, inspected
from .processes import Server


def test_a_bundle_may_name_the_range_of_its_heatmaps(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(sqlite_server, metrics={"heatmap_range": [0, 2]})
    answer = sqlite_server.client.get(inspected(sqlite_server, recipe, picture(255))["links"]["heatmap"])
    scale = {name: answer.headers[f"kizu-heatmap-{name}"] for name in ("low", "high", "scale")}
    assert scale == {"low": "0.0", "high": "2.0", "scale": "bundle"}
    assert np.asarray(Image.open(io.BytesIO(answer.content))).max() == round(255 / 2)


def test_a_picture_is_rendered_once_and_needs_the_stored_image(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    inspection = inspected(sqlite_server, add_recipe(sqlite_server), picture(200, seed=815))
    url = inspection["links"]["heatmap"]
    first = sqlite_server.client.get(url)
    assert first.headers["kizu-heatmap-scale"] == "recent"
    key = inspection["image"]["sha256"]
    (sqlite_server.home / "blobs" / key[:2] / key[2:4] / key).unlink()
    again = sqlite_server.client.get(url)
    assert (again.status_code, again.content) == (200, first.content)
    assert_problem(sqlite_server.client.get(url, params={"overlay": True}), 410, "image-lost")
    assert_problem(sqlite_server.client.get(inspection["links"]["image"]), 410, "image-lost")
