"""The README's tables: the cost of 4 bits on official weights, by method, over several calibration draws.

    python benchmarks/studies/headline.py MODEL … --calibration MANIFEST --data MANIFEST --json FILE
    python benchmarks/studies/headline.py --table FILE …     # the tables of one or several such files

A cell is a model, an arm and a draw. A draw is a seed that picks the calibration utterances, the same ones for every
arm. Every cell is scored on the same utterances, of speakers that no choice was based on: speakers are sorted by id;
the first half is for choices (``--half choose``), the second for reporting (``--half report``, the default).

FILE is written after each cell, and a run resumes after the cells in it. Cells are measured draw by draw, so that a
stopped run leaves complete draws. Layers are scored as Linears with expanded weights: the codes are measured, not the
kernels. Everything is computed in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from summary import markdown, merged
from torch import nn
from transformers.utils import logging

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.data.sampling import sample_utterances
from tarq.data.utterance import Utterance
from tarq.files import to_json, write_whole
from tarq.models.base import Recognizer
from tarq.report import Reporter
from tarq.scoring.divergence import divergence, joined
from tarq.scoring.outputs import Held
from tarq.scoring.words import score_words
from tarq.speech.calibration import batched, make_examples

#: Better rounding: scales by least squares on the weights, then refitted and codes descended under the metric.
REFINED = {"solver": "refined", "scale_rule": "mse"}
#: Arm → preset and fields.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("rtn", {}),
    "gptq": ("gptq", {}),
    "gptq, cross-fitted": ("gptq", {"residual": "cross-fitted"}),
    "tarq-paper": ("tarq-paper", {}),
    "tarq, c 1": ("tarq", {"cost_ratio": 1.0}),
    "tarq": ("tarq", {}),
    "bias": ("gptq", {"residual": "cross-fitted-bias"}),
    "refined": ("gptq", {"residual": "cross-fitted", **REFINED}),
    "bias, refined": ("gptq", {"residual": "cross-fitted-bias", **REFINED}),
    "bias, refined, c ¼": ("tarq", {"residual": "cross-fitted-bias", **REFINED}),
    "bias, refined, c 1": ("tarq", {"residual": "cross-fitted-bias", "cost_ratio": 1.0, **REFINED}),
    "bias, refined, random": (
        "tarq",
        {"residual": "cross-fitted-bias", "cost_ratio": 1.0, "metric": "random", **REFINED},
    ),
}
#: Pairs beside those with GPTQ: what the tail's weights add, an arm against the same residual with a plain metric.
PAIRS = [
    ("tarq", "gptq, cross-fitted"),
    ("tarq, c 1", "gptq, cross-fitted"),
    ("bias", "gptq, cross-fitted"),
    ("refined", "gptq, cross-fitted"),
    ("bias, refined", "gptq, cross-fitted"),
    ("bias, refined, c ¼", "bias, refined"),
    ("bias, refined, c 1", "bias, refined"),
    ("bias, refined, c 1", "bias, refined, random"),
]
KINDS = ("rare", "common")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="full-precision model folders or hub ids")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print the tables of these and end")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--calibration", help="corpus that utterances are drawn from")
    parser.add_argument("--data", help="corpus that is scored, with speakers")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--first-draw", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--samples", type=int, default=128, help="calibration utterances a draw")
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--scored", type=int, help="score a random sample of the half")
    parser.add_argument("--decode-draws", type=int, default=0, help="of so many draws, transcribe too (word errors)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell that would end after these")
    options = parser.parse_args()
    if options.table:
        results = merged([json.loads(path.read_text()) for path in options.table])
        print(markdown(results, list(ARMS), PAIRS))
        return
    if not (options.models and options.json and options.calibration and options.data):
        parser.error("models, --calibration, --data and --json are needed, or --table FILE")
    absent = [str(p) for p in (*options.models, options.calibration, options.data) if not Path(p).exists()]
    if absent:
        sys.exit(f"headline: skipped, not there: {', '.join(absent)}")
    logging.disable_progress_bar()  # of the weights read
    torch.backends.cudnn.allow_tf32 = False  # or convolutions would round to 10 bits
    print(markdown(run(options), list(ARMS), PAIRS))


# --- measuring ---


class OnceExtracted:
    """A feature extractor that makes the features of each waveform, an array that is kept, once."""

    def __init__(self, extractor: Any) -> None:
        self._extractor, self._made = extractor, {}

    def __call__(self, waveform: Any, **options: Any) -> Any:
        key = id(waveform), repr(sorted(options.items()))
        if key not in self._made:
            # The waveform stays with its features: another one could come to lie at the same place.
            self._made[key] = waveform, self._extractor(waveform, **options)
        return self._made[key][1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)


@dataclass
class Bench:
    """A model and what it is scored on.

    Attributes:
        recognizer: full precision; arms quantize copies.
        pool: what calibration utterances are drawn from.
        texts: id to reference transcript, of the utterances that could be teacher-forced.
        batches: of them.
        expected: full precision's logits, one tensor a batch, in RAM.
    """

    recognizer: Recognizer
    pool: list[Held]
    texts: dict[str, str]
    batches: list
    expected: list[torch.Tensor]

    @classmethod
    def make(cls, source: str, pool: Sequence[Utterance], scored: Sequence[Utterance], options: Any) -> Bench:
        recognizer = tarq.load_recognizer(source, dtype=torch.float32, device=options.device)
        recognizer.feature_extractor = OnceExtracted(recognizer.feature_extractor)
        made = make_examples(recognizer, [Held.of(u) for u in scored], tarq.TarqConfig(), Reporter())
        with torch.no_grad():
            batches = list(batched(recognizer, made.examples, options.batch_size))
            expected = [recognizer.logits(batch).cpu() for batch in batches]
        texts = {u.id: u.text or "" for u in made.utterances}
        for note in made.notes:
            print(f"headline: {note}")
        return cls(recognizer, [Held.of(u) for u in pool], texts, batches, expected)

    def quantized(self, config: tarq.TarqConfig) -> tuple[Recognizer, tarq.Report]:
        """A copy of the model, quantized, its layers expanded."""
        shared = ("tokenizer", "feature_extractor", "processor")
        memo = {id(part): part for name in shared if (part := getattr(self.recognizer, name)) is not None}
        recognizer = copy.deepcopy(self.recognizer, memo)
        report = tarq.quantize(recognizer, self.pool, config)
        expand(recognizer.model)
        return recognizer, report

    @torch.no_grad()
    def measure(self, recognizer: Recognizer, decode: bool) -> dict[str, Any]:
        """Per-utterance sums on rare and common targets, in the order of ``texts``; transcripts and word errors."""
        parts, heard, seen = [], {}, []
        for batch, expected in zip(self.batches, self.expected, strict=True):
            audio = recognizer.encode(batch.features)
            logits = recognizer.logits(batch, audio)
            parts.append(divergence(expected.to(logits.device), logits, batch.targets, batch.rare_target))
            seen += batch.ids
            if decode:
                heard |= zip(batch.ids, recognizer.decode(audio), strict=True)
        place = {name: i for i, name in enumerate(seen)}
        order = [place[name] for name in self.texts]
        sums = {kind: joined([part[kind] for part in parts], order) for kind in KINDS}
        measured: dict[str, Any] = {"positions": {kind: sums[kind].positions.tolist() for kind in KINDS}}
        for figure in ("kl", "delta_nll"):
            measured[figure] = {kind: [round(float(x), 7) for x in getattr(sums[kind], figure)] for kind in KINDS}
        if decode:
            hypotheses = [heard[name] for name in self.texts]
            normalizer = tarq.TarqConfig().text_normalizer(recognizer.spelling)
            scores = score_words(list(self.texts.values()), hypotheses, normalizer=normalizer, ids=list(self.texts))
            counts = {"all": scores.plain, "rare": scores.rare[scores.thresholds[0]]}
            names = ("substitutions", "deletions", "insertions", "words")
            measured["words"] = {kind: {n: getattr(c, n).tolist() for n in names} for kind, c in counts.items()}
            measured["hypotheses"] = hypotheses
        return measured


def expand(model: nn.Module) -> None:
    """Packed layers become Linears of the weights they stand for, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, tarq.QuantLinear):
            weight = layer.dequantize(torch.float32)
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device=weight.device)
            linear.weight.data = weight
            if layer.bias is not None:
                linear.bias.data = layer.bias.float()
            model.set_submodule(name, linear.eval())


def halves(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of the first half of the speakers, by sorted id, and of the others."""
    speakers = sorted({str(u.speaker) for u in utterances})
    if len(speakers) < 2:
        sys.exit("headline: the scored corpus needs utterances of two speakers or more, with their ids")
    first = set(speakers[: len(speakers) // 2])
    return {
        "choose": [u for u in utterances if str(u.speaker) in first],
        "report": [u for u in utterances if str(u.speaker) not in first],
    }


def cells(models: Sequence[str], arms: Sequence[str], draws: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Draw by draw; an arm that looks at no calibration speech is there once."""
    for draw in draws:
        for model in models:
            for arm in arms:
                if draw == draws[0] or ARMS[arm][0] != "rtn":
                    yield model, arm, draw


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not yet in the results file."""
    began, longest = time.monotonic(), 0.0
    names = {Path(source).name: source for source in options.models}
    if len(names) < len(options.models):
        sys.exit("headline: two models have the same folder name, which names them in the results")
    scored = [u for u in halves(load_utterances(options.data))[options.half] if (u.text or "").strip()]
    if options.scored:
        scored = sample_utterances(scored, options.scored, 0)
    pool = load_utterances(options.calibration)
    results = opened(options, scored)
    draws = range(options.first_draw, options.first_draw + options.draws)
    benches: dict[str, Bench] = {}
    for model, arm, draw in cells(list(names), options.arms, draws):
        decode = draw < options.first_draw + options.decode_draws
        key = f"{model}/{arm}/{draw}"
        done = results["cells"].get(key)
        if done and ("words" in done or not decode):
            continue
        start = time.monotonic()
        if start - began + longest > 60 * options.minutes:
            print(f"headline: no time left for {key}")
            break
        if model not in benches:
            benches[model] = Bench.make(names[model], pool, scored, options)
            known = results["models"].setdefault(model, {"ids": list(benches[model].texts)})
            if "positions" not in known or (options.decode_draws and "words" not in known):
                full = benches[model].measure(benches[model].recognizer, options.decode_draws > 0)
                known |= {name: full[name] for name in ("positions", "words", "hypotheses") if name in full}
            print(f"headline: {model}: ready and scored in {time.monotonic() - start:.1f} s", flush=True)
            start = time.monotonic()
        cell = measured_cell(benches[model], arm, draw, decode, options)
        if cell.pop("positions") != results["models"][model]["positions"]:
            sys.exit(f"headline: {model}: other targets than those in {options.json}; name another file")
        results["cells"][key] = cell
        write_whole(options.json, to_json(results, indent=None) + "\n")
        longest = max(longest, time.monotonic() - start)
        print(f"headline: {key}: {shown(cell, results['models'][model])}; seconds: {cell['seconds']}", flush=True)
    return results


def opened(options: argparse.Namespace, scored: Sequence[Utterance]) -> dict[str, Any]:
    """The results so far, which must be of the same study."""
    settings = {
        "calibration": Path(options.calibration).resolve().parent.name,
        "data": Path(options.data).resolve().parent.name,
        "half": options.half,
        "speakers": sorted({str(u.speaker) for u in scored}),
        "utterances": len(scored),
        "samples": options.samples,
    }
    if not options.json.exists():
        options.json.parent.mkdir(parents=True, exist_ok=True)
        return {"settings": settings, "models": {}, "cells": {}}
    results = json.loads(options.json.read_text())
    if results["settings"] != settings:
        sys.exit(f"headline: {options.json} was measured with other settings; name another file")
    return results


def measured_cell(bench: Bench, arm: str, draw: int, decode: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Quantize a copy of the model by an arm on a draw, and score it."""
    start = time.monotonic()
    preset, changed = ARMS[arm]
    common = {"samples": options.samples, "seed": draw, "batch_size": options.batch_size}
    recognizer, report = bench.quantized(tarq.TarqConfig.preset(preset, **common, **changed))
    quantized = time.monotonic()
    measured = bench.measure(recognizer, decode)
    took = {"quantize": quantized - start, "score": time.monotonic() - quantized}
    return measured | {
        "config": report.config,
        "versions": report.versions | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if torch.device(options.device).type == "cuda" else "CPU",
        "seconds": {name: round(value, 2) for name, value in took.items()},
        "calibration_seconds": report.calibration.get("seconds"),
        "alpha": float(np.median([layer.alpha for layer in report.layers])),
        "lambda_max": max(layer.lam for layer in report.layers),
        "notes": report.notes,
    }


def shown(measured: dict[str, Any], model: dict[str, Any]) -> str:
    """A cell's damage in a few words."""
    return ", ".join(
        f"{title} {sum(measured[figure][kind]) / max(sum(model['positions'][kind]), 1):+.4f}"
        for kind in KINDS
        for figure, title in (("delta_nll", f"ΔNLL {kind}"), ("kl", f"KL {kind}"))
    )


if __name__ == "__main__":
    main()
