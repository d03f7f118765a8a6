"""Reading a config.json value by value: what is missing or wrong is collected, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.catalogs.model_columns import MODEL_COLUMNS
from sweep.catalogs.tables import Column

_COLUMNS = {column.name: column for column in MODEL_COLUMNS}


@dataclass(frozen=True)
class Finding:
    """One fault of a config: the key, what stands there, what would be allowed."""

    key: str
    found: str
    allowed: str


@dataclass
class Findings:
    """The faults found so far; missing keys apart, since they are told all at once."""

    faults: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class ConfigReader:
    """One object of a config.json, read under the name of the Model field a value is for.

    A value that is missing or wrong is noted in `findings` and replaced by a harmless one, so that
    reading goes on and every fault is told together.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str, findings: Findings) -> None:
        self._values = values
        self._prefix = prefix
        self.findings = findings

    def has(self, *keys: str) -> bool:
        """Whether one of the keys stands there with a value."""
        return self._first(keys)[1] is not None

    def is_null(self, key: str) -> bool:
        """Whether the key stands there as null, which is not the same as absent."""
        return key in self._values and self._values[key] is None

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigReader:
        """The same object with values for keys it does not have."""
        return ConfigReader({**defaults, **self._values}, self._prefix, self.findings)

    def _first(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        for key in keys:
            if self._values.get(key) is not None:
                return key, self._values[key]
        return keys[0], None

    def fault(self, key: str, found: object, allowed: str) -> None:
        """Note a value that cannot be used."""
        self.findings.faults.append(Finding(self._prefix + key, repr(found), allowed))

    def size(self, column: str, *keys: str, default: int | None = None) -> int:
        """A whole number in the column's range; noted as missing where there is no default."""
        found = self.optional(column, *keys)
        if found is not None:
            return found
        key, value = self._first(keys or (column,))
        if value is not None:
            return 1
        if default is None:
            self.findings.missing.append(self._prefix + key)
            return 1
        return default

    def optional(self, column: str, *keys: str) -> int | None:
        """A whole number in the column's range, or None where the key is absent or null."""
        key, value = self._first(keys or (column,))
        if value is None:
            return None
        bounds: Column = _COLUMNS[column]
        allowed = f"a whole number from {bounds.low:g} to {bounds.high:g}"
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, value, allowed)
            return None
        if not bounds.low <= value <= bounds.high:
            self.fault(key, value, allowed)
            return None
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(key, value, "true or false")
            return default
        return value

    def word(self, key: str) -> str | None:
        """A text, or None where the key is absent or null."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            self.fault(key, value, "a text")
            return None
        return value

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers from 0, or None where the key is absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        good = isinstance(value, list) and all(
            isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
        )
        if not good:
            self.fault(key, value, "a list of whole numbers from 0")
            return None
        return tuple(value)

    def words(self, key: str) -> tuple[str, ...] | None:
        """A list of texts, or None where the key is absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(key, value, "a list of texts")
            return None
        return tuple(value)

    def square(self, column: str, key: str, default: int | None = None) -> int:
        """A whole number that may be written as an edge twice: 448 or [448, 448]."""
        value = self._values.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            inner = ConfigReader({key: value[0]}, self._prefix, self.findings)
            return inner.size(column, key, default=default)
        return self.size(column, key, default=default)

    def length(self, column: str, key: str, default: int) -> int:
        """How many items a list has."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            self.fault(key, value, "a list")
            return default
        inner = ConfigReader({key: len(value)}, self._prefix, self.findings)
        return inner.size(column, key, default=default)

    def section(self, key: str) -> ConfigReader | None:
        """A nested object, or None where it is absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fault(key, value, "an object")
            return None
        return ConfigReader(value, f"{self._prefix}{key}.", self.findings)

    def refuse(self, key: str, default: object, reason: str) -> None:
        """Note a value other than the one this engine describes."""
        value = self._values.get(key)
        if value is not None and value != default:
            self.fault(key, value, f"{default!r}: {reason}")
