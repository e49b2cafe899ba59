"""What is said of how good an SAE is, by key: the same in the collected table, the report and the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infoscope.analyses.fidelity import FidelityResult
from infoscope.analyses.progressive import MEASURES
from infoscope.analyses.quality import QualityResult
from infoscope.report.tables import PERCENT, Column, Value

COLUMNS = (
    Column("l0", "L0", digits=1),
    Column("zeros", "zeros", **PERCENT),
    Column("fvu", "FVU", digits=3),
    Column("fvu_per_token", "FVU within a token", digits=3),
    Column("cosine_raw", "cosine", digits=3),
    Column("cosine_centred", "from the mean token", digits=3, optional=True),
    Column("dead_share", "silent", **PERCENT, optional=True),
    Column("cknna", "CKNNA", digits=3),
    Column("cknna_unit", "of unit norm", digits=3, optional=True),
    Column("orthogonality", "squared cosine of decoder rows", digits=4, optional=True),
    Column("match_decoder", "cosine with other seeds", digits=3, optional=True),
    Column("accuracy", "probe", **PERCENT, optional=True),
    Column("accuracy_reconstructed", "on reconstructions", **PERCENT),
    Column("agreement", "agreement", **PERCENT),
    Column("kl_nats", "KL", digits=3, unit="nats", optional=True),
)
"""Their headings, in the order of tables; keys are those of `Measured.summary`."""


@dataclass(frozen=True)
class Measured:
    """What is known of how good the SAE of a seed is.

    matches: mean cosine of its decoder rows with those of each other seed, matched one to one.
    """

    quality: QualityResult
    fidelity: FidelityResult
    d_sae: int
    d_in: int
    matches: Sequence[float]

    @property
    def zeros(self) -> float:
        """Share of the latents that are silent on a token, mean over tokens (MSAE's L0)."""
        return 1 - self.fidelity.l0 / self.d_sae

    @property
    def summary(self) -> dict[str, Value]:
        """The numbers of `COLUMNS` by key, unscaled; NaN where there is none."""
        found = {
            "zeros": self.zeros,
            "dead_share": 1 - self.fidelity.alive_share,
            "match_decoder": float(np.mean(self.matches)) if self.matches else np.nan,
        }
        for column in COLUMNS:
            if column.key not in found:
                of = self.fidelity if column.key in MEASURES else self.quality  # which has these at each k
                found[column.key] = float(getattr(of, column.key))
        return {column.key: found[column.key] for column in COLUMNS}
