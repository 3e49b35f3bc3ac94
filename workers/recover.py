"""Bring home what a run misses: copy the tails of workers' spools into its logs and make its tables anew."""

import json
from pathlib import Path

from workers import manifest
from workers.samples.relay import copy_tail
from workers.samples.shards import seal


def recover(spools: list[Path], run_dir: Path) -> str:
    """What was done, in one line. Raises OSError or ValueError with one line."""
    try:
        facts = json.loads((run_dir / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{run_dir} is no run directory: it has no run.json") from None
    files = sorted(file for spool in spools for file in (spool.glob("*.msgpack") if spool.is_dir() else [spool]))
    if not files:
        raise ValueError(f"no *.msgpack in {', '.join(map(str, spools))}")
    copied = 0
    (run_dir / "log").mkdir(exist_ok=True)
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
        copied += copy_tail(file, run_dir / "log" / file.name)
        known = facts["workers"].get(file.stem)
        if known is not None:
            known.update(recovered=True, log_bytes=(run_dir / "log" / file.name).stat().st_size)
            if known["final_bytes"] is not None:
                known["lost_bytes"] = max(0, known["final_bytes"] - known["log_bytes"])
    manifest.write(run_dir, facts)
    seal(run_dir)
    return f"{copied} bytes copied from {len(files)} spools; read the run with: python -m analysis.report {run_dir}"
