"""A study's results as panels: means over calibration draws, intervals over draws and utterances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarq.data.utterance import Utterance
from tarq.errors import DataError
from tarq.reports import statistics
from tarq.reports.panel import FIGURES, MAIN, Damage, Pair, Panel, Swing
from tarq.reports.results import list_or_empty
from tarq.reports.statistics import Cell, Comparison, Condition, Study
from tarq.reports.transcripts import Decoded, describe_words

INTERVALS = (
    "Intervals are 95 %, from a two-way bootstrap over calibration draws and utterances; differences are paired within "
    "a draw and an utterance. Bold differences are clear of 0."
)
DAMAGE = "delta_nll_rare"
#: Utterances of a speaker that an interval needs.
MIN_UTTERANCES = 5


def panels(
    results: dict[str, Any], folder: Path, speech: Mapping[str, Utterance], base: str | None = None
) -> list[Panel]:
    """A panel a condition (model, width, calibration pool and its size); of each model the condition with most cells
    comes first and is shown in full, of the others the figures alone.

    Args:
        results: checked.
        folder: that paths of audio are relative to.
        speech: id to utterance, for references and audio that the results lack.
        base: the arm others are compared with; ``gptq``, or the first arm.

    Raises:
        DataError: a cell's name is none, or there is no such arm.
    """
    cells: dict[Condition, dict[Cell, Mapping[str, Any]]] = {}
    for key, found in results["cells"].items():
        cell = Cell.parse(key)
        cells.setdefault(cell.condition, {})[cell] = found
    made = [_Condition(results, condition, cells[condition], folder, speech, base) for condition in cells]
    adjusted = statistics.adjusted_in_families([c for one in made for c in one.study.comparisons()])
    main: dict[str, _Condition] = {}
    for one in made:
        best = main.get(one.condition.model)
        if best is None or len(one.cells) > len(best.cells):
            main[one.condition.model] = one
    # A model on a further set is called after it: "base (lj)".
    first = [c for name, c in main.items() if not any(name.startswith(f"{other} (") for other in main)]
    rest = [one for one in made if one not in first]
    own = {one.condition: [c for c in adjusted if c.condition == one.condition] for one in made}
    return [one.panel(own[one.condition], made) for one in first] + [
        one.figures_only(own[one.condition]) for one in rest if not any(_pools_apart(one, other) for other in first)
    ]


class _Condition:
    """Builds the panel of one condition."""

    def __init__(
        self,
        results: dict[str, Any],
        condition: Condition,
        cells: Mapping[Cell, Mapping[str, Any]],
        folder: Path,
        speech: Mapping[str, Utterance],
        base: str | None,
    ) -> None:
        self.results, self.condition, self.cells, self.speech = results, condition, cells, speech
        self.model = results["models"][condition.model]
        self.settings = results["settings"]
        arms = list(dict.fromkeys([*(results.get("arms") or {}), *(cell.arm for cell in cells)]))
        self.arms = [arm for arm in arms if any(cell.arm == arm for cell in cells)]
        self.base = base or (statistics.BASE if statistics.BASE in self.arms else self.arms[0])
        if self.base not in self.arms:
            known = ", ".join(self.arms)
            raise DataError(f"{condition.title} has no arm {self.base!r} to compare with: it has {known}")
        pairs = statistics.all_pairs(results)
        named = {pair[:2] for pair in pairs}
        others = [(arm, self.base, f"against {self.base}") for arm in self.arms if arm != self.base]
        self.study = Study(results, condition, pairs + [pair for pair in others if pair[:2] not in named])
        self.folder = folder
        self.absent: dict[str, str] = {}

    def figures_only(self, comparisons: Sequence[Comparison]) -> Panel:
        """Figures only."""
        titles = {arm: (self.results.get("arms") or {}).get(arm, {}).get("title") or arm for arm in self.arms}
        has_full = statistics.FULL in self.study.arms or bool(self.model.get("hypotheses"))
        against = {(c.ours, c.figure): c for c in comparisons if c.base == self.base}
        return Panel(
            title=self.condition.title,
            about=self._about(),
            arms=({statistics.FULL: statistics.FULL} if has_full else {}) | titles,
            full=statistics.FULL if has_full else None,
            base=self.base,
            values={
                (arm, figure): value.interval()
                for arm in self.study.arms
                for figure in FIGURES
                if figure in self.study.figures and (value := self.study.value(arm, figure)) is not None
            },
            differences={known: c.difference for known, c in against.items() if known[1] in FIGURES},
            recovered=self._recovered(against),
            figures_only=True,
        )

    def panel(self, comparisons: Sequence[Comparison], others: Sequence[_Condition]) -> Panel:
        """Everything there is to show."""
        panel = self.figures_only(comparisons)
        panel.title, panel.figures_only = self.condition.model, False
        panel.pairs = _pairs(comparisons)
        panel.swings = self._swings(others)
        panel.layers = self._layers()
        panel.clips = self._clips()
        self._words(panel)
        panel.frequency = self._frequency()
        panel.speakers = self._speakers()
        if not panel.pairs:
            self.absent["Ablation: the results hold no two arms to compare."] = "ablation"
        if not panel.swings:
            self.absent["Swing over calibration pools: the results hold one pool."] = "swing"
        if not panel.layers:
            self.absent["λ, α and loss by layer: the results hold no layers."] = "layers"
        if not panel.speakers:
            line = f"Damage by speaker: the results name no two speakers of {MIN_UTTERANCES} utterances each."
            self.absent[line] = "errors"
        panel.absent |= self.absent
        times = Counter(str(note) for found in self.cells.values() for note in list_or_empty(found.get("notes")))
        panel.notes += [f"{note} ({count} of {len(self.cells)} cells)" for note, count in times.items()]
        return panel

    # --- figures ---

    def _recovered(self, against: Mapping[tuple[str, str], Comparison]) -> dict[str, Any]:
        """The share of the base's damage to true rare tokens that each arm does not do."""
        theirs = self.study.value(self.base, DAMAGE)
        if theirs is None:
            return {}
        if not theirs.interval().low > 0:  # a share of damage that may be none says nothing
            line = f"Share of rare damage undone: what {self.base} costs rare words is not clear of 0."
            self.absent[line] = "headline"
            return {}
        return {arm: c.recovered for (arm, figure), c in against.items() if figure == DAMAGE}

    def _swings(self, others: Sequence[_Condition]) -> list[Swing]:
        alike = [other for other in others if other is self or _pools_apart(other, self)]
        swings = []
        for figure in ("rare_wer", DAMAGE):
            for arm in self.arms if len(alike) > 1 else ():
                known = {o.condition.pool or "main": o.study.value(arm, figure) for o in alike}
                values = {pool: value for pool, value in known.items() if value is not None}
                if len(values) > 1:
                    # Pools are scored on the same utterances, which every resample draws alike.
                    spread = statistics.swing(list(values.values()))
                    swings.append(Swing(arm, figure, {p: v.interval() for p, v in values.items()}, spread))
        return swings

    # --- words ---

    def _words(self, panel: Panel) -> None:
        """Errors by kind and by frequency, and the words that changed."""
        counted: dict[str, list[Any]] = {}
        hypotheses: dict[str, list[Any]] = {}
        for cell, found in sorted(self.cells.items(), key=lambda known: known[0].draw):
            if found.get("words"):
                counted.setdefault(cell.arm, []).append(found["words"])
            if found.get("hypotheses"):
                hypotheses.setdefault(cell.arm, []).append(found["hypotheses"])
        decoded = Decoded(
            ids=self.model["ids"],
            references=self._references(),
            full=self.model.get("hypotheses"),
            arms=hypotheses,
            words=self.model.get("words") or {},
            counted=counted,
            config=self._config(),
            names=[speech.entities if (speech := self.speech.get(i)) else () for i in self.model["ids"]],
        )
        self.absent |= describe_words(panel, decoded)

    def _frequency(self) -> list[Damage]:
        """Damage to the targets of words of each band of frequency, and what it differs by from the base's."""
        pairs = [(arm, self.base) for arm in self.arms if arm != self.base]
        found = []
        for band, sources in statistics.BANDS.items():
            targets = sum(self.model.get("positions", {}).get(band) or [])
            if not targets:
                continue
            study = Study(self.results, self.condition, pairs, tuple(sources))
            for figure, source in sources.items():
                for arm in study.arms:
                    if (value := study.value(arm, figure)) is not None:
                        paired = study.compare(arm, self.base, figure)
                        change = paired.difference if paired and arm != self.base else None
                        found.append(Damage(arm, band, source.part, targets, value.interval(), change))
        lacking = sum(not {*statistics.BANDS} & {*(cell.get("kl") or {})} for cell in self.cells.values())
        if lacking:
            share = "" if lacking == len(self.cells) else f" in {lacking} of {len(self.cells)} cells"
            line = f"ΔNLL and KL by word frequency: the results hold none{share}; this tarq measures them."
            self.absent[line] = "frequency"
        return found

    def _speakers(self) -> list[Damage]:
        """Damage to the rare words of each speaker, and to the common ones: those who said most rare ones first."""
        named = list(map(str, list_or_empty(self.model.get("speakers"))))
        enough = [name for name, count in Counter(named).items() if count >= MIN_UTTERANCES]
        if len(named) != len(self.model["ids"]) or len(enough) < 2:
            return []
        groups = {name: np.array([other == name for other in named]) for name in enough}
        damage = [
            Damage(arm, name, figure, int(np.asarray(self.model["positions"][kind])[groups[name]].sum()), k.interval())
            for kind, figure in (("rare", DAMAGE), ("common", "delta_nll_common"))
            if figure in self.study.figures
            for (arm, name), k in self.study.within(figure, groups).items()
        ]
        return sorted(damage, key=lambda one: -one.targets)

    def _references(self) -> list[str] | None:
        """Reference texts in the order of the ids; None unless all are known."""
        if self.model.get("references"):
            return self.model["references"]
        texts = [self.speech[i].text if i in self.speech else None for i in self.model["ids"]]
        return None if None in texts else texts  # type: ignore[return-value]

    def _clips(self) -> dict[str, Utterance]:
        audio = self.model.get("audio") or []
        paths = audio if isinstance(audio, dict) else dict(zip(self.model["ids"], audio, strict=False))
        known = {i: self.speech[i] for i in self.model["ids"] if i in self.speech}
        return {
            i: Utterance(i, self.folder / path) for i, path in paths.items() if isinstance(path, str) and path
        } | known

    # --- settings, layers, size ---

    def _config(self) -> Mapping[str, Any]:
        return next((found["config"] for found in self.cells.values() if found.get("config")), {})

    def _layers(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for cell, known in self.cells.items():
            if known.get("layers"):
                found.setdefault(cell.arm, known["layers"])
        return found

    def _about(self) -> str:
        config, positions = self._config(), self.model.get("positions") or {}
        parts = [f"W{config['bits']}G{config['group_size']}"] if {"bits", "group_size"} <= set(config) else []
        count = len(self.study.draws(self.base, DAMAGE) or self.study.draws(self.base, "rare_wer"))
        samples = self.condition.samples or self.settings.get("samples")
        parts.append(f"{count} calibration draw{'s' if count != 1 else ''}")
        parts[-1] += f" of {samples} utterances" if samples else ""
        speakers = self.model.get("speakers") or self.settings.get("speakers") or []
        scored = f"scored on {len(self.model['ids'])} utterances"
        parts.append(scored + (f" of {len(set(map(str, speakers)))} speakers" if speakers else ""))
        if {"rare", "common"} <= set(positions):
            parts.append(f"{sum(positions['rare'])} rare and {sum(positions['common'])} common targets")
        if words := (self.model.get("words") or {}).get("rare"):
            drawn = len(self.study.draws(self.base, "rare_wer"))
            parts.append(f"{sum(words['words'])} rare words, transcribed in {drawn} draw{'s' if drawn != 1 else ''}")
        parts += [f"calibration pool {self.condition.pool}"] if self.condition.pool else []
        return "; ".join(parts) + "."


def _pools_apart(one: _Condition, other: _Condition) -> bool:
    """Whether two conditions differ in the calibration pool alone."""
    a, b = one.condition, other.condition
    return a != b and a._replace(pool=None) == b._replace(pool=None)


def _pairs(comparisons: Sequence[Comparison]) -> list[Pair]:
    pairs: dict[tuple[str, str, str], Pair] = {}
    for c in comparisons:
        if c.figure in MAIN:
            pair = pairs.setdefault((c.ours, c.base, c.family), Pair(c.ours, c.base, c.family or "other pairs", {}))
            pair.differences[c.figure] = c.difference
            pair.adjusted[c.figure] = c.adjusted
            pair.detectable[c.figure] = c.detectable
            if (over_draws := c.components.over_draws) is not None:
                pair.over_draws[c.figure] = over_draws
    return list(pairs.values())


def origin(study: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """What is needed to redo it: settings, and of each arm configuration, versions, device and time."""
    arms: dict[str, Any] = {}
    for key, found in study["cells"].items():
        arms.setdefault(Cell.parse(key).arm, found.get("config") or {})
    cells = list(study["cells"].values())
    versions = sorted({_pairs_text(cell["versions"]) for cell in cells if cell.get("versions")})
    devices = sorted({str(cell["device"]) for cell in cells if cell.get("device")})
    seconds = [sum(cell["seconds"].values()) for cell in cells if isinstance(cell.get("seconds"), dict)]
    settings = study.get("settings") or {}
    run = {
        "Results": ", ".join(files),
        "Settings": _pairs_text({k: v for k, v in settings.items() if not isinstance(v, dict) and k != "title"}),
        "Versions": "; ".join(versions),
        "Device": ", ".join(devices),
        "Time": f"{len(cells)} cells, {sum(seconds) / 60:.1f} minutes of work" if seconds else "",
        "Command": str(study.get("command") or settings.get("command") or ""),
    }
    return {
        "run": {label: text for label, text in run.items() if text},
        "configurations": arms,
        "study": {k: v for k, v in settings.items() if isinstance(v, dict)},
    }


def _pairs_text(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in values.items()
    )
