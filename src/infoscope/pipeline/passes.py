"""Stages that are fed by a pass over tokens: what a command needs of them is measured in one reading of the tokens."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Needs, NotBuiltYet, R, SeedStage, list_needed
from infoscope.runtime import processes
from infoscope.runtime.manifests import Artifact
from infoscope.runtime.store import Workspace
from infoscope.sae.passes import Measurement, run_pass


class PassStage(SeedStage[R]):
    """A stage that needs an SAE (`sae`) and tokens (`tokens`), and measures the SAE's activations on all of them."""

    @abstractmethod
    def measure(self, ctx: Context, up: Needs, sae: Any, tokens: Any, seed: int) -> Measurement:
        """Return what a pass measures for an SAE seed; its meter's `compute` gives the result.

        Args:
            sae: the loaded SAE; all that is measured of one shares its activations.
            tokens: that the pass reads.
        """

    def log(self, found: R) -> Mapping[str, float]:
        """Return the metrics of a result that are logged."""
        return {}

    def get(self, handle: Handle[R]) -> Artifact:
        ctx = handle.ctx
        if handle.exists():
            return ctx.store.get(handle.spec)
        for _, needed in handle.needs:
            needed.make()  # a hash may depend on what a model that is made here holds
        together = _find_company(handle)
        upstream = {one.hash: {role: node.make() for role, node in one.needs} for one in together}

        def build(works: dict[str, Workspace]) -> None:
            with ctx.recorded(*(one.stage.kind for one in together if one.hash in works)):
                _measure_all(ctx, {one: works[one.hash] for one in together if one.hash in works})

        specs = {one.hash: one.spec for one in together}
        made = ctx.store.get_together(specs, build, shared=True, upstream=upstream)
        for one in together:
            one.is_known_to_exist = True
        return made[handle.hash]


def _find_company(handle: Handle) -> list[Handle]:
    """Return all that the command will ask for and that reads the same tokens: first the handle itself."""
    found = {handle.hash: handle}
    for node in list_needed(handle.ctx.goals):
        if not isinstance(node, Handle) or not isinstance(node.stage, PassStage):
            continue
        with suppress(NotBuiltYet):  # tokens of a model that has yet to be made are other ones
            if node.needs.tokens.hash == handle.needs.tokens.hash:
                found.setdefault(node.hash, node)
    return list(found.values())


def _measure_all(ctx: Context, works: Mapping[Handle, Workspace]) -> None:
    """Read the tokens once for all that is missing."""
    saes = {one.needs.sae.hash: one.needs.sae.load() for one in works}
    tokens, wanted = next(iter(works)).needs.tokens.load(), {}
    for one, work in works.items():
        sae, stage = saes[one.needs.sae.hash], one.stage
        assert isinstance(stage, PassStage)
        wanted[one] = stage.measure(ctx, one.needs, sae, tokens, *one.item).kept_in(work.progress / one.stage.kind)
    kinds = ", ".join(dict.fromkeys(one.stage.kind for one in works))
    seeds = ", ".join(dict.fromkeys(str(one.item[0]) for one in works))
    with ctx.display.bar(f"reading tokens for {kinds} of seed {seeds}", len(tokens), "images") as advance:
        start = time.perf_counter()
        meters = run_pass(tokens, wanted, advance)
        seconds = (time.perf_counter() - start) / len(works)
    for one, meter in meters.items():
        found = meter.compute()
        if processes.is_main():
            found.save(works[one].folder)
        with ctx.track(one.stage.kind, one.item[0]) as tracker:
            tracker.log(dict(one.stage.log(found)))
        one.note(works[one], seconds)
