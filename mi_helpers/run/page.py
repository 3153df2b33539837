"""The scorecard of many runs as one HTML page: everything in one file, nothing from the network.

Claims are rows, models are columns. A cell has the verdict as symbol and colour, the measured
value, its interval drawn on an axis that the row shares, and a link to the executed notebook.
Every text goes through `tag`, which escapes it.
"""

import base64
import html
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from ..claims import Record, digits
from . import scorecard
from .markdown import change_line, link, markdown, run_name
from .table import MARKS, Column, Done, Entry, Table, outcome, papers

PICTURES = 400  # at most, so that the page stays under some megabytes
WORDS = {True: "holds", False: "does not hold", None: "not applicable"}
_KINDS = {True: "holds", False: "fails", None: "skips"}
_FOLDER = Path(__file__).parent / "assets"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Html(str):
    """Markup. A plain text becomes markup only by being escaped."""


def tag(name: str, *content: str, **attributes: str | None) -> Html:
    """An element. Texts are escaped, `Html` is not; `class_` stands for class; None is left out."""
    inner = "".join(c if isinstance(c, Html) else html.escape(c) for c in content)
    outer = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{outer}>{inner}</{name}>")


def join(parts: Sequence[str] | Iterator[str]) -> Html:
    """Pieces of markup and text, one after another."""
    return Html("".join(p if isinstance(p, Html) else html.escape(p) for p in parts))


def page(table: Table, base: Path, title: str = "Which findings hold on which model") -> str:
    """The page; links to executed notebooks are relative to the folder `base`."""
    style, script = (
        Html((_FOLDER / f"scorecard.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js")
    )
    head = [
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("title", title),
        tag("style", style),
    ]
    body = [
        tag("header", tag("h1", title), tag("p", _subtitle(table)), _legend(table)),
        _cards(table),
        _filters(table),
        _matrix(table, base),
        _changes(table),
        _failures(table, base),
        _figures(table, base),
        tag("script", script),
    ]
    whole = tag("html", tag("head", *head), "\n", tag("body", *body), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _subtitle(table: Table) -> str:
    count = Counter(name for record in table.claims.values() for name in papers(record))
    n_papers = len(count) - ("beyond the papers" in count)
    models = len({column.model for column in table.columns})
    return (
        f"{_number(len(table.claims), 'claim')} from {_number(n_papers, 'paper')}, "
        f"measured on {_number(models, 'model')}. The rule that decides each was written before "
        "its result was seen."
    )


def _number(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _legend(table: Table) -> Html:
    items = [
        tag("span", tag("b", MARKS[holds], class_=f"mark {_KINDS[holds]}"), f" {word}")
        for holds, word in WORDS.items()
    ]
    if any(len({e.record["holds"] for e in cell}) > 1 for cell in table.cells.values()):
        items.append(tag("span", tag("b", "◐", class_="mark mixed"), " differs between seeds"))
    drawn = Html(_interval_svg(0.5, 0.2, 0.8, (0, 1)))
    items.append(tag("span", drawn, " value and interval, on one axis for each row"))
    return tag("p", *items, class_="legend")


def _cards(table: Table) -> Html:
    """A card for each column: how many claims hold, as a bar and in numbers."""
    cards = []
    for column in table.columns:
        entries = [e for (_, c), cell in table.cells.items() if c == column for e in cell]
        counts = Counter(entry.record["holds"] for entry in entries)
        bar = [
            tag("span", class_=_KINDS[holds], style=f"flex-grow:{counts[holds]}")
            for holds in MARKS
            if counts[holds]
        ]
        numbers = [tag("b", f"{MARKS[h]} {counts[h]}", class_=_KINDS[h]) for h in MARKS]
        content = tag("div", *bar, class_="bar"), tag("p", *numbers, class_="numbers")
        cards.append(tag("div", _column_name(column), *content, class_="card"))
    return tag("section", *cards, class_="cards")


def _column_name(column: Column) -> Html:
    variant = [tag("small", column.variant)] if column.variant else []
    return tag("h3", column.model, *variant)


def _filters(table: Table) -> Html:
    counts = Counter(name for record in table.claims.values() for name in papers(record))
    options = [tag("option", f"all papers ({len(table.claims)})", value="")]
    options += [tag("option", f"{n} ({counts[n]})", value=n) for n in sorted(counts)]
    boxes = [tag("label", "paper ", tag("select", *options, id="paper"))]
    boxes.append(tag("label", "text ", Html('<input id="words" type="search" size="18">')))
    for id, text, useful in (
        ("differs", " only where models differ", len(table.columns) > 1),
        ("changed", " only what changed", bool(table.changes)),
    ):
        if useful:
            boxes.append(tag("label", Html(f'<input id="{id}" type="checkbox">'), text))
    return tag("nav", *boxes, tag("output", id="shown"))


def _matrix(table: Table, base: Path) -> Html:
    heads = [tag("th", _column_name(column), scope="col") for column in table.columns]
    parts = [tag("thead", tag("tr", tag("th", "claim", scope="col", class_="claim"), *heads))]
    for notebook in dict.fromkeys(record["notebook"] for record in table.claims.values()):
        ids = [id for id, record in table.claims.items() if record["notebook"] == notebook]
        title = tag("th", tag("span", _title(notebook)), colspan=str(1 + len(table.columns)))
        rows = [_claim_row(table, id, base) for id in ids]
        parts.append(tag("tbody", tag("tr", title, class_="notebook"), *rows))
    return tag("div", tag("table", *parts, class_="matrix"), class_="scroll")


def _title(notebook: str) -> str:
    number, _, words = notebook.partition("_")
    return f"{number} · {words.replace('_', ' ')}" if words else notebook


def _claim_row(table: Table, id: str, base: Path) -> Html:
    record = table.claims[id]
    cells = [table.cells.get((id, column), []) for column in table.columns]
    axis = _axis([entry.record for cell in cells for entry in cell])
    verdicts = {outcome(cell) for cell in cells if cell}
    changed = any(entry.change for cell in cells for entry in cell)
    origin = tag("summary", tag("code", id), f" {record['source']}")
    rule = tag("details", origin, tag("p", f"Rule: {record['rule']}"))
    claim = tag("th", tag("span", record["says"]), rule, scope="row", class_="claim")
    drawn = [
        _cell(cell, _failed(table, record, column), axis, base)
        for cell, column in zip(cells, table.columns, strict=True)
    ]
    return tag(
        "tr",
        claim,
        *drawn,
        data_papers="|".join(papers(record)),
        data_differs="1" if len(verdicts) > 1 else None,
        data_changed="1" if changed else None,
    )


def _failed(table: Table, record: Record, column: Column) -> Done | None:
    """The failed run that would have filled an empty cell."""
    runs = (r for r in table.failed if r.notebook == record["notebook"] and r.column == column)
    return next(runs, None)


def _cell(entries: list[Entry], failed: Done | None, axis: tuple[float, float], base: Path) -> Html:
    if not entries:
        text = [tag("span", "! run failed", title=failed.error)] if failed else []
        return tag("td", *text, class_="failed" if failed else "empty")
    verdicts = {entry.record["holds"] for entry in entries}
    if len(entries) == 1:
        return tag("td", _entry(entries[0], axis, base), class_=_KINDS[entries[0].record["holds"]])
    kind = _KINDS[verdicts.pop()] if len(verdicts) == 1 else "mixed"
    mark = outcome(entries) if kind != "mixed" else f"◐ {outcome(entries).lstrip('✔ ')} hold"
    head = tag("b", f"{mark} ", tag("small", f"{len(entries)} seeds"), class_="mark")
    seeds = [tag("li", _entry(e, axis, base, f"seed {e.record['seed']}")) for e in entries]
    return tag("td", head, tag("ul", *seeds), class_=kind)


def _entry(entry: Entry, axis: tuple[float, float], base: Path, label: str = "") -> Html:
    record, run, change = entry
    value = [] if record["value"] is None else [tag("b", digits(record["value"]))]
    mark = tag("span", MARKS[record["holds"]], class_="mark", title=WORDS[record["holds"]])
    parts = [tag("a", mark, *value, href=link(run, base), title=f"{run_name(run)}: open notebook")]
    if record["low"] is not None and record["high"] is not None:
        parts.append(tag("small", f"[{digits(record['low'])}, {digits(record['high'])}]"))
    if record["value"] is not None and axis[1] > axis[0]:
        low, high = record["low"], record["high"]
        parts.append(Html(_interval_svg(record["value"], low, high, axis)))
    if record["why"]:
        parts.append(tag("small", record["why"], class_="why"))
    if change:
        was = str(change.text).split(" -> ")[0]
        parts.append(tag("em", f"{change.kind}: reference {was}", class_=change.kind))
    return join([tag("small", label, class_="seed"), *parts] if label else parts)


def _axis(records: list[Record]) -> tuple[float, float]:
    """The range of a row's values and intervals; of no extent where there are no intervals."""
    if not any(record["low"] is not None for record in records):
        return (0.0, 0.0)
    numbers = [n for r in records for n in (r["value"], r["low"], r["high"]) if n is not None]
    margin = 0.15 * (max(numbers) - min(numbers))
    return (min(numbers) - margin, max(numbers) + margin)


def _interval_svg(
    value: float, low: float | None, high: float | None, axis: tuple[float, float]
) -> str:
    """A line for the interval, a dot for the value, a tick at zero where that is in range."""

    def x(number: float) -> str:
        return f"{4 + 92 * (number - axis[0]) / (axis[1] - axis[0]):.1f}"

    parts = ['<line class="track" x1="4" x2="96" y1="6" y2="6"/>']
    if axis[0] < 0 < axis[1]:
        parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="1" y2="11"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="range" x1="{x(low)}" x2="{x(high)}" y1="6" y2="6"/>')
    parts.append(f'<circle cx="{x(value)}" cy="6" r="3"/>')
    return f'<svg viewBox="0 0 100 12" aria-hidden="true">{"".join(parts)}</svg>'


def _changes(table: Table) -> Html:
    if not table.changes:
        return Html("")
    kinds = Counter(entry.change.kind for entry in table.changes if entry.change)
    title = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    lines = [tag("li", change_line(entry)) for entry in table.changes]
    return tag("section", tag("h2", f"Changed against the reference: {title}"), tag("ul", *lines))


def _failures(table: Table, base: Path) -> Html:
    if not table.failed:
        return Html("")
    lines = [
        tag("li", tag("a", run_name(run), href=link(run, base)), ": ", run.error or "")
        for run in table.failed
    ]
    return tag("section", tag("h2", f"Failed runs: {len(lines)}"), tag("ul", *lines))


def _figures(table: Table, base: Path) -> Html:
    """The figures of each notebook, models side by side, from the first seed of each."""
    shown: dict[tuple[str, Column], Done] = {}
    for run in table.runs:
        if not run.error and run.records:
            shown.setdefault((run.notebook, run.column), run)
    left, sections = PICTURES, []
    for notebook in dict.fromkeys(name for name, _ in shown):
        runs = [run for (name, _), run in shown.items() if name == notebook]
        found = [(run, run.thumbnails()[: left // len(runs)]) for run in runs]
        left -= sum(len(pictures) for _, pictures in found)
        drawn = [[_picture(run, *picture, base) for picture in pictures] for run, pictures in found]
        strips = drawn if len(drawn) == 1 else zip_longest(*drawn, fillvalue=tag("figure"))
        rows = [tag("div", *strip, class_="strip") for strip in strips if strip]
        if rows:
            summary = tag("summary", _title(notebook))
            sections.append(tag("details", summary, *rows, class_="figures"))
    if not sections:
        return Html("")
    note = "" if left > 0 else f" The first {PICTURES} are shown."
    intro = tag("h2", "Figures"), tag("p", f"Each opens its notebook.{note}")
    return tag("section", *intro, *sections)


def _picture(run: Done, title: str, webp: bytes, base: Path) -> Html:
    address = f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
    image = Html(f'<img loading="lazy" alt="{html.escape(title or run.notebook)}" src="{address}">')
    caption = tag("figcaption", f"{run.column}: {title}" if title else str(run.column))
    return tag("figure", tag("a", image, href=link(run, base)), caption)


def write(table: Table, folder: Path) -> list[Path]:
    """Write scorecard.html, .md and .json into a folder; the files, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "scorecard.html": page(table, folder),
        "scorecard.md": markdown(table, folder),
        "scorecard.json": scorecard.to_json(table.records),
    }
    for name, text in texts.items():
        scorecard.write_atomic(folder / name, text)
    return [folder / name for name in texts]
