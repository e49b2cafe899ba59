"""The whole chain as small as it goes, and what its runs must agree in."""

from __future__ import annotations

import json
from pathlib import Path

from infoscope.runtime.manifests import CONFIG

TINY = [
    "debug=tiny",
    "stage=probe",
    "logger=none",
    "data.n_train=48",
    "data.n_test=24",
    "sae.n_tokens=60000",
    "sae.checkpoint_every_n_steps=2",
    "scope.k_cds=2",
    "scope.k_max=2",
    "probe.n_draws=0",
    "probe.n_dense_train_images=24",
    "probe.variants_per_chunk=3",
    "trainer.save_every_s=0",
    "trainer.n_threads=1",
    "trainer.progress=false",
]


def read_checksums(output_dir: Path) -> dict[str, dict]:
    """{"stage/hash": {file: checksum}}, from the manifests; the copy of the configuration, which names folders, aside.

    Names are for display: two jobs may give the same heads different ones.
    """
    found = {}
    for manifest in (output_dir / "artifacts").glob("*/*/manifest.json"):
        if not manifest.parent.name.startswith("."):
            content = json.loads(manifest.read_text())
            del content["files"][CONFIG]
            found[f"{content['stage']}/{content['hash']}"] = content["files"]
    return found
