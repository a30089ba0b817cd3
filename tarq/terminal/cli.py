"""The command line: options in, a call of the API, a table out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tarq.errors import TarqError
from tarq.version import __version__

if TYPE_CHECKING:
    from tarq.data.utterance import Utterance
    from tarq.terminal.screen import ScreenReporter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tail-aware 4-bit quantization for speech recognizers.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 160  # rich takes 80 for a file or a pipe, and tables would lose their ends


def _writable(path: Path | None) -> Path | None:
    """Refuse a JSON file that could not be written now, not after the work is done."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{path} cannot be written: its folder does not exist, or it is one")
    return path


JsonFile = Annotated[
    Path | None, typer.Option("--json", callback=_writable, help="Also write the figures to this file.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Language = Annotated[str, typer.Option(help="Of the speech: word frequencies, and the prompt of a multilingual model.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE that a corpus must say of an utterance for it to be used (repeatable)."),
]
Ids = Annotated[
    Path | None,
    typer.Option(
        help="Instead of drawing, take the utterances of a pool's --json, of a checkpoint, or of a file of ids."
    ),
]
MaxBad = Annotated[
    int, typer.Option(min=0, help="Broken audio files to leave out (of each scored set) before giving up.")
]
Normalizer = Annotated[str, typer.Option(help="auto (by language), english, basic or none.")]
TailThreshold = Annotated[float, typer.Option(help="A word is rare below this Zipf frequency.")]
WordFrequencies = Annotated[
    Path | None,
    typer.Option(help="A file of words and counts in place of wordfreq's list for the language."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Utterances a forward pass takes at once.")]
Dtype = Annotated[
    str, typer.Option(help="Of the computation: auto (float32 on a CPU, else as stored), float32, bfloat16, float16.")
]
Int8 = Annotated[
    bool,
    typer.Option("--int8-activations", help="Round inputs of layers of 4 bits or fewer to 8 bits: faster on a CPU."),
]


class PoolKind(StrEnum):
    """Kinds of calibration pool, see :mod:`tarq.data.pools`."""

    uniform = "uniform"
    r_top = "r-top"
    r_mix = "r-mix"
    r_cross = "r-cross"


class Method(StrEnum):
    """The presets of :data:`tarq.config.PRESETS`."""

    tarq = "tarq"
    gptq = "gptq"
    rtn = "rtn"


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Full-precision model: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the checkpoint to.")],
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Transcribed speech: a corpus's file or folder, PATH:PART or hub:NAME:PART (repeatable)."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration utterances drawn from it.")] = 128,
    pool: Annotated[
        PoolKind, typer.Option(help="Which are drawn: at random, or by their share of rare words.")
    ] = PoolKind.uniform,
    ids: Ids = None,
    method: Annotated[Method, typer.Option(help="Preset; the options below override its parts.")] = Method.tarq,
    bits: Annotated[int, typer.Option(help="2, 3, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Input features that share a scale.")] = 128,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="An integer zero point per group.")] = False,
    scale_rule: Annotated[str | None, typer.Option(help="absmax, minmax (paper eq. 1) or mse.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="rarebal, plain, or the controls random and common. Default: the method's."),
    ] = None,
    cost_ratio: Annotated[float, typer.Option(help="c of RareBAL (the paper has 1).")] = 0.25,
    max_lambda: Annotated[float | None, typer.Option(help="Cap on RareBAL's λ.")] = None,
    residual: Annotated[
        str | None,
        typer.Option(help="cross-fitted, least-squares, paper, none, or a number (a fixed α). Default: the method's."),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="sweep or rtn. Default: the method's.")] = None,
    damp: Annotated[float, typer.Option(help="Damping, as a share of the metric's mean diagonal.")] = 0.01,
    act_order: Annotated[str, typer.Option(help="none or static.")] = "none",
    tail_positions: Annotated[str | None, typer.Option(help="Tag by input, target or either token.")] = None,
    frame_tags: Annotated[
        str, typer.Option(help="Tag rows of audio: aligned, none, or auto (aligned for CTC, none elsewhere).")
    ] = "auto",
    tail_threshold: TailThreshold = 3.0,
    normalizer: Normalizer = "auto",
    transcripts: Annotated[str, typer.Option(help="reference, or self (the model's own).")] = "reference",
    timestamps: Annotated[
        str, typer.Option(help="Teach transcripts without times, with them, or alternate (Whisper).")
    ] = "without",
    padding_weight: Annotated[
        float | None, typer.Option(help="Weight of encoder frames beyond the end of the audio.")
    ] = None,
    scale_dtype: Annotated[str, typer.Option(help="auto, float16, bfloat16 or float32.")] = "auto",
    ignore: Annotated[list[str] | None, typer.Option(help="Leave this layer or block alone (repeatable).")] = None,
    language: Language = "en",
    word_frequencies: WordFrequencies = None,
    max_bad: MaxBad = 0,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep the model in RAM; blocks go to the device one at a time.")
    ] = False,
    activation_memory: Annotated[
        float, typer.Option(help="GB for activations within a block; what does not fit is computed again.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the sample and of the random controls.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing OUT.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Quantize a model and write a compressed-tensors checkpoint."""
    from tarq import api, distributed
    from tarq.checkpoint.folder import check_writable
    from tarq.config import TarqConfig
    from tarq.terminal.screen import show_report

    optional = {
        "scale_rule": scale_rule,
        "metric": metric,
        "residual": _residual(residual),
        "solver": solver,
        "tail_positions": tail_positions,
        "padding_weight": padding_weight,
    }
    config = TarqConfig.preset(
        method.value,
        **{name: value for name, value in optional.items() if value is not None},
        bits=bits,
        group_size=group_size,
        symmetric=not asymmetric,
        cost_ratio=cost_ratio,
        max_lambda=max_lambda,
        damp=damp,
        act_order=act_order,
        frame_tags=frame_tags,
        timestamps=timestamps,
        tail_threshold=tail_threshold,
        language=language,
        word_frequencies=None if word_frequencies is None else str(word_frequencies),
        normalizer=normalizer,
        transcripts=transcripts,
        scale_dtype=scale_dtype,
        ignore=tuple(ignore or ()),
        pool=pool.value,
        ids=None if ids is None else str(ids),
        samples=samples,
        max_bad=max_bad,
        batch_size=batch_size,
        activation_memory=activation_memory,
        seed=seed,
    )
    speech = calibration[0] if calibration and len(calibration) == 1 else _labelled(calibration or []) or None
    with distributed.joined() as first, _screen(first) as reporter:
        check_writable(out, overwrite, model)
        reporter.phase(f"loading {model}")
        where = _where(device, dtype)
        recognizer = api.load_recognizer(model, **where, language=language, offload=offload)
        lent_to = where["device"] if offload else None
        report = api.quantize(recognizer, speech, config, offload=lent_to, reporter=reporter)
        api.save(recognizer, out, report, overwrite=overwrite)
    if not first:
        return
    show_report(console, report, layers=False)
    text = f"written to {out}; next: tarq evaluate {model} {out} --reference {model} --data …"
    console.print(text, highlight=False, markup=False)
    if json_file:
        json_file.write_text(report.to_json())


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models to score: folders or hub ids.")],
    data: Annotated[
        list[str],
        typer.Option(help="Transcribed speech: a corpus's file or folder, PATH:PART or hub:NAME:PART (repeatable)."),
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Full-precision model damage is measured against. Default: the only unpacked MODEL."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Score a random sample of each set.")] = None,
    where: Where = None,
    decode: Annotated[bool, typer.Option(help="Transcribe too; without, teacher-forced figures only.")] = True,
    normalizer: Normalizer = "auto",
    tail_threshold: TailThreshold = 3.0,
    resamples: Annotated[int, typer.Option(help="Of the paired bootstrap.")] = 10_000,
    language: Language = "en",
    word_frequencies: WordFrequencies = None,
    max_bad: MaxBad = 0,
    batch_size: BatchSize = 4,
    device: Device = "auto",
    dtype: Dtype = "auto",
    int8: Int8 = False,
    seed: Annotated[int, typer.Option(help="Of the sample and the bootstrap.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Score models: WER, rare-WER, KL and NLL, with paired intervals and the rare words lost."""
    from tarq import api, distributed
    from tarq.config import TarqConfig
    from tarq.data.corpora.registry import load_utterances, select_utterances
    from tarq.data.intake import Intake
    from tarq.linear import use_int8_activations
    from tarq.terminal.screen import show_evaluation

    config = TarqConfig(
        normalizer=normalizer,
        tail_threshold=tail_threshold,
        language=language,
        word_frequencies=None if word_frequencies is None else str(word_frequencies),
        max_bad=max_bad,
        batch_size=batch_size,
        seed=seed,
    )
    sources = _labelled([*models, *([reference] if reference else [])])
    with distributed.joined() as first, _screen(first) as reporter:
        recognizers = {}
        for label, source in sources.items():
            reporter.phase(f"loading {source}")
            recognizers[label] = api.load_recognizer(source, **_where(device, dtype), language=language)
        if int8 and not sum(use_int8_activations(recognizer.model) for recognizer in recognizers.values()):
            raise typer.BadParameter("--int8-activations: none of the models has layers of 4 bits or fewer")
        plain = [label for label, recognizer in recognizers.items() if not recognizer.is_quantized]
        base = next((label for label, source in sources.items() if source == reference), None)
        base = base or (plain[0] if len(plain) == 1 else None)
        if base is None:
            reporter.note("no reference model (name it with --reference): word scores only, no KL or NLL")
        corpora = _labelled(data)
        intakes = {label: Intake(max_bad) for label in corpora}
        sets = {
            label: select_utterances(load_utterances(d, intakes[label]), where or []) for label, d in corpora.items()
        }
        for label, count in _calibrated_on(sources, sets):
            reporter.note(f"{label}: {count}")
        result = api.evaluate(
            recognizers,
            sets,
            intakes=intakes,
            reference=base,
            config=config,
            samples=samples,
            resamples=resamples,
            decode=decode,
            reporter=reporter,
        )
    if not first:
        return
    show_evaluation(console, result, {label: r.linear_bytes() for label, r in recognizers.items()})
    if json_file:
        json_file.write_text(json.dumps(result.to_dict(), indent=1))


@app.command()
def pool(
    sources: Annotated[
        list[str], typer.Argument(help="Transcribed speech: a corpus's file or folder, PATH:PART or hub:NAME:PART.")
    ],
    kind: Annotated[PoolKind, typer.Option(help="uniform, or by the share of rare words.")] = PoolKind.uniform,
    ids: Ids = None,
    samples: Annotated[int, typer.Option(min=1, help="Utterances drawn.")] = 128,
    out: Annotated[Path | None, typer.Option(callback=_writable, help="Write the pool as a JSONL manifest.")] = None,
    max_duration: Annotated[float, typer.Option(help="Longer utterances are left out (seconds).")] = 30.0,
    where: Where = None,
    normalizer: Normalizer = "auto",
    tail_threshold: TailThreshold = 3.0,
    language: Language = "en",
    word_frequencies: WordFrequencies = None,
    max_bad: MaxBad = 0,
    seed: Annotated[int, typer.Option(help="Of the random draws, and of the order among equals.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing OUT.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Draw a calibration pool, show its share of rare words, and write it as a manifest that every command reads."""
    from tarq.config import TarqConfig
    from tarq.data.corpora.registry import load_utterances, select_utterances
    from tarq.data.intake import Intake
    from tarq.data.manifest import write_manifest
    from tarq.data.pools import Rarity, draw_pool, given_pool
    from tarq.terminal.screen import ScreenReporter, show_pool
    from tarq.words.frequencies import described

    if out is not None and out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists: --overwrite replaces it")
    config = TarqConfig(
        pool=kind.value,
        ids=None if ids is None else str(ids),
        samples=samples,
        language=language,
        normalizer=normalizer,
        tail_threshold=tail_threshold,
        word_frequencies=None if word_frequencies is None else str(word_frequencies),
        max_bad=max_bad,
        seed=seed,
    )
    intake = Intake(max_bad)
    rarity = Rarity(config)
    frequencies = described(config.frequencies(), tail_threshold)
    labelled = _labelled(sources)
    with ScreenReporter(console) as reporter:
        speech = {}
        for label, source in labelled.items():
            reporter.phase(f"loading {source}")
            speech[label] = select_utterances(load_utterances(source, intake), where or [])
        reporter.phase("drawing the pool")
        if ids is None:
            drawn = draw_pool(speech, config.pool, samples, seed, rarity, max_duration=max_duration, intake=intake)
        else:
            drawn = given_pool(speech, ids, rarity, max_duration=max_duration, intake=intake)
            samples = drawn.candidates
        for note in intake.notes():
            reporter.note(note)
    show_pool(console, drawn, config.text_normalizer().name, tail_threshold, frequencies)
    if len(drawn.utterances) < samples:
        console.print(f"[yellow]note[/] {len(drawn.utterances)} of the {samples} asked qualify")
    if out is not None:
        extra = [
            {"source": source, "rho": rho if words else None}
            for source, rho, words in zip(drawn.sources, drawn.rho, drawn.words, strict=True)
        ]
        write_manifest(out, drawn.utterances, extra)
        text = f"written to {out}; next: tarq quantize MODEL OUT --calibration {out} --samples {len(extra)}"
        console.print(text, highlight=False, markup=False)
    if json_file:
        figures = drawn.summary() | {
            "ids": [u.id for u in drawn.utterances],
            "ids_from": config.ids,
            "sources_given": labelled,
            "max_duration": max_duration,
            "normalizer": config.text_normalizer().name,
            "tail_threshold": tail_threshold,
            "seed": seed,
            "word_frequencies": frequencies,
            **intake.to_dict(),
        }
        json_file.write_text(json.dumps(figures, indent=1))


@app.command()
def transcribe(
    model: Annotated[str, typer.Argument(help="Model: a folder or a hub id.")],
    audio: Annotated[list[Path], typer.Argument(help="Audio files of any length, rate and format.")],
    language: Language = "en",
    batch_size: BatchSize = 4,
    device: Device = "auto",
    dtype: Dtype = "auto",
    int8: Int8 = False,
    json_file: JsonFile = None,
) -> None:
    """Transcribe audio files."""
    from tarq import api
    from tarq.terminal.screen import ScreenReporter

    with ScreenReporter(console) as reporter:
        recognizer = api.load_recognizer(model, **_where(device, dtype), language=language, int8_activations=int8)
        texts = api.transcribe(recognizer, audio, batch_size=batch_size, reporter=reporter)
    for path, text in zip(audio, texts, strict=True):
        console.print(f"{path}\t{text}" if len(audio) > 1 else text, markup=False, highlight=False, soft_wrap=True)
    if json_file:
        json_file.write_text(
            json.dumps([{"audio": str(a), "text": t} for a, t in zip(audio, texts, strict=True)], indent=1)
        )


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="Folder tarq quantize wrote.")],
    json_file: JsonFile = None,
) -> None:
    """Show how each layer of a checkpoint was quantized, and the sizes before and after."""
    from tarq.report import Report
    from tarq.terminal.screen import show_report

    report = Report.read(checkpoint)
    show_report(console, report, layers=True)
    if json_file:
        json_file.write_text(report.to_json())


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Argument(help="Full-precision model: a folder or a hub id; the packaged one if not given.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Transcribed speech to calibrate on; the packaged pool if not given.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Other transcribed speech, to score on; the packaged test set if not given.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer utterances: under a minute.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Calibration utterances.")] = None,
    score: Annotated[int | None, typer.Option(min=1, help="Utterances scored.")] = None,
    where: Where = None,
    bits: Annotated[list[int] | None, typer.Option(help="2, 3, 4 or 8 (repeatable).")] = None,
    language: Language = "en",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Utterances a forward pass takes at once.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Quantize with RTN, GPTQ and TARQ, save, reload, transcribe, and print the score table.

    Without arguments: a small recognizer and synthetic speech that come with the package.
    """
    from tarq import testbed
    from tarq.config import TarqConfig
    from tarq.data.corpora.registry import load_utterances, sample_utterances, select_utterances
    from tarq.terminal import demo as demonstration
    from tarq.terminal.screen import ScreenReporter, show_demo

    size = demonstration.QUICK if quick else demonstration.WHOLE if model is None else demonstration.OWN
    config = TarqConfig(
        samples=samples or size.samples, language=language, batch_size=batch_size or size.batch_size, seed=seed
    )
    spoken = testbed.test_set() if data is None else load_utterances(data)
    scored = sample_utterances(
        select_utterances(spoken, where or []), score or size.scored, seed, max_duration=30, require_text=True
    )
    # The two may come from one corpus; what is scored is never calibrated on.
    taken = {u.origin for u in scored}
    pool = testbed.calibration_pool() if calibration is None else load_utterances(calibration)
    pool = [u for u in pool if u.origin not in taken]
    with ScreenReporter(console) as reporter:
        scores, sizes = demonstration.demonstrate(
            str(testbed.model()) if model is None else model,
            pool,
            {"demo": scored},
            config,
            reporter,
            bits=tuple(bits or demonstration.BITS),
            **_where(device, dtype),
        )
    (only,) = scores.sets.values()
    show_demo(console, only, sizes, {u.id: u.text or "" for u in scored})
    console.print(
        "\nnext, on your own model: tarq quantize MODEL OUT --calibration DATA; tarq evaluate MODEL OUT --data DATA",
        highlight=False,
    )
    if json_file:
        json_file.write_text(json.dumps(scores.to_dict() | {"linear_bytes": sizes}, indent=1))


class Operation(StrEnum):
    """What can be benchmarked."""

    gram = "gram"
    group_quantize = "group_quantize"
    w4_linear = "w4_linear"


@app.command()
def bench(
    operations: Annotated[list[Operation] | None, typer.Argument(help="Operations; all when not given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small problems only; under a minute.")] = False,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="CPU threads (repeatable).")] = None,
    device: Device = "auto",
    seconds: Annotated[float | None, typer.Option(help="For each contestant of each case.")] = None,
    peer_python: Annotated[
        str | None, typer.Option(help="Interpreter that imports gptqmodel, a peer of group_quantize.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(callback=_writable, help="Draw the ratios to this PNG.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Time the three operations against their peers: ratios, and shares of what the machine can do."""
    from tarq.bench import run as benchmarks

    if plot is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter("--plot needs matplotlib: pip install matplotlib")
    device = _where(device, "auto")["device"]
    names = [operation.value for operation in operations or Operation]
    with console.status("") as status:
        records, known = benchmarks.run(
            names,
            device=device,
            thread_counts=threads or (),
            quick=quick,
            seconds=seconds,
            peer_python=peer_python,
            reporter=benchmarks.StatusReporter(status),
        )
    benchmarks.show(console, records, known)
    if json_file:
        json_file.write_text(json.dumps(records, indent=1))
    if plot:
        benchmarks.plot(records, plot)


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Show what is installed, which backends run, and what is missing."""
    from tarq.terminal.doctor import checks
    from tarq.terminal.screen import show_checks

    found = checks()
    show_checks(console, found)
    if json_file:
        json_file.write_text(
            json.dumps([dict(zip(("check", "ok", "detail"), c, strict=True)) for c in found], indent=1)
        )


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"tarq {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    # By the environment alone: torch takes a second to import.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and context.invoked_subcommand not in ("quantize", "evaluate"):
        raise typer.BadParameter(
            f"{context.invoked_subcommand} runs in one process, not under torchrun; quantize and evaluate share work"
        )


def _screen(first: bool) -> ScreenReporter:
    """Progress on the terminal, which of several processes the first has to itself."""
    from tarq.terminal.screen import ScreenReporter

    console.quiet = not first
    return ScreenReporter(console)


def _residual(text: str | None) -> str | float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return text


def _where(device: str, dtype: str) -> dict[str, Any]:
    """Device and dtype as the API takes them; what is not there is refused before any work."""
    import torch

    from tarq.distributed import local_device

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = local_device(device)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"device {device!r} cannot be used: {reason}") from error
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"dtype {dtype!r} is none of auto, float32, bfloat16, float16")
    return {"device": device, "dtype": None if dtype == "auto" else getattr(torch, dtype)}


def _calibrated_on(models: dict[str, str], sets: dict[str, list[Utterance]]) -> Iterator[tuple[str, str]]:
    """Sets that share audio with a model's calibration, which flatters it."""
    from tarq.report import FILE_NAME, Report

    for name, folder in models.items():
        if not (Path(folder) / FILE_NAME).is_file():
            continue
        used = set(Report.read(folder).calibration.get("origins", ()))
        for label, utterances in sets.items() if used else ():
            if seen := sum(u.origin in used for u in utterances):
                yield label, f"{name} was calibrated on {seen} of its {len(utterances)} utterances"


def _labelled(sources: list[str]) -> dict[str, str]:
    """Short name to source: the last part of each path, with as many parts before it as tell them apart."""
    unique = list(dict.fromkeys(sources))
    parts = {s: [p for p in s.removesuffix("manifest.jsonl").split("/") if p] or [s] for s in unique}
    deepest = max(map(len, parts.values()), default=0)
    labels: list[str] = []
    for depth in range(1, deepest + 1):
        labels = ["/".join(parts[s][-depth:]) for s in unique]
        if len(set(labels)) == len(unique):
            break
    else:
        labels = unique
    return dict(zip(labels, unique, strict=True))


def main() -> None:
    """Entry point: tarq's own errors are one line and exit code 1, not a traceback."""
    # Set before transformers is imported: its bars and advice would run into this program's own.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (TarqError, ValueError) as error:
        from tarq.distributed import is_shared

        if is_shared(error) and os.environ.get("RANK", "0") != "0":
            sys.exit(1)  # the first process says it
        text = escape(f"{type(error).__name__}: {error}")
        Console(stderr=True).print(f"[red]error[/] {text}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
