"""The result of ``tarq evaluate --json`` or of the testbed, as Markdown tables.

python benchmarks/studies/evaluation.py benchmarks/results/testbed.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarq.scoring.figures import FIGURES, Figure

SHOWN = ("wer", "rare_wer", "delta_nll_rare", "kl_rare", "delta_nll_common", "kl_common")
COLUMNS: list[Figure] = [next(figure for figure in FIGURES if figure.name == name) for name in SHOWN]


def main() -> None:
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))


def markdown(evaluation: Mapping[str, Any]) -> str:
    """Two tables a set: values by model, and paired differences from the reference model and within a width."""
    sizes = evaluation.get("setting", {}).get("bytes", {})
    parts = []
    for label, scores in evaluation["sets"].items():
        counts = f"{scores['utterances']} utterances, {scores['words']} words, {scores['rare_words']} rare"
        parts.append(f"**{label[:1].upper()}{label[1:]}**, {counts}:")
        parts.append(_values(scores, sizes, evaluation["reference"]))
        parts.append(_differences(scores, evaluation["reference"]))
    return "\n\n".join(parts)


def _values(scores: Mapping[str, Any], sizes: Mapping[str, int], reference: str | None) -> str:
    size = ["Linear weights"] if sizes else []
    lines = [_row(["", *size, *(figure.title for figure in COLUMNS), "rare words lost, regained"])]
    lines.append(_row(["---"] * (len(COLUMNS) + 2 + len(size))))
    for name, model in scores["models"].items():
        cells = [f"{sizes[name] / 1e6:.1f} MB"] if sizes else []
        cells += [_cell(figure, model["figures"].get(figure.name)) for figure in COLUMNS]
        cells.append("–" if name == reference else ", ".join(_count(model[kind]) for kind in ("lost", "regained")))
        lines.append(_row([name, *cells]))
    return "\n".join(lines)


def _differences(scores: Mapping[str, Any], reference: str | None) -> str:
    lines = [_row(["paired difference", *(figure.title for figure in COLUMNS)]), _row(["---"] * (len(COLUMNS) + 1))]
    widths = {name.split()[-1] for name in scores["models"] if name != reference}
    for pair, figures in scores["differences"].items():
        other, base = pair.split(" − ")
        # Of several widths, only models of the same one are compared.
        if base == reference or other.split()[-1] == base.split()[-1] or not all(w[:1] == "W" for w in widths):
            lines.append(_row([pair, *(_cell(figure, figures.get(figure.name), "+") for figure in COLUMNS)]))
    return "\n".join(lines)


def _cell(figure: Figure, known: Mapping[str, float | None] | None, sign: str = "") -> str:
    """A value and its interval; differences carry a sign, as ΔNLL does, and are bold where clear of 0."""
    if known is None or known["value"] is None:
        return "–"
    shown = sign or ("+" if figure.name.startswith("delta") else "")
    value, low, high = (figure.text(known[key], shown) for key in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]".replace("-", "−")
    return f"**{text}**" if sign and (known["low"] > 0 or known["high"] < 0) else text


def _count(words: int | Sequence[Any]) -> str:
    return str(words if isinstance(words, int) else len(words))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
