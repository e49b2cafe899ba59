"""The numbers in the READMEs: each sentence or table, and where its numbers are found; see check_readme.py.

A sentence here is the README's own, with {} for each number: who writes one anew writes it here anew. How an address is
read stands in claims.py; SOURCES of check_readme.py says what the sources are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from claims import Claim, TableClaim

KEPT = "error-preserving"
"""The section of the removal table that the READMEs quote."""


def removal(variant: str, source: str = "demo") -> str:
    """The address of a row of a report's table of feature removal."""
    return f"{source}/removal/section={KEPT};variant={variant}"


METRICS = {
    "top-1 patch mean": "top1_patch_mean * 100",
    "top-1 final CLS": "top1_cls_final * 100",
    "mIoU": "miou * 100",
    "depth RMSE": "depth_rmse_m",
}
SHARES = {"latents removed": "n_latents", "mass": "mass_share * 100", "energy": "energy_share * 100"}
ORIGINAL = "demo/removal/section=;variant=original tokens"
CONFOUNDS = "demo/summary/confounds"
MATCHED = "demo/removal_matched/variant=without {}-scope, matched frequency"
SCOPE = "demo/scope/quantity="
BLOCK = "demo/summary/outliers/by_block"
DECODING, RANKING = "benchmarks/decoding-224-cpu/rows/side=", "benchmarks/ranking-1281167-49152-cpu"
EXPLORER = "benchmarks/explorer-50000-cpu/rows/side="
EXTRACTION = "benchmarks/extraction-{}/rows/side={}/images_per_s"

WIDE_STEP = "benchmarks/sae_step-768-49152-32-cuda/rows/step"
STEP = "benchmarks/sae_step-768-6144-32-cpu/rows/side"
STEP_SIDES = (
    *("ours", "dense autograd", "sparsify", "dictionary_learning", "sae_lens", "limit: the encoder's product"),
)

SWEPT = "gamma_sweep/removal/gamma={};variant={}"
LOW, LOW_MASS = "without low-scope", "random, mass of low"
LOST = ("top1_cls_final_difference * -100", "miou_difference * -100", "depth_rmse_m_difference")
"""What a group's removal costs, by column of the table of matched groups."""


def lowest_band(metric: str) -> list[str]:
    """The addresses of what the quarter of lowest CDS costs, and what random groups of its mass cost."""
    names = "without band 1 of 4 (lowest CDS)", "random, mass of band 1 of 4"
    return [f"bands/removal_delta/section={KEPT};variant={name}/{metric}_difference * -100" for name in names]


def kept(rule: str, metric: str) -> str:
    """The address of what 16 features give."""
    return f"select/selection/section=16 features kept;rule={rule}/{metric}"


CONTROLS = ("mass", "energy")


def against(group: str, control: str, metric: str, source: str = "demo") -> str:
    """The address of what a group costs beyond its random groups."""
    return f"{source}/removal_against_random/group={group}-scope;control={control};metric={metric}"


LOWEST, ACTIVE, CHANCE = "most active of band 1 of 3 (lowest CDS)", "most active of all", "random"
PREDICTED = "predict/predictions/section=error-preserving;variant={}/top1 * 100"


def masked(latents: str, curve: str, way: str = "the SAE's error stays", what: str = "kept alone") -> str:
    """The address of a point of the masking curve."""
    return f"masking/masking/section={what}, {way};latents={latents}/top1_{curve} * 100"


def attributed(images: str, what: str) -> str:
    """The address of the share of high-scope features in all attributions, or in all activation."""
    return f"attribution/attribution_groups/class={images}/{what}_high * 100"


def steered(what: str, features: str = "all measured") -> str:
    """The address of what steering does, of all features or of a group of them."""
    return f"steering/steering/features={features}/{what} * 100"


def crossed(column: str, key: str = "within") -> str:
    """The address of how a column of the table of latents goes with the CDS."""
    return f"cross/cross/column={column}/{key}"


def adapted(source: str, quantity: str) -> str:
    """The address of a row of the table of a model and the adapted one."""
    return f"{source}/adapt/quantity={quantity}/mean"


OVERLAPS = [
    f"swapped/adapt/section=latents of a class, Jaccard (mean over classes);quantity={of}/mean"
    for of in ("model and adapted, same images", "model and adapted, across halves", "model, halves of its images")
]
CROSSED = {
    "CDS, median": "cds",
    "firing frequency": "firing_rate",
    "peak": "peak_top",
    "support": "support",
    "largest effect of a global factor": "image_effect",
    "effect of the patch labels": "label_effect",
    "clarity": "clarity",
    "monosemanticity": "ms",
    "label entropy": "label_entropy",
    "the same, less": "label_entropy_excess",
    "cosine of decoder rows": "match_decoder",
    "Matryoshka level": "level",
}
"""The rows of the table of what goes with scope, and their columns in the table of latents."""
BY_BLOCK = {
    "global factor": "largest effect of a global factor",
    "patch label": "effect of the patch labels",
    "overlap of top images": "overlap of its top 16 images with those of other latents",
    "depth in the tree": "depth of its top 16 images: where two meet in the hierarchy of classes",
}
BLOCKS = ("0", "1", "2", "3")
COMPARABLE, REMAPPED = "whose class can be compared", "remapped: another class"
REMAPPED_HALVES = "the same between halves of the model's images"
ZERO_SHOT = "zero-shot top-1 on test images, each with its own head (%)"
SEA = "2"
"""Its number among the places, which have no names without predict.class_names."""
GAMMA = ("demo/scope/quantity=gamma/mean",)
GROUPS = (
    Claim("without high scope (CDS > {})", GAMMA),
    Claim("without low scope (CDS ≤ {})", GAMMA),
)
README = (
    TableClaim(
        "| tokens | latents removed | mass (%) | energy (%) | top-1 final CLS (%)",
        [
            ("original", ORIGINAL),
            ("without high scope", removal("without high-scope")),
            ("random group of the same mass", removal("random, mass of high")),
            ("random group of the same energy", removal("random, energy of high")),
            ("without low scope", removal("without low-scope")),
            ("random group of the same mass", removal("random, mass of low")),
            ("random group of the same energy", removal("random, energy of low")),
            ("everything removed", removal("all removed")),
        ],
        {name: key for name, key in (SHARES | METRICS).items() if name != "top-1 patch mean"},
    ),
    Claim(
        "Without it the final CLS loses {} and {} points more than without random features (equal mass, equal energy),"
        " mIoU {} and {}. **High scope carries less of the map** than random features: mIoU loses {} and {} less"
        " without it.",
        [
            f"{against(group, control, metric)}/difference * {sign}"
            for group, metric, sign in (("low", "top1_cls_final", -100), ("low", "miou", -100), ("high", "miou", 100))
            for control in CONTROLS
        ],
    ),
    *GROUPS,
    Claim(
        "goes with the CDS by {} at like frequency) and less about what lies in the patch ({});",
        [crossed("image_effect"), crossed("label_effect")],
    ),
    Claim(
        "{}% if they are of low scope and in {}% if they are of high scope ({}% without any feature, {}% with random"
        " ones, {}% with all). High scope has half of the activation and {}% of the attribution of CLIP's predictions.",
        [
            *(masked("10", curve) for curve in ("low", "high")),
            masked("all", "class", what="dropped"),
            masked("10", "random"),
            masked("all", "class"),
            attributed("all", "attribution"),
        ],
    ),
)
MINIATURE = (
    TableClaim(
        "| tokens | latents removed | mass (%) | energy (%) | top-1 patch mean (%)",
        [
            ("original", ORIGINAL),
            ("without high scope", removal("without high-scope")),
            ("random group of the same mass", removal("random, mass of high")),
            ("random group of the same energy", removal("random, energy of high")),
            ("without low scope", removal("without low-scope")),
            ("random group of the same mass", removal("random, mass of low")),
            ("random group of the same energy", removal("random, energy of low")),
            ("everything removed", removal("all removed")),
        ],
        SHARES | METRICS,
    ),
    *GROUPS,
    Claim(
        "(`partition.gamma=0.15`) the low group here holds {}% of the mass",
        [f"{SWEPT.format(0.15, LOW)}/mass_share * 100"],
    ),
    Claim(
        "give {}% from the final CLS and {} mIoU; the 16 most active of all, with more mass, {}% and {}; random ones"
        " {}% and {}.",
        [
            kept(rule, metric)
            for rule in (LOWEST, ACTIVE, CHANCE)
            for metric in (METRICS["top-1 final CLS"], METRICS["mIoU"])
        ],
    ),
    Claim(
        "loses more, by {} points (equal mass; interval {} to {}) and {} (equal energy; {} to {}), and so does mIoU, by"
        " {} ({} to {}) and {} ({} to {}).",
        [
            f"{against('low', control, metric)}/{key} * -100"
            for metric in ("top1_cls_final", "miou")
            for control in CONTROLS
            for key in ("difference", "high", "low")
        ],
    ),
    Claim(
        "Without high scope mIoU loses less, by {} ({} to {}) and {} ({} to {}).",
        [
            f"{against('high', control, 'miou')}/{key} * 100"
            for control in CONTROLS
            for key in ("difference", "low", "high")
        ],
    ),
    Claim(
        "without high scope the final CLS loses {} points less (equal mass; {} to {}, which holds 0) and {} (equal"
        " energy; {} to {}), the mean patch token {} ({} to {}) and {} ({} to {}) less; without low scope it loses {}"
        " ({} to {}) and {} ({} to {}) more.",
        [
            f"{against(group, control, metric)}/{key} * {sign}"
            for group, metric, sign, keys in (
                ("high", "top1_cls_final", 100, ("difference", "low", "high")),
                ("high", "top1_patch_mean", 100, ("difference", "low", "high")),
                ("low", "top1_patch_mean", -100, ("difference", "high", "low")),
            )
            for control in CONTROLS
            for key in keys
        ],
    ),
    Claim(
        "random features by {} m (equal mass) and {} m (equal energy), without low scope better by {} and {} m",
        [
            f"{against(group, control, 'depth_rmse_m')}/difference * {sign}"
            for group, sign in (("high", 1), ("low", -1))
            for control in CONTROLS
        ],
    ),
    Claim(
        "gamma {}, low scope {}% of the mass)",
        ["energy/scope/quantity=gamma/mean", f"{removal('without low-scope', 'energy')}/{SHARES['mass']}"],
    ),
    Claim(
        "final CLS {} and {} points more, mIoU {} and {}. That on high scope does not: mIoU {} and {} less",
        [
            f"{against(group, control, metric, 'energy')}/difference * {sign}"
            for group, metric, sign in (("low", "top1_cls_final", -100), ("low", "miou", -100), ("high", "miou", 100))
            for control in CONTROLS
        ],
    ),
    Claim(
        "lowest CDS first leaves {}% to the final CLS and {} mIoU, highest CDS first {}% and {}, a random order {}% and"
        " {}.",
        [
            f"curve/removal_curve/section=50% of the mass;removed={order}/{key} * 100"
            for order in ("lowest CDS first", "highest CDS first", "random order")
            for key in ("top1_cls_final", "miou")
        ],
    ),
    Claim("are better ({} against {} m)", [kept(rule, "depth_rmse_m") for rule in (ACTIVE, LOWEST)]),
    Claim(
        "Among {} held-out scenes it finds the right caption for {}% of the pictures.",
        ["scenes_clip/training/held_out/among", "scenes_clip/training/held_out/image_to_text_top1 * 100"],
    ),
    Claim(
        "{} steps of {} pairs, {} minutes on an H200",
        [
            "scenes_clip/training/config/n_steps",
            "scenes_clip/training/config/batch_size",
            f"scenes_clip/training/wall_s * {1 / 60}",
        ],
    ),
    Claim(
        "texture of the nearest object: {}% from the mean patch token, {}% from the final CLS",
        [f"{ORIGINAL}/{METRICS[name]}" for name in ("top-1 patch mean", "top-1 final CLS")],
    ),
    Claim(
        "The class itself is read from the final CLS in {}% of the pictures",
        ["class/removal/section=;variant=original tokens/top1_cls_final * 100"],
    ),
    Claim(
        "The score falls with the firing frequency (Spearman {}) and with the peak ({}). At equal frequency it goes"
        " with what the picture's global factors explain of a feature ({}) and against what patch labels explain ({})",
        [
            f"{CONFOUNDS}/spearman/firing_rate/mean",
            f"{CONFOUNDS}/spearman/peak/mean",
            f"{CONFOUNDS}/spearman/image_effect/at_equal_rate",
            f"{CONFOUNDS}/spearman/label_effect/at_equal_rate",
        ],
    ),
    Claim("are told from local ones with an AUROC of {};", [f"{CONFOUNDS}/auroc/all/cds/mean"]),
    Claim(
        "At matched frequency ({} features each, {}% and {}% of the mass), removing low-scope features costs {} points"
        " from the final CLS, {} of mIoU and {} m of depth, removing high-scope ones {}, {} and {} m.",
        [
            f"{MATCHED.format('low')}/n_latents",
            *(f"{MATCHED.format(group)}/mass_share * 100" for group in ("low", "high")),
            *(f"{MATCHED.format(group)}/{key}" for group in ("low", "high") for key in LOST),
        ],
    ),
    Claim(
        "Without the quarter of lowest CDS ({}% of the mass) the final CLS loses {} points and mIoU {}, random groups"
        " of equal mass {} and {}; without the quarter of highest CDS ({}%) nothing is lost.",
        [
            f"{removal('without band 1 of 4 (lowest CDS)', 'bands')}/mass_share * 100",
            *(lowest_band(metric)[i] for i in (0, 1) for metric in ("top1_cls_final", "miou")),
            f"{removal('without band 4 of 4 (highest CDS)', 'bands')}/mass_share * 100",
        ],
    ),
    Claim(
        "holds for the other solver ({}), other crops (other diagonal {}, shift 2 {}) and held-out pictures ({}), less"
        " for fewer pictures (k_CDS 1: {}). Two SAE seeds share few features: {} over all matched pairs, {} over",
        [
            f"stability/summary/stability/{name}/rank_correlation"
            for name in ("sinkhorn", "diagonal", "shift_2", "held_out", "k_1", "seeds_all", "seeds")
        ],
    ),
    Claim(
        "CLIP's own head: {}% top-1 on the class, {}% without high scope (random features of equal mass: {}%), {}%"
        " without low scope ({}%).",
        [
            "predict/predictions/section=;variant=original tokens/top1 * 100",
            *map(PREDICTED.format, ("without high-scope", "random, mass of high", LOW, LOW_MASS)),
        ],
    ),
    Claim(
        "Without the high group ({}% of the mass) the light falls from {}% to {}% (chance 25%; a random group of equal"
        " mass: {}%) and mIoU stays ({}, then {}); without the low group the light stays ({}%) and mIoU falls to {}.",
        [
            f"{removal('without high-scope', 'planted')}/mass_share * 100",
            "planted/removal/section=;variant=original tokens/top1_patch_mean * 100",
            f"{removal('without high-scope', 'planted')}/top1_patch_mean * 100",
            f"{removal('random, mass of high', 'planted')}/top1_patch_mean * 100",
            "planted/removal/section=;variant=original tokens/miou * 100",
            f"{removal('without high-scope', 'planted')}/miou * 100",
            f"{removal('without low-scope', 'planted')}/top1_patch_mean * 100",
            f"{removal('without low-scope', 'planted')}/miou * 100",
        ],
    ),
)
PARETO = {
    **{f"{kind}, k {k}": f"sae={kind}, sae.k={k}" for kind in ("topk", "batchtopk") for k in (4, 16, 64)},
    **{
        f"matryoshka_k {name}, {'all' if k == 'null' else f'k {k}'}": (
            f"sae=matryoshka_k, sae.k={k}, sae.level_weights={weights}"
        )
        for name, weights in (("UW", "uniform"), ("RW", "decreasing"))
        for k in (4, 16, 64, "null")
    },
    **{f"matryoshka_prefix, k {k}": f"sae=matryoshka_prefix, sae.k={k}" for k in (4, 16, 64)},
    **{f"relu, l1 {l1}": f"sae=relu, sae.l1={l1}" for l1 in (0.03, 0.1, 0.3)},
    **{f"jumprelu, l0_coef {coef}": f"sae=jumprelu, sae.l0_coef={coef}" for coef in (0.0003, 0.001, 0.003)},
}
"""The rows of the tables of reconstruction against sparsity, in their order, and the settings that they are of."""
OF_DICTIONARIES = {
    "L0": "l0",
    "zeros": "zeros * 100",
    "FVU": "fvu",
    "within": "fvu_per_token",
    "cosine": "cosine_raw",
    "from the mean": "cosine_centred",
    "silent": "dead_share * 100",
    "CKNNA": "cknna_unit",
    "agreement": "agreement * 100",
}
"""The columns that both tables have."""


def pareto(row: str, source: str = "sae_pareto_pooled") -> str:
    """The address of what is measured of a kind of SAE."""
    return f"{source}/sae_pareto/setting={PARETO[row]}"


def cut(row: str, k: int, source: str = "sae_pareto_pooled", what: str = "fvu * 100") -> str:
    """The address of what the k largest activations leave: the share of the variance in percent, or another measure."""
    return f"{source}/progressive/setting={PARETO[row]};k={k}/{what}"


SETTINGS = {
    "matryoshka_prefix, k 8": "sae=matryoshka_prefix sae.k=8",
    "topk, k 8, expansion 2": "sae=topk sae.k=8 sae.expansion_factor=2",
    "topk, k 8, expansion 8": "sae=topk sae.k=8 sae.expansion_factor=8",
    "batchtopk, k 8": "sae=batchtopk sae.k=8",
    "jumprelu": "sae=jumprelu",
    "topk, k 8": "sae=topk sae.k=8",
    "topk (k 16, expansion 4)": "sae=topk",
    "topk, expansion 2": "sae=topk sae.expansion_factor=2",
    "topk, k 32": "sae=topk sae.k=32",
    "topk, expansion 8": "sae=topk sae.expansion_factor=8",
    "topk, k 4": "sae=topk sae.k=4",
    "matryoshka_prefix, k 16": "sae=matryoshka_prefix",
}
EXPERIMENTS = (
    *MINIATURE,
    Claim(
        "is right in {}% of the pictures on the original tokens and in {}% without any latent of a patch. With 10"
        " latents alone it is right in {}% (the class's first), {}% (as many random ones, three draws a class),"
        " **{}% (its first of low scope), {}% (of high scope)**. All of low scope alone give {}%, all of high scope,"
        " which have as much mass, {}%.",
        [
            masked("all", "class"),
            masked("all", "class", what="dropped"),
            *(masked("10", curve) for curve in ("class", "random", "low", "high")),
            *(masked("all", curve) for curve in ("low", "high")),
        ],
    ),
    Claim(
        "and tells nothing ({}% with it alone), and the first 10 of the nine classes are {} different latents in all,"
        " of low scope {}. With 50 of the class top-1 is {}%.",
        [
            masked("1", "class"),
            *(masked("10", curve).replace("top1", "n_distinct").removesuffix(" * 100") for curve in ("class", "low")),
            masked("50", "class"),
        ],
    ),
    Claim(
        "as PatchSAE does it: {}% with all latents, and with 10 of the class {}%, of low scope {}%, of high scope {}%,"
        " random {}%.",
        [
            masked("all", "class", "decoded"),
            *(masked("10", curve, "decoded") for curve in ("class", "low", "high", "random")),
        ],
    ),
    TableClaim(
        "| by | rank correlation with exact ablation |",
        [
            (name, f"attribution/attribution/order={name}")
            for name in (
                *("gradient x activation", "integrated gradients", "exact ablation", "activation x logit lens"),
                *("logit lens", "activation", "random order"),
            )
        ],
        {
            "rank correlation with exact ablation": "agreement",
            "deletion": "deletion_prob",
            "insertion": "insertion_prob",
        },
    ),
    Claim(
        "High-scope features have {}% of the activation and {}% of the attribution**, {}% by integrated gradients;",
        [
            attributed("all", "activation"),
            attributed("all", "attribution"),
            attributed("all, integrated gradients", "attribution"),
        ],
    ),
    Claim(
        "On {} of the {} test pictures each feature that fires is removed alone",
        [f"attribution/attribution_groups/class={images}/n_images" for images in ("all, integrated gradients", "all")],
    ),
    Claim(
        "(`stage=cross`: {}, p = {} after correction), and so does semantic alignment ({}, p = {}):",
        [crossed(column, key) for column in ("attribution", "semantic_alignment") for key in ("within", "p_corrected")],
    ),
    Claim(
        "as of the activation ({} and {}%, {} and {}%), and gradients agree with ablation by {} and {}.",
        [
            *(
                f"attribution_block_{block}/attribution_groups/class=all/{what}_high * 100"
                for block in (0, 1)
                for what in ("attribution", "activation")
            ),
            *(f"attribution_block_{block}/attribution/order=gradient x activation/agreement" for block in (0, 1)),
        ],
    ),
    Claim(
        "halfway to the tokens without the group agree with ablation by {}, {} and {} after blocks 0, 1 and 2",
        [f"attribution_halfway_{block}/attribution/order=gradient x activation/agreement" for block in range(3)],
    ),
    Claim(
        "high scope has {}% of the activation and {}% of the attribution |",
        [
            f"attribution_planted/attribution_groups/class=all/{what}_high * 100"
            for what in ("activation", "attribution")
        ],
    ),
    TableClaim(
        "| | valid names | different ones |",
        [
            ("pooled: decoder row and text, each", "names/names/key=centred"),
            ("pooled: decoder row and text (MSAE)", "names/names/key=row"),
            ("pooled: with the mean", "names/names/key=shifted"),
            ("patches: top pictures", "names_patches/names/key=centred"),
        ],
        {
            "valid names": "n_valid",
            "different ones": "n_distinct",
            "valid by chance": "n_random",
            "right": "is_best * 100",
            "random names right": "is_best_random * 100",
        },
    ),
    Claim(
        "of pooled features {}% of the names that are not valid are right",
        ["lineage/names/setting=model.site=pooled;key=centred/is_best_others * 100"],
    ),
    Claim(
        "have it in {}% by embedding, in {}% by the concept's features alone, and in {}% by the embedding without"
        " these; raised in pictures without the concept, in {}% against {}%.",
        [
            f"names/names_search/key={key}/share * 100"
            for key in ("plain", "restricted", "zeroed", "raised", "plain_without")
        ],
    ),
    Claim(
        "whose activation is averaged over the picture, {}% by these alone against {}%.",
        [f"names_patches/names_search/key={key}/share * 100" for key in ("restricted", "plain")],
    ),
    Claim(
        "changes by {} for the typical texture while the features of a kind are swept from silent to strong, by {} for"
        " any other, and by {} with random features in the place of the kind's; that texture rises most for each of the"
        " {} kinds",
        [
            f"names/names_bias/target=texture/{key}"
            for key in ("slope_coupled", "slope_other", "slope_random", "n_coupled")
        ],
    ),
    Claim(
        "{}% change with one sign in all three seeds, with random features {}%",
        [f"names/names_bias/target=texture/{key} * 100" for key in ("one_sign", "one_sign_random")],
    ),
    Claim(
        "a linear classifier gives that kind {} more probability than to those without it, {} without the features that"
        " are called by the kind, {} without random ones",
        [f"names_kinds/names_misled/target=class/{key}" for key in ("whole", "without", "without_random")],
    ),
    Claim(
        "That falls for {}% of the pairs ({} in each of three seeds)",
        ["names_kinds/names_misled/target=class/lower * 100", "names_kinds/names_misled/target=class/n_pairs"],
    ),
    Claim(
        "**{}% of the features are steerable, and {}% of random directions of the same length**",
        [steered("steerable"), steered("steerable_random")],
    ),
    Claim(
        "Of low scope {}% are (random directions {}%), of high scope {}% ({}%). Nor is the kind that rises predicted:"
        " it is in {}% of the pictures, before in {}%.",
        [
            *(
                steered(what, f"{group}-scope")
                for group in ("low", "high")
                for what in ("steerable", "steerable_random")
            ),
            *(steered(what) for what in ("taken", "taken_before")),
        ],
    ),
    TableClaim(
        "| removed | all pictures |",
        [
            (name, f"steering/suppression/removed={name}")
            for name in ("nothing", "chosen, 1", "chosen, 5", "random, mass of 5", "chosen, 20", "random, mass of 20")
        ],
        {
            "all pictures": "accuracy * 100",
            "another texture than the typical one": "others * 100",
            "worst group": "worst * 100",
        },
    ),
    Claim(
        "CLIP is right in {}% of the scenes without a card and in {}% of those with one, in {}% of these without the 5"
        " features that carry the cards most, in {}% without random ones of equal mass.",
        [
            f"steering_picture/suppression/removed={removed}/{what} * 100"
            for removed, what in (
                ("nothing", "typical"),
                *((name, "others") for name in ("nothing", "chosen, 5", "random, mass of 5")),
            )
        ],
    ),
    Claim(
        "but it misleads: {}% of the scenes with a card are right. **Here suppression helps**: {}% without the 5"
        " features that carry the words most, {}% without random ones of equal mass. It has a price: scenes without a"
        " card fall from {} to {}%, and the worst group, of few scenes, from {} to {}%.",
        [
            f"steering_text/suppression/removed={removed}/{what} * 100"
            for removed, what in (
                *((name, "others") for name in ("nothing", "chosen, 5", "random, mass of 5")),
                *((name, what) for what in ("typical", "worst") for name in ("nothing", "chosen, 5")),
            )
        ],
    ),
    Claim("(3 SAE seeds, {} features with a CDS; `trainer", [crossed("firing_rate", "n_latents")]),
    TableClaim(
        "| | with the CDS |",
        [(name, f"cross/cross/column={column}") for name, column in CROSSED.items()],
        {"with the CDS": "rho", "at like frequency": "within", "p": "p_corrected"},
    ),
    TableClaim(
        "| | with the CDS |",
        [(name, f"cross/cross_bands/column={column}") for name, column in CROSSED.items()],
        {
            "lowest fifth": "band_1",
            "highest fifth": "band_5",
            "lowest, at like": "matched_1",
            "highest, at like": "matched_5",
        },
    ),
    Claim(
        "the mean CDS rises from {} in the first {} features to {} in the last {},",
        [f"cross/levels/level={level}/{key}" for level in (0, 4) for key in ("mean_cds", "n_latents")],
    ),
    Claim(
        "at like frequency ({}, beyond chance {}), while over all features chance hides it ({}, beyond chance {}).",
        [
            crossed(column, key)
            for key in ("within", "rho")
            for column in ("label_entropy_all", "label_entropy_all_excess")
        ],
    ),
    Claim(
        "scenes_clip has {} outlier tokens among {} after the block that the SAE reads",
        ["demo/summary/outliers/n_outliers", "demo/summary/outliers/n_tokens"],
    ),
    Claim(
        "Among {} after block 1 there are {}, a tail and no mode of its own, and {}, {} and {} after the other blocks.",
        [f"{BLOCK}/1/n_tokens", *(f"{BLOCK}/{block}/n_outliers" for block in (1, 0, 2, 3))],
    ),
    Claim(
        "Its CDS is {} on average (chance {}); {} of {} scored features lie above gamma {}, with half of the mass.",
        [
            f"{SCOPE}mean/mean",
            f"{SCOPE}chance, mean/mean",
            f"{SCOPE}high-scope (CDS > gamma)/mean",
            f"{SCOPE}scored/mean",
            f"{SCOPE}gamma/mean",
        ],
    ),
    Claim(
        "removing low scope costs what a random group of its mass costs (final CLS {}% against {}% at 0.15), but for"
        " gamma 0.05, where the low group has {}% of the mass: {}% against {}%.",
        [
            *(f"{SWEPT.format(0.15, name)}/top1_cls_final * 100" for name in (LOW, LOW_MASS)),
            f"{SWEPT.format(0.05, LOW)}/mass_share * 100",
            *(f"{SWEPT.format(0.05, name)}/top1_cls_final * 100" for name in (LOW, LOW_MASS)),
        ],
    ),
    Claim(
        "(Spearman with k = 16: {}, {}, {}, {} for k = 1, 2, 4, 8)",
        [f"k_cds_sweep/k_cds_sweep/k_cds={k}/rank_correlation" for k in (1, 2, 4, 8)],
    ),
    Claim("through the backbone | 1,331,167 / {} per s =", [EXTRACTION.format("ViT-B-16-scenes-cuda", "ours")]),
    Claim("/ 32 / {} per s =", [EXTRACTION.format("ViT-B-16-scenes-cuda", "ours")]),
    Claim("at most 6,144 x 16 x 2 / {} per s =", [EXTRACTION.format("ViT-B-16-scenes-cuda", "ours")]),
    Claim("49,152 latents) | 50,000,000 / {} per s =", [f"{WIDE_STEP}=sparse/tokens_per_s"]),
    Claim("so more) | 6,144 x 16 x 2 / {} per s =", ["benchmarks/emd-11x11-cpu/rows/side=ours/pairs_per_s"]),
    Claim(
        "| Token extraction, scenes_clip, batch 64 | {} images/s | {} images/s, the bare backbone |",
        [EXTRACTION.format("scenes_clip-scenes-cpu", side) for side in ("ours", "bare")],
    ),
    Claim(
        "| Token extraction, scenes_clip, batch 256, 8 readers | {} images/s | {} images/s, the bare backbone |",
        [EXTRACTION.format("scenes_clip-scenes-cuda", side) for side in ("ours", "bare")],
    ),
    Claim(
        "| Token extraction, ViT-B/16, bfloat16, batch 256, 12 readers | {} images/s | {} images/s, the bare",
        [EXTRACTION.format("ViT-B-16-scenes-cuda", side) for side in ("ours", "bare")],
    ),
    Claim(
        "one core | {} images/s | {} plain Pillow |",
        [f"{DECODING}{side}/images_per_s" for side in ("load, pillow", "plain Pillow")],
    ),
    Claim(
        "(up to {} of 255 levels off, {} on average) | {} images/s | {} plain torchvision |",
        [
            *(f"{DECODING}load, torchvision/{key}" for key in ("max_difference", "mean_difference", "images_per_s")),
            f"{DECODING}plain torchvision/images_per_s",
        ],
    ),
    Claim(
        "2 processes | {} images/s | {} torch's DataLoader; {} a plain copy |",
        [
            f"benchmarks/decoding-224-cpu/handing_over/side={side}/images_per_s"
            for side in ("open_images, in memory", "DataLoader, in memory", "limit: a copy")
        ],
    ),
    Claim(
        "k 32, one thread | {} images/s | {} by dense latents; {} the encoder's product alone |",
        [
            f"benchmarks/ranking-768-49152-32-cpu/rows/side={side}/images_per_s"
            for side in ("infoscope", "dense codes", "limit: the encoder's product")
        ],
    ),
    Claim(
        "1,024 latents, one thread | {} images/s | {} by dense latents, a crop at a time; {} forwards and product"
        " alone |",
        [
            f"benchmarks/scoring-scenes_clip-1024-topk-cpu/rows/side={side}/images_per_s"
            for side in ("ours", "plain", "limit")
        ],
    ),
    Claim(
        "one process | {} pairs/s | {} (POT `emd2` on supports), {} (whole grid), {}-{} (geomloss) |",
        [
            f"benchmarks/emd-11x11-cpu/rows/side={side}/pairs_per_s"
            for side in (
                "ours",
                "POT emd2, supports",
                "POT emd2, whole grid",
                "geomloss, blur 0.05",
                "geomloss, blur 0.2",
            )
        ],
    ),
    Claim(
        "| TopK training step, 768 x 6144, k 32 | {} tokens/s | {} plain dense autograd, {} sparsify, {}"
        " dictionary_learning, {} SAELens; {} the encoder's product alone |",
        [f"{STEP}={side}, 32/tokens_per_s" for side in STEP_SIDES],
    ),
    Claim(
        "| The same with products in bfloat16 | {} tokens/s | {}, {}, {}, {}; {} |",
        [f"{STEP}={side}, bf16/tokens_per_s" for side in STEP_SIDES],
    ),
    Claim(
        "| TopK training step, 768 x 49152, k 32, bfloat16 | {} tokens/s | {} tokens/s, plain dense autograd |",
        [f"{WIDE_STEP}={step}/tokens_per_s" for step in ("sparse", "dense")],
    ),
    Claim(
        "| Ranking {} images for {} made-up latents (other work beside it) | {} min, peak {} GB; {} of {} checked"
        " latents exact | {} GB, all latents at once |",
        [
            f"{RANKING}/settings/images",
            f"{RANKING}/settings/latents",
            f"{RANKING}/seconds * {1 / 60}",
            f"{RANKING}/peak_gb",
            f"{RANKING}/checked_latents",
            f"{RANKING}/checked_latents",
            f"{RANKING}/all_latents_would_be_gb",
        ],
    ),
    Claim(
        "the page's process at its peak | {} ms from the disk, {} ms served; {} ms; {} ms; {} MB |",
        [
            f"{EXPLORER}from the disk/rows_ms",
            f"{EXPLORER}served/rows_ms",
            *(f"{EXPLORER}from the disk/{key}" for key in ("sort_ms", "filter_ms", "peak_mb")),
        ],
    ),
    Claim(
        "the slowest sort took {} ms, the slowest filter {} ms;",
        [f"{EXPLORER}from the disk/{key}" for key in ("slowest_sort_ms", "slowest_filter_ms")],
    ),
    Claim(
        "The first paint came after {} ms from the disk, {} ms served.",
        [f"{EXPLORER}from the disk/first_paint_ms", f"{EXPLORER}served/first_paint_ms"],
    ),
    Claim("scenes (3 SAE seeds, {} features with a CDS;", [f"{SCOPE}scored/mean"]),
    TableClaim(
        "| | high scope | low scope | all | images at random |",
        [
            (heading, f"demo/describe/section=median;quantity={quantity}")
            for heading, quantity in {
                "monosemanticity": "monosemanticity",
                "clarity of the top 20 images": "clarity of the top images",
                "label entropy of the top 10 images (nats)": "label entropy, top images (nats)",
                "the same, labels permuted": "label entropy, top images (nats), labels permuted",
                "strong patches in the top class (%)": "strong patches in its top class (%)",
                "these, labels permuted": "strong patches in its top class (%), labels permuted",
                "depth at which the top 16 images meet": "depth in the hierarchy",
                "this, labels permuted": "depth in the hierarchy, labels permuted",
            }.items()
        ],
        {"high scope": "high", "low scope": "low", "all": "all", "images at random": "at_random"},
    ),
    Claim(
        "The ten latents of each of the nine classes are {} different ones in all, {} of which every class has",
        [f"demo/summary/describe/class_latents/{name}/mean" for name in ("n_different", "n_of_every_class")],
    ),
    Claim(
        "have a Jaccard index of {} in both models; across halves of the images it is {}, and {} where the model sees"
        " both halves. Of {} latents whose colour is settled {} are remapped ({} between halves)",
        [*OVERLAPS, *(adapted("swapped", of) for of in (COMPARABLE, REMAPPED, REMAPPED_HALVES))],
    ),
    Claim(
        "the latter to red ({}) or orange ({})",
        [f"swapped/adapt_moves/from=blue;to={colour}/n" for colour in ("red", "orange")],
    ),
    Claim(
        "which no swap of colours changes, {} of {} are. The SAE's FVU rises from {} to {}, and zero-shot top-1 of the"
        " kind falls from {}% to {}%",
        [
            *(adapted("swapped_kinds", of) for of in (REMAPPED, COMPARABLE, "FVU, model", "FVU, adapted")),
            *(f"swapped_kinds/adapt/section={ZERO_SHOT};quantity={of}/mean * 100" for of in ("model", "adapted")),
        ],
    ),
    Claim(
        "Features of high scope are not remapped more than others: {}, and {} if",
        [f"swapped/adapt_groups/group=high-scope/{of}_remapped" for of in ("n", "expected")],
    ),
    Claim(
        "Of {} latents whose place is settled {} are remapped ({} between halves)",
        [adapted("sea", of) for of in (COMPARABLE, REMAPPED, REMAPPED_HALVES)],
    ),
    Claim(
        "The profile of the sea's pictures changes by {} nats",
        [f"sea/adapt_classes/class={SEA}/divergence"],
    ),
    Claim(
        "remapped half as often as others: {}, where {} were expected",
        [f"sea/adapt_groups/group=low-scope/{of}_remapped" for of in ("n", "expected")],
    ),
    TableClaim(
        "| block | features with a CDS |",
        [(block, f"scope_by_layer/scope_by_layer/layer={block}") for block in BLOCKS],
        {
            "features with a CDS": "n_scored",
            "median CDS": "median_cds",
            "chance": "mean_chance",
            "reliability": "reliability",
            "FVU": "fvu",
        },
    ),
    *(
        TableClaim(
            "| block | features with a CDS |",
            [(block, f"scope_by_layer/cross_by_layer/layer={block};quantity={quantity}") for block in BLOCKS],
            {heading: "within"},
        )
        for heading, quantity in BY_BLOCK.items()
    ),
    Claim(
        "goes with scope in block 1 alone ({}*)",
        ["scope_by_layer/cross_by_layer/layer=1;quantity=monosemanticity, judged by scenes_clip/within"],
    ),
    TableClaim(
        "| setting | difference | CDS with firing frequency | FVU |",
        [(name, f"sae_settings/sae_settings/setting={setting}") for name, setting in SETTINGS.items()],
        {"difference": "score", "CDS with firing frequency": "firing_rate", "FVU": "fvu"},
    ),
    Claim(
        "On scenes of seed 0 the chosen setting reaches {}, the first one (topk, k 16) {}.",
        [
            f"sae_settings/sae_settings_reported/setting={setting}/score"
            for setting in (SETTINGS["matryoshka_prefix, k 8"], "sae=topk")
        ],
    ),
)
PARETO_SOURCES = ("sae_pareto_pooled", "sae_pareto")
MSAE = ("matryoshka_k UW, all", "matryoshka_k RW, all")
RECONSTRUCTION = (
    TableClaim(
        "| patch tokens | L0 |",
        [(row, pareto(row, "sae_pareto")) for row in PARETO],
        OF_DICTIONARIES | {"scored": "scored_share * 100", "median CDS": "median_cds", "CDS > .05": "high_share * 100"},
    ),
    TableClaim(
        "| embeddings | L0 |",
        [(row, pareto(row)) for row in PARETO],
        OF_DICTIONARIES,
    ),
    *(
        Claim(f"the probe is right on {{}}%{of}", [f"{pareto('topk, k 64', source)}/accuracy * 100"])
        for source, of in (("sae_pareto", " of the mean patches"), ("sae_pareto_pooled", "):"))
    ),
    Claim(
        "on embeddings its cosine is {} (UW) and {} (RW), but {}% and {}% are zeros; on patch tokens {} and {} with {}%"
        " and {}%. Cut to its 64 largest activations at inference it does on embeddings (cosines {} and {}), on patch"
        " tokens not ({} and {}).",
        [
            *(
                f"{pareto(row, source)}/{what}"
                for source in PARETO_SOURCES
                for what in ("cosine_raw", "zeros * 100")
                for row in MSAE
            ),
            *(cut(row, 64, source, "cosine_raw") for source in PARETO_SOURCES for row in MSAE),
        ],
    ),
    Claim(
        "leave {}% (UW) and {}% (RW) of the variance, of TopK {}%; of patch tokens {}%, {}% and {}%.",
        [
            cut(row, 8, source)
            for source in PARETO_SOURCES
            for row in ("matryoshka_k UW, k 64", "matryoshka_k RW, k 64", "topk, k 64")
        ],
    ),
    Claim(
        "cannot be cut: the 16 largest leave {}% and {}%.",
        [cut("matryoshka_prefix, k 64", 16, source) for source in PARETO_SOURCES],
    ),
    Claim(
        "of patch tokens the largest activation alone leaves {}% against {}% (k = 64), all 64 {}% against {}%; with all"
        " latents {}% against {}%.",
        [
            *(cut(f"matryoshka_k {name}, k 64", 1, "sae_pareto") for name in ("RW", "UW")),
            *(
                f"{pareto(f'matryoshka_k {name}, {k}', 'sae_pareto')}/fvu * 100"
                for k in ("k 64", "all")
                for name in ("RW", "UW")
            ),
        ],
    ),
    Claim(
        "the median CDS is lowest at k = 4 ({} to {}), where a third of the features or fewer are scored, and highest"
        " of prefixes at k = 64 ({}), which",
        [
            f"{pareto(row, 'sae_pareto')}/median_cds"
            for row in ("batchtopk, k 4", "topk, k 4", "matryoshka_prefix, k 64")
        ],
    ),
)
SITES = {"patch tokens": "model.site=resid_post", "image embeddings": "model.site=pooled"}


def lineage(table: str, row: str, columns: Mapping[str, str]) -> TableClaim:
    """Columns of the table of the lineage whose numbers stand in one table of the experiment's, in these rows."""
    rows = [(tokens, f"lineage/{table}/setting={site};{row}") for tokens, site in SITES.items()]
    return TableClaim("| | zeros (%) | silent (%) |", rows, columns)


LINEAGE = (
    lineage("quality", "quantity=zeros in the code of a token (%)", {"zeros": "mean * 100"}),
    lineage("quality", "quantity=latents silent on all test tokens (%)", {"silent": "mean * 100"}),
    lineage("quality", "quantity=the same, rows of unit norm", {"CKNNA": "mean"}),
    lineage("quality", "quantity=mean squared cosine of two rows", {"squared cosine": "mean"}),
    lineage("quality", "quantity=same prediction on both (%)", {"same prediction": "mean * 100"}),
    lineage("names", "key=centred", {"valid names": "n_valid", "by chance": "n_random", "right": "is_best * 100"}),
    lineage(
        "steering",
        "features=all measured",
        {"steerable": "steerable * 100", "random directions": "steerable_random * 100"},
    ),
    lineage("attribution", "order=gradient x activation", {"gradients": "agreement"}),
    Claim(
        "only {} of the 512 fire in enough training images to have one",
        ["lineage/names/setting=model.site=pooled;key=centred/n_named"],
    ),
    Claim(
        "the cosine with a feature's name by {} at like firing frequency and the size of its attribution by {} (both p"
        " = {} after correction), the steering by {}, which is not told from chance (p = {}).",
        [
            f"lineage/cross/quantity={quantity}/{key}"
            for quantity, key in (
                ("cosine with its name", "within"),
                ("size of its attribution to the predicted class", "within"),
                ("cosine with its name", "p_corrected"),
                ("steering", "within"),
                ("steering", "p_corrected"),
            )
        ],
    ),
)
SCENES = "scenes_clip, block 2, k_CDS 8, gamma by 50% of the mass, data.planted=nothing, data.seed=7"
TUNED, DENSE, PLANTED = "tuned scenes_clip", "tuned with sae.k=32", "positive control"
"""What scope_measures.py calls its settings."""
TRUTH = "scope_measures/scope_measures/setting={};truth={};key={}/{}"
MEASURES = (
    *(("extent", "evidence extent"), ("mean_extent", "mean extent"), ("context_effect", "context effect")),
    *(("own_patch", "response to its own patch, reversed"), ("cds", "CDS"), ("cds_minus_chance", "CDS - chance")),
    *(("firing_rate", "firing frequency, reversed"), ("support", "support, reversed")),
)
AGAINST = "scope_measures/removal_against_random/by={};group={};metric={}/{}"
GAIN = ("gain", "gain_from", "gain_to")


def claim_measures(
    header: str, setting: str, known: str, columns: Mapping[str, str], *pairs: tuple[str, str]
) -> TableClaim:
    """Return the claim of a table of scope_measures.py: a row for each measure, and for some pairs by key and name."""
    address = TRUTH.format(setting, known, "{}", "").removesuffix("/")
    rows = [(name, address.format(key)) for key, name in (*MEASURES, *pairs)]
    return TableClaim(header, rows, columns)


WITH_GAIN = {"from": "all_from", "to": "all_to", "over the CDS": "gain", "least": "gain_from", "most": "gain_to"}
WITH_GAIN |= {"matched": "matched"}
"""Columns of such tables, besides the AUROC itself."""

SCOPE_MEASURES_README = (
    Claim(
        "on scenes of another seed, with an AUROC of {} by extent, {} by mean extent and {} by context effect, where"
        " the CDS has {} (extent differs from it by {}, {} to {} over features):",
        [
            *(TRUTH.format(SCENES, "global", key, "all") for key in ("extent", "mean_extent", "context_effect", "cds")),
            *(TRUTH.format(SCENES, "global", "extent", of) for of in GAIN),
        ],
    ),
    Claim(
        "mean extent tells their features from local ones with {}, extent with {}, context effect with {}, the CDS"
        " with {} (mean extent more by {}, {} to {} over features; less its chance level the CDS has {}, which is not"
        " told from it); of a denser SAE, whose features of these facts fire on a quarter of the picture or more,"
        " mean extent has {}, the CDS {}, not told apart.",
        [
            *(TRUTH.format(TUNED, "broad", key, "all") for key in ("mean_extent", "extent", "context_effect", "cds")),
            *(TRUTH.format(TUNED, "broad", "mean_extent", of) for of in GAIN),
            TRUTH.format(TUNED, "broad", "cds_minus_chance", "all"),
            *(TRUTH.format(DENSE, "broad", key, "all") for key in ("mean_extent", "cds")),
        ],
    ),
    Claim(
        "mean extent and context effect tell all of them from codes of single patches ({}, {} and {}), the CDS those on"
        " one patch ({}) but not those on all ({}: it is 0 by definition, as for local codes), the CDS less its chance"
        " level both ({} and {}).",
        [
            TRUTH.format(PLANTED, "broad", *of)
            for of in (
                *(("extent", "all"), ("mean_extent", "all"), ("context_effect", "all")),
                *(("cds", "compact"), ("cds", "diffuse")),
                *(("cds_minus_chance", "compact"), ("cds_minus_chance", "diffuse")),
            )
        ],
    ),
    Claim(
        "(it costs the final CLS {} points more, mIoU {}), that of low mean extent by the final CLS alone ({}, mIoU"
        " {}), where removing low scope costs {} and {}.",
        [
            AGAINST.format(by, group, metric, "difference * -100")
            for by, group in (("extent", "narrow"), ("mean_extent", "narrower"), ("cds", "low-scope"))
            for metric in ("top1_cls_final", "miou")
        ],
    ),
)
STABLE = f"scope_measures/scope_measures_stability/setting={SCENES};comparison="
STABLE_MEASURES = ("extent", "mean_extent", "context_effect", "cds")
REMOVED = "scope_measures/removal/by={};variant={}"
EQUAL_RATE = "scope_measures/removal_matched/by={};variant={}, matched frequency"
SCOPE_MEASURES = (
    Claim(
        "from known-local features worse than the CDS: AUROC {} against {}, a difference of {} ({} to {}). Mean extent"
        " does little better ({}, a difference of {}, {} to {}), context effect no better ({}), firing frequency alone,"
        " turned round, much better ({}). Extents add nothing to the CDS ({} and {}), firing frequency a little ({}).",
        [
            *(TRUTH.format(SCENES, "global", key, "all") for key in ("extent", "cds")),
            *(TRUTH.format(SCENES, "global", "extent", of) for of in GAIN),
            *(TRUTH.format(SCENES, "global", "mean_extent", of) for of in ("all", *GAIN)),
            *(TRUTH.format(SCENES, "global", key, "all") for key in ("context_effect", "firing_rate", "extent+cds")),
            *(TRUTH.format(SCENES, "global", key, "all") for key in ("mean_extent+cds", "cds+firing_rate")),
        ],
    ),
    Claim(
        "mean extent tells the features of these facts from local ones with {}, the CDS with {}"
        " ([below](#how-broadly-they-look)); of a denser SAE, whose features of these facts are diffuse, with {} and"
        " {},",
        [TRUTH.format(of, "broad", key, "all") for of in (TUNED, DENSE) for key in ("mean_extent", "cds")],
    ),
    claim_measures(
        "| measure, scenes |",
        SCENES,
        "global",
        {"AUROC": "all"} | WITH_GAIN,
        ("extent+cds", "evidence extent with CDS"),
        ("mean_extent+cds", "mean extent with CDS"),
        ("context_effect+cds", "context effect with CDS"),
        ("cds+firing_rate", "CDS with firing"),
    ),
    Claim(
        "there are {} of them and {} known-local ones, the mean over SAEs.",
        [TRUTH.format(TUNED, "broad", "cds", f"all_n_{of}") for of in ("known", "local")],
    ),
    claim_measures(
        "| measure, tuned scenes_clip |",
        TUNED,
        "broad",
        {"known-broad": "all"} | WITH_GAIN,
        ("extent+cds", "evidence extent with CDS"),
        ("mean_extent+cds", "mean extent with CDS"),
        ("mean_extent+cds_minus_chance", "mean extent with CDS - chance"),
    ),
    Claim(
        "of context effect that is open ({} to {}).",
        [TRUTH.format(TUNED, "broad", "context_effect", of) for of in GAIN[1:]],
    ),
    Claim(
        "Firing frequency says nothing here ({}). Known-global features are few in this model, {} on average; as on the"
        " other scenes the CDS tells them ({}), extents less ({} and {}).",
        [
            TRUTH.format(TUNED, "broad", "firing_rate", "all"),
            TRUTH.format(TUNED, "global", "cds", "all_n_known"),
            *(TRUTH.format(TUNED, "global", key, "all") for key in ("cds", "extent", "mean_extent")),
        ],
    ),
    Claim(
        "three SAEs, {} known-broad features, {} of them diffuse, and {} known-local ones,",
        [TRUTH.format(DENSE, "broad", "cds", of) for of in ("all_n_known", "diffuse_n_known", "all_n_local")],
    ),
    claim_measures(
        "| measure, tuned, `sae.k=32` |",
        DENSE,
        "broad",
        {"known-broad": "all", "diffuse": "diffuse"} | WITH_GAIN,
        ("mean_extent+cds", "mean extent with CDS"),
    ),
    Claim(
        "mean extent is better by {} ({} to {}),",
        [TRUTH.format(DENSE, "broad", "mean_extent", of) for of in GAIN],
    ),
    Claim(
        "beside the CDS it adds to it ({} to {}).",
        [TRUTH.format(DENSE, "broad", "mean_extent+cds", of) for of in GAIN[1:]],
    ),
    Claim(
        "declares global are many in these SAEs, {} on average, and hardly any is diffuse; the CDS tells them ({}),"
        " extents less ({} and {}).",
        [
            TRUTH.format(DENSE, "global", "cds", "all_n_known"),
            *(TRUTH.format(DENSE, "global", key, "all") for key in ("cds", "extent", "mean_extent")),
        ],
    ),
    Claim(
        "There the formula says which are broad, {} features, and which local, {}.",
        [TRUTH.format(PLANTED, "broad", "cds", f"all_n_{of}") for of in ("known", "local")],
    ),
    Claim(
        "so that extent, mean extent and context effect tell all broad ones from them ({}, {} and {}), the CDS those on"
        " one patch ({}) but not those on all ({}), its chance level taken off nearly all ({}). The light on all"
        " patches, four features, is told by mean extent and context effect ({} and {}), by extent but for one ({}),"
        " not by the CDS ({}).",
        [
            *(
                TRUTH.format(PLANTED, "broad", *of)
                for of in (
                    *(("extent", "all"), ("mean_extent", "all"), ("context_effect", "all")),
                    *(("cds", "compact"), ("cds", "diffuse"), ("cds_minus_chance", "all")),
                )
            ),
            *(
                TRUTH.format(PLANTED, "global", key, "diffuse")
                for key in ("mean_extent", "context_effect", "extent", "cds")
            ),
        ],
    ),
    claim_measures(
        "| measure, control |",
        PLANTED,
        "broad",
        {"known-broad": "all", "on one patch": "compact", "on all patches": "diffuse"},
    ),
    Claim(
        "On the tuned model halves of the images say the same ({}, {} and {}, the CDS {}), with `sae.k=32` they are"
        " less alike ({}, {} and {}, the CDS {}); and another SAE seed there keeps less of extents ({}, mean extent"
        " {}, context effect {}) than of the CDS ({}, {} features).",
        [
            f"scope_measures/scope_measures_stability/setting={setting};comparison={comparison}/{of}"
            for setting, comparison, several in (
                (TUNED, "half of the images", STABLE_MEASURES),
                (DENSE, "half of the images", STABLE_MEASURES),
                (TUNED, "another SAE seed", (*STABLE_MEASURES, "n_features")),
            )
            for of in several
        ],
    ),
    TableClaim(
        "| made otherwise |",
        [
            (name, f"{STABLE}{name}")
            for name in (
                *("half of the images", "half of the donors", "donors: a mean colour"),
                *("donors: the picture itself, blurred", "one image and one donor each", "another SAE seed"),
            )
        ],
        {"evidence extent": "extent", "mean extent": "mean_extent", "context effect": "context_effect"}
        | {"CDS": "cds", "features": "n_features"},
    ),
    Claim(
        "mean extent the final CLS loses {} points more without the narrower half ({} to {}) and {} less without the"
        " wider one ({} to {}), but mIoU is not told from chance.",
        [
            *(
                AGAINST.format("mean_extent", "narrower", "top1_cls_final", f"{of} * -100")
                for of in ("difference", "high", "low")
            ),
            *(
                AGAINST.format("mean_extent", "wider", "top1_cls_final", f"{of} * 100")
                for of in ("difference", "low", "high")
            ),
        ],
    ),
    Claim(
        "without the wide or the wider half the mean patch token loses less (by {} and {}), without the patch-driven"
        " one {} more.",
        [
            AGAINST.format("extent", "wide", "top1_patch_mean", "difference * 100"),
            AGAINST.format("mean_extent", "wider", "top1_patch_mean", "difference * 100"),
            AGAINST.format("context_effect", "patch-driven", "top1_patch_mean", "difference * -100"),
        ],
    ),
    TableClaim(
        "| divided by |",
        [
            (words, address.format(by, variant))
            for by, words, one, other in (
                ("cds", "CDS", "high", "low"),
                ("extent", "evidence extent", "wide", "narrow"),
                ("mean_extent", "mean extent", "wider", "narrower"),
                ("context_effect", "context effect", "context-driven", "patch-driven"),
            )
            for address, variant in (
                *((REMOVED, f"without {name}{'-scope' * (by == 'cds')}") for name in (one, other)),
                *((REMOVED, f"random, mass of {name}") for name in (one, other)),
                *((EQUAL_RATE, f"without {name}{'-scope' * (by == 'cds')}") for name in (one, other)),
            )
        ],
        {"latents": "n_latents", "mass": "mass_share * 100", "top-1 patch mean": "top1_patch_mean * 100"}
        | {"top-1 final CLS": "top1_cls_final * 100", "mIoU": "miou * 100", "depth RMSE": "depth_rmse_m"},
    ),
)
CLAIMS: Mapping[str, Sequence[Claim | TableClaim]] = {
    "README.md": (*README, *SCOPE_MEASURES_README),
    "experiments/README.md": (*EXPERIMENTS, *LINEAGE, *RECONSTRUCTION, *SCOPE_MEASURES),
}
