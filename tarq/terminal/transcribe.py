"""``tarq transcribe``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tarq.config import TarqConfig
from tarq.errors import DataError
from tarq.files import expanded, write_json
from tarq.terminal.console import progress_console, say, say_error
from tarq.terminal.options import Device, Dtype, Int8, JsonFile, configured, round_inputs, where_to_run
from tarq.terminal.progress import TerminalReporter

if TYPE_CHECKING:
    from tarq.data.audio import Audio


def register(app: typer.Typer) -> None:
    app.command()(transcribe)


@configured(
    "language",
    "batch_size",
    language="Language of the speech, for a multilingual model's prompt. Default: the checkpoint's, or en.",
    batch_size="Windows of audio decoded at once.",
)
def transcribe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model: a folder or a hub id.")],
    audio: Annotated[
        list[str],
        typer.Argument(
            metavar="AUDIO",
            help="Audio files of any length, rate and format; folders, searched recursively; - for standard input.",
        ),
    ],
    *,
    chosen: dict,
    device: Device = "auto",
    dtype: Dtype = "auto",
    int8: Int8 = False,
    json_file: JsonFile = None,
) -> None:
    """Transcribe audio and print each transcript when it is done. Unreadable files are reported; exit code 1 then."""
    config = TarqConfig(**chosen)
    results: list[dict[str, str]] = []
    with TerminalReporter(progress_console) as reporter:
        reporter.phase("starting")
        from tarq import api

        where = where_to_run(device, dtype)
        names, files = zip(*_files(audio), strict=True)
        reporter.phase(f"loading {model}")
        recognizer = api.load_recognizer(model, **where, language=chosen.get("language"))
        if int8:
            round_inputs({model: recognizer}, reporter)
        transcripts = api.iter_transcripts(recognizer, files, batch_size=config.batch_size, reporter=reporter)
        for name, (_, text) in zip(names, transcripts, strict=True):
            if isinstance(text, DataError):
                results.append({"audio": name, "error": str(text)})
                say_error("DataError", str(text))
                continue
            results.append({"audio": name, "text": text})
            if json_file is None:  # otherwise the file is written first, in case printing fails
                say(f"{name}\t{text}" if len(files) > 1 else text)
        if json_file:
            write_json(json_file, results)
    if json_file:
        for result in results:
            if "text" in result:
                say(f"{result['audio']}\t{result['text']}" if len(files) > 1 else result["text"])
    failed = sum("error" in result for result in results)
    if failed:
        if len(files) > 1:
            say_error("transcribe", f"{failed} of {len(files)} files could not be read")
        raise typer.Exit(1)


def _files(given: list[str]) -> Iterator[tuple[str, Audio]]:
    """Name and location of each audio file: files as given, files in folders in sorted order, standard input.

    Raises:
        DataError: a folder holds no audio.
    """
    from tarq.data.audio import EXTERNAL_SUFFIXES, SUFFIXES, Encoded

    suffixes = (*SUFFIXES, *EXTERNAL_SUFFIXES)
    for name in given:
        path = expanded(name)
        if name == "-":
            yield "-", Encoded("standard input", sys.stdin.buffer.read())
        elif path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not found:
                raise DataError(f"{path}: no audio in this folder; audio is found by its suffix: {' '.join(suffixes)}")
            yield from ((str(file), file) for file in found)
        else:
            yield name, path
