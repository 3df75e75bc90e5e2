"""Run a Dockerfile's instructions in order, without a container engine: every stage gets a folder as its root.

Notable here:
- FROM, ARG, ENV, WORKDIR, COPY, RUN, USER, EXPOSE, HEALTHCHECK, ENTRYPOINT and CMD; anything else is an error, so a
  Dockerfile cannot outgrow this interpreter unnoticed.
- The image's own folders (`IMAGE_FOLDERS`) become folders below the stage's root, in commands and variables alike.
- Only the base image is pretended: its python is the interpreter that runs the tests, and the commands that need root
  (`ROOT_COMMANDS`) do nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_FOLDERS = re.compile(r"(?<![\w./-])/(?=(?:opt|src|var/lib/kizu|workspace)\b)")
ROOT_COMMANDS = ("groupadd", "useradd", "chown")
# They make an image small or quick to start; a test is quicker without.
IGNORED_VARIABLES = ("UV_NO_CACHE", "UV_LINK_MODE", "UV_COMPILE_BYTECODE")
# What a build gets from its machine: how to reach a package index.
PASSED_ON = re.compile(r"(?i)(PIP|UV|SSL|REQUESTS)_\w+|(https?|no|all)_proxy|HOME|TMPDIR")


@dataclass(frozen=True)
class Instruction:
    """One instruction, continuation lines joined."""

    keyword: str
    value: str

    def words(self) -> list[str]:
        """The arguments: of an exec form (a JSON list), or as a shell would split them."""
        if self.value.startswith("["):
            words: list[str] = json.loads(self.value)
            return words
        return shlex.split(self.value)


@dataclass
class Stage:
    """A FROM with what follows it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Image:
    """What a stage has come to."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def path(self, path: str) -> Path:
        """Where a path of the image lies, relative to the working directory unless absolute."""
        return self.root / (Path(self.workdir) / path).relative_to("/")

    def inside(self, text: str) -> str:
        """A command or value with the image's folders below the root."""
        return IMAGE_FOLDERS.sub(f"{self.root}/", text)

    def variables(self) -> dict[str, str]:
        """The environment of the image's processes."""
        return {name: self.inside(value) for name, value in self.environment.items()}


def parse(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first FROM, and the stages."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, value = line.partition(" ")
        value = value.strip()
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(name, _expand(base, arguments)))
        elif stages:
            stages[-1].instructions.append(Instruction(keyword, value))
        else:
            name, _, default = value.partition("=")
            arguments[name] = default
    return arguments, stages


def copied(stage: Stage) -> list[str]:
    """The paths of the build context that a stage copies."""
    sources: list[str] = []
    for instruction in stage.instructions:
        words = instruction.words() if instruction.keyword == "COPY" else []
        if words and not words[0].startswith("--from="):
            sources += words[:-1]
    return sources


class Builder:
    """Build stages of one Dockerfile below a folder."""

    def __init__(self, dockerfile: Path, context: Path, folder: Path):
        _, stages = parse(dockerfile)
        self._stages = {stage.name: stage for stage in stages}
        self._context = context
        self._ignore = Ignore(context / ".dockerignore")
        self._folder = folder
        self._built: dict[str, Image] = {}
        self._base_bin = folder / "base-image" / "bin"
        self._base_bin.mkdir(parents=True)
        for name in ("python", "python3"):
            (self._base_bin / name).symlink_to(sys._base_executable)  # type: ignore[attr-defined]
        for name in ROOT_COMMANDS:
            (self._base_bin / name).write_text("#!/bin/sh\n")
            (self._base_bin / name).chmod(0o755)

    def build(self, name: str) -> Image:
        """Run a stage, after the stages that it starts from or copies from."""
        if name not in self._built:
            stage = self._stages[name]
            image = Image(self._folder / name, {"PATH": f"{self._base_bin}:/usr/bin:/bin"})
            if stage.base in self._stages:
                base = self.build(stage.base)
                image = Image(**{**vars(base), "root": image.root, "environment": dict(base.environment)})
                _copy_tree(base.root, image.root)
            image.root.mkdir(exist_ok=True)
            for instruction in stage.instructions:
                self._apply(image, instruction)
            self._built[name] = image
        return self._built[name]

    def _apply(self, image: Image, instruction: Instruction) -> None:
        known = image.arguments | image.environment
        match instruction.keyword:
            case "ARG":
                name, _, default = instruction.value.partition("=")
                image.arguments[name] = default
            case "ENV":
                for name, _, value in (word.partition("=") for word in instruction.words()):
                    image.environment[name] = _expand(value, known)
            case "WORKDIR":
                image.workdir = instruction.value
                image.path(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(image, instruction.words())
            case "RUN":
                self._run(image, instruction.value)
            case "USER":
                image.user = _expand(instruction.value, known)
            case "ENTRYPOINT":
                image.entrypoint, image.command = instruction.words(), []
            case "CMD":
                image.command = instruction.words()
            case "HEALTHCHECK":
                image.healthcheck = Instruction("CMD", instruction.value.partition("CMD ")[2]).words()
            case "EXPOSE":
                pass
            case other:
                raise AssertionError(f"{other} is not known here")

    def _copy(self, image: Image, words: list[str]) -> None:
        *sources, target = words
        if sources[0].startswith("--from="):
            origin = self.build(sources.pop(0).removeprefix("--from="))
            for source in sources:
                _copy_tree(origin.path(source), image.path(target))
            return
        for source in sources:
            found = [path for path in self._context.glob(f"{source.rstrip('/')}/**/*") if path.is_file()]
            found = found or [self._context / source]
            kept = [path for path in found if not self._ignore.ignores(path.relative_to(self._context).as_posix())]
            assert kept, f"COPY {source}: .dockerignore keeps it out of the build"
            for path in kept:
                below = path.relative_to(self._context / source) if path != self._context / source else Path(path.name)
                destination = image.path(target) / below
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, destination)

    def _run(self, image: Image, script: str) -> None:
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        environment |= image.arguments | image.variables()
        for name in IGNORED_VARIABLES:
            environment.pop(name, None)
        done = subprocess.run(
            ["/bin/sh", "-c", image.inside(script)],
            cwd=image.path("."),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {script}\n{done.stdout}"


class Ignore:
    """The rules of a .dockerignore; the last one that matches a path or a folder above it decides."""

    def __init__(self, path: Path):
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        rules = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(_pattern(rule.lstrip("!").rstrip("/")), not rule.startswith("!")) for rule in rules]

    def ignores(self, path: str) -> bool:
        """Whether the build does not see this path of the context."""
        parents = [str(parent) for parent in Path(path).parents if str(parent) != "."]
        ignored = False
        for pattern, verdict in self._rules:
            if any(pattern.fullmatch(candidate) for candidate in [path, *parents]):
                ignored = verdict
        return ignored


def _pattern(rule: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*)", rule)
    translated = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(translated.get(part, re.escape(part)) for part in parts))


def _expand(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values[match[1] or match[2]], text)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; files become hard links."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
