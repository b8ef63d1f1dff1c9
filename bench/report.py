"""From samples to the report: one row for each figure, the ratios to the peer, the bars, the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from workloads import Figure, Samples, Workload

Rounds = list[Samples]


@dataclass(frozen=True)
class Row:
    """One figure under one client setting; the mappings are by server name.

    `by_round` holds the figure of each round alone, `spread` the lowest and highest ratio of a round:
    what they differ by is the noise of the machine.
    """

    client: str
    figure: Figure
    values: dict[str, float]
    by_round: dict[str, list[float]]
    bar: float | None
    ratios: dict[str, float] = field(default_factory=dict[str, float])
    spread: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    met: dict[str, bool] = field(default_factory=dict[str, bool])


def rows_of(workload: Workload, client: str, measured: Mapping[str, Rounds], peer: str | None) -> list[Row]:
    """The rows of one workload under one client setting, out of each server's rounds."""
    rows: list[Row] = []
    for figure in workload.figures:
        series = {
            name: [r[figure.series] for r in rounds if figure.series in r]
            for name, rounds in measured.items()
        }
        values = {
            name: figure.statistic([*chain.from_iterable(rounds)])
            for name, rounds in series.items()
            if rounds
        }
        if values:
            by_round = {name: [figure.statistic(one) for one in rounds] for name, rounds in series.items()}
            row = Row(client, figure, values, by_round, figure.bar_for(client))
            compare(row, peer)
            rows.append(row)
    return rows


def compare(row: Row, peer: str | None) -> None:
    """Fill in the ratios to the peer, and whether each other server meets the bar."""
    for name, value in row.values.items():
        if name == peer:
            continue
        if not row.figure.absolute and peer is not None:
            pairs = zip(row.by_round[name], row.by_round.get(peer, []), strict=False)
            ratios = [ratio for one, other in pairs if (ratio := ratio_of(one, other)) is not None]
            ratio = ratio_of(value, row.values.get(peer, math.inf))
            if ratio is not None and ratios:
                row.ratios[name] = ratio
                row.spread[name] = min(ratios), max(ratios)
        judged = value if row.figure.absolute else row.ratios.get(name)
        if row.bar is not None and judged is not None:
            row.met[name] = row.figure.meets(row.bar, judged)


def ratio_of(value: float, other: float) -> float | None:
    return value / other if math.isfinite(value) and math.isfinite(other) and other > 0 else None


def table(rows: Sequence[Row], names: Sequence[str], peer: str | None) -> str:
    """A markdown table, aligned for the eye."""
    others = [name for name in names if name != peer]
    compared = others if peer is not None else []
    heads = ["figure", "unit", *names]
    for name in compared:
        heads += [f"{name}/{peer}", "by round"]
    heads += ["bar", "verdict"]
    cells = [heads]
    for row in rows:
        line = [row.figure.label, row.figure.unit, *(number(row.values.get(name)) for name in names)]
        for name in compared:
            low_high = row.spread.get(name)
            line += [
                number(row.ratios.get(name)),
                "" if low_high is None else f"{number(low_high[0])} - {number(low_high[1])}",
            ]
        line += [bar_text(row), verdict(row, others)]
        cells.append(line)
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def bar_text(row: Row) -> str:
    if row.bar is None:
        return ""
    unit = f" {row.figure.unit}" if row.figure.absolute else ""
    return f"{'>=' if row.figure.more_is_better else '<='} {row.bar:g}{unit}"


def verdict(row: Row, others: Sequence[str]) -> str:
    words = {name: "met" if met else "MISSED" for name, met in row.met.items()}
    if len(others) == 1:
        return next(iter(words.values()), "")
    return ", ".join(f"{name} {word}" for name, word in words.items())


def number(value: float | None) -> str:
    """Three significant digits; a figure that cannot be had is `-`, and what did not happen is `never`."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(row: Row) -> dict[str, object]:
    return {
        "client": row.client,
        "figure": row.figure.label,
        "unit": row.figure.unit,
        "values": {name: finite(value) for name, value in row.values.items()},
        "by_round": {name: [finite(value) for value in values] for name, values in row.by_round.items()},
        "ratios": row.ratios,
        "spread": row.spread,
        "bar": row.bar,
        "met": row.met,
    }


def finite(value: float) -> float | None:
    """JSON has no infinity: what never happened is null."""
    return value if math.isfinite(value) else None
