"""Where in a backbone tokens are read and edited: the block, and the place in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infoscope.runtime.errors import InputError

RESID_POST = "resid_post"
"""The residual stream after a block."""
POST_NORM = "post_norm"
"""The same after the last block, through the tower's final norm: what DINOv2's get_intermediate_layers gives."""
POOLED = "pooled"
"""What the tower makes of an image: one vector, pooled and projected (a CLIP's image embedding, before it is
normalised)."""
PROJECTED = "projected"
"""What the tower would make of each patch alone: the last block's patches, one by one in the place of all tokens,
through the final norm, pooling and projection. Ours: it lets an SAE of pooled vectors read patches."""
SITES = (RESID_POST, POST_NORM, POOLED, PROJECTED)
AT_END = (POOLED, PROJECTED)
"""Sites behind the whole tower, whatever block is asked for."""


@dataclass(frozen=True)
class HookPoint:
    """A place in a backbone.

    layer: the block, 0-based, negative from the end.
    site: one of `SITES`.

    Raises:
        InputError: another site.
    """

    layer: int
    site: str = RESID_POST

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise InputError(
                f"Expected tokens to be read at {RESID_POST}, the residual stream after a block, {POST_NORM}, after the"
                f" last block and the final norm, {POOLED}, the image embedding, or {PROJECTED}, each patch as it would"
                f" be embedded, got {self.site!r}: no other site is supported."
            )

    def key(self) -> dict[str, Any]:
        """Return its part of an artifact's key; the site is named where it is another than `RESID_POST`.

        Keys hold a hook that counts from the end, see `count_from_end`.
        """
        return {"layer": self.layer} if self.site == RESID_POST else {"layer": self.layer, "site": self.site}

    def count_from_end(self, n_layers: int) -> HookPoint:
        """Return it in a model with so many blocks, the block counted from the end: -1 is the last.

        So it stands in keys: one block has one number there, however it was written.

        Raises:
            InputError: if the block does not exist.
        """
        return HookPoint(self.check(n_layers).layer - n_layers, self.site)

    def check(self, n_layers: int) -> HookPoint:
        """Return it in a model with so many blocks, the block counted from 0.

        Raises:
            InputError: if the block does not exist.
        """
        if not -n_layers <= self.layer < n_layers:
            raise InputError(
                f"Expected model.layer in {-n_layers}..{n_layers - 1} (the model has {n_layers}"
                f" block{'s' * (n_layers != 1)}), got {self.layer}."
            )
        if self.site != RESID_POST and self.layer % n_layers != n_layers - 1:
            raise InputError(
                f"Expected model.layer=-1 with model.site={self.site}, which lies behind the last block, got"
                f" {self.layer}."
            )
        return HookPoint(self.layer % n_layers, self.site)
