"""Markup of the page: elements, and the tables of :mod:`convbench.report.text` as HTML.

It is made by :func:`tag`, which escapes every text that is not markup already, so that nothing in a record can become
any.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from convbench.report.text import Grid

__all__ = ["Html", "classes", "grid_table", "link", "listed", "scroll", "section", "table_body", "table_head", "tag"]


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | bool | None) -> Html:
    """Return an element; children are escaped unless they are markup, attributes always.

    >>> tag("td", "a < b", tag("br"), title='"x"', class_="n", hidden=True, id=None)
    '<td title="&quot;x&quot;" class="n" hidden>a &lt; b<br></td>'
    """
    texts = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    head = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in texts.items()
        if value not in (None, False)
    )
    if name in ("br", "input"):
        return Html(f"<{name}{head}>")
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{head}>{inside}</{name}>")


def link(title: str, anchor: str) -> Html:
    """Return a link to a section of the page."""
    return tag("a", title, href=f"#{anchor}")


def section(title: str, anchor: str, parts: Sequence[Html]) -> Html:
    """Return a section with its title."""
    return tag("section", tag("h2", title), *(Html(f"\n{part}") for part in parts), id=anchor)


def scroll(table: Html, label: str) -> Html:
    """Return a frame in which a table scrolls if it is too large."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def listed(items: Sequence[str], class_: str | None = None) -> list[Html]:
    """Return a list, or nothing if it is empty."""
    return [tag("ul", *(tag("li", item) for item in items), class_=class_)] if items else []


def grid_table(grid: Grid, label: str = "table") -> Html:
    """Return a grid of :mod:`convbench.report.text`; the first cell of a row is its heading."""
    sides = ["n" if column.right else None for column in grid.columns]
    heads = [
        tag("th", column.title, scope="col", class_=side) for column, side in zip(grid.columns, sides, strict=True)
    ]
    body = []
    for row in grid.rows:
        if row.title:
            body.append(tag("tr", tag("th", row.title, colspan=str(len(heads)), scope="colgroup")))
            continue
        cells = [
            tag("td" if i else "th", cell, class_=classes(sides[i], i in row.marked), scope=None if i else "row")
            for i, cell in enumerate(row.cells)
        ]
        if row.sentence:
            cells.append(tag("td", row.sentence, colspan=str(len(heads) - len(cells)), class_="reason"))
        cells += [tag("td")] * (0 if row.sentence else len(heads) - len(cells))
        body.append(tag("tr", *cells))
    return scroll(tag("table", table_head(heads), table_body(body)), label)


def table_head(cells: Sequence[Html]) -> Html:
    """Return a head of one row."""
    return tag("thead", tag("tr", *cells))


def table_body(rows: Sequence[Html]) -> Html:
    """Return a body, a row a line."""
    return tag("tbody", *(Html(f"\n{row}") for row in rows))


def classes(side: str | None, best: bool) -> str | None:
    """Return the class of a cell: its side, and whether it is marked as the best."""
    return " ".join(filter(None, [side, "best" if best else None])) or None
