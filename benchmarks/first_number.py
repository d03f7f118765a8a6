"""`python first_number.py SPEC`: from the first import to the first decided numbers, as JSON.

Prints seconds by phase and a hash of the numbers.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

marks = [time.perf_counter()]

from sweep import engine  # noqa: E402
from sweep.catalogs import load_catalogs  # noqa: E402
from sweep.plan import build_plan  # noqa: E402
from sweep.spec import load_spec  # noqa: E402

marks.append(time.perf_counter())
spec, catalogs = load_spec(Path(sys.argv[1])), load_catalogs()
marks.append(time.perf_counter())
plan = build_plan(spec, catalogs)
marks.append(time.perf_counter())
rows = engine.decide_pairs(plan, 0, 1)
marks.append(time.perf_counter())

phases = ("imports_s", "catalogs_s", "plan_s", "decide_s")
digest = hashlib.sha256(b"".join(column.tobytes() for column in rows.values())).hexdigest()
seconds = {
    name: after - before for name, before, after in zip(phases, marks, marks[1:], strict=False)
}
print(json.dumps({**seconds, "sha256": digest}))
