"""Shards: which parts of a run one of several processes computes, and how that is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sweep.errors import SpecError


@dataclass(frozen=True)
class Shard:
    """The parts of a run whose number leaves `index` when divided by `count`; 0 <= index < count.

    Neighbouring parts go to different shards: they are of related models and take about as long, so
    shards take about as long as each other.
    """

    index: int
    count: int

    def __str__(self) -> str:
        """As it is given on the command line."""
        return f"{self.index}/{self.count}"

    @property
    def tag(self) -> str:
        """The same as a piece of a file name."""
        return f"{self.index}-of-{self.count}"

    def parts(self, part_count: int) -> range:
        """The numbers of its parts, ascending; none if there are more shards than parts."""
        return range(self.index, part_count, self.count)


def parse_shard(text: str) -> Shard:
    """A shard from `i/n`. Raises SpecError that says how shards are counted."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
    if not found:
        raise SpecError(f"found {text!r}, allowed i/n, such as 0/8 for the first of 8 shards")
    index, count = int(found[1]), int(found[2])
    if not count:
        raise SpecError(f"found {text!r}: there is at least one shard; 0/1 is the only one of 1")
    if index >= count:
        raise SpecError(
            f"found {text!r}: shards are counted from 0, so {count} of them are 0/{count} to "
            f"{count - 1}/{count}"
        )
    return Shard(index, count)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in words, those in a row as a range: `0-3, 7, 9-12`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
