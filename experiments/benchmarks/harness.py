"""What the benchmarks share: sides that take turns, peers that may be missing, results with their circumstances."""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from infoscope.runtime.environment import describe_environment

RESULTS = Path(__file__).parent / "results"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the figures and the hardware to results/")
    parser.add_argument("--tiny", action="store_true", help="take a second, and tell no more than that it runs")
    return parser


def find_peer(module: str) -> Any | None:
    """Return the module of another project, or None where it is not installed, which is said."""
    try:
        return import_module(module)
    except ImportError:
        print(f"{module} is not installed, its rows are missing: pip install -e '.[bench]', or make bench")
        return None


def take_turns(sides: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the seconds of every run of each side: one after the other in turns, so that a busy machine slows all.

    Args:
        warmup: runs of each side before those that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + warmup):
        for name, run in sides.items():
            wait_for_device()
            start = time.perf_counter()
            run()
            wait_for_device()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[warmup:] for name, values in seconds.items()}


def wait_for_device() -> None:
    """Wait until a CUDA device has done what was asked of it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def make_rows(seconds: Mapping[str, list[float]], n_items: int, unit: str) -> list[dict[str, Any]]:
    """Return a row per side: median and best seconds, items per second by the median."""
    return [
        {
            "side": name,
            "median_s": statistics.median(values),
            "best_s": min(values),
            f"{unit}_per_s": n_items / statistics.median(values),
        }
        for name, values in seconds.items()
    ]


def print_rows(rows: list[dict[str, Any]], title: str) -> None:
    """Print one line per row; whatever is a number is aligned."""
    print(title)
    names = [name for name in rows[0] if name != "side"]
    width = max(len(row["side"]) for row in rows)
    print(" " * width, *(f"{name:>18}" for name in names))
    for row in rows:
        print(f"{row['side']:{width}}", *(f"{row[name]:>18,.6g}" for name in names))


def save(name: str, options: argparse.Namespace, **results: Any) -> None:
    """Write results, settings, hardware, versions and date to results/<name>-<device>.json."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    settings = {key: value for key, value in settings.items() if key not in ("save", "tiny")}
    found = dict(describe_environment())
    found["versions"] = found["versions"] | _list_peers()
    content = {"settings": settings, **found, "date": datetime.date.today().isoformat(), **results}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{options.device}.json"
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"saved to {file}")


def _list_peers() -> dict[str, str]:
    found = {}
    for name in ("triton", "sae-lens", "eai-sparsify", "dictionary-learning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
