"""What ``tarq evaluate`` found, as panels, one a set: intervals over utterances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tarq.data.utterance import Utterance
from tarq.errors import DataError
from tarq.report import counted
from tarq.reports.panel import FIGURES, ChangedWord, Damage, Group, Hypothesis, Panel
from tarq.reports.results import ERRORS, list_or_empty
from tarq.scoring.bootstrap import Difference, Interval
from tarq.scoring.figures import BANDED

INTERVALS = (
    "Intervals are 95 %, from a paired bootstrap over utterances; bold differences are clear of 0. A model is one draw "
    "of calibration speech: intervals do not cover other draws."
)


#: Label of a set, or the empty text for any, to utterance id to utterance.
SpeechBySet = Mapping[str, Mapping[str, Utterance]]


def panels(evaluation: dict[str, Any], speech: SpeechBySet, base: str | None = None) -> list[Panel]:
    """Everything there is to show of each set.

    Args:
        evaluation: checked, of :meth:`tarq.scoring.run.Evaluation.to_dict`.
        speech: set to id to utterance, of those whose audio is to be shown.
        base: the model others are compared with; one called GPTQ, or else the first one that is not full precision.

    Raises:
        DataError: there is no such model.
    """
    return [_panel(evaluation, label, speech, base) for label in evaluation["sets"]]


def _panel(evaluation: dict[str, Any], label: str, speech: SpeechBySet, base: str | None) -> Panel:
    scores = evaluation["sets"][label]
    full = evaluation.get("reference")
    models = list(scores["models"])
    models.sort(key=lambda name: name != full)  # full precision first
    others = [name for name in models if name != full]
    if base is not None and base not in models:
        raise DataError(f"{label} has no model {base!r} to compare with: it has {', '.join(models)}")
    called = next((name for name in others if "gptq" in name.lower()), None)
    base = base or called or next(iter(others or models), None)
    about = f"{counted(scores['utterances'], 'utterance')}, {counted(scores['words'], 'word')}"
    about += f", {scores['rare_words']} of them rare"
    entities = scores.get("entities")
    about += f", {entities} {'entity' if entities == 1 else 'entities'}" if entities else ""
    panel = Panel(
        title=label,
        about=about + ".",
        arms={name: name for name in models},
        full=full,
        base=base,
        values={
            (name, figure): interval
            for name in models
            for figure, known in scores["models"][name]["figures"].items()
            if figure in FIGURES and (interval := _interval(known)) is not None
        },
        notes=[str(note) for note in list_or_empty(scores.get("notes"))],
    )
    panel.differences = {
        (name, figure): difference
        for name in others
        if name != base and base is not None
        for figure in panel.figures
        if (difference := _paired(scores, name, base, figure)) is not None
    }
    for name in models:
        breakdown = scores["models"][name].get("breakdown") or {}
        panel.groups += _groups(name, breakdown.get("kinds"))
        panel.bands += _groups(name, breakdown.get("bands"))
    order = {kind: i for i, kind in enumerate(dict.fromkeys(group.kind for group in panel.bands))}
    panel.bands.sort(key=lambda group: order[group.kind])
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(group.kind for group in panel.groups))}
    panel.groups.sort(key=lambda group: kinds[group.kind])
    panel.frequency = _frequency(scores, base)
    panel.changed = _changed(scores, models)
    panel.clips = dict(_clips(label, speech))
    quantized = evaluation.get("quantized") or {}
    panel.layers = {name: quantized[name]["layers"] for name in models if (quantized.get(name) or {}).get("layers")}
    if not panel.bands:
        line = "Word errors by word frequency: the results hold none; tarq evaluate with transcripts does."
        panel.absent[line] = "frequency"
    if not panel.frequency:
        line = "ΔNLL and KL by word frequency: the results hold none; this tarq measures them against --reference."
        panel.absent[line] = "frequency"
    if not panel.layers:
        panel.absent["λ, α and loss by layer: no model here has a report of tarq."] = "layers"
    if not panel.changed:
        lacking = "none changed" if panel.bands else "the results hold no transcripts"
        panel.absent[f"Rare words lost and regained: {lacking}."] = "words"
    panel.absent["Errors by place in the utterance and by speaker: an evaluation holds neither."] = "errors"
    panel.absent["Swing over calibration pools, and calibration draws: an evaluation has neither."] = "origin"
    return panel


def _interval(known: Mapping[str, Any]) -> Interval | None:
    value, low, high = (known[name] for name in ("value", "low", "high"))
    return None if value is None or low is None or high is None else Interval(value, low, high)


def _paired(scores: Mapping[str, Any], ours: str, base: str, figure: str) -> Difference | None:
    """``ours − base``; the results hold each pair in one direction."""
    found = scores.get("differences") or {}
    for pair, sign in ((f"{ours} − {base}", 1), (f"{base} − {ours}", -1)):
        known = found.get(pair, {}).get(figure)
        if known is not None and (interval := _interval(known)) is not None:
            low, high = sorted((sign * interval.low, sign * interval.high))
            return Difference(sign * interval.value, low, high, known.get("sign_flips") or 0.0)
    return None


def _frequency(scores: Mapping[str, Any], base: str | None) -> list[Damage]:
    """Damage to the targets of words of each band of frequency, and what it differs by from the base's."""
    targets = scores.get("targets") or {}
    found = []
    for band, (delta_nll, kl) in BANDED.items():
        for part, figure in (("delta_nll", delta_nll.name), ("kl", kl.name)):
            for name, model in scores["models"].items():
                if figure in model["figures"] and (value := _interval(model["figures"][figure])) is not None:
                    paired = _paired(scores, name, base, figure) if base is not None and name != base else None
                    found.append(Damage(name, band, part, int(targets.get(band, 0)), value, paired))
    return found


def _groups(name: str, found: Mapping[str, Any] | None) -> list[Group]:
    groups = []
    for kind, known in (found or {}).items():
        if (rate := _interval(known["rate"])) is None:
            continue
        change = known.get("change")
        moved = _interval(change) if change else None
        difference = Difference(moved.value, moved.low, moved.high, change.get("sign_flips") or 0.0) if moved else None
        substitutions, deletions, insertions = (known[e] for e in ERRORS)
        groups.append(Group(name, kind, substitutions, deletions, insertions, known["words"], rate, difference))
    return groups


def _changed(scores: Mapping[str, Any], models: list[str]) -> list[ChangedWord]:
    """Rare words by place, with the models that changed them."""
    references = scores.get("references") or {}
    found: dict[tuple[str, str, int, str], tuple[str, list[Hypothesis]]] = {}
    for name in models:
        for kind in ("lost", "regained"):
            for word in list_or_empty(scores["models"][name].get(kind)):
                if isinstance(word, str):
                    continue
                key = (kind, word["id"], word.get("position") or 0, word["word"])
                _, hypotheses = found.setdefault(key, (word["full_precision"], []))
                hypotheses.append(Hypothesis(name, 1, 1, word["quantized"]))
    changed = [
        ChangedWord(kind, i, position, word, _words(references.get(i)), full, tuple(hypotheses))
        for (kind, i, position, word), (full, hypotheses) in found.items()
    ]
    return sorted(changed, key=lambda word: -len(word.hypotheses))


def _words(text: Any) -> tuple[str, ...] | None:
    return tuple(text.split()) if isinstance(text, str) else None


def _clips(label: str, speech: SpeechBySet) -> Mapping[str, Utterance]:
    """The utterances of a set, or of the set that it is a language's part of: ``calls (de)`` of ``calls``."""
    return speech.get(label) or speech.get(label.rpartition(" (")[0]) or speech.get("", {})


def origin(evaluation: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """What is needed to redo it."""
    quantized = evaluation.get("quantized") or {}
    versions = evaluation.get("versions") or {}
    run = {
        "Results": ", ".join(files),
        "Command": evaluation.get("command") or "",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Device": evaluation.get("device") or "",
        "Rare": f"Zipf < {evaluation['thresholds'][0]:g}" if evaluation.get("thresholds") else "",
        "Normalizer": ", ".join(dict.fromkeys(str(s.get("normalizer", "")) for s in evaluation["sets"].values())),
        "Resamples": str(evaluation.get("resamples") or ""),
    }
    return {
        "run": {label: text for label, text in run.items() if text},
        "configurations": {name: known["config"] for name, known in quantized.items() if known.get("config")},
    }
