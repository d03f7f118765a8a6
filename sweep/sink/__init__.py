"""Arrays of the kernels to files: Parquet parts with receipts, tables, and the manifest last."""

from sweep.sink.folder import is_begun, part_file, receipt_file, require_same_run
from sweep.sink.run import Incomplete, Run, open_run

__all__ = [
    "Incomplete",
    "Run",
    "is_begun",
    "open_run",
    "part_file",
    "receipt_file",
    "require_same_run",
]
