from __future__ import annotations

import json
import threading
import time
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
from .conftest import assert_problem, inspected, send_bundle, upload, zipped
from .processes import Server


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
    first, again = send_bundle(server, zipped(tmp_path / "b")), send_bundle(server, zipped(tmp_path / "b"))
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
    content = assert_problem(send_bundle(sqlite_server, zipped(tmp_path / "b")), 422, "unusable-bundle")
    assert "score[2]" in content["detail"]


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
    content = assert_problem(send_bundle(sqlite_server, zipped(bundle.path)), 422, "unusable-bundle")
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
