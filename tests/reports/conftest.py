"""Small results of both kinds, whose figures can be reckoned by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

TEXTS = [
    "the doctor gave amoxicillin to the boy",
    "they met in ouagadougou at 6",
    "she sells the house by the river",
    "the eigenvalue problem is old",
]
#: What a model hears that loses the rare words of the first two utterances.
LOST = ["the doctor gave a moxa cillin to the boy", "they met in waga dugu at 6", *TEXTS[2:]]


def counts(rare: list[int], every: list[int]) -> dict[str, Any]:
    """Word counts with as many substitutions."""
    nothing = [0] * len(TEXTS)
    words = {"rare": [1, 1, 0, 1], "all": [len(text.split()) for text in TEXTS]}
    return {
        kind: {"substitutions": wrong, "deletions": nothing, "insertions": nothing, "words": words[kind]}
        for kind, wrong in (("rare", rare), ("all", every))
    }


def cell(rare: float, common: float, texts: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A cell whose every rare and common target takes so much damage, more or less by utterance."""
    made: dict[str, Any] = {
        figure: {
            "rare": [rare * factor * u for u in (2, 2, 0, 1)],
            "common": [common * factor * u for u in (5, 4, 7, 4)],
        }
        for figure, factor in (("delta_nll", 1.0), ("kl", 0.5))
    }
    if texts is not None:
        wrong = [int(heard != said) for heard, said in zip(texts, TEXTS, strict=True)]
        made |= {"words": counts(wrong, wrong), "hypotheses": texts}
    return made | {"config": {"bits": 4, "group_size": 128, "language": "en"}, "device": "CPU"} | more


@pytest.fixture
def study() -> dict[str, Any]:
    """Two arms over two draws: in each, ours does half of GPTQ's damage to rare targets."""
    layers = [{"name": "decoder.fc1", "bits": 4, "alpha": 0.5, "lam": 1.2, "loss": 0.01}]
    return {
        "format": 1,
        "settings": {"samples": 8, "title": "A study"},
        "arms": {"gptq": {"preset": "gptq", "title": "GPTQ"}, "ours": {"preset": "tarq", "title": "Ours"}},
        "pairs": [["ours", "gptq", "residual"]],
        "models": {
            "tiny": {
                "ids": ["u0", "u1", "u2", "u3"],
                "references": TEXTS,
                "speakers": ["a", "a", "b", "b"],
                "positions": {"rare": [2, 2, 0, 1], "common": [5, 4, 7, 4]},
                "words": counts([0, 0, 0, 0], [0, 0, 0, 0]),
                "hypotheses": TEXTS,
            }
        },
        "cells": {
            "tiny/gptq/0": cell(0.4, 0.1, LOST),
            "tiny/gptq/1": cell(0.2, 0.1, LOST, notes=["damping was raised"]),
            "tiny/ours/0": cell(0.2, 0.05, TEXTS, layers=layers),
            "tiny/ours/1": cell(0.1, 0.05, LOST),
        },
    }


@pytest.fixture
def write(tmp_path: Path):
    """Writes results; gives the file."""

    def write(results: Any, name: str = "results.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(results))
        return path

    return write


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A manifest with the audio of the utterances."""
    folder = tmp_path / "speech"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i, text in enumerate(TEXTS):
        soundfile.write(folder / f"u{i}.wav", 0.1 * rng.standard_normal(8000), 16000)
        lines.append(json.dumps({"id": f"u{i}", "audio": f"u{i}.wav", "text": text, "duration": 0.5}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
