"""How far a run is, with its rate and what is left: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from sweep.units import format_count, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# Between two lines where there is no terminal [s]: enough to see that it lives, few enough for a log.
LINE_EVERY_S = 10.0


class Progress:
    """Called with (decided, in all); draws on `stream`, or not at all.

    `rate_per_s` is the average since the first call [scenarios/s], 0 while nothing has been decided;
    what was decided before that call does not count.
    """

    def __init__(self, stream: TextIO | None, *, color: bool = True) -> None:
        self._stream = stream
        self._color = color
        self._bar: Bar | None = None
        self._started: float | None = None
        self._ended = 0.0
        self._last_line = 0.0
        self._said = -1
        self.before = 0
        self.done = 0
        self.total = 0

    def __enter__(self) -> Self:
        if self._stream is not None and self._stream.isatty():
            self._bar = _make_bar(self._stream, self._color)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.total and self._said != self.done:
            self._line()

    def __call__(self, done: int, total: int) -> None:
        """Take note of how far the run is."""
        now = time.monotonic()
        if self._started is None:
            self._started = self._last_line = now
            self.before = done
        self.done, self.total, self._ended = done, total, now
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task("deciding", total=total, completed=done, rate="", left="")
            rate = f"{format_count(self.rate_per_s)}/s" if self.rate_per_s else ""
            self._bar.update(self._bar.tasks[0].id, completed=done, rate=rate, left=self._left())
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._line()

    @property
    def seconds(self) -> float:
        """From the first call to the last [s]."""
        return 0.0 if self._started is None else self._ended - self._started

    @property
    def rate_per_s(self) -> float:
        """Scenarios decided per second since the first call."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    def _left(self) -> str:
        if not self.rate_per_s or self.done >= self.total:
            return ""
        return f"{format_seconds((self.total - self.done) / self.rate_per_s)} left"

    def _line(self) -> None:
        if self._stream is None:
            return
        self._said = self.done
        share = self.done / self.total if self.total else 1.0
        parts = [f"{share:4.0%}  {self.done:,} of {self.total:,} scenarios"]
        if self.rate_per_s:
            parts.append(f"{format_count(self.rate_per_s)}/s")
        if left := self._left():
            parts.append(left)
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()


def _make_bar(stream: TextIO, color: bool) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(file=stream, color_system="auto" if color else None)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        refresh_per_second=5,
    )
