"""The images, built and started without a container engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kizu.service.settings import Settings

from ..service.processes import free_port
from .conftest import REPOSITORY, required_binary
from .dockerfile import Builder, Ignore, Image, copied, parse

SERVICE = REPOSITORY / "docker" / "service.Dockerfile"
TRAINING = REPOSITORY / "docker" / "training.Dockerfile"
LOCKS = sorted((REPOSITORY / "docker").glob("*.lock"))
VERSION = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
START_TIMEOUT_S = 60


@dataclass
class Container:
    """A process of an image, as `docker run` would start it."""

    image: Image
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    url: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another command in it, as `docker exec` would."""
        return subprocess.run(
            ["/usr/bin/env", *command], env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def service_image(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """`docker build --target cpu`."""
    del uv
    return Builder(SERVICE, REPOSITORY, tmp_path_factory.mktemp("images")).build("cpu")


@contextmanager
def running(image: Image) -> Iterator[Container]:
    """`docker run`, and wait until the process answers."""
    port = free_port()
    environment = image.variables() | {"KIZU_PORT": str(port), "KIZU_DRAIN_SECONDS": "0"}
    log = image.root / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["/usr/bin/env", *image.entrypoint, *image.command],
            cwd=image.path("."),
            env=environment,
            stdout=file,
            stderr=file,
        )
    container = Container(image, process, environment, f"http://127.0.0.1:{port}")
    end = time.monotonic() + START_TIMEOUT_S
    try:
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            try:
                httpx.get(f"{container.url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield container
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def container(service_image: Image) -> Iterator[Container]:
    """`docker run kizu-service:cpu`, for all tests that do not stop it."""
    with running(service_image) as container:
        yield container


@pytest.mark.parametrize("dockerfile", [SERVICE, TRAINING], ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = subprocess.run(
        [required_binary("hadolint"), "--no-color", str(dockerfile)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", [SERVICE, TRAINING], ids=lambda path: path.name)
def test_every_copied_path_exists_and_reaches_the_build(dockerfile: Path) -> None:
    ignore = Ignore(REPOSITORY / ".dockerignore")
    for source in (source for stage in parse(dockerfile)[1] for source in copied(stage)):
        assert (REPOSITORY / source).exists(), source
        assert not ignore.ignores(source.rstrip("/")), source


def test_dockerignore_lets_only_named_paths_through() -> None:
    ignore = Ignore(REPOSITORY / ".dockerignore")
    for path in (".git/HEAD", ".env", "kizu.env", "var/kizu.db", "runs/a/state.pt", "models/kizu/__pycache__/a.pyc"):
        assert ignore.ignores(path), path
    assert not ignore.ignores("models/kizu/errors.py")


def test_the_service_image_copies_no_training_code() -> None:
    sources = {source for stage in parse(SERVICE)[1] for source in copied(stage)}
    assert {source for source in sources if source.endswith("/")} == {"models/", "service/", "cli/"}


@pytest.mark.parametrize("dockerfile", [SERVICE, TRAINING], ids=lambda path: path.name)
def test_what_runs_in_an_image_is_not_root(dockerfile: Path) -> None:
    arguments = [i.value for stage in parse(dockerfile)[1] for i in stage.instructions if i.keyword in ("ARG", "USER")]
    assert arguments == ["UID=1000", "${UID}"]


@pytest.mark.parametrize("dockerfile", [SERVICE, TRAINING], ids=lambda path: path.name)
def test_settings_in_an_image_exist(dockerfile: Path) -> None:
    names = {
        word.partition("=")[0]
        for stage in parse(dockerfile)[1]
        for instruction in stage.instructions
        if instruction.keyword == "ENV"
        for word in instruction.words()
    }
    known = {f"KIZU_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in names if name.startswith("KIZU_")} <= known


def test_the_service_image_answers_readyz(container: Container) -> None:
    answer = httpx.get(f"{container.url}/readyz", params={"models": "false"})
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert httpx.get(f"{container.url}/readyz").json()["type"] == "urn:kizu:problem:no-champion"
    assert (container.image.path("/var/lib/kizu") / "kizu.db").is_file()


def test_the_health_check_of_the_service_image(container: Container) -> None:
    # Not /readyz: a container that drains or waits for its database is not to be replaced.
    assert "/healthz" in container.image.healthcheck[-1]
    assert container.run(*container.image.healthcheck).returncode == 0
    closed = container.run("KIZU_PORT=1", *container.image.healthcheck)
    assert closed.returncode != 0


def test_the_service_image_has_neither_torch_nor_training(container: Container) -> None:
    code = (
        "import importlib.metadata, importlib.util as u, onnxruntime, kizu.service\n"
        "names = {d.name for d in importlib.metadata.distributions()}\n"
        "print([u.find_spec(n) for n in ('torch', 'kizu.training')], 'onnxruntime-gpu' in names, 'kizu' in names)\n"
        "print(kizu.service.__file__)"
    )
    done = container.run("python", "-c", code)
    found, file = done.stdout.splitlines()
    assert found == "[None, None] False True", done.stderr
    assert file.startswith(str(container.image.path("/opt/kizu")))


def test_commands_run_in_the_service_image(container: Container) -> None:
    assert container.run("kizu", "db", "upgrade").stdout.startswith("The database already had schema")
    assert "No model has been added yet" in container.run("kizu", "models", "list").stdout


def test_the_service_image_ends_on_sigterm(service_image: Image) -> None:
    with running(service_image) as container:
        container.process.send_signal(signal.SIGTERM)
        assert container.process.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("lock", "platform"),
    [
        ("service-cpu", "x86_64-manylinux_2_36"),
        ("service-cpu", "aarch64-manylinux_2_36"),
        ("service-gpu", "x86_64-manylinux_2_36"),
        ("training", "x86_64-manylinux_2_36"),
    ],
)
def test_a_lock_installs_in_its_image_from_wheels(uv: str, lock: str, platform: str, tmp_path: Path) -> None:
    target = ["--target", str(tmp_path), "--python", sys.executable, "--python-version", "3.11"]
    hashed = ["--require-hashes", "--only-binary", ":all:", "-r", str(REPOSITORY / "docker" / f"{lock}.lock")]
    done = subprocess.run(
        [uv, "pip", "install", "--dry-run", *target, "--python-platform", platform, *hashed],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stderr


def test_gpu_images_hold_every_library_of_the_cuda_provider() -> None:
    needed = {"nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-curand"}
    for lock in ("service-gpu", "training"):
        names = dict(VERSION.findall((REPOSITORY / "docker" / f"{lock}.lock").read_text()))
        assert needed | {"onnxruntime-gpu"} <= names.keys(), lock


def test_service_locks_hold_no_torch_and_the_cpu_lock_no_cuda() -> None:
    for lock in ("service-cpu", "service-gpu"):
        names = dict(VERSION.findall((REPOSITORY / "docker" / f"{lock}.lock").read_text()))
        assert not [name for name in names if name.startswith("torch")]
        assert lock == "service-gpu" or not [n for n in names if n.startswith("nvidia") or n == "onnxruntime-gpu"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_images_have_the_versions_that_are_tested(lock: Path) -> None:
    tested = set(VERSION.findall((REPOSITORY / "requirements.lock").read_text()))
    names = {name for name, _ in tested}
    assert {pin for pin in VERSION.findall(lock.read_text()) if pin[0] in names} <= tested


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_a_hash_and_no_index_is_named(lock: Path) -> None:
    text = lock.read_text()
    pins = re.split(r"^(?=\S+==)", text, flags=re.MULTILINE)
    assert all("--hash=sha256:" in pin for pin in pins if "==" in pin.partition("\n")[0])
    assert not re.search(r"https?://|index-url|find-links", text)
