"""Bundles that are not what was exported: refused when added, loaded or promoted, and noticed while they decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .bundles import make_bundle, picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected, send_bundle, upload, zipped
from .processes import Server

TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "model": lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1] + b"!"),
    "truncated model": lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:99]),
    "threshold": lambda folder: (folder / "bundle.json").write_text(
        (folder / "bundle.json").read_text().replace('"threshold": 0.5', '"threshold": 0.9')
    ),
    "missing model": lambda folder: (folder / "model.onnx").unlink(),
    "missing manifest": lambda folder: (folder / "bundle.json").unlink(),
    "not JSON": lambda folder: (folder / "bundle.json").write_text("{"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_bundle_is_not_added(sqlite_server: Server, tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "b", f"tampered {name}")
    TAMPERINGS[name](tmp_path / "b")
    assert_problem(send_bundle(sqlite_server, zipped(tmp_path / "b")), 422, "unusable-bundle")
    assert_problem(inspect(sqlite_server, f"tampered {name}", picture(1)), 404, "unknown-recipe")


def test_a_bundle_tampered_with_after_it_was_added_is_refused_at_load(
    new_server: Callable[..., Server], add_recipe: MakeRecipe, tmp_path: Path
) -> None:
    server = new_server().start()
    damaged = {add_recipe(server): name for name in ("model", "threshold", "missing model")}
    swapped = add_recipe(server)
    inspections = {recipe: inspected(server, recipe, picture(1)) for recipe in [*damaged, swapped]}
    server.kill()
    for recipe, name in damaged.items():
        TAMPERINGS[name](kept(server, recipe))
    # Hash and digest of this one agree with each other, but not with what was added.
    make_bundle(kept(server, swapped), swapped, threshold=0.999)

    server.start()
    for recipe, inspection in inspections.items():
        problem = assert_problem(inspect(server, recipe, picture(1)), 503, "model-unusable")
        assert str(server.home) not in problem["detail"]
        assert str(kept(server, recipe)) in server.log()
        assert len(server.inspections(recipe=recipe)) == 1
        assert_problem(server.client.get(inspection["links"]["heatmap"]), 503, "model-unusable")
    assert "fingerprint" in assert_problem(inspect(server, swapped, picture(1)), 503)["detail"]
    assert str(server.home) not in assert_problem(server.client.get("/readyz"), 503, "no-usable-model")["detail"]
    assert server.client.get("/healthz").status_code == 200

    # Adding the bundle again repairs it, and other recipes' damage does not touch it.
    repaired = next(iter(damaged))
    upload(server, tmp_path / repaired)
    inspected(server, repaired, picture(1))
    ready = server.client.get("/readyz")
    assert ready.status_code == 200
    states = {recipe["recipe"]: recipe["state"] for recipe in ready.json()["recipes"]}
    assert states == dict.fromkeys(inspections, "unusable") | {repaired: "loaded"}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_champion_that_is_altered_stops_deciding_and_cannot_be_promoted(
    new_server: Callable[..., Server], add_recipe: MakeRecipe, tmp_path: Path, name: str
) -> None:
    server = new_server().start()
    recipe, other = add_recipe(server), add_recipe(server)
    inspected(server, recipe, picture(1))
    TAMPERINGS[name](kept(server, recipe))
    promoted = server.client.post(f"/v1/models/{server.models[recipe]}/promote")
    assert_problem(promoted, 503, "model-unusable")
    assert str(server.home) not in promoted.text
    assert_problem(inspect(server, recipe, picture(1)), 503, "model-unusable")
    inspected(server, other, picture(1))
    # Added again, it decides again.
    upload(server, tmp_path / recipe)
    inspected(server, recipe, picture(1))

    TAMPERINGS[name](kept(server, recipe))
    end = time.monotonic() + 10
    while (answer := inspect(server, recipe, picture(1))).status_code == 201:
        assert time.monotonic() < end, "it was never noticed"
        time.sleep(0.2)
    assert_problem(answer, 503, "model-unusable")
    inspected(server, other, picture(1))


def test_a_champion_whose_files_are_written_again_unchanged_decides_on(
    new_server: Callable[..., Server], add_recipe: MakeRecipe
) -> None:
    server = new_server().start()
    recipe = add_recipe(server)
    inspected(server, recipe, picture(1))
    for path in kept(server, recipe).iterdir():
        path.write_bytes(path.read_bytes())
    folder = kept(server, recipe)
    for _ in range(10):
        time.sleep(0.25)
        inspected(server, recipe, picture(1))
    # An unmounted folder is no reason to stop the line.
    folder.rename(server.home / "away")
    for _ in range(10):
        time.sleep(0.25)
        inspected(server, recipe, picture(1))
    assert_problem(server.client.post(f"/v1/models/{server.models[recipe]}/promote"), 503, "model-unusable")


def kept(server: Server, recipe: str) -> Path:
    return server.home / "models" / server.models[recipe]


def test_the_command_line_refuses_a_tampered_bundle_in_plain_words(sqlite_server: Server, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", "tampered on disk")
    TAMPERINGS["model"](tmp_path / "b")
    refused = sqlite_server.cli("models", "add", str(tmp_path / "b"))
    assert refused.returncode == 2
    assert "SHA-256 does not match" in refused.stderr
    assert "Traceback" not in refused.stderr
