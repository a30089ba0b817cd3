"""``tarq quantize``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.errors import ConfigError
from tarq.files import write_json
from tarq.option import CALIBRATION, METHOD, RESOURCES, options
from tarq.presets import PRESETS
from tarq.signals import raised_on_sigterm
from tarq.terminal.console import command, console, progress_console, say
from tarq.terminal.logfile import LogFile
from tarq.terminal.options import OUTPUT, SPEECH, Device, Dtype, JsonFile, Overwrite, configured, where_to_run
from tarq.terminal.progress import TerminalReporter
from tarq.terminal.stopping import Terminated, given_again, how_to_go_on, unfinished_beside

Preset = StrEnum("Preset", {name.replace("-", "_"): name for name in PRESETS})  # type: ignore[misc]


def register(app: typer.Typer) -> None:
    app.command()(quantize)


@configured(*options(TarqConfig))
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Full-precision model: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the checkpoint to.")],
    *,
    context: typer.Context,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEECH",
            rich_help_panel=CALIBRATION,
            help=f"Transcribed speech: {SPEECH} (repeatable). "
            "Default: synthetic English speech of the testbed, for a first try.",
        ),
    ] = None,
    method: Annotated[
        Preset,
        typer.Option(
            metavar="NAME",
            rich_help_panel=METHOD,
            show_default=False,
            help=f"Preset: {', '.join(PRESETS)}; other options override its parts. Default: refined.",
        ),
    ] = Preset("refined"),
    chosen: dict,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            rich_help_panel=RESOURCES,
            help="Keep the model in RAM; blocks go to the device one at a time.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show each layer's group size or why it stays in full precision, and estimate size, time and memory; "
            "read no audio and no weights (of --calibration the transcripts), write nothing. Exit code 1 if something "
            "does not fit.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=OUTPUT,
            help="Go on where an earlier run to OUT was stopped: with the blocks it has left in OUT.unfinished.",
        ),
    ] = False,
    json_file: JsonFile = None,
    log_file: LogFile = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Show a table of all layers at the end.")
    ] = False,
) -> None:
    """Quantize a model and write a compressed-tensors checkpoint."""
    config = TarqConfig.preset(method.value, **chosen)
    if dry_run:
        _dry_run(model, config, device, dtype, json_file, calibration or [], log_file)
        return
    again = given_again(context, "--resume")
    with raised_on_sigterm(lambda number: Terminated()), TerminalReporter(progress_console, log_file) as reporter:
        reporter.phase("starting")
        from tarq import api, distributed
        from tarq.checkpoint.unfinished import check_unfinished, progress
        from tarq.data.speech import load_speech
        from tarq.terminal.first_run import NOTE, packaged_speech
        from tarq.terminal.tables import say_estimate, show_report

        with distributed.process_group() as first:
            console.quiet = reporter.console.quiet = not first
            # Check whatever can be checked before a model is loaded or downloaded.
            if not config.arms().storable:
                raise ConfigError(
                    f"the solver {config.solver} makes more than codes and scales, which no checkpoint can hold: "
                    "tarq.quantize runs it, to be measured"
                )
            api.check_protect(config, config.arms())
            api.check_output(out, model, overwrite=overwrite)
            unfinished = unfinished_beside(out)
            if first:
                check_unfinished(unfinished, None if resume else again)
                if resume and progress(unfinished) is None:
                    reporter.note(f"{unfinished} is not there: the run starts from the beginning")
            where = where_to_run(device, dtype)
            unaided = not calibration and config.needs_statistics
            speech: Any
            if unaided:
                speech, config = packaged_speech(config)
                reporter.note(NOTE)
                say_estimate(console, api.plan(model, config, device=where["device"], calibration=speech))
            else:
                speech = load_speech(calibration or [], max_bad=config.max_bad, reporter=reporter)
            if config.needs_statistics:
                api.check_calibration(speech, config)
            if len(speech) == 1:
                (speech,) = speech.values()
            reporter.phase(f"loading {model}")
            recognizer = api.load_recognizer(model, **where, language=config.language, offload=offload)
            offload_device = where["device"] if offload else None
            with how_to_go_on(unfinished, again) if first else nullcontext():
                report = api.quantize(
                    recognizer, speech or None, config, offload=offload_device, resume=unfinished, reporter=reporter
                )
                report.notes += [NOTE] * unaided
                reporter.phase(f"writing {out}")
                api.save(recognizer, out, report, overwrite=overwrite, resume=unfinished)
            if first and json_file:
                write_json(json_file, asdict(report))
    if first:
        show_report(console, report, layers=verbose)
        say(f"written to {out}")
        next_command = command("tarq", "evaluate", model, out, "--reference", model, "--data", "DATA")
        say(f"next: {next_command}")


def _dry_run(
    model: str,
    config: TarqConfig,
    device: str,
    dtype: str,
    json_file: Path | None,
    calibration: list[str],
    log_file: Path | None,
) -> None:
    with TerminalReporter(progress_console, log_file) as reporter:
        reporter.phase("starting")
        from tarq import api
        from tarq.data.speech import load_speech
        from tarq.terminal.tables import show_plan

        where = where_to_run(device, dtype)
        # Of the hub's data sets only the run itself downloads anything.
        named = [] if any(source.startswith("hub:") for source in calibration) else calibration
        speech = load_speech(named, max_bad=config.max_bad, reporter=reporter)
        reporter.phase(f"planning {model}")
        plan = api.plan(model, config, device=where["device"], calibration=speech or None)
        if json_file:
            write_json(json_file, plan.to_dict())
    show_plan(console, plan)
    if plan.problems:
        raise typer.Exit(1)
