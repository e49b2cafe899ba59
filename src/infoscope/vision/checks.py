"""What must hold of tensors on a GPU, asked for when one waits for the GPU anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from infoscope.runtime.errors import InputError


class LaterChecks:
    """Conditions on tensors. One on the CPU is looked at at once, for that costs nothing; one on a GPU when asked."""

    def __init__(self) -> None:
        self._met: dict[str, Tensor] = {}

    def require(self, is_met: Bool[Tensor, ""], message: str) -> None:
        """Note a condition, and what is wrong where it is not met.

        Raises:
            InputError: it is on the CPU and not met.
        """
        if is_met.device.type == "cpu":
            raise_unmet([message], is_met[None])
        else:
            self._met[message] = self._met[message] & is_met if message in self._met else is_met

    def take(self) -> tuple[list[str], Bool[Tensor, " n_messages"]]:
        """Return the messages noted so far and, on their device, whether each condition was met; and forget them."""
        met, self._met = self._met, {}
        return list(met), torch.stack(list(met.values())) if met else torch.empty(0, dtype=torch.bool)

    def ask(self) -> None:
        """Wait for the device, and raise the first condition noted so far that was not met.

        Raises:
            InputError: such a condition.
        """
        raise_unmet(*self.take())


def is_finite(values: Float[Tensor, "..."]) -> Bool[Tensor, ""]:
    """Return, on their device, whether no value is NaN or infinite: the largest or the smallest would be so too."""
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=values.device)
    # aminmax reads once what two reductions read twice, but it copies first what does not lie together
    both = torch.aminmax(values) if values.is_contiguous() else (values.amin(), values.amax())
    return torch.isfinite(both[0]) & torch.isfinite(both[1])


def raise_unmet(messages: Sequence[str], met: Bool[Tensor, " n_messages"]) -> None:
    """Raise the first message whose condition was not met.

    Raises:
        InputError: there is one.
    """
    for message, is_met in zip(messages, met.tolist(), strict=True):
        if not is_met:
            raise InputError(message)
