"""The whole way: rendered products → bundle → service over HTTP → reviews → quality, as `make demo` goes it."""

from dataclasses import replace

import pytest

from kizu import demo
from kizu.errors import UserError
from kizu.models.bundle import Bundle

from ..service.processes import free_port

QUICK = '[detector]\nkind = "supersimplenet"\noptions = { least_side = 64, steps = 20, map_width = 8 }\n'
FEW = {
    "boards": ("--count-ok", "120", "--count-ng", "70", "--boards", "12", "--seed", "1"),
    "texture": ("--product", "texture", "--count-ok", "60", "--count-ng", "40", "--sheets", "12", "--channels", "1"),
}


def test_the_demo_ends_with_a_table_of_verdicts_and_of_quality(tmp_path, monkeypatch, capsys):
    quick = []
    for product in demo.PRODUCTS:
        recipe = product.recipe.replace("kimg = 8", "kimg = 0.1").replace("size = 128", "size = 64")
        quick.append(replace(product, rendered=FEW[product.folder], recipe=recipe + QUICK))
    monkeypatch.setattr(demo, "PRODUCTS", quick)
    demo.demo(tmp_path / "demo", free_port(), leave=True)
    printed = capsys.readouterr().out
    assert printed.count("parts of the test split, sorted by score") == 2
    assert printed.count("specificity: OK that passed") == 2
    assert printed.count("FNR: NG that passed") == 2
    assert (tmp_path / "demo" / "run-boards" / "generator" / "report.html").exists()
    for name in ("boards", "texture"):
        bundle = Bundle.read(tmp_path / "demo" / f"run-{name}" / "bundle")
        assert bundle.manifest.recipe_name == f"demo-{name}"
    assert (tmp_path / "demo" / "service" / "kizu.db").exists()


def test_the_demo_does_not_touch_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="in use by something else"):
        demo.demo(tmp_path, free_port(), leave=True)
    assert (tmp_path / "precious.txt").read_text() == "keep me"
