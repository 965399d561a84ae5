"""What experiments and benchmarks do with their results: keep them with what made them."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def record(
    script: str,
    *,
    seeds: Sequence[int],
    settings: dict[str, Any],
    results: Any,
    packages: Sequence[str] = ("torch",),
    versions: dict[str, str] | None = None,
    machine: dict[str, Any] | None = None,
) -> None:
    """Write `results/<script>.json`, which a page plots.

    Args:
        script: its `__file__`.
        seeds: of its runs.
        settings: what it was run with: sizes, steps, rates.
        results: what it found, as plain data.
        packages: those whose versions may matter; the Python's is always kept.
        versions: further versions, by name.
        machine: what else is to be known about the machine, besides the number of its cores.
    """
    name, folder = Path(script).stem, Path(script).resolve().parent
    kept = {
        "script": f"{folder.name}/{name}.py",
        "seeds": list(seeds),
        "versions": {
            "python": platform.python_version(),
            # of a build such as 2.13.0+cpu, the release
            **{package: version(package).split("+")[0] for package in packages},
            **(versions or {}),
        },
        "machine": {"cores": os.cpu_count(), **(machine or {})},
        "date": datetime.date.today().isoformat(),
        "settings": settings,
        "results": results,
    }
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path.name}")
