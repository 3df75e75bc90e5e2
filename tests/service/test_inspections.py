from __future__ import annotations

import hashlib
import io
from datetime import datetime

import httpx
import numpy as np
import pytest
from PIL import Image

from .bundles import SIDE, brightness_graph, picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected
from .processes import Server


def test_a_verdict_comes_with_score_certificate_model_and_metadata(server: Server, recipe: str) -> None:
    image = picture(200)
    answer = inspect(
        server,
        recipe,
        image,
        serial="A-17",
        lot="L3",
        station="cam 1",
        captured_at="2026-03-01T12:30:00+01:00",
    )
    assert answer.status_code == 201
    content = answer.json()
    assert answer.headers["location"] == content["links"]["self"] == f"/v1/inspections/{content['id']}"
    assert content["verdict"] == "NG"
    assert content["score"] == pytest.approx(200 / 255)
    assert content["threshold"] == 0.5
    assert content["certificate"]["certified_fnr"] == 0.05
    assert "95 % confidence the FNR is at most 5 %" in content["certificate"]["statement"]
    assert content["model_version"]["name"] == f"{recipe} v1"
    assert {name: content[name] for name in ("recipe", "serial", "lot", "station", "captured_at")} == {
        "recipe": recipe,
        "serial": "A-17",
        "lot": "L3",
        "station": "cam 1",
        "captured_at": "2026-03-01T11:30:00Z",
    }
    assert content["image"] == {
        "sha256": hashlib.sha256(image).hexdigest(),
        "bytes": len(image),
        "width": SIDE,
        "height": SIDE,
        "media_type": "image/png",
    }
    stored = server.client.get(content["links"]["self"]).json()
    assert content.items() <= stored.items()
    assert stored["label"] is None
    assert stored["reviews"] == []


@pytest.mark.parametrize(("value", "verdict"), [(76, "OK"), (77, "REVIEW"), (127, "REVIEW"), (128, "NG"), (255, "NG")])
def test_the_operating_point_decides(server: Server, add_recipe: MakeRecipe, value: int, verdict: str) -> None:
    recipe = add_recipe(server, review_threshold=0.3)
    assert inspected(server, recipe, picture(value))["verdict"] == verdict


def test_a_score_that_is_no_number_is_ng(server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(server, graph=brightness_graph(not_a_number_from=0.9))
    content = inspected(server, recipe, picture(255))
    assert content["verdict"] == "NG"
    assert content["score"] is None


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "tiff"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_formats_and_their_exact_bytes(sqlite_server: Server, add_recipe: MakeRecipe, kind: str, mode: str) -> None:
    image = picture(255, kind=kind.upper(), mode=mode, size=(40, 30))
    content = inspected(sqlite_server, add_recipe(sqlite_server), image, kind=kind)
    assert content["image"]["media_type"] == f"image/{kind}"
    assert (content["image"]["width"], content["image"]["height"]) == (40, 30)
    answer = sqlite_server.client.get(content["links"]["image"])
    assert answer.content == image
    assert answer.headers["content-type"] == f"image/{kind}"
    again = sqlite_server.client.get(content["links"]["image"], headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


def test_multipart_is_the_same_as_raw(server: Server, recipe: str) -> None:
    raw = inspected(server, recipe, picture(90), serial="x", captured_at="2026-03-01T12:30:00Z")
    form = {"recipe": recipe, "serial": "x", "captured_at": "2026-03-01T12:30:00Z"}
    answer = server.client.post("/v1/inspections", data=form, files={"image": ("p.png", picture(90), "image/png")})
    assert answer.status_code == 201, answer.text
    differing = ("id", "links", "received_at")
    assert {k: v for k, v in answer.json().items() if k not in differing} == {
        k: v for k, v in raw.items() if k not in differing
    }


@pytest.mark.parametrize("declared", [None, "application/octet-stream", "image/jpg", "IMAGE/PNG; q=1"])
def test_undeclared_types_are_recognised_and_usual_aliases_accepted(
    sqlite_server: Server, add_recipe: MakeRecipe, declared: str | None
) -> None:
    kind = "JPEG" if declared == "image/jpg" else "PNG"
    headers = {} if declared is None else {"content-type": declared}
    answer = sqlite_server.client.post(
        f"/v1/inspections?recipe={add_recipe(sqlite_server)}", content=picture(10, kind=kind), headers=headers
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["image"]["media_type"] == f"image/{kind.lower()}"


def test_an_offset_whose_plus_was_not_escaped_is_understood(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    url = f"/v1/inspections?recipe={add_recipe(sqlite_server)}&captured_at=2026-03-01T12:30:00+01:00"
    answer = sqlite_server.client.post(url, content=picture(10), headers={"content-type": "image/png"})
    assert answer.json()["captured_at"] == "2026-03-01T11:30:00Z"


def test_ids_sort_by_time(server: Server, recipe: str) -> None:
    answers = [inspected(server, recipe, picture(i)) for i in range(5)]
    assert [a["id"] for a in answers] == sorted(a["id"] for a in answers)
    received = [datetime.fromisoformat(a["received_at"]) for a in answers]
    assert received == sorted(received)


def test_the_heatmap_shows_where_on_a_scale_that_images_share(server: Server, recipe: str) -> None:
    hot = inspected(server, recipe, picture(250))
    cold = inspected(server, recipe, picture(25))
    answers = [server.client.get(content["links"]["heatmap"]) for content in (hot, cold)]
    assert all(answer.headers["content-type"] == "image/png" for answer in answers)
    assert answers[0].headers["kizu-heatmap-high"] == answers[1].headers["kizu-heatmap-high"]
    levels = [np.asarray(Image.open(io.BytesIO(answer.content))) for answer in answers]
    assert levels[0].shape == (SIDE, SIDE)
    assert np.unravel_index(levels[0].argmax(), levels[0].shape) == (SIDE // 2, SIDE // 2)
    assert levels[0].max() == 255
    assert levels[1].max() == round(255 * 25 / 250)

    overlay = server.client.get(hot["links"]["heatmap"], params={"overlay": True})
    assert Image.open(io.BytesIO(overlay.content)).size == (SIDE, SIDE)
    assert overlay.content != answers[0].content


@pytest.mark.parametrize("suffix", ["", "/image", "/heatmap"])
def test_what_does_not_exist_is_not_found(server: Server, suffix: str) -> None:
    nobody = "01a20413-ab57-7000-9c86-324ce9bb2b01"
    assert_problem(server.client.get(f"/v1/inspections/{nobody}{suffix}"), 404, "unknown-inspection")
    assert_problem(server.client.get(f"/v1/inspections/17{suffix}"), 422)


def test_scores_are_the_same_alone_and_in_company(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    from concurrent.futures import ThreadPoolExecutor

    recipe = add_recipe(sqlite_server)
    sizes = [(SIDE, SIDE), (32, 24), (50, 50)]
    images = [picture(3 * i, size=sizes[i % 3], mode="RGB" if i % 4 == 0 else "L", seed=i) for i in range(60)]
    alone = [inspected(sqlite_server, recipe, image)["score"] for image in images]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda image: inspected(sqlite_server, recipe, image)["score"], images))
    assert together == alone


def test_a_client_that_goes_away_leaves_nothing(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(sqlite_server)

    def half_a_body():
        yield picture(10)[:20]
        raise InterruptedError

    with pytest.raises(InterruptedError):
        httpx.post(
            f"{sqlite_server.url}/v1/inspections?recipe={recipe}",
            content=half_a_body(),
            headers={"content-type": "image/png"},
        )
    assert sqlite_server.inspections(recipe=recipe) == []
    inspected(sqlite_server, recipe, picture(10))
