"""Attention for CLS alone: all that the last block of a CLS-pooled transformer is needed for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attend_for_cls(
    normed: Float[Tensor, "batch n_tokens d_in"],
    weight: Float[Tensor, "three_d d_in"],
    bias: Float[Tensor, " three_d"] | None,
    n_heads: int,
) -> Float[Tensor, "batch d"]:
    """Return what self-attention answers the first token, before the output projection.

    Keys and values of all tokens are never formed: the query goes through W_k once, and the attended mean of the
    tokens through W_v once, which is the same by linearity (b_k moves all scores alike, and softmax ignores it).

    Args:
        normed: the tokens as attention sees them, after LayerNorm.
        weight, bias: of queries, keys and values, stacked in this order, each head by head.
    """
    d, d_in = weight.shape[0] // 3, normed.shape[-1]
    width = d // n_heads
    w_q, w_k, w_v = weight.chunk(3)
    b_q, _, b_v = (None, None, None) if bias is None else bias.chunk(3)
    query = F.linear(normed[:, 0], w_q, b_q).view(-1, n_heads, width) / width**0.5
    asked = torch.einsum("bhw,hwd->bhd", query, w_k.view(n_heads, width, d_in))
    share = torch.softmax(asked @ normed.transpose(1, 2), dim=-1)
    answer = torch.einsum("bhd,hwd->bhw", share @ normed, w_v.view(n_heads, width, d_in)).flatten(1)
    return answer if b_v is None else answer + b_v
