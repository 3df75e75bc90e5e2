"""docker-compose.yml, as `docker compose config` reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kizu.service.settings import Settings

from .conftest import REPOSITORY, required_binary
from .dockerfile import parse

SETTINGS = {f"KIZU_{name.upper()}" for name in Settings.model_fields}
COMPOSE_FILE = str(REPOSITORY / "docker-compose.yml")
PROFILES = {
    "": {"proxy", "service", "migrate", "database"},
    "gpu": {"proxy", "service", "service-gpu", "migrate", "database"},
    "worker": {"proxy", "service", "worker", "migrate", "database"},
    "worker-gpu": {"proxy", "service", "worker-gpu", "migrate", "database"},
}


def compose(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`docker compose` with no variable but these."""
    return subprocess.run(
        [required_binary("docker-compose"), "--env-file", os.devnull, "--file", COMPOSE_FILE, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Every service of every profile."""
    done = compose("--profile", "*", "config", "--format", "json", KIZU_DB_PASSWORD="secret")
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid(profile: str) -> None:
    chosen = ["--profile", profile] if profile else []
    done = compose(*chosen, "config", "--services", KIZU_DB_PASSWORD="secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == PROFILES[profile]


def test_there_is_no_default_password() -> None:
    done = compose("config")
    assert done.returncode != 0
    assert "KIZU_DB_PASSWORD" in done.stderr
    assert compose("config", KIZU_DB_PASSWORD="").returncode != 0


def test_every_setting_exists(services: dict[str, Any]) -> None:
    given = {name for service in services.values() for name in service.get("environment", {})}
    assert "KIZU_DATABASE_URL" in given
    assert {name for name in given if name.startswith("KIZU_")} <= SETTINGS


def test_database_and_services_agree_on_the_password(services: dict[str, Any]) -> None:
    assert services["database"]["environment"]["POSTGRES_PASSWORD"] == "secret"
    for name in ("service", "service-gpu", "migrate", "worker"):
        environment = services[name]["environment"]
        assert environment["PGPASSWORD"] == "secret"
        assert environment["KIZU_DATABASE_URL"] == "postgresql+psycopg://kizu@database/kizu"


def test_the_proxy_alone_is_reachable_and_from_this_machine_alone(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.keys() == {"proxy"}
    assert [port["host_ip"] for port in published["proxy"]] == ["127.0.0.1"]
    assert all(service["networks"].keys() == {"internal"} for name, service in services.items() if name != "proxy")


def test_every_container_runs_without_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "cap_add" not in service, name


def test_replicas_share_one_volume_and_start_after_the_migration(services: dict[str, Any]) -> None:
    assert services["service"]["deploy"]["replicas"] == 2
    assert services["migrate"]["command"] == ["db", "upgrade"]
    assert services["migrate"]["depends_on"]["database"]["condition"] == "service_healthy"
    for name in ("service", "service-gpu", "worker", "worker-gpu"):
        volume = services[name]["volumes"][0]
        assert (volume["type"], volume["source"], volume["target"]) == ("volume", "data", "/var/lib/kizu")
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_gpu_services_reserve_a_gpu_and_the_others_none(services: dict[str, Any]) -> None:
    for name, service in services.items():
        reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        capabilities = [device["capabilities"] for device in reserved]
        assert capabilities == ([["gpu"]] if name.endswith("-gpu") else []), name
    assert [services[name]["build"]["target"] for name in ("service", "service-gpu")] == ["cpu", "gpu"]
    assert [services[name]["image"] for name in ("service", "service-gpu")] == ["kizu-service:cpu", "kizu-service:gpu"]


def test_a_stopping_replica_has_time_to_finish_what_it_began(services: dict[str, Any]) -> None:
    drain = float(image_setting("KIZU_DRAIN_SECONDS"))
    longest = drain + Settings.model_fields["request_deadline_s"].default + 20
    assert seconds(services["service"]["stop_grace_period"]) > longest


def test_a_draining_replica_is_noticed_before_it_stops_to_accept() -> None:
    interval, fails = re.search(r"inter (\d+)s fall (\d+)", haproxy()).groups()  # type: ignore[union-attr]
    assert int(interval) * int(fails) < float(image_setting("KIZU_DRAIN_SECONDS"))


def test_the_proxy_knows_the_limits_of_the_service() -> None:
    preset = dict(re.findall(r"presetenv (KIZU_\w+) (\d+)", haproxy()))
    assert preset == {
        "KIZU_MAX_BODY_BYTES": str(Settings.model_fields["max_body_bytes"].default),
        "KIZU_MAX_BUNDLE_BYTES": str(Settings.model_fields["max_bundle_bytes"].default),
    }
    silence = int(re.search(r"timeout client (\d+)s", haproxy())[1])  # type: ignore[index]
    assert silence > Settings.model_fields["body_timeout_s"].default


def test_the_proxy_finds_every_service_by_its_name(services: dict[str, Any]) -> None:
    found = re.findall(r"server-template \w+ \d+ ([\w-]+):(\d+)", haproxy())
    assert {name for name, _ in found} == {name for name in services if name.startswith("service")}
    assert {port for _, port in found} == {image_setting("KIZU_PORT")}


def test_every_build_is_of_a_dockerfile_and_stage_that_exist(services: dict[str, Any]) -> None:
    builds = [service["build"] for service in services.values() if "build" in service]
    assert builds
    for build in builds:
        arguments, stages = parse(REPOSITORY / build["dockerfile"])
        assert build.get("target", stages[-1].name) in [stage.name for stage in stages]
        known = arguments.keys() | {
            i.value.partition("=")[0] for stage in stages for i in stage.instructions if i.keyword == "ARG"
        }
        assert build["args"].keys() <= known


def test_every_image_is_pinned_by_a_tag(services: dict[str, Any]) -> None:
    foreign = [service["image"] for service in services.values() if "build" not in service]
    assert foreign
    assert all(re.fullmatch(r"\w+:\d[\w.-]+", image) for image in foreign)


def haproxy() -> str:
    return (REPOSITORY / "docker" / "haproxy.cfg").read_text(encoding="utf-8")


def image_setting(name: str) -> str:
    """A setting that the service's image gives."""
    text = (REPOSITORY / "docker" / "service.Dockerfile").read_text(encoding="utf-8")
    return re.search(rf"\b{name}=(\S+)", text)[1]  # type: ignore[index]


def seconds(duration: str) -> int:
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(\d+)s", duration).groups()  # type: ignore[union-attr]
    return int(minutes or 0) * 60 + int(rest)


def test_files_that_compose_mounts_exist(services: dict[str, Any]) -> None:
    sources = [Path(volume["source"]) for volume in services["proxy"]["volumes"]]
    assert sources == [REPOSITORY / "docker" / "haproxy.cfg"]
    assert sources[0].is_file()
