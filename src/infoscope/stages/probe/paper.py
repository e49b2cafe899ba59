"""The paper's numbers (arXiv 2604.05724), shown with ours where model and data are the paper's."""

from __future__ import annotations

from typing import NamedTuple


class PaperRow(NamedTuple):
    """ImageNet top-1 and ADE20K mIoU as shares in 0..1, NYU Depth v2 RMSE in metres."""

    top1: float
    miou: float
    rmse_m: float


PAPER_TITLES = {"clip_b16": "the paper, CLIP-B/16", "clip_l14": "the paper, CLIP-L/14"}

PAPER_VALUES: dict[str, dict[str, PaperRow]] = {
    "clip_b16": {
        "original": PaperRow(0.7482, 0.2587, 0.8841),
        "high": PaperRow(0.7554, 0.2602, 0.8616),
        "low": PaperRow(0.6486, 0.1165, 0.9481),
    },
    "clip_l14": {
        "original": PaperRow(0.8082, 0.2666, 0.8029),
        "high": PaperRow(0.8128, 0.2644, 0.7994),
        "low": PaperRow(0.7830, 0.1389, 0.8878),
    },
}
"""By model, then "original" or the group that was removed."""


class PaperActivation(NamedTuple):
    """A group's summed activation per outlier and per normal token, in the units of the paper's SAE."""

    on_outlier: float
    on_normal: float


PAPER_ACTIVATION: dict[str, dict[str, PaperActivation]] = {
    "clip_b16": {"high": PaperActivation(83.45, 1.66), "low": PaperActivation(10.39, 31.51)},
}
"""By model, then group, as we read a summary of the paper: only ratios can be compared."""
