"use strict";
// Small plots of one latent, and of two SAEs: axes in SVG, which tell in words what they show.
(() => {
  const { html } = infoscope;
  const WIDTH = 440, LEFT = 56, RIGHT = WIDTH - 18, BOTTOM = 34, TOP = 18;

  /** Places in a plot of a height, of values from xs[0] to xs[1] and from ys[0] to ys[1]. */
  infoscope.makeScales = (xs, ys, height = 210) => ({
    xs, ys, height, left: LEFT, right: RIGHT, top: TOP, bottom: height - BOTTOM, width: WIDTH,
    x: (value) => LEFT + ((RIGHT - LEFT) * (value - xs[0])) / (xs[1] - xs[0] || 1),
    y: (value) => height - BOTTOM - ((height - BOTTOM - TOP) * (value - ys[0])) / (ys[1] - ys[0] || 1),
  });

  const middle = ([low, high]) => [low, (low + high) / 2, high];

  /** Plot({scales, xTicks, xName, yName, label, children}): axes around what is drawn; `label`: all of it in words. */
  infoscope.Plot = ({ scales: { xs, ys, height, x, y }, xTicks, xName, yName, label, children }) => html`
    <svg class="plot" viewBox=${`0 0 ${WIDTH} ${height}`} role="img" aria-label=${label}>
      <line class="axis" x1=${LEFT} x2=${RIGHT} y1=${y(ys[0])} y2=${y(ys[0])} />
      <line class="axis" x1=${LEFT} x2=${LEFT} y1=${y(ys[0])} y2=${y(ys[1])} />
      ${(xTicks ?? middle(xs)).map((value) => html`
        <text x=${x(value)} y=${height - BOTTOM + 14} text-anchor="middle">${infoscope.show(value, 2)}</text>`)}
      ${middle(ys).map((value) => html`
        <text x=${LEFT - 5} y=${y(value) + 4} text-anchor="end">${infoscope.show(value, 2)}</text>`)}
      <text x=${(LEFT + RIGHT) / 2} y=${height - 4} text-anchor="middle">${xName}</text>
      <text transform=${`translate(10 ${(height - BOTTOM + TOP) / 2}) rotate(-90)`} text-anchor="middle">${yName}</text>
      ${children}
    </svg>`;

  // CDS over the first k ranks, for every k: the mean of what is known, null with less than half of the pairs
  const runningCds = (emd) => {
    let sum = 0, n = 0;
    return emd.map((value, i) => {
      if (value !== null) { sum += value; n += 1; }
      return n >= Math.ceil((i + 1) / 2) ? sum / n : null;
    });
  };

  const tellRanks = (emd, running, k, lines) => {
    const ranks = emd.map((value, i) => `${i + 1}: ${value === null ? "none" : infoscope.show(value)}`);
    const score = running[k - 1] ?? null;
    return `Distance by rank: ${ranks.join(", ")}. CDS over ${infoscope.count(k, "rank")}: `
      + (score === null ? "none" : infoscope.show(score))
      + lines.map(([name, value]) => `, ${name} ${infoscope.show(value)}`).join("") + ".";
  };

  /** RankPlot({view, ranks, chance}): the distance at each rank and the score over the first k. */
  infoscope.RankPlot = ({ view, ranks, chance }) => {
    const { emd } = ranks, n = emd.length, running = runningCds(emd);
    const isKnown = (value) => value !== null && value !== undefined;
    const gamma = infoscope.divided(view).name === "cds" ? view.groups?.gamma : null; // else it is none of the CDS
    const lines = [["chance", chance], ["gamma", gamma]].filter(([, value]) => isKnown(value));
    const most = Math.max(0.02, ...emd.filter(isKnown), ...lines.map(([, value]) => value));
    const scales = infoscope.makeScales([0.5, n + 0.5], [0, 1.05 * most]), { x, y } = scales;
    const ticks = [1, ...[4, 8, 12, 16, 24, 32, 48, 64].filter((rank) => rank <= n)];
    const path = running.flatMap((value, i) => value === null ? [] : [`${x(i + 1)},${y(value)}`]).join(" ");
    return html`<div class="plot-with-key">
      <${infoscope.Plot} scales=${scales} xTicks=${ticks} xName="rank, or k" yName="share of largest distance"
        label=${tellRanks(emd, running, Math.min(view.k_cds, n), lines)}>
        ${view.k_cds <= n && html`<line class="mark" x1=${x(view.k_cds)} x2=${x(view.k_cds)} y1=${y(0)} y2=${TOP} />
          <text x=${x(view.k_cds)} y=${TOP - 5} text-anchor="middle">k = ${view.k_cds}</text>`}
        ${lines.map(([name, value]) => html`
          <line class=${`level ${name}`} x1=${LEFT} x2=${RIGHT} y1=${y(value)} y2=${y(value)} />
          <text x=${RIGHT - 2} y=${y(value) - 3} text-anchor="end">${name}</text>`)}
        ${emd.map((value, i) => value === null
          ? html`<path class="none" d=${`M${x(i + 1) - 3} ${y(0) - 6}l6 6m0 -6l-6 6`} />`
          : html`<circle class="rank" cx=${x(i + 1)} cy=${y(value)} r="3.5" />`)}
        <polyline class="running" points=${path} />
      </${infoscope.Plot}>
      <p class="key">Dots: the EMD at each rank (×: none). Line: CDS over the first k ranks.${view.k_max < view.k_cds
        && ` The latent's CDS is over ${view.k_cds}, of which ${view.k_max} are kept here.`}</p></div>`;
  };

  const MARKS = { // of the images that are shown, by what they are shown for
    top: (x, y) => `M${x} ${y}v-14`,
    levels: (x, y) => `M${x} ${y - 10}l4 -7h-8z`,
    random: (x, y) => `M${x - 3} ${y - 28}h6v6h-6z`,
  };

  /** SpreadPlot({spread, marks}): how strongly it fires where it does; marks {top, levels, random}: of images shown. */
  infoscope.SpreadPlot = ({ spread, marks }) => {
    const { edges, counts, n_firing: nFiring, n_images: nImages } = spread, values = Object.values(marks).flat();
    const last = Math.max(edges[edges.length - 1], ...values); // top images may lie beyond those that were measured
    const scales = infoscope.makeScales([edges[0], last], [0, Math.max(1, ...counts)]), { x, y } = scales;
    const steps = counts.map((count, i) =>
      `${count} from ${infoscope.show(edges[i], 2)} to ${infoscope.show(edges[i + 1], 2)}`);
    const label = `Peak activation over ${infoscope.count(nFiring, "image")} in which it fires: ${steps.join(", ")}.`;
    return html`<div class="plot-with-key">
      <${infoscope.Plot} scales=${scales} xName="peak activation" yName="images" label=${label}>
        ${counts.map((count, i) => html`<rect class="count" x=${x(edges[i]) + 0.5} y=${y(count)}
          width=${Math.max(1, x(edges[i + 1]) - x(edges[i]) - 1)} height=${y(0) - y(count)} />`)}
        ${Object.entries(marks).flatMap(([name, all]) => all.filter((value) => value > 0).map((value) => html`
          <path class=${`shown-${name}`} d=${MARKS[name](x(value), y(0))} />`))}
      </${infoscope.Plot}>
      <p class="key">It fires in ${infoscope.count(nFiring, "image")} of ${infoscope.show(nImages)}. Where the pictures
        lie: ticks top images, triangles quantiles, squares random images.</p></div>`;
  };
})();
