"""The command `kizu` itself: parts that are not installed, versions and errors."""

import json

import pytest
from typer.testing import CliRunner

from kizu import cli
from kizu.errors import UserError
from kizu.version import __version__


@pytest.mark.parametrize("missing", ["kizu.training.no_such_module", "kizu.no_such_part.cli", "no_such_package"])
def test_the_help_says_how_to_install_a_part_that_is_missing(monkeypatch, missing):
    monkeypatch.setitem(cli.PARTS, "training", (missing, "typer") if "." in missing else ("kizu.training.cli", missing))
    found = CliRunner().invoke(cli.build_app(), ["--help"], env={"COLUMNS": "200"})
    assert "For the training commands: pip install 'kizu[training]'" in found.stdout
    assert " serve " in found.stdout
    assert " train " not in found.stdout


def test_the_version_is_that_of_the_package():
    assert CliRunner().invoke(cli.build_app(), ["--version"]).stdout.strip() == __version__


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_of_a_long_list_ten_are_shown_and_json_has_all(monkeypatch, capsys, arguments):
    lines = [f"ng/[{number}].png: 9×9 pixels" for number in range(12)]

    def refuse():
        raise UserError("12 images are too small.", "Leave them out.", lines)

    monkeypatch.setattr(cli, "build_app", lambda: refuse)
    monkeypatch.setattr("sys.argv", ["kizu", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert [line.strip() for line in captured.err.splitlines()] == [
        "error: 12 images are too small.",
        *lines[:10],
        "… and 2 more (--json lists all)",
        "remedy: Leave them out.",
    ]
    if arguments:
        refused = {"error": "12 images are too small.", "remedy": "Leave them out.", "details": lines}
        assert json.loads(captured.out) == refused
    else:
        assert captured.out == ""


def test_a_fault_of_the_user_is_a_message_with_its_remedy_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kizu", "evaluate", "no-such-bundle", "no-such-data"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error:" in captured.err
    assert "no-such-bundle" in captured.err
    assert "remedy:" in captured.err
