"""The feature-removal table: what classification, segmentation and depth lose without high- or low-scope features.

    python experiments/feature_removal.py                                  # the miniature: scenes and their own CLIP
    python experiments/feature_removal.py partition.gamma=0.05,0.1,0.2     # one table per gamma
    python experiments/feature_removal.py scope.k_cds=4,8

Arguments are overrides of the `infoscope` command; values with commas are a sweep. What a run shares with an earlier
one (model, SAEs, scores) is reused.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from pathlib import Path

from infoscope.config import compose
from infoscope.errors import InputError
from infoscope.pipeline import run

SWEEP = ["stage=report"]
"""The command: `infoscope stage=report`, with three SAE seeds by default."""

NOT_IN_BRACKETS = r",(?![^\[\](){}]*[\])}])"


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """Return one list of overrides per combination of the values given with commas.

    >>> expand_sweep(["scope.k_cds=4,8", "seeds=[0,1]"])
    [['scope.k_cds=4', 'seeds=[0,1]'], ['scope.k_cds=8', 'seeds=[0,1]']]
    """
    choices = []
    for override in overrides:
        key, equals, values = override.partition("=")
        choices.append([f"{key}{equals}{value}" for value in re.split(NOT_IN_BRACKETS, values)])
    return [list(combination) for combination in itertools.product(*choices)]


def collect_table(overrides: list[str]) -> Path:
    """Run one combination and copy its table (md, csv, tex) to where the experiment's tables lie; return the folder."""
    config = compose([*SWEEP, *overrides])
    files = run(config)
    if "removal" not in files.tables:
        raise InputError(
            "Expected a data set with labels, got one without: no probe can be trained, choose another data=."
        )
    name = re.sub(r"[^\w.=-]+", "_", ",".join(sorted(overrides))) or "default"
    folder = Path(config.output_dir) / "experiments" / "feature_removal" / name
    folder.mkdir(parents=True, exist_ok=True)
    for table in ("removal", "removal_delta"):
        for path in files.tables[table].values():
            shutil.copy2(path, folder / path.name)
    return folder


def main(arguments: list[str]) -> int:
    """Run every combination and print its table; return the exit code (2: something a user can mend)."""
    try:
        for overrides in expand_sweep(arguments):
            folder = collect_table(overrides)
            print(f"\n{' '.join(['infoscope', *SWEEP, *overrides])}\n")
            print((folder / "removal.md").read_text(encoding="utf-8"))
            print(f"Tables: {folder}")
    except InputError as error:
        print(f"feature_removal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
