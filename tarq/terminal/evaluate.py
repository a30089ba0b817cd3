"""``tarq evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.files import write_json, write_whole
from tarq.option import CALIBRATION
from tarq.terminal.console import command, console, progress_console
from tarq.terminal.gates import MaxProtectedWer, MaxRareWer, MaxWer, end_by, gates_of
from tarq.terminal.logfile import LogFile
from tarq.terminal.options import (
    OUTPUT,
    SPEECH,
    Device,
    Dtype,
    Int8,
    JsonFile,
    Where,
    configured,
    number,
    round_inputs,
    where_to_run,
    writable,
)
from tarq.terminal.progress import TerminalReporter

if TYPE_CHECKING:
    from tarq.data.utterance import Utterance
    from tarq.models.base import Recognizer


def register(app: typer.Typer) -> None:
    app.command()(evaluate)


@configured(
    "normalizer",
    "tail_threshold",
    "language",
    "word_frequencies",
    "protect",
    "max_bad",
    "seed",
    "batch_size",
    seed="Random seed of the sample and the bootstrap.",
    protect="File of words and names, one a line, to score by themselves too.",
)
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Models to score: folders or hub ids.")],
    *,
    data: Annotated[
        list[str],
        typer.Option(metavar="SPEECH", rich_help_panel=CALIBRATION, help=f"Transcribed speech: {SPEECH} (repeatable)."),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Full-precision model to measure damage against. Default: the only unpacked MODEL.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", parser=number("int", 1, 10**9), help="Score a random sample of each set.")
    ] = None,
    where: Where = None,
    chosen: dict,
    decode: Annotated[
        bool, typer.Option(help="Also transcribe, for word errors; otherwise teacher-forced figures only.")
    ] = True,
    resamples: Annotated[
        int,
        typer.Option(
            metavar="N", parser=number("int", 1, 10**7), show_default=False, help="Bootstrap resamples. Default: 10000."
        ),
    ] = 10_000,
    device: Device = "auto",
    dtype: Dtype = "auto",
    int8: Int8 = False,
    json_file: JsonFile = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            callback=writable,
            rich_help_panel=OUTPUT,
            help="Also write a page with figures, tables, and the utterances in which rare words changed to this file.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            callback=writable,
            rich_help_panel=OUTPUT,
            help="Also write every utterance to this CSV file: transcripts, errors, KL and ΔNLL of each model.",
        ),
    ] = None,
    log_file: LogFile = None,
    max_wer: MaxWer = None,
    max_rare: MaxRareWer = None,
    max_protected: MaxProtectedWer = None,
) -> None:
    """Score models: WER, rare-WER, KL and ΔNLL, with paired intervals and the rare words lost."""
    config = TarqConfig(**chosen)
    gates = gates_of(max_wer, max_rare, max_protected)
    if gates and len(dict.fromkeys([*models, *([reference] if reference else [])])) < 2:
        raise typer.BadParameter("needs a second model to compare with", param_hint=gates[0].option)
    if gates and not decode:
        raise typer.BadParameter("needs transcripts: leave --no-decode out", param_hint=gates[0].option)
    if max_protected is not None and config.protect is None:
        raise typer.BadParameter("needs a list of words: --protect FILE", param_hint="--max-protected-wer-increase")
    with TerminalReporter(progress_console, log_file) as reporter:
        reporter.phase("starting")
        from tarq import api, distributed
        from tarq.checkpoint.source import check_named, expand_home
        from tarq.data.speech import load_speech, short_labels
        from tarq.terminal.scores import show_evaluation

        with distributed.process_group() as first:
            console.quiet = reporter.console.quiet = not first
            config.frequencies()
            place = where_to_run(device, dtype)
            sets = load_speech(data, where or [], max_bad=config.max_bad, per_corpus=True, reporter=reporter)
            sources = short_labels([*models, *([reference] if reference else [])])
            for source in sources.values():  # all of them, before the first is loaded
                check_named(expand_home(source))
            recognizers = {}
            for label, source in sources.items():
                reporter.phase(f"loading {source}")
                recognizers[label] = api.load_recognizer(source, **place, language=config.language)
            if int8:
                round_inputs(recognizers, reporter)
            plain = [label for label, recognizer in recognizers.items() if not recognizer.is_quantized]
            base = next((label for label, source in sources.items() if source == reference), None)
            base = base or (plain[0] if len(plain) == 1 else None)
            if base is None:
                reporter.note("no reference model (name it with --reference): word scores only, no KL or ΔNLL")
            result = api.evaluate(
                recognizers,
                sets,
                reference=base,
                config=config,
                samples=samples,
                resamples=resamples,
                decode=decode,
                reporter=reporter,
            )
            if first and (json_file or html_file or csv_file):
                found = result.to_dict() | _origin(recognizers, str(place["device"]))
                if json_file:
                    write_json(json_file, found)
                if csv_file:
                    from tarq.scoring.utterances import utterances_csv

                    write_whole(csv_file, utterances_csv(found, _texts(found, sets)))
                if html_file:
                    from tarq.reports.make import evaluation_page

                    reporter.phase("making the page")
                    speech_by_set = {label: {u.id: u for u in speech} for label, speech in sets.items()}
                    write_whole(html_file, evaluation_page(found, speech_by_set))
    if first:
        show_evaluation(console, result, {label: r.linear_bytes() for label, r in recognizers.items()})
    if gates:
        labels = list(sources)
        against, *others = labels if len(models) > 1 else [base or labels[-1], *labels]
        differences = {label: scores.differences for label, scores in result.sets.items()}
        end_by(gates, differences, [label for label in dict.fromkeys(others) if label != against], against)


def _texts(found: dict[str, Any], sets: Mapping[str, Sequence[Utterance]]) -> dict[str, dict[str, str]]:
    """Of each scored set the transcripts of its utterances; a set in several languages is scored as one for each."""
    texts = {}
    for label, scores in found["sets"].items():
        known = next(speech for name, speech in sets.items() if label in (name, f"{name} ({scores['language']})"))
        scored = {i for model in scores["models"].values() for i in model["utterances"]}
        texts[label] = {u.id: u.text or "" for u in known if u.id in scored}
    return texts


def _origin(recognizers: dict[str, Recognizer], device: str) -> dict[str, Any]:
    """What is needed to redo an evaluation: the command, versions, and how each model was quantized."""
    import sys
    from dataclasses import asdict

    from tarq.report import FILE_NAME, Report, versions

    folders = {label: Path(str(r.model.config._name_or_path)) for label, r in recognizers.items()}
    reports = {label: Report.read(folder) for label, folder in folders.items() if (folder / FILE_NAME).is_file()}
    fields = ("name", "lam", "alpha", "loss", "bits")
    return {
        "command": command("tarq", *sys.argv[1:]),
        "device": device,
        "versions": versions(),
        "quantized": {
            label: {
                "config": report.config,
                "layers": [{f: asdict(layer)[f] for f in fields} for layer in report.layers if not layer.skipped],
            }
            for label, report in reports.items()
        },
    }
