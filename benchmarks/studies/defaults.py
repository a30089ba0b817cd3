"""Measure what the defaults rest on: teacher-forced damage of one option at a time, with paired intervals.

Every configuration quantizes the same model from the same calibration utterances and is compared with the
others on the same utterances, none of which it was calibrated on. Results go to a JSON file that is added to,
so a study can grow.

    python benchmarks/studies/defaults.py MODEL NAME … --calibration MANIFEST --data MANIFEST … --json FILE
    python benchmarks/studies/defaults.py --table FILE        # the JSON as a Markdown table
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.data.sampling import sample_utterances
from tarq.report import Reporter
from tarq.scoring.bootstrap import Difference, Ratio, Resampled, resample
from tarq.scoring.divergence import divergence, joined
from tarq.speech.calibration import batched, make_examples
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

#: Name → (preset, fields). A study is the difference of a line to the line it varies.
CORRECTED = {"residual": "cross-fitted"}
CONFIGURATIONS: dict[str, tuple[str, dict]] = {
    "rtn": ("rtn", {}),
    "gptq": ("gptq", {}),
    "gptq, cross-fitted": ("gptq", CORRECTED),
    "gptq, least-squares": ("gptq", {"residual": "least-squares"}),
    "gptq, paper residual": ("gptq", {"residual": "paper"}),
    "rarebal, no residual": ("tarq", {"residual": "none"}),
    "tarq": ("tarq", {}),
    "tarq, paper residual": ("tarq", {"residual": "paper"}),
    "tarq, c 1": ("tarq", {"cost_ratio": 1.0}),
    "tarq, random positions": ("tarq", {"metric": "random"}),
    "tarq, common positions": ("tarq", {"metric": "common"}),
    "tarq, input tokens": ("tarq", {"tail_positions": "input"}),
    "tarq, either token": ("tarq", {"tail_positions": "either"}),
    "tarq, aligned frames": ("tarq", {"frame_tags": "aligned"}),
    "tarq, random, aligned frames": ("tarq", {"frame_tags": "aligned", "metric": "random"}),
    "gptq, cross-fitted, padding 0": ("gptq", CORRECTED | {"padding_weight": 0.0}),
    "gptq, cross-fitted, padding 0.3": ("gptq", CORRECTED | {"padding_weight": 0.3}),
    "gptq, cross-fitted, padding 1": ("gptq", CORRECTED | {"padding_weight": 1.0}),
    "gptq, cross-fitted, mse": ("gptq", CORRECTED | {"scale_rule": "mse"}),
    "gptq, cross-fitted, minmax": ("gptq", CORRECTED | {"scale_rule": "minmax"}),
    "gptq, cross-fitted, asymmetric": ("gptq", CORRECTED | {"symmetric": False}),
    "gptq, cross-fitted, static": ("gptq", CORRECTED | {"act_order": "static"}),
}

#: What the text of docs/defaults.md compares beside GPTQ.
PAIRS = [
    ("gptq, cross-fitted", "gptq, least-squares"),
    ("tarq", "gptq, cross-fitted"),
    ("tarq, c 1", "gptq, cross-fitted"),
    ("tarq, c 1", "tarq"),
    ("tarq, aligned frames", "tarq"),
    ("tarq, aligned frames", "tarq, random, aligned frames"),
]
FIGURES = ("delta_nll", "kl")
TITLES = {
    "delta_nll_rare": "ΔNLL rare",
    "kl_rare": "KL rare",
    "delta_nll_common": "ΔNLL common",
    "kl_common": "KL common",
}


def main() -> None:
    if sys.argv[1:2] == ["--table"]:
        results = json.loads(Path(sys.argv[2]).read_text())
        print(markdown(results), pairwise(results, PAIRS), sep="\n\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("names", nargs="+", choices=list(CONFIGURATIONS), metavar="NAME")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--score", type=int, default=60, help="utterances scored from each set")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    pool = load_utterances(arguments.calibration)
    recognizer = tarq.load_recognizer(arguments.model)
    calibrated = {u.id for u in sample_utterances(pool, arguments.samples, 0, max_duration=recognizer.window)}
    scored = []
    for source in arguments.data:
        # Ids are unique within a corpus only; the calibration pool may be one of the sets.
        same = Path(source).resolve() == Path(arguments.calibration).resolve()
        rest = [u for u in load_utterances(source) if not (same and u.id in calibrated) and (u.text or "").strip()]
        scored += [(source, u) for u in sample_utterances(rest, arguments.score, 1, max_duration=recognizer.window)]
    rarity = Rarity(Words(), recognizer.spelling)
    examples = []
    for source in arguments.data:
        examples += make_examples(recognizer, [u for s, u in scored if s == source], rarity, Reporter()).examples
    with torch.no_grad():
        batches = list(batched(recognizer, examples, 4))
        reference = [recognizer.logits(b) for b in batches]
    print(f"{len(examples)} utterances scored")

    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in arguments.names:
        began = time.monotonic()
        preset, fields = CONFIGURATIONS[name]
        recognizer = tarq.load_recognizer(arguments.model)
        report = tarq.quantize(recognizer, pool, tarq.TarqConfig.preset(preset, samples=arguments.samples, **fields))
        with torch.no_grad():
            parts = [
                divergence(full, recognizer.logits(b), b.targets, b.rare_target)
                for full, b in zip(reference, batches, strict=True)
            ]
        sums = {kind: joined([p[kind] for p in parts], list(range(len(examples)))) for kind in ("rare", "common")}
        alphas = [r.alpha for r in report.layers]
        results[name] = {
            "config": report.config,
            "versions": report.versions | {"python": platform.python_version()},
            "quantize_seconds": report.seconds,
            "alpha": [float(np.min(alphas)), float(np.median(alphas)), float(np.max(alphas))],
            "lambda_max": max(r.lam for r in report.layers),
            "positions": {kind: int(s.positions.sum()) for kind, s in sums.items()},
            "per_utterance": {
                kind: {
                    "kl": s.kl.tolist(),
                    "delta_nll": s.delta_nll.tolist(),
                    "positions": s.positions.tolist(),
                }
                for kind, s in sums.items()
            },
        }
        results[name]["figures"] = {
            figure: asdict(resampled.interval())
            for (_, figure), resampled in resampled_figures({name: results[name]}).items()
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1))
        show(name, results, time.monotonic() - began)


def resampled_figures(results: dict) -> dict[tuple[str, str], Resampled]:
    """(Configuration, figure) to its bootstrap; ΔNLL of the true token beside KL from full precision."""
    return resample(
        {
            (name, f"{figure}_{kind}"): Ratio(sums[figure], sums["positions"])
            for name, result in results.items()
            for kind, sums in result["per_utterance"].items()
            for figure in FIGURES
        }
    )


def show(name: str, results: dict, seconds: float) -> None:
    """A line a configuration, and its paired difference from every other one measured so far."""
    known = resampled_figures(results)
    values = "  ".join(f"{TITLES[figure]} {known[name, figure].value:.4f}" for figure in TITLES)
    print(f"{name:32s} {values} ({seconds:.0f} s)")
    for other in results:
        if other != name:
            cells = (f"{TITLES[figure]} {_text(known[name, figure].minus(known[other, figure]))}" for figure in TITLES)
            print(f"    − {other:32s} {'  '.join(cells)}", flush=True)


def markdown(results: dict, base: str = "gptq") -> str:
    """A row a configuration: its damage with the paired difference from ``base`` below it, and its α."""
    known = resampled_figures(results)
    columns = len(TITLES) + 2
    lines = [_row(["configuration", *TITLES.values(), "α (median)"]), _row(["---"] * columns)]
    for name, result in results.items():
        cells = [
            f"{known[name, figure].value:{'+' if figure.startswith('delta') else ''}.4f}".replace("-", "−")
            + ("" if name == base else f"<br>{_text(known[name, figure].minus(known[base, figure]))}")
            for figure in TITLES
        ]
        lines.append(_row([name, *cells, f"{result['alpha'][1]:.2f}"]))
    return "\n".join(lines)


def pairwise(results: dict, pairs: Sequence[tuple[str, str]]) -> str:
    """Paired differences of other configurations than the base."""
    known = resampled_figures(results)
    lines = [_row(["difference", *TITLES.values()]), _row(["---"] * (len(TITLES) + 1))]
    for name, other in pairs:
        if {name, other} <= set(results):
            cells = [_text(known[name, figure].minus(known[other, figure])) for figure in TITLES]
            lines.append(_row([f"{name} − {other}", *cells]))
    return "\n".join(lines)


def _text(d: Difference) -> str:
    """A difference, bold where it is clear of 0."""
    text = f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]".replace("-", "−")
    return f"**{text}**" if d.clear_of_zero else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
