"""A report as one self-contained HTML page."""

from __future__ import annotations

import json
from importlib.resources import files

from tarq.reports.clips import Clips
from tarq.reports.markup import Html, details, element, joined
from tarq.reports.panel import Report
from tarq.reports.sections import Section, sections
from tarq.reports.words import changed_words
from tarq.version import __version__

#: Names of the sections, as they stand in the page.
ORDER = ("headline", "ablation", "swing", "frequency", "errors", "words", "layers", "further", "origin")


def page(report: Report, clips: Clips) -> str:
    """The whole page."""
    shown = [*sections(report), changed_words(report, clips), _origin(report)]
    parts = sorted((part for part in shown if part is not None), key=lambda part: ORDER.index(part[0]))
    links = (element("a", title, href=f"#{name}") for name, title, _ in parts)
    body = element(
        "body",
        element("a", "Skip to the results", href="#results", class_="skip"),
        element("header", element("h1", report.title), element("nav", links, aria_label="Sections")),
        element("main", (_section(*part) for part in parts), id="results"),
        element("script", Html(_asset("page.js"))),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", report.title),
        element("style", Html(_asset("page.css"))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _section(name: str, title: str, content: Html) -> Html:
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, content, id=name, aria_labelledby=f"{name}-title")


def _origin(report: Report) -> Section:
    """Everything needed to do it again."""
    run = report.origin.get("run", {})
    parts = [element("dl", ((element("dt", label), element("dd", value)) for label, value in run.items()))]
    configurations = {arm: config for arm, config in report.origin.get("configurations", {}).items() if config}
    if configurations:
        listed = (
            (element("dt", arm), element("dd", element("code", json.dumps(config, ensure_ascii=False))))
            for arm, config in configurations.items()
        )
        parts.append(details("Configuration of each method", element("dl", listed)))
    if study := report.origin.get("study"):
        parts.append(details("What the study was made of", element("code", json.dumps(study, ensure_ascii=False))))
    for title, lines in (("Notes", report.lines("notes")), ("Not shown", report.lines("absent", "origin"))):
        if lines:
            parts += [element("h3", title), element("ul", (element("li", line) for line in lines))]
    parts.append(element("p", f"Made by tarq {__version__}.", class_="note"))
    return "origin", "To do it again", joined(parts)


def _asset(name: str) -> str:
    return files("tarq.reports").joinpath(name).read_text(encoding="utf-8")
