"""`python child.py REPORT ARGUMENTS...`: run `sweep ARGUMENTS`, then write to REPORT what it used."""

import json
import re
import resource
import sys
import time
from pathlib import Path

from sweep.cli import main


def peak_bytes() -> int:
    """Peak resident memory of this process alone.

    Not ru_maxrss where it can be helped: on Linux it starts at what the parent had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


code = main(sys.argv[2:])
used = {"cpu_s": time.process_time(), "peak_bytes": peak_bytes()}
Path(sys.argv[1]).write_text(json.dumps(used))
sys.exit(code)
