"""Progress on standard error: bars on a terminal, otherwise an occasional line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from tarq.report import LayerReport, Reporter
from tarq.terminal.console import progress_console
from tarq.terminal.logfile import RunLog

#: Seconds between lines without a terminal.
INTERVAL = 20.0
#: Characters a phase's name may take, so that bar, count and time stay on a terminal of 80.
PHASE_WIDTH = 34


class _CountColumn(ProgressColumn):
    """``12/65``; empty if the number of steps is unknown."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")


class _RemainingColumn(ProgressColumn):
    """Time remaining, estimated from all steps so far."""

    def render(self, task: Task) -> Text:
        left = remaining(task.completed, task.total, task.elapsed or 0.0)
        return Text("" if left is None else f"{duration(left)} left")


class TerminalReporter(Reporter):
    """Shows progress while it is open.

    Args:
        console: where to.
        log_file: a file that gets a line for everything too.
    """

    def __init__(self, console: Console | None = None, log_file: Path | None = None) -> None:
        self.log = RunLog(log_file)
        self.console = progress_console if console is None else console
        self.live = self.console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(12),
            _CountColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            _RemainingColumn(table_column=Column(no_wrap=True)),
            # The rest of the line, and no more.
            TextColumn("{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=self.console,
            transient=True,
            # Redirected results stay separate from the progress display.
            redirect_stdout=bool(sys.stdout and sys.stdout.isatty()),
            expand=True,
            disable=not self.live,
        )
        self.contexts = ExitStack()
        self.bars_off = False
        self.task = self.progress.add_task("", visible=False, detail="")
        self.text, self.done = "", 0
        self.total: int | None = None
        self.began = self.reported = time.monotonic()

    def __enter__(self) -> TerminalReporter:
        self.contexts.enter_context(self.progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.end(value)
        self.contexts.__exit__(kind, value, trace)

    def make_way(self) -> None:
        """End the display: what is printed line by line from now on shows the progress itself."""
        self.progress.stop()

    def phase(self, text: str, total: int | None = None) -> None:
        if not self.bars_off and "transformers" in sys.modules:
            self.bars_off = True
            self.contexts.enter_context(_transformers_bars_off())
        self.log.line("phase", text if total is None else f"{text} ({total})")
        self.text, self.total, self.done = text, total, 0
        self.began = self.reported = time.monotonic()
        self.progress.remove_task(self.task)
        self.task = self.progress.add_task(escape(shortened(text, PHASE_WIDTH)), total=total, detail="")
        if not self.live:
            self._line(text)

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(self.task, steps)
        self._report_periodically(steps)

    def start(self, layers: int) -> None:
        self.phase("quantizing", layers)

    def layer(self, record: LayerReport) -> None:
        self.log.layer(record)
        loss = "" if record.loss is None else f" loss {record.loss:.1e}"
        detail = f"{shortened(record.name, 26)} λ {record.lam:.2f} α {record.alpha:.2f}{loss}"
        self.progress.update(self.task, advance=1, detail=escape(detail))
        self._report_periodically(1)

    def note(self, text: str) -> None:
        self.log.line("note", text)
        self.console.print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=not self.live)

    def _report_periodically(self, steps: int) -> None:
        self.done += steps
        now = time.monotonic()
        if self.live or now - self.reported < INTERVAL:
            return
        self.reported = now
        of = f" of {self.total}" if self.total else ""
        left = remaining(self.done, self.total, now - self.began)
        about = "" if left is None else f", about {duration(left)} left"
        self._line(f"{self.text}: {self.done}{of}, {duration(now - self.began)}{about}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def remaining(done: float, total: float | None, seconds: float) -> float | None:
    """Estimated seconds for the rest at the pace so far; None if unknown, or too short to estimate."""
    left = seconds / done * (total - done) if total and done else 0.0
    return left if round(left) > 0 else None


def duration(seconds: float) -> str:
    """``12 s``, ``3:05`` (minutes), ``2:03:05`` (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shortened(text: str, width: int) -> str:
    """At most so many characters of a text: its first word and the end of the rest, which distinguishes paths."""
    if len(text) <= width:
        return text
    first, space, rest = text.partition(" ")
    start = first + space if space and len(first) < width // 2 else ""
    kept = width - len(start) - 1
    return f"{start}…{(rest if start else text)[-kept:]}"


@contextmanager
def _transformers_bars_off() -> Iterator[None]:
    """Hide transformers' bars for reading and writing weights, which would break up ours; keep those for downloads."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    shown, downloads_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # which also hides those for downloads
    if downloads_shown:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
            if not downloads_shown:
                disable_progress_bars()
