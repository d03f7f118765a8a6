"""Where each key and value of a TOML text stands, which tomllib does not tell."""

from __future__ import annotations

import contextlib
import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field

# tomlkit has no positions either (python-poetry/tomlkit#55); a second parser would be a second
# opinion on what the text says. This only finds offsets, in text that tomllib has accepted or up to
# the fault it named, and tests compare its paths with tomllib's.

Key = str | int
Location = tuple[Key, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\r\n]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'  # up to two quotes may touch the closing three
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


@dataclass
class Locations:
    """Offsets of keys and values by their path, such as ("axes", "seq_lens", 2)."""

    text: str
    keys: dict[Location, int] = field(default_factory=dict)
    values: dict[Location, int] = field(default_factory=dict)
    # The first key that was given twice: its path and the offsets of both.
    repeated: tuple[Location, int, int] | None = None

    def __post_init__(self) -> None:
        self._line_starts = [0] + [found.end() for found in re.finditer("\n", self.text)]

    def line_column(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both counted from 1."""
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def of_value(self, path: Location) -> tuple[int, int]:
        """Where a value stands, or else the nearest thing around it."""
        while path:
            if path in self.values:
                return self.line_column(self.values[path])
            if path in self.keys:
                return self.line_column(self.keys[path])
            path = path[:-1]
        return 1, 1

    def of_key(self, path: Location) -> tuple[int, int]:
        """Where a key stands (a section's header for a section), or else what is around it."""
        if path in self.keys:
            return self.line_column(self.keys[path])
        return self.of_value(path)


class _Fault(Exception):
    """The text stops being TOML here."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = Locations(text)
        self.array_tables: dict[Location, int] = {}

    def scan(self) -> None:
        table: Location = ()
        while self._blank():
            if self.text.startswith("[[", self.at):
                table = self._header("[[", "]]")
            elif self.text[self.at] == "[":
                table = self._header("[", "]")
            else:
                self._pair(table)

    def _blank(self) -> bool:
        """Step over blanks and comments; False at the end of the text."""
        match = _BLANK.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at < len(self.text)

    def _spaces(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\t"):
            self.at += 1

    def _step(self, sign: str) -> None:
        if not self.text.startswith(sign, self.at):
            raise _Fault
        self.at += len(sign)

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise _Fault
        self.at = match.end()
        return match.group()

    def _key(self) -> list[tuple[str, int]]:
        parts = []
        while True:
            self._spaces()
            start = self.at
            if self.text[start : start + 1] in ("'", '"'):
                token = self._string()
                name = str(tomllib.loads(f"key = {token}")["key"])
            else:
                match = BARE_KEY.match(self.text, start)
                if match is None:
                    raise _Fault
                self.at, name = match.end(), match.group()
            parts.append((name, start))
            self._spaces()
            if self.text[self.at : self.at + 1] != ".":
                return parts
            self.at += 1

    def _descend(self, path: Location, name: str, offset: int) -> Location:
        """The path of a table inside `path`, the last element for an array of tables."""
        path = (*path, name)
        self.found.keys.setdefault(path, offset)
        if path in self.array_tables:
            path = (*path, self.array_tables[path] - 1)
        return path

    def _header(self, opening: str, closing: str) -> Location:
        start = self.at
        self._step(opening)
        *outer, (name, _) = self._key()
        self._step(closing)
        path: Location = ()
        for part, _ in outer:
            path = self._descend(path, part, start)
        path = (*path, name)
        if opening == "[[":
            index = self.array_tables.get(path, 0)
            self.array_tables[path] = index + 1
            self.found.keys.setdefault(path, start)
            path = (*path, index)
        elif path in self.found.values:
            self._repeat(path, start)
        self.found.keys.setdefault(path, start)
        self.found.values[path] = start
        return path

    def _pair(self, table: Location) -> None:
        *outer, (name, name_at) = self._key()
        for part, offset in outer:
            table = self._descend(table, part, offset)
        path = (*table, name)
        if path in self.found.keys:
            self._repeat(path, name_at)
        self.found.keys.setdefault(path, name_at)
        self._step("=")
        self._spaces()
        self._value(path)

    def _repeat(self, path: Location, offset: int) -> None:
        if self.found.repeated is None:
            self.found.repeated = (path, self.found.keys[path], offset)

    def _value(self, path: Location) -> None:
        self.found.values.setdefault(path, self.at)
        sign = self.text[self.at : self.at + 1]
        if sign == "[":
            self._array(path)
        elif sign == "{":
            self._inline_table(path)
        elif sign in ("'", '"'):
            self._string()
        else:
            match = _SCALAR.match(self.text, self.at)
            if match is None:
                raise _Fault
            self.at = match.end()

    def _array(self, path: Location) -> None:
        self._step("[")
        index = 0
        while self._blank() and self.text[self.at] != "]":
            self._value((*path, index))
            index += 1
            self._blank()
            if not self.text.startswith("]", self.at):
                self._step(",")
        self._step("]")

    def _inline_table(self, path: Location) -> None:
        self._step("{")
        self._spaces()
        while self.text[self.at : self.at + 1] != "}":
            self._pair(path)
            self._spaces()
            if not self.text.startswith("}", self.at):
                self._step(",")
        self._step("}")


def locate(text: str) -> Locations:
    """Where keys and values stand, up to the end of the text or its first fault."""
    scanner = _Scanner(text)
    with contextlib.suppress(_Fault, tomllib.TOMLDecodeError):
        scanner.scan()
    return scanner.found
