"""Arrays of the kernels to files: Parquet parts with receipts, tables, and the manifest last."""

from sweep.sink.folder import part_file, receipt_file
from sweep.sink.run import Run, open_run

__all__ = ["Run", "open_run", "part_file", "receipt_file"]
