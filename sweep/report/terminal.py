"""A ranking as lines for a terminal, a pipe or a file: rows in, text out; no SQL, no arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sweep.report.words import (
    count_of,
    data_size,
    gib,
    hours,
    hours_in_words,
    knob_words,
    limit_in_words,
    machine,
    money,
    needs,
    percent_more,
    rented,
    tokens,
)

if TYPE_CHECKING:
    from sweep.ranking import Answer, Ranking

Row = Mapping[str, Any]
# Up to this many questions are shown in full, more as a list.
MOST_CARDS = 4
# Questions shown at most; beyond that, filters serve better than scrolling.
MOST_LISTED = 200
_INDENT = "        "
