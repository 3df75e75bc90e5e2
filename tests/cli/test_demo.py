"""The whole way once: rendered boards → bundle → service over HTTP → reviews → quality, as `make demo` goes it."""

import pytest

from kizu import demo
from kizu.errors import UserError
from kizu.models.bundle import Bundle

from ..service.processes import free_port


def test_the_demo_ends_with_a_table_of_verdicts_and_of_quality(tmp_path, monkeypatch, capsys):
    quick = '[detector]\nkind = "supersimplenet"\noptions = {{ least_side = 64, steps = 20, map_width = 8 }}\n'
    monkeypatch.setattr(demo, "RECIPE", demo.RECIPE + quick)
    monkeypatch.setattr(demo, "KIMG", 0.1)
    monkeypatch.setattr(demo, "BOARDS", {"count-ok": 120, "count-ng": 70, "boards": 12, "seed": 1})
    demo.demo(tmp_path / "demo", free_port(), leave=True)
    printed = capsys.readouterr().out
    assert "parts of the test split, sorted by score" in printed
    assert "specificity: OK that passed" in printed
    assert "FNR: NG that passed" in printed
    assert (tmp_path / "demo" / "run" / "generator" / "report.html").exists()
    bundle = Bundle.read(tmp_path / "demo" / "run" / "bundle")
    assert bundle.manifest.recipe_name == "demo-boards"
    assert (tmp_path / "demo" / "service" / "kizu.db").exists()


def test_the_demo_does_not_touch_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="in use by something else"):
        demo.demo(tmp_path, free_port(), leave=True)
    assert (tmp_path / "precious.txt").read_text() == "keep me"
