"""Which processors add products of 8 bits exactly, and what a bundle says of 8-bit arithmetic."""

from __future__ import annotations

import pytest

from kizu.models.quantisation import Quantisation, saturates


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2 fma", True),
        ("AMD64", "", True),
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("aarch64", "asimd", False),
    ],
)
def test_sums_saturate_on_x86_without_vnni(machine, flags, expected):
    assert saturates(machine, f"flags : {flags}") is expected


def test_the_statement_says_what_became_of_it():
    found = Quantisation(
        convolutions=44,
        backbone_convolutions=48,
        images=302,
        auroc=0.9057,
        float_auroc=None,
        difference=0.18,
        verdicts_differing=3,
        batch_difference=1e-6,
        plain_difference=0.017,
        plain_images=61,
    )
    assert found.applied
    assert "44 of 48 convolutions" in found.statement()
    assert "AUROC 0.9057, in float32 unknown" in found.statement()
    assert "3 verdicts differ" in found.statement()
    refused = found.model_copy(update={"refused": "since it is worse"})
    assert not refused.applied
    assert refused.statement().startswith("Not quantised to int8, since it is worse")
