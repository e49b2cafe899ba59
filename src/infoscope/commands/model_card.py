"""The model card of an SAE on the Hugging Face hub: what it is, how to load it, and what was measured of it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infoscope.runtime.errors import InputError
from infoscope.sae.describing import describe
from infoscope.sae.model import SparseAutoencoder
from infoscope.stages.score.tables import make_sae_table
from infoscope.vision.hooks import RESID_POST

TABLES = ("scope", "removal")
"""Of a report: scope and the SAE's own metrics; probes with groups of features removed."""
_CONTEXT = ("model", "data", "SAE", "scope", "software")
"""What a report says of its run, but for the machine."""
_FRONT = """---
library_name: infoscope
tags:
- sparse-autoencoder
- interpretability
- vision
# license: none is given: choose one, https://huggingface.co/docs/hub/repositories-licenses
---
"""


def make_card(sae: SparseAutoencoder, repo: str, mark: str, metrics: Mapping[str, float], report: Path | None) -> str:
    """Return the text of a README.md.

    Args:
        mark: stands in a comment, so that a card that was changed by hand is known to be this SAE's.
        metrics: the SAE's own, such as fvu; used where there is no report.
        report: the folder of a report on it.

    Raises:
        InputError: the report lacks its files, or they are damaged.
    """
    return "\n".join(
        [_FRONT, mark, "", f"# {repo}", "", *_describe(sae), *_explain(sae, repo), *_measure(metrics, report)]
    )


def _describe(sae: SparseAutoencoder) -> Iterator[str]:
    yield f"A sparse autoencoder of {sae.d_sae:,} latents on tokens of width {sae.d_in:,} of a vision model."
    yield from ("", "| | |", "| :--- | :--- |")
    for heading, words in describe(sae).items():
        if heading != "maps":  # of infoscope's own affairs
            yield f"| {heading} | {'<br>'.join(map(_escape, words.splitlines()))} |"


def _escape(words: str) -> str:
    """Return words, of strangers too, as Markdown shows them: no HTML, link, table or emphasis is made of them."""
    marks = r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|_(?=_)|(?<=_)_|(?<=:)/"
    return re.sub(marks, r"\\\g<0>", html.escape(words, quote=False))


def _explain(sae: SparseAutoencoder, repo: str) -> Iterator[str]:
    layer, site = sae.origin.layer, sae.origin.site
    place = "the residual stream after" if site in (None, RESID_POST) else f"{site} of"
    where = "" if layer is None else f", {place} block {layer}"
    yield f"""
## How to load it

```python
import infoscope

sae = infoscope.load_sae("hf:{repo}")
z = sae.encode(tokens)  # [..., {sae.d_sae}] of tokens [..., {sae.d_in}]{where}
x_hat = sae(tokens).x_hat
```

On the command line: `infoscope sae=import sae.path=hf:{repo}` with the model that it was trained on.
"""


def _measure(metrics: Mapping[str, float], report: Path | None) -> Iterator[str]:
    """Yield the numbers of a report as they stand in it, or else the SAE's own metrics."""
    if report is not None:
        yield "## What was measured"
        yield ""
        yield "By infoscope: how far the activation of each feature moves with the context of a picture (CDS)."
        yield ""
        yield from (f"- {name}: {_escape(words)}" for name, words in _read_context(report).items())
        for name in TABLES:
            file = report / "tables" / f"{name}.md"
            if file.is_file():
                yield from ("", file.read_text(encoding="utf-8").strip())
        yield ""
    elif metrics:
        yield "## What was measured"
        yield ""
        yield make_sae_table({0: metrics}).to_markdown()


def _read_context(report: Path) -> dict[str, str]:
    file = report / "summary.json"
    try:
        context: Any = json.loads(file.read_text(encoding="utf-8"))["context"]
        return {name: str(context[name]) for name in _CONTEXT if name in context}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Expected report= to be the folder of a report, with its summary.json; got {report}."
        ) from error
