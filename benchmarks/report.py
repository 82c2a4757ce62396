"""What the benchmark beside other clients found, in words, tables and bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from clients import CLIENTS, FLOOR, OURS, REQUESTS, URLLIB3

Result = dict[str, Any]


class Column(NamedTuple):
    """A column: its title, the figure and the value in it, digits, and whether it is compared with ours."""

    title: str
    figure: str
    value: str
    digits: int
    compared: bool = True


ONE = (
    Column("a token, saturated", "saturated", "us", 1),
    Column("a token, 10 ms apart", "paced", "us", 0),
    Column("a request", "request", "us", 0),
    Column("first token, p50", "request", "first_p50_us", 0),
    Column("first token, p99", "request", "first_p99_us", 0, False),
)
REST = (
    Column("import, ms", "import", "ms", 0),
    Column("process, MiB", "memory", "process_mib", 0),
    Column("a stream, KiB", "memory", "kib", 1, False),
)
MANY = (
    Column("CPU a token, us", "", "us", 0),
    Column("seconds", "", "seconds", 2, False),
    Column("late, p99, ms", "", "late_p99_ms", 1, False),
    Column("failed", "", "failed", 0, False),
)


def values(result: Result, figure: str, name: str, value: str) -> list[float]:
    """A client's values, round by round; none where it failed or was not measured."""
    return [found[value] for found in result["figures"].get(figure, {}).get(name, []) if value in found]


def pairs(result: Result, column: Column, name: str, other: str) -> list[tuple[float, float]]:
    """A client's value and another's, of each round in which both have one."""
    told = result["figures"].get(column.figure, {})
    rounds = zip(told.get(name, []), told.get(other, []), strict=True) if name in told and other in told else ()
    return [
        (one[column.value], two[column.value]) for one, two in rounds if column.value in one and column.value in two
    ]


def ratios(result: Result, column: Column, name: str, over: str) -> list[float]:
    """A client's value over another's, round by round."""
    return [value / other for value, other in pairs(result, column, name, over)]


def cell(result: Result, column: Column, name: str) -> str:
    """The median, and in brackets that of the ratios to ours."""
    found = values(result, column.figure, name, column.value)
    if not found:
        return "failed"
    shown = f"{median(found):,.{column.digits}f}"
    over_ours = ratios(result, column, name, OURS) if column.compared and name != OURS else []
    if not over_ours:
        return shown
    return f"{shown} ({median(over_ours):.{1 if median(over_ours) < 10 else 0}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A simple table of reStructuredText, which reads well as it is."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rule, drawn[0], rule, *drawn[1:], rule])


def clients(result: Result, columns: Sequence[Column]) -> str:
    """A table of the clients, with the columns that were measured."""
    measured = [column for column in columns if column.figure in result["figures"]]
    rows = [(name, *(cell(result, column, name) for column in measured)) for name in result["versions"]]
    return table(("client", *(column.title for column in measured)), rows)


def threads(result: Result, figure: str) -> str:
    """The table of many streams at once."""
    return clients(result, [column._replace(figure=figure) for column in MANY])


def goals(result: Result) -> str:
    """Each goal, what was reached in the worst, median and best round, and whether the median keeps it."""
    sizes = result["sizes"]
    saturated, paced, request, first, _ = ONE
    imported, _, stream = REST
    rows = [
        (f"a token, saturated: ours / {REQUESTS}", ratios(result, saturated, OURS, REQUESTS), 0.4),
        (f"a token, saturated: ours / {URLLIB3}", ratios(result, saturated, OURS, URLLIB3), 1.1),
        ("a token, saturated: ours / openai", ratios(result, saturated, OURS, "openai"), 0.05),
        (f"a token, 10 ms apart: ours / {FLOOR}", ratios(result, paced, OURS, FLOOR), 2.5),
        (f"a request: ours / {REQUESTS}", ratios(result, request, OURS, REQUESTS), 0.55),
        (
            f"first token, p50: ours less {FLOOR}, us",
            [us - less for us, less in pairs(result, first, OURS, FLOOR)],
            150,
        ),
        (
            f"{sizes['few']} threads: share of the core",
            [us * 1e-6 * sizes["few"] * 1000 / sizes["gap_ms"] for us in values(result, "few", OURS, "us")],
            0.3,
        ),
        (
            f"{sizes['many']} threads, seconds: ours / {FLOOR}",
            ratios(result, MANY[1]._replace(figure="many"), OURS, FLOOR),
            1.1,
        ),
        ("a stream, KiB", values(result, stream.figure, OURS, stream.value), 60),
        (f"import: ours / {REQUESTS}", ratios(result, imported, OURS, REQUESTS), 1.8),
    ]
    told = [
        (name, f"{min(found):.3g} / {median(found):.3g} / {max(found):.3g}", f"{goal:g}", verdict(found, goal))
        for name, found, goal in rows
        if found
    ]
    return table(("goal", "min / median / max", "at most", ""), told)


def verdict(found: Sequence[float], goal: float) -> str:
    """Whether the median keeps the goal."""
    return "ok" if median(found) <= goal else "MISSED"


def loads(result: Result) -> str:
    """What the load servers can do."""
    rows = [
        (
            kind,
            f"{load['streams']}",
            f"{load['gap_ms']:g} ms" if load["gap_ms"] else "none",
            f"{load['streams'] / load['gap_ms'] * 1000:,.0f}" if load["gap_ms"] else "all it can",
            f"{load['events_per_s']:,.0f}",
            f"{load['busy']:.0%}",
            f"{load['late_p99_ms']:.1f}",
        )
        for kind, found in result["loads"].items()
        for load in found
    ]
    return table(("server", "streams", "gap", "events/s asked", "events/s", "of its core", "late, p99, ms"), rows)


def server(result: Result, figure: str) -> str:
    """How the load server fared while a figure was measured."""
    found = [told["server"] for told_of in result["figures"][figure].values() for told in told_of if "server" in told]
    busy, late = ([told[name] for told in found] for name in ("busy", "late_p99_ms"))
    return (
        f"The load server took at most {max(busy):.0%} of its core in this figure; 99 of 100 pieces were sent at most "
        f"{median(late):.1f} ms late (median of all measurements; worst {max(late):.1f})."
    )


def written(result: Result) -> str:
    """All of it, as reStructuredText."""
    sizes, figures = result["sizes"], result["figures"]
    parts = [
        f"{result['date']}; {result['machine']}; Python {result['python']}. Medians of {sizes['rounds']} rounds; in "
        "brackets, how many times ours."
    ]
    if any(column.figure in figures for column in ONE):
        parts += ["CPU in microseconds; the first token in microseconds of wall time:", clients(result, ONE)]
    for figure in ("few", "many"):
        if figure in figures:
            ideal = (sizes["paced"] + 1) * sizes["gap_ms"] / 1000.0
            parts += [
                f"{sizes[figure]} threads, a stream each, {sizes['paced']} tokens {sizes['gap_ms']:g} ms apart, which "
                f"take {ideal:.2f} s:",
                threads(result, figure),
                server(result, figure),
            ]
    if any(column.figure in figures for column in REST):
        parts += [f"Import, the process, and one of {sizes['few']} open streams:", clients(result, REST)]
    if OURS in result["versions"]:
        parts += ["Goals:", goals(result)]
    if result["loads"]:
        parts += ["The load server, with a client that only empties the socket:", loads(result)]
    return "\n\n".join([*parts, "Versions:", versions(result)])


def versions(result: Result) -> str:
    """Of what each client asked pip for."""
    lines = []
    for name, found in result["versions"].items():
        canonical = {dist.lower().replace("_", "-"): version for dist, version in found.items()}
        asked = CLIENTS[name].packages.split() or ["worker-adapters", "httptools", "msgspec", "urllib3"]
        told = (f"{package} {canonical.get(package.replace('_', '-'), '?')}" for package in asked)
        lines.append(f"* {name}: {', '.join(told)}")
    return "\n".join(lines)


def draw(result: Result, file: Path) -> None:
    """Bars of the medians, one panel a figure, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "worker-adapters", "font.size": 8})
    from matplotlib import pyplot as plt

    sizes = result["sizes"]
    panels = {
        "CPU a token, saturated, us": ONE[0],
        f"CPU a token, {sizes['gap_ms']:g} ms apart, us": ONE[1],
        "CPU a request, us": ONE[2],
        f"CPU a token, {sizes['many']} threads, us": MANY[0]._replace(figure="many"),
        "a stream, KiB": REST[2],
        "import, ms": REST[0],
    }
    shown = {title: column for title, column in panels.items() if column.figure in result["figures"]}
    names = list(result["versions"])[::-1]
    figure, axes = plt.subplots(-(-len(shown) // 3), min(3, len(shown)), figsize=(10, 5), squeeze=False, sharey=True)
    for axis, (title, column) in zip(axes.flat, shown.items(), strict=False):
        bars(axis, title, names, lambda name, column=column: values(result, column.figure, name, column.value))
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    figure.suptitle(f"{result['date']}, Python {result['python']}, {result['machine']}; less is better, log scale")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def bars(axis: Any, title: str, names: Sequence[str], found: Callable[[str], list[float]]) -> None:
    """One panel."""
    heights = [median(found(name) or [0.0]) for name in names]
    drawn = axis.barh(names, heights, color=["tab:orange" if name == OURS else "tab:gray" for name in names])
    axis.bar_label(drawn, labels=[f"{height:,.3g}" if height < 1000 else f"{height:,.0f}" for height in heights])
    axis.set_xscale("log")
    axis.set_xticks([])
    axis.minorticks_off()
    axis.margins(x=0.25)
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
