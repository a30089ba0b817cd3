"""The section of a page on rare words lost and regained: each in its context, with the audio."""

from __future__ import annotations

import json
from typing import Any

from tarq.reports.clips import Clips
from tarq.reports.context import Piece, in_hypothesis, in_reference
from tarq.reports.markup import Html, element, joined
from tarq.reports.panel import ChangedWord, Panel, Report
from tarq.reports.sections import Section, each, missing

#: Changed words that a panel shows.
WORDS = 40


def shown_words(panel: Panel) -> list[ChangedWord]:
    """Those of a panel's changed words that are shown: three of four are lost ones, where there are enough of both."""
    lost = [word for word in panel.changed if word.kind == "lost"]
    regained = [word for word in panel.changed if word.kind == "regained"]
    return lost[: max(WORDS * 3 // 4, WORDS - len(regained))] + regained[: max(WORDS // 4, WORDS - len(lost))]


def changed_words(report: Report, clips: Clips) -> Section | None:
    """The section; None where there is nothing to say."""
    sources = list(dict.fromkeys(clips.found.values()))
    places = {source: i for i, source in enumerate(sources)}
    content = each(report, lambda panel: _list(panel, clips, places) if panel.changed else None, wide=True)
    lines = missing(report.lines("absent", "words") + (clips.absent if content else []))
    if content is None and not lines:
        return None
    shown = [_controls(report), content] if content else []
    return "words", "Rare words lost and regained", joined([*shown, lines, *_audio(sources)])


def _controls(report: Report) -> Html:
    """The filters of the lists, which the page's script shows."""
    arms = {
        hypothesis.arm: panel.arms.get(hypothesis.arm, hypothesis.arm)
        for panel in report.panels
        for word in shown_words(panel)
        for hypothesis in word.hypotheses
    }
    methods = [element("option", "all", value=""), *(element("option", t, value=arm) for arm, t in arms.items())]
    kinds = [element("option", "all", value=""), *(element("option", kind) for kind in ("lost", "regained"))]
    return element(
        "form",
        element("label", "Method ", element("select", methods, name="arm")),
        element("label", "Words ", element("select", kinds, name="kind")),
        element("output", aria_live="polite"),
        class_="controls",
        hidden=True,
    )


def _list(panel: Panel, clips: Clips, places: dict[str, int]) -> Html:
    shown = shown_words(panel)
    lost = sum(word.kind == "lost" for word in panel.changed)
    draws = max(hypothesis.draws for word in panel.changed for hypothesis in word.hypotheses)
    summary = f"{lost} rare words were lost by some method, {len(panel.changed) - lost} regained"
    summary += f", in {draws} draws. " if draws > 1 else ". "
    summary += f"The {len(shown)} that changed most often are shown." if len(shown) < len(panel.changed) else ""
    items = []
    for word in shown:
        clip = clips.found.get((panel.title, word.id))
        items.append(_word(panel, word, None if clip is None else places[clip]))
    return joined([element("p", summary, class_="note"), element("ol", items, class_="words")])


def _word(panel: Panel, word: ChangedWord, clip: int | None) -> Html:
    full = panel.arms.get(panel.full or "", "full precision")
    lines = [("said", in_reference(word.reference, word.position))] if word.reference else []
    lines.append((full, in_hypothesis(word.full, word.reference, word.position)))
    alike: dict[str, tuple[list[Piece], list[str]]] = {}
    for hypothesis in word.hypotheses:
        pieces = in_hypothesis(hypothesis.text, word.reference, word.position)
        name = panel.arms.get(hypothesis.arm, hypothesis.arm)
        name += f" ({hypothesis.times} of {hypothesis.draws})" if hypothesis.draws > 1 else ""
        alike.setdefault(repr(pieces), (pieces, []))[1].append(name)
    lines += [(" · ".join(names), pieces) for pieces, names in alike.values()]
    head = [
        element("strong", word.word, class_="word"),
        element("span", word.kind, class_=f"kind {word.kind}"),
        element("span", word.id, class_="id"),
    ]
    if clip is not None:
        label = f"Audio of {word.id}"
        head.append(element("audio", controls=True, preload="none", data_clip=clip, aria_label=label))
    return element(
        "li",
        element("div", ((part, " ") for part in head), class_="word-head"),
        element("dl", ((element("dt", name), element("dd", _pieces(pieces))) for name, pieces in lines)),
        data_arms=json.dumps([hypothesis.arm for hypothesis in word.hypotheses]),
        data_kind=word.kind,
    )


def _pieces(pieces: list[Piece]) -> Html:
    parts: list[Any] = []
    for piece, marked in pieces:
        parts += [" ", element("mark", piece) if marked else piece]
    return joined(parts[1:])


def _audio(sources: list[str]) -> list[Html]:
    """Each clip once, as data that the page's script hands to its players."""
    if not sources:
        return []
    # "<" would end the element; base64 has none, so this only makes sure.
    data = json.dumps(sources).replace("<", "\\u003c")
    silent = element("noscript", element("p", "Playing audio needs JavaScript.", class_="note"))
    return [element("script", Html(data), type="application/json", id="clips"), silent]
