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
