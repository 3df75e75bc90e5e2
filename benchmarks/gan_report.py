"""Results of `benchmarks.gan` as tables for terminal and Markdown. Works on plain data, as `--json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kizu.training.study.environment import environment_lines
from kizu.training.study.tables import Table, markdown_table


def headline(result: dict[str, Any]) -> list[str]:
    """Sentences with the main ratios, also where Kizu is slower."""
    return [f"{_name(found)}: {_times(found['speedup'])} as the plain networks." for found in result["figures"]]


def tables(result: dict[str, Any]) -> list[Table]:
    """All tables."""
    found = [_speed(result["figures"]), _phases(result["figures"])]
    return [*found, _ideas(result["ideas"])] if result["ideas"] else found


def render_markdown(result: dict[str, Any], notes: Sequence[str]) -> str:
    """Report without any path or host name; `notes` describe the measurement."""
    lines = [
        "# StyleGAN2: Kizu's networks against a plain reading of the paper",
        "",
        *(f"- {line}" for line in headline(result)),
        "",
        "## What ran",
        "",
        *environment_lines(result["environment"]),
        "- Settings: " + ", ".join(f"{name} {_plain(value)}" for name, value in result["settings"].items()),
        "- Command:",
        "",
        f"      {result['command']}",
        "",
    ]
    for table in tables(result):
        lines += [f"## {table.title}", "", *markdown_table(table.columns, table.rows), ""]
    return "\n".join([*lines, "## How it was measured", "", *notes, ""])


def _speed(figures: list[dict[str, Any]]) -> Table:
    rows = []
    for found in figures:
        for arm in found["arms"]:
            kizu = arm["arm"] == "Kizu"
            memory = arm["memory"]
            rows.append(
                (
                    f"{_name(found)}: {arm['arm']}",
                    f"{arm['images_per_second']:.1f}",
                    f"{arm['seconds_per_kimg']:.1f}",
                    f"{memory['peak']:.0f} ({memory['before']:.0f} before)" if memory and memory["peak"] else "–",
                    _range(found["speedup"]) if kizu else "",
                )
            )
    return Table(
        "Training", ("", "images/s, median", "s/kimg", "peak memory, MiB", "plain over Kizu: median [range]"), rows
    )


def _phases(figures: list[dict[str, Any]]) -> Table:
    names = list(figures[0]["arms"][0]["phase_shares"])
    rows = []
    for found in figures:
        for arm in found["arms"]:
            shares = arm["phase_shares"]
            rows.append((f"{_name(found)}: {arm['arm']}", *(f"{100 * shares[name]:.1f} %" for name in names)))
        by_phase = found["speedup_by_phase"]
        ratios = (f"{by_phase[name]:.2f}" if name in by_phase else "" for name in names)
        rows.append((f"{_name(found)}: plain over Kizu", *ratios))
    return Table("Share of each phase, weighted by how often it runs", ("", *names), rows)


def _ideas(ideas: list[dict[str, Any]]) -> Table:
    rows = [
        (
            f"{_name(e)}: {e['idea']}",
            e["kept"],
            e["instead"],
            f"{e['kept_ms']:.1f}",
            f"{e['instead_ms']:.1f}",
            _range(e["ratio"]),
        )
        for e in ideas
    ]
    return Table(
        "Ideas", ("", "Kizu's way", "instead", "ms", "instead, ms", "instead over Kizu's: median [range]"), rows
    )


def _name(found: dict[str, Any]) -> str:
    return f"{found['size']} px, {found['preset']}"


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['lowest']:.2f}, {ratio['highest']:.2f}]"


def _times(ratio: dict[str, float]) -> str:
    slower = "" if ratio["median"] >= 1 else "SLOWER, "
    return f"Kizu is {slower}{_range(ratio)} times as fast"


def _plain(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
