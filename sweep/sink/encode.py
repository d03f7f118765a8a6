"""Columns of a table as the bytes of a Parquet file that depend on nothing else."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweep.columns import FACTS, NO_KNOB, arrow_schema
from sweep.manifest import Entry

Columns = Mapping[str, Any]
# Rows of a row group: small enough that a question's rows are found without reading a part whole.
ROW_GROUP_ROWS = 1 << 18
# Up to here a byte per possible id is quicker than sorting the ids.
_DENSE_IDS = 1 << 24


def encode(name: str, file: str, columns: Columns) -> tuple[Any, Entry]:
    """The file of a table and what a manifest says of it. Raises ValueError for other columns."""
    schema = arrow_schema(name)
    if set(columns) != set(schema.names):
        odd = sorted(set(columns) ^ set(schema.names))
        raise ValueError(f"{name}: columns missing or unknown: {', '.join(odd)}")
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"{name}.{field.name}: has nulls")
    stream = pa.BufferOutputStream()
    pq.write_table(
        table,
        stream,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        compression_level=1,
        # Facts are numbers that zstd packs as well without, in half the time.
        use_dictionary=name != FACTS,
        write_statistics=True,
    )
    data = stream.getvalue()
    digest = hashlib.sha256(memoryview(data)).hexdigest()
    return data, Entry(file, table.num_rows, data.size, digest)


def pack_ids(ids: np.ndarray) -> str:
    """The set of ids as text: ascending differences, compressed. NO_KNOB is left out."""
    ids = np.asarray(ids)
    ids = ids[ids != NO_KNOB]
    if len(ids) and int(ids.max()) < _DENSE_IDS:
        seen = np.zeros(int(ids.max()) + 1, dtype=bool)
        seen[ids] = True
        ids = np.flatnonzero(seen)
    else:
        ids = np.unique(ids)
    steps = np.diff(ids, prepend=0).astype("<u4")
    return base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode()


def unpack_ids(text: str) -> np.ndarray:
    """The ids of `pack_ids`, ascending."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<u4")
    return np.cumsum(steps, dtype=np.int64).astype(np.uint32)
