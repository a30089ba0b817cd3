"""Results files with something wrong anywhere in them: a page, or one line that names file and key."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tarq.errors import DataError
from tarq.reports.make import evaluation_page, write_report
from tarq.reports.schema import NUMBER, TEXT, Each, Either, Maybe, Record, Table

WRONG: list[Any] = [None, "x", "", [], ["x"], {}, {"x": 1}, -1, 0, 1.5, True, math.nan, -math.inf, 1e308, 10**400]
#: Of thousands of mutations of a file, those that a test run tries.
TRIED = 80


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value; of a list to its first one."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def mutations(whole: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """What can be done to it: the way to a value, and another value, ``gone`` or, in a list, ``twice``."""
    return [
        (path, wrong)
        for path in places(whole)
        for wrong in (*WRONG, "gone", "twice")
        if wrong != "twice" or isinstance(path[-1], int)
    ]


def mutated(whole: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    """The same with one value replaced, left out or, in a list, twice."""
    changed = copy.deepcopy(whole)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(wrong, str) and wrong == "gone":
        del holder[path[-1]]
    elif isinstance(wrong, str) and wrong == "twice":
        holder.append(holder[path[-1]])
    else:
        holder[path[-1]] = wrong
    return changed


def interval(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, **more}


@pytest.fixture
def evaluation() -> dict[str, Any]:
    def model(wer: float, changed: bool) -> dict[str, Any]:
        word = {"id": "u0", "word": "amoxicillin", "position": 3, "full_precision": "a b c", "quantized": "a b d"}
        group = {"substitutions": 1, "deletions": 0, "insertions": 2, "words": 9, "rate": interval(wer)}
        return {
            "figures": {"wer": interval(wer), "delta_nll_rare": interval(wer)},
            "lost": [word] if changed else [],
            "regained": ["amoxicillin"],
            "breakdown": {
                "kinds": {"rare": group | {"change": interval(0.1, sign_flips=0.2)}},
                "bands": {"below 2": group},
            },
        }

    scores = {
        "utterances": 4, "words": 22, "rare_words": 3, "entities": 1, "normalizer": "english", "notes": ["few"],
        "references": {"u0": "a b c d"},
        "models": {"full": model(0.1, False), "gptq": model(0.3, True), "ours": model(0.2, True)},
        "differences": {"ours − gptq": {"wer": interval(-0.1, sign_flips=0.0)}},
    }  # fmt: skip
    layer = {"name": "fc1", "lam": 1.0, "alpha": None, "loss": 0.1, "bits": 4}
    return {
        "reference": "full", "thresholds": [3.0, 2.0], "resamples": 50, "sets": {"speech": scores},
        "command": "tarq evaluate", "device": "cpu", "versions": {"tarq": "1"},
        "quantized": {"gptq": {"config": {"bits": 4}, "layers": [layer]}},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["study", "evaluation"])
def test_a_wrong_value_anywhere_is_named_or_does_no_harm(request, write, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tarq.reports.statistics.RESAMPLES", 20)
    whole = request.getfixturevalue(kind)
    write_report([write(whole)], tmp_path / "out", audio=False)
    every = mutations(whole)
    always = [(path, wrong) for path, wrong in every if path in (("arms",), ("pairs",)) and wrong is None]  # optional
    told = []
    for path, wrong in always + random.Random(0).sample(every, TRIED):
        file = write(mutated(whole, path, wrong), "wrong.json")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                write_report([file], tmp_path / "out", audio=False)
        except DataError as error:
            told.append(str(error))
        except Exception as error:
            raise AssertionError(f"{path} {wrong!r:.20}: {error!r}") from error
    assert len(told) > 40
    assert all("wrong.json" in line for line in told)


def test_an_evaluation_in_memory_is_checked_too(evaluation):
    evaluation["sets"]["speech"]["models"]["ours"]["figures"]["wer"]["low"] = math.nan
    with pytest.raises(DataError, match=r"^the evaluation: sets/speech/models/ours/figures/wer/low is NaN"):
        evaluation_page(evaluation, {})


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        (Record({"a": NUMBER}), {"b": 1}, "a is missing"),
        (Record({"a": NUMBER}), {"a": None}, "a is null, not a finite number"),
        (Record(optional={"a": NUMBER}), {"a": "1"}, 'a is "1", not a finite number'),
        (Each(NUMBER, 2), [1], " has 1 entries for 2 utterances"),
        (Each(NUMBER), [1, 10**400], "[1] is a number of absurd size, not a finite number"),
        (Each(NUMBER), [1, -math.inf], "[1] is -Infinity, not a finite number"),
        (Table(Each(TEXT)), {"a": {"b": 1}}, 'a is {"b": 1}, not a list'),
        (Table(Maybe(TEXT)), {"a": 1}, "a is 1, not text"),
        (Each(Either(TEXT, Record({"a": TEXT}))), ["x", 5], "[1] is 5, not an object"),
    ],
)
def test_the_first_wrong_value_is_told(schema, value, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        schema.check(json.loads(json.dumps(value)), "", lambda key, wrong: DataError(f"{key} {wrong}"))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (Record({"a": Maybe(NUMBER)}, {"b": TEXT}), {"a": None, "b": None, "c": 5}),
        (Table(Each(NUMBER, 2)), {"a": [1, 2.5]}),
        (Each(Either(NUMBER, Table(TEXT))), [5, {"a": "b"}]),
    ],
)
def test_what_is_right_passes(schema, value):
    schema.check(value, "", lambda key, wrong: ValueError(f"{key} {wrong}"))
