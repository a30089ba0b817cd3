"""``tarq transcribe``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.errors import DataError
from tarq.files import write_json
from tarq.option import Option, options
from tarq.speech.settings import AUTO, SUFFIXES, WITH_WORDS, Transcription
from tarq.terminal.console import progress_console, say_error
from tarq.terminal.options import (
    OUTPUT,
    Device,
    Dtype,
    Int8,
    JsonFile,
    PackedHead,
    configured,
    parser,
    round_inputs,
    where_to_run,
)
from tarq.terminal.progress import TerminalReporter
from tarq.terminal.recordings import Recording, output_files, recordings
from tarq.terminal.transcripts import Printed, Written, to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarq.models.base import Recognizer
    from tarq.speech.transcript import Transcript


def register(app: typer.Typer) -> None:
    app.command()(transcribe)


@configured("language", "long_form", "vad", "words", "batch_size", of=Transcription)
def transcribe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model: a folder or a hub id.")],
    audio: Annotated[
        list[str],
        typer.Argument(
            metavar="AUDIO",
            help="Audio files of any length, rate and format; folders, searched recursively; patterns such as "
            "'talks/*.mp3'; - for standard input. Each file is transcribed once.",
        ),
    ],
    *,
    chosen: dict,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            parser=parser(Option("", "", "choice", tuple(SUFFIXES))),
            rich_help_panel=OUTPUT,
            show_default=False,
            help="text, or with times: srt, vtt (subtitles), json, tsv (milliseconds). Default: text.",
        ),
    ] = "text",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=OUTPUT,
            help="Write one file for each recording into this folder, instead of printing.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace files that exist in --output.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    int8: Int8 = False,
    packed_head: PackedHead = False,
    json_file: JsonFile = None,
) -> None:
    """Transcribe audio and print each transcript as it comes. Unreadable files are reported; exit code 1 then."""
    config = Transcription(**chosen, times=kind != "text")
    if config.words and kind not in WITH_WORDS and json_file is None:
        raise typer.BadParameter(
            f"has no place in the format {kind}: take --format {' or '.join(WITH_WORDS)}, or add --json FILE",
            param_hint="--words",
        )
    if overwrite and output is None:
        raise typer.BadParameter("replaces files in --output DIR, which is not given", param_hint="--overwrite")
    named = recordings(audio)
    if kind != "text" and output is None and len(named) > 1:
        raise typer.BadParameter(
            f"{kind} of {len(named)} files needs a folder for them: add --output DIR", param_hint="--format"
        )
    target: Printed | Written
    if output is None:
        # A file of results is written first, in case printing fails.
        target = Printed(kind, several=len(named) > 1, hold=json_file is not None)
    else:
        files = output_files(named, output, SUFFIXES[kind], overwrite=overwrite, json_file=json_file)
        target = Written(kind, dict(zip((one.name for one in named), files, strict=True)))
    results: list[dict[str, Any]] = []
    with TerminalReporter(progress_console) as reporter:
        reporter.phase("starting")
        from tarq import api

        where = where_to_run(device, dtype)
        reporter.phase(f"loading {model}")
        language = None if config.language == AUTO else config.language
        recognizer = api.load_recognizer(model, **where, language=language, packed_head=packed_head)
        if int8:
            round_inputs({model: recognizer}, reporter)
        if target.streams and sys.stdout.isatty():
            reporter.make_way()
        try:
            for recording, result in _transcripts(recognizer, named, config, reporter, target):
                if isinstance(result, DataError):
                    results.append({"audio": recording.name, "error": str(result)})
                    say_error("DataError", str(result))
                else:
                    results.append({"audio": recording.name} | to_dict(result))
                    target.result(recording.name, result)
        finally:
            target.close()
        if json_file:
            write_json(json_file, results)
    target.release()
    failed = sum("error" in result for result in results)
    if failed:
        if len(named) > 1:
            say_error("transcribe", f"{failed} of {len(named)} files could not be read")
        raise typer.Exit(1)


def _transcripts(
    recognizer: Recognizer,
    named: list[Recording],
    config: Transcription,
    reporter: TerminalReporter,
    target: Printed | Written,
) -> Iterator[tuple[Recording, str | Transcript | DataError]]:
    """Each recording with its transcript; segments go to the target as they come."""
    from tarq import api

    files = [recording.file for recording in named]
    at = 0
    told: dict[str, Any] = {"reporter": reporter, "on_segment": None}
    if target.streams:  # files and their segments come in order
        told["on_segment"] = lambda _, segment: target.segment(named[at].name, segment)
    found: Iterator[tuple[Any, str | Transcript | DataError]]
    if not (config.timed or config.vad or config.language == AUTO):
        found = api.iter_transcripts(recognizer, files, batch_size=config.batch_size, **told)
    else:
        wanted = {name: getattr(config, name) for name in options(config) if name != "language"}
        language = AUTO if config.language == AUTO else None  # otherwise the recognizer has it
        found = api.timed_transcripts(recognizer, files, language=language, **wanted, **told)
    for _, result in found:
        yield named[at], result
        at += 1
