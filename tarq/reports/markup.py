"""HTML and SVG elements whose text is escaped by construction: only what these functions made counts as markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

#: Elements without an end tag.
_VOID = ("meta", "br", "rect", "line", "circle", "path")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element; children are text, which is escaped, markup, or iterables of both; None is left out.

    Args:
        attributes: ``class_`` for ``class``, ``aria_label`` for ``aria-label``; True for one without a value; None for
            one that is not there.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(_number(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID and not children:
        return Html(f"<{name}{given}/>" if name not in ("meta", "br") else f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    """Children one after the other."""
    return Html("".join(_markup(child) for child in children))


def table(label: str, heads: Iterable[Any], rows: Iterable[Any], caption: Any = None) -> Html:
    """A table that scrolls within itself where it is wider than the page.

    Args:
        label: what it is, for who does not see it.
        heads: the first row's cells.
        rows: elements ``tr``.
        caption: above it; it stays where it is when the table scrolls.
    """
    above = element("caption", element("div", caption)) if caption else None
    body = element("table", above, element("thead", element("tr", heads)), element("tbody", rows))
    return element("div", body, class_="scroll", role="region", aria_label=label, tabindex=0)


def heading(title: str, under: str = "", numbers: bool = True) -> Html:
    """The head of a column."""
    small = (element("br"), element("span", under, class_="interval")) if under else None
    return element("th", title, small, scope="col", class_="number" if numbers else None)


def number(*lines: Any) -> Html:
    """A cell of figures, line by line."""
    shown = [line for line in lines if line]
    return element("td", ((element("br") if i else None, line) for i, line in enumerate(shown)), class_="number")


def small(text: str) -> Html:
    return element("span", text, class_="interval")


def details(title: str, content: Any, opened: bool = False) -> Html:
    """An element that is unfolded by a click."""
    return element("details", element("summary", title), content, open=opened)


def _markup(child: Any) -> str:
    if child is None or child is False:
        return ""
    if isinstance(child, Html):
        return str(child)
    if isinstance(child, str | int | float):
        return escape(_number(child))
    return joined(child)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
