"""``tarq compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.errors import DataError
from tarq.files import expanded, write_json
from tarq.report import FILE_NAME, Report
from tarq.terminal.console import console, progress_console
from tarq.terminal.gates import MaxProtectedWer, MaxRareWer, MaxWer, end_by, gates_of
from tarq.terminal.options import JsonFile, configured, number
from tarq.words.settings import Words

if TYPE_CHECKING:
    from tarq.scoring.compare import Compared


def register(app: typer.Typer) -> None:
    app.command()(compare)


@configured(
    "language", "tail_threshold", "word_frequencies", "protect", "normalizer",
    protect="File of words and names, one a line, to score by themselves too.",
)  # fmt: skip
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Results of tarq evaluate --json, transcripts (as tarq transcribe writes them), or a checkpoint.",
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="FILE", help="What is compared with it, of the same kind.")],
    *,
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What was said, to score transcripts against: a manifest or transcripts."),
    ] = None,
    chosen: dict,
    resamples: Annotated[
        int,
        typer.Option(
            metavar="N", parser=number("int", 1, 10**7), show_default=False, help="Bootstrap resamples. Default: 10000."
        ),
    ] = 10_000,
    json_file: JsonFile = None,
    max_wer: MaxWer = None,
    max_rare: MaxRareWer = None,
    max_protected: MaxProtectedWer = None,
) -> None:
    """Compare two results, two files of transcripts, or how two checkpoints were quantized; second against first."""
    gates = gates_of(max_wer, max_rare, max_protected)
    reports = [_report(name) for name in (first, second)]
    if any(reports):
        if not all(reports):
            raise DataError("a checkpoint is compared with a checkpoint: tarq evaluate scores both on the same speech")
        if gates or reference:
            raise typer.BadParameter(
                "checkpoints hold no word errors: score them with tarq evaluate, which has the same gates",
                param_hint=gates[0].option if gates else "--reference",
            )
        before, after = (report for report in reports if report is not None)
        changed = _changes(before, after)
        if json_file:
            write_json(json_file, changed)
        _show_changes(changed, before, after)
        return
    with progress_console.status("comparing"):
        from tarq.scoring.compare import compare_evaluations

        evaluations = [_evaluation(name) for name in (first, second)]
        if all(evaluations):
            found = compare_evaluations(evaluations[0] or {}, evaluations[1] or {}, resamples)
        elif any(evaluations):
            raise DataError("results of tarq evaluate are compared with such results, transcripts with transcripts")
        else:
            found = [_transcripts(first, second, reference, TarqConfig(**chosen), resamples)]
        if json_file:
            write_json(json_file, [asdict(one) for one in found])
    _show(found)
    differences = {one.label: {"second − first": one.differences} for one in found}
    end_by(gates, differences, ["second"], "first")


def _report(name: str) -> Report | None:
    """The report of a checkpoint; None where there is no folder of that name."""
    path = expanded(name)
    if path.name == FILE_NAME:
        path = path.parent
    return (
        Report.read(path)
        if path.is_dir() and ((path / FILE_NAME).is_file() or (path / "config.json").is_file())
        else None
    )


def _evaluation(name: str) -> dict[str, Any] | None:
    """Results of ``tarq evaluate``; None of a file that holds something else."""
    import json

    from tarq.reports.results import check_evaluation, failing

    path = expanded(name)
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # the reader of transcripts says what is wrong with it
    if not (isinstance(stored, dict) and "sets" in stored):
        return None
    check_evaluation(stored, failing(str(path)))
    return stored


def _transcripts(first: str, second: str, reference: str | None, config: TarqConfig, resamples: int) -> Compared:
    from tarq.data.transcripts import read_transcripts
    from tarq.scoring.compare import compare_sums, sums_of_transcripts
    from tarq.words.transcripts import Rarity

    hypotheses = [read_transcripts(name) for name in (first, second)]
    if reference is None:
        raise typer.BadParameter(
            "is needed to score transcripts: what was said, by the same ids", param_hint="--reference"
        )
    said = read_transcripts(reference, "what was said")
    settings = config.part(Words)
    settings.frequencies()
    rarity = Rarity(settings)
    sums = [sums_of_transcripts(said, h, rarity, name) for h, name in zip(hypotheses, (first, second), strict=True)]
    return compare_sums(f"{Path(first).name} → {Path(second).name}", sums[0], sums[1], resamples)


def _show(found: Sequence[Compared]) -> None:
    from tarq.scoring.figures import FIGURES
    from tarq.terminal.scores import cell
    from tarq.terminal.tables import note, table

    for one in found:
        rows = table("", "first", "second", "second − first", title=f"{one.label}, {one.utterances} utterances")
        for figure in FIGURES:
            if figure.name in one.differences:
                values = (one.before[figure.name], one.after[figure.name])
                rows.add_row(
                    figure.title,
                    *(cell(figure, value) for value in values),
                    cell(figure, one.differences[figure.name], flips=True),
                )
        console.print(rows)
        for text in one.notes:
            note(console, text)
    console.print(
        "[dim]\\[…]: 95 % paired bootstrap over utterances; (…): share of resamples on the other side of 0; bold "
        "intervals exclude 0.[/]"
    )


def _changes(before: Report, after: Report) -> dict[str, Any]:
    """What differs in configuration, sizes, time and losses; the losses of layers that both quantized."""
    config = {
        name: [before.config.get(name), after.config.get(name)]
        for name in dict.fromkeys([*before.config, *after.config])
        if before.config.get(name) != after.config.get(name)
    }
    losses = [{layer.name: layer.loss for layer in r.layers if layer.loss is not None} for r in (before, after)]
    shared = {name: [losses[0][name], losses[1][name]] for name in losses[0] if name in losses[1]}
    numbers = {
        "linear_bytes": [r.sizes.get("linear_bytes_after") for r in (before, after)],
        "seconds": [r.seconds for r in (before, after)],
        "calibration_utterances": [r.calibration.get("utterances") for r in (before, after)],
        "quantized_layers": [sum(not layer.skipped for layer in r.layers) for r in (before, after)],
    }
    return {"models": [before.model, after.model], "config": config, "numbers": numbers, "losses": shared}


def _show_changes(changed: dict[str, Any], before: Report, after: Report) -> None:
    from rich.markup import escape

    from tarq.terminal.tables import note, table

    rows = table("", "first", "second", title="how they were quantized")
    for name, values in {**changed["config"], **changed["numbers"]}.items():
        rows.add_row(escape(name), *(escape("–" if value is None else str(value)) for value in values))
    console.print(rows)
    largest = sorted(
        ((b / a, name, a, b) for name, (a, b) in changed["losses"].items() if a and b is not None),
        key=lambda row: -abs(row[0] - 1),
    )[:10]
    if largest:
        rows = table("layer", "loss, first", "second", "ratio", title="layers whose loss differs most")
        for ratio, name, a, b in largest:
            rows.add_row(escape(name), f"{a:.2e}", f"{b:.2e}", f"{ratio:.2f}")
        console.print(rows)
    if before.model != after.model:
        note(console, f"of different models: {before.model} and {after.model}")
