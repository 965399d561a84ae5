"""What every experiment does with its results: keep them with what made them."""

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
    """Write `results/<script>.json`, which the chapter plots.

    Args:
        script: the experiment's `__file__`.
        seeds: of its runs.
        settings: what it was run with: sizes, steps, rates.
        results: what it found, as plain data.
        packages: those whose versions may matter; the Python's is always kept.
        versions: further versions, by name.
        machine: what else is to be known about the machine, besides the number of its cores.
    """
    name = Path(script).stem
    kept = {
        "script": f"experiments/{name}.py",
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
    path = Path(script).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path.name}")
