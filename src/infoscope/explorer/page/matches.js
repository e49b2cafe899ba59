"use strict";
// Latents of two SAEs: which belong together, and how their groups and scores agree.
(() => {
  infoscope.NO_MATCH = "no match";

  /** The group of each latent, and their names in order: those of a threshold, or (gamma null) the view's own. */
  infoscope.groupLatents = (view, columns, gamma) => {
    if (gamma === null && columns.group) {
      const { texts, values } = columns.group, groups = Array.from(values, (code) => texts[code] || "in no group");
      const names = (view.groups?.names ?? []).filter((name) => texts.includes(name));
      return { groups, names: [...names, ...[...new Set(groups)].filter((name) => !names.includes(name)).sort()] };
    }
    const cut = gamma ?? view.groups?.gamma ?? null;
    const { name, below, above } = infoscope.divided(view);
    if (!columns[name] || cut === null) return null;
    const find = (value) => Number.isNaN(value) ? "unscored" : value > cut ? above : below;
    const groups = Array.from(columns[name].values, find);
    return { groups, names: [below, above, ...(groups.includes("unscored") ? ["unscored"] : [])] };
  };

  /**
   * A promise of the matches of a view's latents in another: {latents (-1: none), values (null: they are the same
   * latents), how (in words)}, or {why} there are none.
   */
  infoscope.findMatches = async (one, other) => {
    if (one.id === other.id) {
      const latents = Int32Array.from({ length: one.d_sae }, (_, i) => i);
      return { latents, values: null, how: "the same latents" };
    }
    const how = one.matched_by?.[other.id];
    if (!how) {
      return { why: one.unmatched?.[other.id] ?? "These two were not matched: one of them came without what its latents"
        + " are matched by." };
    }
    const found = await infoscope.load(`${one.id}/columns/match_${other.id}`);
    return { latents: infoscope.unpack(found.latents), values: infoscope.unpack(found.values), how };
  };

  /** Has a latent a match that is at least so good? */
  infoscope.isMatched = ({ latents, values }, latent, minimal) =>
    latents[latent] >= 0 && (values === null || values[latent] >= minimal);

  /**
   * How many latents of one are in each of its groups and each group of the other, and their share of the mass of all:
   * {[group]: {[other group, or NO_MATCH]: {n, mass}}}.
   */
  infoscope.crossGroups = (one, other, matches, minimal, mass) => {
    const cells = {}, weigh = (latent) => mass?.[latent] > 0 ? mass[latent] : 0;
    let total = 0;
    one.groups.forEach((group, latent) => {
      const isMatched = infoscope.isMatched(matches, latent, minimal);
      const to = isMatched ? other.groups[matches.latents[latent]] : infoscope.NO_MATCH;
      const cell = ((cells[group] ??= {})[to] ??= { n: 0, mass: 0 });
      cell.n += 1;
      cell.mass += weigh(latent);
      total += weigh(latent);
    });
    for (const cell of Object.values(cells).flatMap(Object.values)) cell.mass /= total || 1;
    return cells;
  };

  // places in ascending order; of equal ones, their mean
  const rank = (values) => {
    const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]);
    const ranks = new Float64Array(values.length);
    for (let start = 0, end = 0; start < order.length; start = end) {
      while (end < order.length && values[order[end]] === values[order[start]]) end += 1;
      for (let i = start; i < end; i++) ranks[order[i]] = (start + end - 1) / 2;
    }
    return ranks;
  };

  /** Spearman's correlation of two lists of numbers; null where one has no order. */
  infoscope.spearman = (ones, others) => {
    const a = rank(ones), b = rank(others), mean = (a.length - 1) / 2;
    let ab = 0, aa = 0, bb = 0;
    a.forEach((_, i) => {
      ab += (a[i] - mean) * (b[i] - mean);
      aa += (a[i] - mean) ** 2;
      bb += (b[i] - mean) ** 2;
    });
    return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : null;
  };
})();
