from __future__ import annotations

import io
import json
import os
import resource
import stat
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kizu.models.bands import simultaneous_upper
from kizu.models.bundle import CALIBRATION_FILE, Bundle
from kizu.models.calibration import CalibrationScore, CalibrationScores
from kizu.models.curve import ThresholdCurve
from kizu.models.operating_point import choose_operating_point
from kizu.service.cli import certified, register
from kizu.service.registry.schemas import Certificate
from kizu.service.registry.tables import Model

from .bundles import as_schema_1, calibration, make_bundle, picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected, upload, zipped
from .processes import Server


def send(server: Server, content: bytes, kind: str = "application/zip"):
    return server.client.post("/v1/models", content=content, headers={"content-type": kind})


def status(server: Server, model: dict) -> str:
    return server.client.get(f"/v1/models/{model['id']}").json()["status"]


def test_adding_promoting_and_rolling_back(server: Server, recipe: str, tmp_path: Path) -> None:
    first = server.client.get("/v1/models", params={"recipe": recipe}).json()["items"][0]
    make_bundle(tmp_path / "v2", recipe, threshold=0.8)
    make_bundle(tmp_path / "v3", recipe, threshold=0.9)
    second, third = upload(server, tmp_path / "v2"), upload(server, tmp_path / "v3")
    assert [model["name"] for model in (first, second, third)] == [f"{recipe} v{n}" for n in (1, 2, 3)]
    assert [status(server, model) for model in (first, second, third)] == ["champion", "challenger", "challenger"]
    assert second["threshold"] == pytest.approx(0.8)
    assert second["certificate"]["certified_fnr"] == 0.05

    def decides() -> str:
        return inspected(server, recipe, picture(220))["model_version"]["id"]

    for model in (second, third):
        assert server.client.post(f"/v1/models/{model['id']}/promote").json()["status"] == "champion"
        assert decides() == model["id"]
    assert server.client.post(f"/v1/recipes/{recipe}/rollback").json()["id"] == second["id"]
    assert decides() == second["id"]
    assert server.client.post(f"/v1/recipes/{recipe}/rollback").json()["id"] == first["id"]
    assert decides() == first["id"]
    assert_problem(server.client.post(f"/v1/recipes/{recipe}/rollback"), 409, "nothing-to-roll-back-to")
    listed = server.client.get("/v1/models", params={"recipe": recipe}).json()["items"]
    assert [model["number"] for model in listed] == [3, 2, 1]


def test_adding_the_same_bundle_twice_gives_the_same_model(server: Server, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", f"twice-{tmp_path.name}-{server.port}")
    first, again = send(server, zipped(tmp_path / "b")), send(server, zipped(tmp_path / "b"))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


def test_retiring(server: Server, recipe: str, tmp_path: Path) -> None:
    champion = server.client.get("/v1/models", params={"recipe": recipe}).json()["items"][0]
    assert_problem(server.client.post(f"/v1/models/{champion['id']}/retire"), 409, "model-is-champion")
    make_bundle(tmp_path / "v2", recipe, threshold=0.8)
    other = upload(server, tmp_path / "v2")
    assert server.client.post(f"/v1/models/{other['id']}/retire").json()["status"] == "retired"
    assert_problem(server.client.post(f"/v1/models/{other['id']}/promote"), 409, "model-retired")
    assert upload(server, tmp_path / "v2")["status"] == "challenger"


@pytest.mark.parametrize("model_id", ["0" * 16, "x", "a\0b"])
@pytest.mark.parametrize("action", ["", "/promote", "/retire"])
def test_unknown_models(server: Server, model_id: str, action: str) -> None:
    url = f"/v1/models/{model_id.replace(chr(0), '%00')}{action}"
    assert_problem(server.client.request("POST" if action else "GET", url), 404)


def test_rolling_back_an_unknown_recipe(server: Server) -> None:
    assert_problem(server.client.post("/v1/recipes/nobody-knows/rollback"), 404, "unknown-recipe")
    assert_problem(server.client.post("/v1/recipes/a%00b/rollback"), 404, "unknown-recipe")


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        member = zipfile.ZipInfo("model.onnx")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(member, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 but no zip",
        archive(**{"../../model.onnx": b"x"}),
        archive(**{"/model.onnx": b"x"}),
        archive(**{"a/b/model.onnx": b"x"}),
        archive(**{"a/model.onnx": b"x", "b/bundle.json": b"x"}),
        archive(**{"evil.py": b"x"}),
        archive(**{"model.onnx": b"x"}),
        archive(**{"model.onnx": b"x", "bundle.json": b"{}"}),
        archive(**{"model.onnx": b"x", "bundle.json": b"[" * 100_000}),
        archive(**{"model.onnx": b"x", "bundle.json": b'{"schema_version": 2, "a": ' + b'{"a": ' * 100_000}),
        link(),
    ],
    ids=[
        "empty",
        "no zip",
        "dots",
        "absolute",
        "deep",
        "two folders",
        "other file",
        "lacks one",
        "no bundle",
        "nested",
        "nested maps",
        "link",
    ],
)
def test_archives_that_are_no_bundle(sqlite_server: Server, content: bytes) -> None:
    models = sqlite_server.client.get("/v1/models").json()
    answer = assert_problem(send(sqlite_server, content), 422)
    assert str(sqlite_server.home) not in answer["detail"]
    assert answer["detail"].count(". ") >= 1, "it has a remedy"
    assert sqlite_server.client.get("/v1/models").json() == models
    assert not list((sqlite_server.home / "models").glob(".*"))


@pytest.mark.parametrize("name", ["", " padded", "two\nlines", "x" * 129])
def test_a_bundle_of_a_recipe_that_nobody_can_ask_for(sqlite_server: Server, tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "b", name)
    content = assert_problem(send(sqlite_server, zipped(tmp_path / "b")), 422, "unusable-bundle")
    assert "recipe" in content["detail"]


@pytest.mark.parametrize("content", [os.urandom(600_000), bytes(5_000_000)], ids=["sent", "extracted"])
def test_no_room_for_a_bundle(new_server: Callable[..., Server], content: bytes) -> None:
    """The process may write files of 400 kB, as if the disk had no more room."""
    server = new_server().start()
    assert server.process is not None
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (400_000, before[1]))
    answer = assert_problem(send(server, archive(**{"model.onnx": content})), 507, "insufficient-storage")
    assert "Free space" in answer["detail"]
    assert str(server.home) not in answer["detail"]
    assert not list((server.home / "models").iterdir())


def test_a_folder_of_models_that_cannot_be_written(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server().start()
    make_bundle(tmp_path / "b", "boards")
    (server.home / "models").touch()
    answer = send(server, zipped(tmp_path / "b"))
    assert str(server.home) not in assert_problem(answer, 503, "storage-unavailable")["detail"]
    assert answer.headers["retry-after"]
    (server.home / "models").unlink()
    assert send(server, zipped(tmp_path / "b")).status_code == 201


def test_a_bundle_in_one_folder_of_the_archive_is_fine(sqlite_server: Server, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", "in-a-folder")
    members = {f"bundle/{path.name}": path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert send(sqlite_server, archive(**members)).status_code == 201


def test_another_content_type(sqlite_server: Server) -> None:
    assert_problem(send(sqlite_server, b"{}", "application/json"), 415)


def test_an_archive_larger_than_allowed_once_extracted(sqlite_server: Server) -> None:
    assert_problem(send(sqlite_server, archive(**{"model.onnx": bytes(50_000_000)})), 413, "bundle-too-large")


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
    assert_problem(send(sqlite_server, zipped(tmp_path / "b")), 422, "unusable-bundle")
    assert_problem(inspect(sqlite_server, f"tampered {name}", picture(1)), 404, "unknown-recipe")


def test_a_graph_that_does_not_keep_its_word_is_not_added(sqlite_server: Server, tmp_path: Path) -> None:
    """One that averages over the batch passes every check but being tried out."""
    import onnx
    from onnx import helper

    from .bundles import brightness_graph

    model = onnx.load_model_from_string(brightness_graph())
    where = next(node for node in model.graph.node if node.op_type == "ReduceMax")
    where.attribute.remove(next(a for a in where.attribute if a.name == "axes"))
    where.attribute.append(helper.make_attribute("axes", [0, 1, 2]))
    make_bundle(tmp_path / "b", "one score for all", graph=model.SerializeToString())
    content = assert_problem(send(sqlite_server, zipped(tmp_path / "b")), 422, "unusable-bundle")
    assert "score[2]" in content["detail"]


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


def test_the_command_line_works_on_a_running_service(
    sqlite_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sqlite_server.environment.items():
        if name.startswith("KIZU_"):
            monkeypatch.setenv(name, value)
    app = typer.Typer()
    register(app)

    def kizu(*arguments: str) -> dict:
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    make_bundle(tmp_path / "v1", "lines")
    make_bundle(tmp_path / "v2", "lines", threshold=0.8)
    v1 = kizu("models", "add", str(tmp_path / "v1"), "--promote")
    assert v1["status"] == "champion"
    assert inspected(sqlite_server, "lines", picture(150))["verdict"] == "NG"
    v2 = kizu("models", "add", str(tmp_path / "v2"))
    kizu("models", "promote", v2["id"])
    time.sleep(1.0)
    assert inspected(sqlite_server, "lines", picture(150))["verdict"] == "OK"
    assert kizu("models", "rollback", "lines")["id"] == v1["id"]
    time.sleep(1.0)
    assert inspected(sqlite_server, "lines", picture(150))["verdict"] == "NG"
    listed = kizu("models", "list", "--recipe", "lines")["items"]
    assert [(model["id"], model["status"]) for model in listed] == [(v2["id"], "challenger"), (v1["id"], "champion")]
    assert kizu("models", "retire", v2["id"])["status"] == "retired"


def test_the_command_line_refuses_a_tampered_bundle_in_plain_words(sqlite_server: Server, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", "tampered on disk")
    TAMPERINGS["model"](tmp_path / "b")
    refused = sqlite_server.cli("models", "add", str(tmp_path / "b"))
    assert refused.returncode == 2
    assert "SHA-256 does not match" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_promotions_under_load_lose_nothing(server: Server, recipe: str, tmp_path: Path) -> None:
    first = server.client.get("/v1/models", params={"recipe": recipe}).json()["items"][0]
    make_bundle(tmp_path / "v2", recipe, threshold=0.8)
    second = upload(server, tmp_path / "v2")
    thresholds = {first["id"]: 0.5, second["id"]: 0.8}
    answers: list[dict] = []
    stop = threading.Event()

    def camera() -> None:
        while not stop.is_set():
            answers.append(inspected(server, recipe, picture(150)))

    cameras = [threading.Thread(target=camera) for _ in range(8)]
    for thread in cameras:
        thread.start()
    for _ in range(6):
        server.client.post(f"/v1/models/{second['id']}/promote")
        time.sleep(0.1)
        server.client.post(f"/v1/recipes/{recipe}/rollback")
        time.sleep(0.1)
    stop.set()
    for thread in cameras:
        thread.join()
    assert {answer["model_version"]["id"] for answer in answers} == set(thresholds)
    for answer in answers:
        threshold = thresholds[answer["model_version"]["id"]]
        assert answer["threshold"] == pytest.approx(threshold)
        assert answer["verdict"] == ("NG" if threshold <= 150 / 255 else "OK")
    assert len(server.inspections(recipe=recipe)) == len(answers)


def test_the_registry_keeps_what_was_added(server: Server, recipe: str) -> None:
    model = server.client.get("/v1/models", params={"recipe": recipe}).json()["items"][0]
    kept = Bundle.read(server.home / "models" / model["id"])
    assert kept.fingerprint == model["fingerprint"]
    assert kept.report.is_file()
    assert kept.calibration is not None


def test_a_bundle_of_schema_1_is_registered_and_decides(server: Server, tmp_path: Path) -> None:
    name = f"old-{tmp_path.name}-{server.port}"
    old = as_schema_1(make_bundle(tmp_path / "b", name).path)
    model = upload(server, old, promote=True)
    assert [inspected(server, name, picture(level))["verdict"] for level in (120, 130)] == ["OK", "NG"]
    assert Bundle.read(server.home / "models" / model["id"]).calibration is None


def test_calibration_scores_that_do_not_belong_to_a_bundle_are_refused(sqlite_server: Server, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", f"other-{tmp_path.name}")
    (bundle.path / CALIBRATION_FILE).write_bytes(calibration(0.4).to_csv())
    content = assert_problem(send(sqlite_server, zipped(bundle.path)), 422, "unusable-bundle")
    assert CALIBRATION_FILE in content["detail"]


@pytest.mark.parametrize(
    ("groups", "counted", "shown"),
    [
        ([""] * 100, 100, "FNR ≤ 0.05 at 95% confidence"),
        (
            [f"board-{i % 60}" for i in range(100)],
            60,
            "FNR ≤ 0.05 at 95% confidence for new parts (≤ 0.05 for parts of the groups seen only)",
        ),
        (
            [f"board-{i % 3}" for i in range(100)],
            3,
            "FNR ≤ 0.632 at 95% confidence for new parts (≤ 0.05 for parts of the groups seen only); "
            "target 0.05 not certifiable",
        ),
    ],
)
def test_a_certificate_says_what_counts_as_one_ng(groups: list[str], counted: int, shown: str) -> None:
    point = choose_operating_point(range(100), [0.0], target_fnr=0.05, ng_groups=groups)
    certificate = Certificate.of(Model(manifest={"operating_point": point.model_dump(mode="json")}))
    assert certificate.independent_ng == counted
    assert certificate.independence == ("groups" if groups[0] else "parts")
    assert certificate.for_new_parts == (counted >= 59)
    assert (certificate.certified_on, certificate.chosen) == ("calibration", "target")
    assert certified(certificate) == shown


def test_a_threshold_above_the_target_is_listed_as_not_certified_for_it() -> None:
    rows = tuple(CalibrationScore("calibration", "NG", "", float(score)) for score in range(100))
    point = ThresholdCurve(CalibrationScores(rows), "calibration", "key").operating_point(50.0, target_fnr=0.05)
    certificate = Certificate.of(Model(manifest={"operating_point": point.model_dump(mode="json")}))
    bound = simultaneous_upper(100, 0.95)[50]
    assert certified(certificate) == f"FNR ≤ {bound:.3g} at 95% confidence; target 0.05 not certified"


def test_a_certificate_from_before_groups_counted_is_shown_as_it_is() -> None:
    point = choose_operating_point(range(100), [0.0], target_fnr=0.05).model_dump(mode="json")
    for name in ("independence", "n_independent", "groups_only_fnr", "groups_only_rank", "certified_on"):
        del point[name]
    certificate = Certificate.of(Model(manifest={"operating_point": point | {"n_ng_groups": 10}}))
    assert (certificate.independent_ng, certificate.independence, certificate.for_new_parts) == (100, None, False)
    assert certified(certificate) == "FNR ≤ 0.05 at 95% confidence for parts of the groups seen only"
    assert "came from only 10 groups" in certificate.statement
