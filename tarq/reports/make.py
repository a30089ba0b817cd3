"""From results files to a page and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarq.arguments import checked_arguments
from tarq.data.corpora.registry import load_utterances
from tarq.data.utterance import Utterance
from tarq.errors import DataError, OutputError
from tarq.files import check_file, expanded, write_whole
from tarq.reports import evaluated, html, markdown, study, words
from tarq.reports.clips import Clips, embed
from tarq.reports.evaluated import SpeechBySet
from tarq.reports.panel import Panel, Report
from tarq.reports.results import check_evaluation, failing, read
from tarq.reports.statistics import merged

PAGE, SUMMARY = "report.html", "report.md"
COMPARED = "Quantized models compared"


@dataclass(frozen=True)
class Written:
    """Where a report is, and what it leaves out."""

    page: Path
    summary: Path
    absent: list[str]


@checked_arguments()
def write_report(
    results: Sequence[str | Path],
    out: str | Path,
    *,
    audio: bool = True,
    data: Sequence[str | Path] = (),
    base: str | None = None,
    title: str | None = None,
) -> Written:
    """Make ``report.html``, one self-contained page, and ``report.md`` of results files.

    Args:
        results: of one study, in one or several files, and of ``tarq evaluate --json``.
        out: folder; it is made if need be.
        audio: whether utterances in which words changed can be played in the page.
        data: speech that was scored, for transcripts and audio that the results do not hold.
        base: the arm or model that others are compared with; ``gptq`` where there is one.
        title: of the page.

    Raises:
        DataError: a file is no results file or holds something wrong (names file and key), or speech cannot be read.
        OutputError: the report cannot be written.
    """
    out = expanded(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"could not make the folder {out}: {error.strerror or error}; name another place") from error
    for name in (PAGE, SUMMARY):
        check_file(out / name)
    speech: dict[str, Utterance] = {}
    for source in data:
        own = {utterance.id: utterance for utterance in load_utterances(source)}
        if twice := next((name for name in own if name in speech), None):
            raise DataError(f"{source}: utterance {twice!r} is in other speech given, too; give one of them")
        speech |= own
    report = _report(results, speech, base, title)
    page, clips = _page(report, audio)
    summary = markdown.summary(report)
    write_whole(out / PAGE, page)
    write_whole(out / SUMMARY, summary)
    return Written(out / PAGE, out / SUMMARY, report.lines("absent") + clips.absent)


def evaluation_page(evaluation: Mapping[str, Any], speech: SpeechBySet, title: str | None = None) -> str:
    """The page of what ``tarq evaluate`` found, as its ``--json`` writes it.

    Raises:
        DataError: it holds something wrong.
    """
    whole = dict(evaluation)
    check_evaluation(whole, failing("the evaluation"))
    found = evaluated.panels(whole, speech)
    return _page(Report(title or COMPARED, found, evaluated.INTERVALS, evaluated.origin(whole, [])), audio=True)[0]


def _report(
    files: Sequence[str | Path], speech: Mapping[str, Utterance], base: str | None, title: str | None
) -> Report:
    if not files:
        raise DataError("no results files to report on: give at least one")
    found = [(str(file), *read(file)) for file in files]
    kinds = {kind for _, kind, _ in found}
    if len(kinds) > 1:
        raise DataError(
            "a study's results and those of tarq evaluate do not go on one page: their intervals cover different "
            "things; make a report of each"
        )
    names = [Path(file).name for file, _, _ in found]
    folder = Path(files[0]).parent
    if kinds == {"study"}:
        whole = merged([results for _, _, results in found])
        panels = study.panels(whole, folder, speech, base)
        title = title or whole["settings"].get("title") or "What quantization costs rare words"
        return Report(str(title), panels, study.INTERVALS, study.origin(whole, names))
    panels = [panel for _, _, results in found for panel in evaluated.panels(results, {"": speech}, base)]
    origin = evaluated.origin(found[0][2], names)
    return Report(title or COMPARED, panels, evaluated.INTERVALS, origin)


def _page(report: Report, audio: bool) -> tuple[str, Clips]:
    shown: list[tuple[Panel, list[str]]] = [(p, [word.id for word in words.shown_words(p)]) for p in report.panels]
    clips = embed(shown) if audio else Clips(absent=["Audio: it was not asked for."])
    return html.page(report, clips), clips
