"""Results files: read, their kind recognised, and checked before a report is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tarq.errors import DataError
from tarq.reports.schema import (
    ANYTHING,
    COUNT,
    NUMBER,
    OBJECT,
    SHARE,
    TEXT,
    Each,
    Either,
    Fail,
    Is,
    Maybe,
    Record,
    Schema,
    Table,
    join,
)
from tarq.reports.statistics import FIGURES, Cell

Kind = Literal["study", "evaluation"]
FORMAT = 1  # of a study's results
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
    OBJECT.check(stored, "", failing(str(path)))
    if "cells" in stored:
        _check_study(stored, failing(str(path)))
        return "study", stored
    if "sets" in stored:
        check_evaluation(stored, failing(str(path)))
        return "evaluation", stored
    raise DataError(
        f"{path} has neither 'cells' nor 'sets', so it is no results file; give those of a study or of tarq evaluate "
        "--json"
    )


def failing(file: str) -> Fail:
    """Makes errors that name the file and the path of a value."""
    return lambda key, wrong: DataError(f"{file}: {key or 'the whole'} {wrong}; measure again, or give another file")


# --- a study ---

_LAYER = Record({"name": TEXT}, dict.fromkeys(("lam", "alpha", "loss", "bits"), NUMBER))
_PAIR = Is(
    lambda pair: isinstance(pair, list) and len(pair) in (2, 3) and all(isinstance(name, str) for name in pair),
    "two arms and a family",
)
_STUDY = Record(
    {
        "settings": Record(optional={"speakers": Each(ANYTHING), "samples": COUNT}),
        "models": Table(OBJECT),
        "cells": Table(OBJECT),
    },
    {
        "arms": Table(Record(optional={"title": TEXT})),
        "pairs": Each(_PAIR),
        "bars": Record(optional={"default": TEXT, "baselines": Each(TEXT), "tail": Each(TEXT)}),
    },
)


def _measured(length: int, needed: dict[str, Schema], optional: dict[str, Schema]) -> Record:
    """A model in full precision, or a cell: what was measured on so many utterances."""
    figures, counts = Table(Each(NUMBER, length)), Table(Table(Each(COUNT, length)))
    texts = {name: Each(TEXT, length) for name in ("hypotheses", "references")}
    sums = {"kl": figures, "delta_nll": figures, "words": counts, "positions": Table(Each(COUNT, length))}
    return Record(needed, {**sums, **texts, **optional})


def _model(length: int) -> Record:
    audio = Is(lambda known: isinstance(known, dict) or (isinstance(known, list) and len(known) == length), "a list")
    return _measured(length, {"ids": Each(TEXT)}, {"speakers": Each(ANYTHING, length), "audio": audio})


def _cell(length: int) -> Record:
    run = {"versions": OBJECT, "config": OBJECT, "seconds": Table(NUMBER), "notes": Each(ANYTHING)}
    return _measured(length, {}, {"layers": Each(_LAYER), "calibration_seconds": NUMBER, **run})


def _check_study(study: dict[str, Any], fail: Fail) -> None:
    if study.get("format", FORMAT) != FORMAT:
        raise fail("format", f"is {json.dumps(study['format'])[:40]}, this tarq reads {FORMAT}")
    _STUDY.check(study, "", fail)
    models = study["models"]
    for name, model in models.items():
        where = f"models/{name}"
        Record({"ids": Each(TEXT)}).check(model, where, fail)
        if not model["ids"]:
            raise fail(f"{where}/ids", "is empty")
        if len(set(model["ids"])) < len(model["ids"]):
            raise fail(f"{where}/ids", "names an utterance twice")
        _model(len(model["ids"])).check(model, where, fail)
        _check_complete(model, where, model, fail)
    if not study["cells"]:
        raise fail("cells", "is empty: nothing was measured yet")
    for key, cell in study["cells"].items():
        where = f"cells/{key}"
        if (model := models.get(key.split("/")[0])) is None:
            raise fail(where, f"is of none of the models {', '.join(models) or '(there is none)'}")
        try:
            Cell.parse(key)
        except DataError as error:
            raise fail(where, f"cannot be placed: {error}") from None
        _cell(len(model["ids"])).check(cell, where, fail)
        _check_complete(cell, where, model, fail)


def _check_complete(cell: dict[str, Any], where: str, model: dict[str, Any], fail: Fail) -> None:
    """Check that what a cell measured has all its counts, and what they are divided by in its model."""
    for figure in ("kl", "delta_nll"):
        for kind in cell.get(figure) or {}:
            if kind not in (model.get("positions") or {}):
                raise fail(f"{where}/{figure}/{kind}", "has no positions in its model to be divided by")
    for kind, counts in (cell.get("words") or {}).items():
        key = f"{where}/words/{kind}"
        sources = [source for source in FIGURES.values() if (source.part, source.kind) == ("words", kind)]
        for name in dict.fromkeys(name for source in sources for name in (*source.counts, source.whole)):
            Record({name: ANYTHING}).check(counts, key, fail)
        if sources and kind not in (model.get("words") or {}):
            raise fail(key, "has no counts of full precision in its model beside it")


# --- what tarq evaluate found ---

_INTERVAL = Record({name: Maybe(NUMBER) for name in ("value", "low", "high")})
_DIFFERENCE = Record(_INTERVAL.needed, {"sign_flips": SHARE})
_GROUP = Record(dict.fromkeys((*ERRORS, "words"), COUNT) | {"rate": _INTERVAL}, {"change": _DIFFERENCE})
_PLACE = Is(lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1e9, "a place")
_WORD = Record(dict.fromkeys(("id", "word", "full_precision", "quantized"), TEXT), {"position": _PLACE})
_WORDS = Either(COUNT, Each(Either(TEXT, _WORD)))  # older results hold the words alone, or their number
_SCORES = Record(
    {"figures": Table(_INTERVAL)},
    {
        "lost": _WORDS,
        "regained": _WORDS,
        "breakdown": Record(optional={"kinds": Table(_GROUP), "bands": Table(_GROUP)}),
    },
)
_SET = Record(
    {**dict.fromkeys(("utterances", "words", "rare_words"), COUNT), "models": Table(_SCORES)},
    {
        "entities": COUNT,
        "notes": Each(ANYTHING),
        "normalizer": TEXT,
        "references": Table(TEXT),
        "targets": Table(COUNT),
        "differences": Table(Table(_DIFFERENCE)),
    },
)
_EVALUATION = Record(
    {"sets": Table(_SET)},
    {
        "reference": TEXT,
        "thresholds": Each(NUMBER),
        "resamples": COUNT,
        "command": TEXT,
        "device": TEXT,
        "versions": OBJECT,
        "quantized": Table(Record(optional={"config": OBJECT, "layers": Each(_LAYER)})),
    },
)


def check_evaluation(evaluation: dict[str, Any], fail: Fail) -> None:
    """Check that an evaluation's dictionary is one.

    Raises:
        DataError: it is not; names file and key.
    """
    _EVALUATION.check(evaluation, "", fail)
    if not evaluation["sets"]:
        raise fail("sets", "is empty: nothing was scored")
    for label, scores in evaluation["sets"].items():
        if not scores["models"]:
            raise fail(join(join("sets", label), "models"), "is empty: nothing was scored")


def list_or_empty(value: Any) -> list[Any]:
    """The value if it is a list, else an empty list."""
    return value if isinstance(value, list) else []
