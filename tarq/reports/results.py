"""Results files: read, told apart, and checked before anything is made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tarq.errors import DataError
from tarq.reports.statistics import FIGURES

Kind = Literal["study", "evaluation"]
FORMAT = 1  # of a study's results
WORD = ("id", "word", "full_precision", "quantized")  # of a rare word that changed
ERRORS = ("substitutions", "deletions", "insertions")


def read(path: str | Path) -> tuple[Kind, dict[str, Any]]:
    """A results file: of a study, or what ``tarq evaluate --json`` wrote.

    Raises:
        DataError: it is missing, not JSON, neither of the two, or a value is not what it should be; names file and key.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the results of a study or of tarq evaluate --json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a results file: {error}") from error
    check = Check(str(path))
    whole = check.mapping(stored, "")
    if "cells" in whole:
        _check_study(check, whole)
        return "study", whole
    if "sets" in whole:
        check_evaluation(check, whole)
        return "evaluation", whole
    raise DataError(
        f"{path} has neither 'cells' nor 'sets', so it is no results file; give those of a study or of tarq evaluate "
        "--json"
    )


class Check:
    """Sees that values are what they should be; errors name the file and the way to the value."""

    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, key: str, wrong: str) -> DataError:
        return DataError(f"{self.file}: {key or 'the whole'} {wrong}; measure again, or give another file")

    def mapping(self, value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(key, f"is {_shown(value)}, not an object")
        return value

    def inner(self, value: dict[str, Any], key: str, name: str, optional: bool = False) -> dict[str, Any]:
        """An object within an object; an empty one where it is optional and not there."""
        if optional and value.get(name) is None:
            return {}
        return self.mapping(self.there(value, key, name), _join(key, name))

    def there(self, value: dict[str, Any], key: str, name: str) -> Any:
        if name not in value:
            raise self.fail(_join(key, name), "is missing")
        return value[name]

    def texts(self, value: Any, key: str, length: int | None = None) -> list[str]:
        self._listed(value, key, length, "utterances")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise self.fail(f"{key}[{i}]", f"is {_shown(item)}, not text")
        return value

    def numbers(self, value: Any, key: str, length: int) -> list[float]:
        self._listed(value, key, length, "utterances")
        for i, item in enumerate(value):
            if not is_number(item):
                raise self.fail(f"{key}[{i}]", f"is {_shown(item)}, not a finite number")
        return value

    def _listed(self, value: Any, key: str, length: int | None, of: str) -> None:
        if not isinstance(value, list):
            raise self.fail(key, f"is {_shown(value)}, not a list")
        if length is not None and len(value) != length:
            raise self.fail(key, f"has {len(value)} entries for {length} {of}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_study(check: Check, study: dict[str, Any]) -> None:
    if (made := study.get("format", FORMAT)) != FORMAT:
        raise check.fail("format", f"is {_shown(made)}, this tarq reads {FORMAT}")
    check.inner(study, "", "settings")
    models = check.inner(study, "", "models")
    lengths = {name: _check_model(check, check.mapping(m, f"models/{name}"), name) for name, m in models.items()}
    for name, arm in check.inner(study, "", "arms", optional=True).items():
        check.mapping(arm, f"arms/{name}")
    pairs = study.get("pairs") or []
    for i, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
        if not (isinstance(pair, list) and len(pair) in (2, 3) and all(isinstance(name, str) for name in pair)):
            raise check.fail(f"pairs[{i}]", f"is {_shown(pair)}, not two arms and a family")
    cells = check.inner(study, "", "cells")
    if not cells:
        raise check.fail("cells", "is empty: nothing was measured yet")
    for key, cell in cells.items():
        where = f"cells/{key}"
        model = next((name for name in models if key.startswith(f"{name}/")), None)
        if model is None:
            raise check.fail(where, f"is of none of the models {', '.join(models) or '(there is none)'}")
        _check_measured(check, check.mapping(cell, where), where, lengths[model], models[model])


def _check_model(check: Check, model: dict[str, Any], name: str) -> int:
    where = f"models/{name}"
    ids = check.texts(check.there(model, where, "ids"), f"{where}/ids")
    if not ids:
        raise check.fail(f"{where}/ids", "is empty")
    if len(set(ids)) < len(ids):
        raise check.fail(f"{where}/ids", "names an utterance twice")
    for kind, positions in check.inner(model, where, "positions", optional=True).items():
        check.numbers(positions, f"{where}/positions/{kind}", len(ids))
    if model.get("references") is not None:
        check.texts(model["references"], f"{where}/references", len(ids))
    _check_measured(check, model, where, len(ids), model)
    return len(ids)


def _check_measured(check: Check, cell: dict[str, Any], where: str, length: int, model: dict[str, Any]) -> None:
    for figure in ("kl", "delta_nll"):
        for kind, sums in check.inner(cell, where, figure, optional=True).items():
            check.numbers(sums, f"{where}/{figure}/{kind}", length)
            if kind not in (model.get("positions") or {}):
                raise check.fail(f"{where}/{figure}/{kind}", "has no positions in its model to be divided by")
    for kind, counts in check.inner(cell, where, "words", optional=True).items():
        key = f"{where}/words/{kind}"
        for name, values in check.mapping(counts, key).items():
            check.numbers(values, f"{key}/{name}", length)
        sources = [source for source in FIGURES.values() if (source.part, source.kind) == ("words", kind)]
        for name in dict.fromkeys(name for source in sources for name in (*source.counts, source.whole)):
            check.there(counts, key, name)
        if sources and kind not in (model.get("words") or {}):
            raise check.fail(key, "has no counts of full precision in its model beside it")
    if cell.get("hypotheses") is not None:
        check.texts(cell["hypotheses"], f"{where}/hypotheses", length)
    layers = cell.get("layers") or []
    for i, layer in enumerate(layers if isinstance(layers, list) else [layers]):
        check.there(check.mapping(layer, f"{where}/layers[{i}]"), f"{where}/layers[{i}]", "name")


def check_evaluation(check: Check, evaluation: dict[str, Any]) -> None:
    """See that an evaluation's dictionary is one.

    Raises:
        DataError: it is not; names file and key.
    """
    for label, found in check.inner(evaluation, "", "sets").items():
        where = f"sets/{label}"
        scores = check.mapping(found, where)
        for name in ("utterances", "words", "rare_words"):
            if not is_number(check.there(scores, where, name)):
                raise check.fail(f"{where}/{name}", f"is {_shown(scores[name])}, not a number")
        for model, own in check.inner(scores, where, "models").items():
            place = f"{where}/models/{model}"
            figures = check.inner(check.mapping(own, place), place, "figures")
            for figure, known in figures.items():
                _check_interval(check, known, f"{place}/figures/{figure}")
            for kind in ("lost", "regained"):
                words = own.get(kind) or []
                for i, word in enumerate(words if isinstance(words, list) else []):
                    key = f"{place}/{kind}[{i}]"
                    if not isinstance(word, str):  # older results hold the words alone
                        check.texts([check.there(check.mapping(word, key), key, n) for n in WORD], key)
                        if not isinstance(word.get("position", 0), int):
                            raise check.fail(f"{key}/position", f"is {_shown(word['position'])}, not a number")
            breakdown = check.inner(own, place, "breakdown", optional=True)
            for part in ("kinds", "bands"):
                for kind, known in check.inner(breakdown, f"{place}/breakdown", part, optional=True).items():
                    key = f"{place}/breakdown/{part}/{kind}"
                    names = (*ERRORS, "words")
                    check.numbers([check.there(check.mapping(known, key), key, n) for n in names], key, len(names))
                    _check_interval(check, check.there(known, key, "rate"), f"{key}/rate")
                    if known.get("change") is not None:
                        _check_interval(check, known["change"], f"{key}/change")
        for pair, figures in check.inner(scores, where, "differences", optional=True).items():
            for figure, known in check.mapping(figures, f"{where}/differences/{pair}").items():
                _check_interval(check, known, f"{where}/differences/{pair}/{figure}")
    for model, known in check.inner(evaluation, "", "quantized", optional=True).items():
        layers = check.mapping(known, f"quantized/{model}").get("layers") or []
        for i, layer in enumerate(layers if isinstance(layers, list) else [layers]):
            key = f"quantized/{model}/layers[{i}]"
            check.there(check.mapping(layer, key), key, "name")
    if not evaluation["sets"]:
        raise check.fail("sets", "is empty: nothing was scored")


def _check_interval(check: Check, known: Any, key: str) -> None:
    for name in ("value", "low", "high"):
        value = check.there(check.mapping(known, key), key, name)
        if value is not None and not is_number(value):
            raise check.fail(f"{key}/{name}", f"is {_shown(value)}, not a number")


def every(value: Any) -> list[Any]:
    """A list; of another value an empty one."""
    return value if isinstance(value, list) else []


def _join(key: str, name: str) -> str:
    return f"{key}/{name}" if key else name


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


Files = Sequence[str | Path]
