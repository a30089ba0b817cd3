"""Rebuild the testbed, or check it: ``python benchmarks/testbed/build.py --help``."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import corpus
import numpy as np
import soundfile
import speech
import typer
from rich.console import Console
from text import unseen_words

from tarq.words.rarity import is_rare

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "testbed" / "tarq_testbed"
RESULT = ROOT / "benchmarks" / "results" / "testbed.json"
WORK = ROOT / "build" / "testbed"
CLIPS = {"calibration": ["calibration"], "test": ["test", "test-unseen-voices"]}
LEAST_CORRELATION = 0.99  # of a shipped clip with the same one made again


class Voices(StrEnum):
    """Groups of text/voices.toml."""

    seen = "seen"
    unseen = "unseen"


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
Processes = Annotated[int, typer.Option(help="Synthesizers at a time.")]


@app.command()
def features(processes: Processes = os.cpu_count() or 1) -> None:
    """Synthesize the training and validation speech as log-mel features, in build/testbed."""
    speech.require_synthesizer()
    for split in ("validation", "train"):
        if (WORK / f"{split}.json").exists():
            console.print(f"{split}: kept as it is; delete {WORK / split}.json to make it again", highlight=False)
            continue
        with console.status(f"synthesizing {split}"):
            corpus.write_features(split, WORK, processes=processes)


@app.command()
def model(steps: Annotated[int | None, typer.Option(help="Training steps; the recipe's if not given.")] = None) -> None:
    """Train the recognizer on the features and package it; goes on where it was interrupted."""
    from train import Recipe, train

    recipe = Recipe() if steps is None else Recipe(steps=steps)
    train(recipe, WORK, PACKAGED / "model")
    seal()


@app.command()
def clips(processes: Processes = os.cpu_count() or 1) -> None:
    """Synthesize and package the calibration pool and the test set."""
    synthesizer = speech.require_synthesizer()
    for folder, splits in CLIPS.items():
        with console.status(f"synthesizing {folder}"):
            chosen = (line for split in splits for line in corpus.lines(split))
            corpus.write_clips(chosen, PACKAGED / folder, processes=processes)
    versions = {p: version(p) for p in ("numpy", "soundfile", "soxr", "wordfreq", "transformers", "torch")}
    origin = {"synthesizer": synthesizer, "opus": soundfile.__libsndfile_version__, "versions": versions}
    (PACKAGED / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")
    seal()


@app.command()
def more(
    folder: Annotated[Path, typer.Argument(help="Where the clips and their manifest.jsonl go.")],
    utterances: Annotated[int, typer.Option(min=1)] = 2000,
    voices: Annotated[Voices, typer.Option(help="Voices training has heard, or others.")] = Voices.seen,
    name: Annotated[
        str, typer.Option(help="Of the set; another name, other sentences. Sets named test… hold unseen words.")
    ] = "test-more",
    processes: Processes = os.cpu_count() or 1,
) -> None:
    """Synthesize a further set of any size, none of whose sentences is in a split."""
    speech.require_synthesizer()
    if name in corpus.splits():
        raise typer.BadParameter(f"{name} is one of the splits; give another name")
    if (folder / "manifest.jsonl").exists():
        raise typer.BadParameter(f"{folder} holds a set already; give another folder")
    corpus.write_clips(corpus.more_lines(name, utterances, voices.value), folder, processes=processes)
    console.print(f"{utterances} utterances: tarq evaluate … --data {folder}", highlight=False)


@app.command()
def seal() -> None:
    """Write the checksums that the package verifies its files against."""
    files = sorted(p for p in PACKAGED.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ""))
    rows = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(PACKAGED).as_posix()}\n" for p in files]
    (PACKAGED / "SHA256SUMS").write_text("".join(rows))
    megabytes = sum(p.stat().st_size for p in files) / 1e6
    console.print(f"{len(files)} files, {megabytes:.1f} MB, in {PACKAGED}", highlight=False)


@app.command()
def check(count: Annotated[int, typer.Option(help="Clips made again.")] = 10) -> None:
    """Make clips of every shipped split again and compare them with the shipped ones."""
    made_with = json.loads((PACKAGED / "origin.json").read_text())["synthesizer"]
    here = speech.require_synthesizer()
    shipped = [(folder, line) for folder, splits in CLIPS.items() for split in splits for line in corpus.lines(split)]
    different = 0
    for folder, line in shipped[:: len(shipped) // count][:count]:
        path = PACKAGED / folder / f"{line.id}.ogg"
        kept, _ = soundfile.read(path, dtype="float32")
        again, _ = soundfile.read(corpus.encode(corpus.render(line)[0]), dtype="float32")
        same_length = len(kept) == len(again)
        correlation = float(np.corrcoef(kept, again)[0, 1]) if same_length else 0.0
        fine = same_length and correlation >= LEAST_CORRELATION
        different += not fine
        console.print(
            f"{'same     ' if fine else 'DIFFERENT'} {line.id}  correlation {correlation:.4f}", highlight=False
        )
    if different:
        reason = "" if here == made_with else f" (made with {made_with}, here is {here})"
        console.print(f"{different} of {count} clips are not what is shipped{reason}", highlight=False)
        raise typer.Exit(1)
    console.print(f"{count} clips made again, all as shipped", highlight=False)


@app.command()
def score(
    bits: Annotated[list[int], typer.Option(help="2, 3, 4 or 8 (repeatable).")] = [4, 3],  # noqa: B006
    samples: Annotated[int, typer.Option(min=1, help="Calibration utterances.")] = 256,
) -> None:
    """Score full precision and RTN, GPTQ, TARQ on the test set, by voices; figures to benchmarks/results."""
    from tarq import TarqConfig, testbed
    from tarq.terminal.demo import demonstrate, scoring_dtype
    from tarq.terminal.progress import TerminalReporter
    from tarq.terminal.scores import show_evaluation

    scored = testbed.test_set()
    sets = {f"{voices} voices": [u for u in scored if u.extra["voices"] == voices] for voices in ("seen", "unseen")}
    config = TarqConfig(samples=samples, batch_size=32)
    pool = testbed.calibration_pool()
    with TerminalReporter(console) as reporter:
        scores, sizes = demonstrate(str(testbed.model()), pool, sets, config, reporter, bits=bits)
    show_evaluation(console, scores, sizes)
    figures = scores.to_dict()
    hypotheses: dict[str, str] = {}
    for one in figures["sets"].values():
        hypotheses |= one["models"]["full precision"]["hypotheses"]
        for kept in one["models"].values():
            kept["lost"], kept["regained"] = len(kept["lost"]), len(kept["regained"])
            del kept["hypotheses"]
    unseen = unseen_words()
    figures["rare words heard in full precision"] = _recognized(hypotheses, scored, unseen)
    figures["setting"] = {"samples": samples, "scored in": str(scoring_dtype("cpu") or "float32"), "bytes": sizes}
    figures["versions"] = {p: version(p) for p in ("torch", "transformers", "wordfreq")}
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")


def _recognized(hypotheses: dict[str, str], scored: list, unseen: set[str]) -> dict[str, dict[str, int]]:
    """Rare words of the references by whether training had them, and how many the transcripts hold."""
    counts = {kind: {"words": 0, "heard": 0} for kind in ("in training", "not in training")}
    for utterance in scored:
        recognized = Counter(hypotheses[utterance.id].split())
        for word in filter(is_rare, utterance.text.split()):
            count = counts["not in training" if word in unseen else "in training"]
            count["words"] += 1
            count["heard"] += recognized[word] > 0
            recognized[word] -= 1
    return counts


@app.command(name="all")
def everything() -> None:
    """Rebuild all: features, clips, model."""
    features()
    clips()
    model()


if __name__ == "__main__":
    try:
        app()
    except speech.SynthesizerMissing as missing:
        console.print(f"[red]error[/] {missing}", highlight=False)
        raise SystemExit(1) from None
