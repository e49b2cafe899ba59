"use strict";
// What a latent is beside its top images: CDS by rank, weaker and random images, classes, neighbours, removal.
(() => {
  const { html } = infoscope;

  /** A hook: the columns of a view that there are among `names`, by name; null until they are loaded. */
  infoscope.useColumns = (view, names) => {
    const found = view.columns.filter((column) => names.includes(column.name));
    const { value } = infoscope.useLoaded(
      async () => Object.fromEntries(await Promise.all(found.map(async (column) =>
        [column.name, { ...column, ...(await infoscope.column(view.id, column.name)) }]))),
      [view.id, names.join()],
    );
    return value;
  };

  /** What a column has of a latent: a number, a text or a switch; null where it is not known. */
  infoscope.valueOf = (column, latent) => {
    const value = column?.values[latent];
    if (value === undefined || Number.isNaN(value)) return null;
    if (column.texts) return column.texts[value] || null;
    return column.kind === "switch" ? value > 0 : value;
  };

  /** A value in words: numbers as people read them, switches as yes and no. */
  infoscope.showValue = (value) => typeof value === "boolean" ? (value ? "yes" : "no") : infoscope.show(value);

  /** GroupMark({view, group}): its colour and its name. */
  infoscope.GroupMark = ({ view, group }) => group && html`<span class="group"><span class="dot" aria-hidden="true"
    style=${{ background: infoscope.groupColour(group, view.groups?.names ?? []) }}></span>${group}</span>`;

  const Section = ({ id, title, children }) => html`<section aria-labelledby=${id}><h3
    id=${id}>${title}</h3>${children}</section>`;

  /** Absent({what, how}): what was not measured, and the commands that measure it; `how` before that of the explorer. */
  infoscope.Absent = ({ what, how = "" }) => html`<p class="absent">${what} not measured: run ${how
    && html`<code>${how}</code>, then `}<code>infoscope stage=explore</code>${how ? "" : " again"}.</p>`;

  // a plot of numbers in SVG: places of values, ticks and lines
  const WIDTH = 440, LEFT = 56, RIGHT = WIDTH - 18, BOTTOM = 34, TOP = 18;

  /** Places in a plot of a height, of values from xs[0] to xs[1] and from ys[0] to ys[1]. */
  infoscope.makeScales = (xs, ys, height = 210) => ({
    xs, ys, height, left: LEFT, right: RIGHT, top: TOP, bottom: height - BOTTOM, width: WIDTH,
    x: (value) => LEFT + ((RIGHT - LEFT) * (value - xs[0])) / (xs[1] - xs[0] || 1),
    y: (value) => height - BOTTOM - ((height - BOTTOM - TOP) * (value - ys[0])) / (ys[1] - ys[0] || 1),
  });

  /** Plot({scales, xTicks, xName, yName, label, children}): axes in SVG around what is drawn; `label` tells all of it in words. */
  infoscope.Plot = ({ scales: { xs, ys, height, x, y }, xTicks, xName, yName, label, children }) => html`
    <svg class="plot" viewBox=${`0 0 ${WIDTH} ${height}`} role="img" aria-label=${label}>
      <line class="axis" x1=${LEFT} x2=${RIGHT} y1=${y(ys[0])} y2=${y(ys[0])} />
      <line class="axis" x1=${LEFT} x2=${LEFT} y1=${y(ys[0])} y2=${y(ys[1])} />
      ${(xTicks ?? [xs[0], (xs[0] + xs[1]) / 2, xs[1]]).map((value) => html`
        <text x=${x(value)} y=${height - BOTTOM + 14} text-anchor="middle">${infoscope.show(value, 2)}</text>`)}
      ${[ys[0], (ys[0] + ys[1]) / 2, ys[1]].map((value) => html`
        <text x=${LEFT - 5} y=${y(value) + 4} text-anchor="end">${infoscope.show(value, 2)}</text>`)}
      <text x=${(LEFT + RIGHT) / 2} y=${height - 4} text-anchor="middle">${xName}</text>
      <text transform=${`translate(10 ${(height - BOTTOM + TOP) / 2}) rotate(-90)`} text-anchor="middle">${yName}</text>
      ${children}
    </svg>`;
  const { Plot, makeScales } = infoscope;

  /** CDS over the first k ranks, for every k: the mean of what is known, null with less than half of the pairs. */
  infoscope.runningCds = (emd) => {
    let sum = 0, n = 0;
    return emd.map((value, i) => {
      if (value !== null) { sum += value; n += 1; }
      return n >= Math.ceil((i + 1) / 2) ? sum / n : null;
    });
  };

  /** RankPlot({view, ranks, chance}): the distance at each rank and the score over the first k. */
  infoscope.RankPlot = ({ view, ranks, chance }) => {
    const { emd } = ranks, n = emd.length, running = infoscope.runningCds(emd), gamma = view.groups?.gamma ?? null;
    const known = [...emd, chance, gamma].filter((value) => value !== null && value !== undefined);
    const xs = [0.5, n + 0.5], ys = [0, 1.05 * Math.max(0.02, ...known)], scales = makeScales(xs, ys);
    const path = running.map((value, i) => value === null ? null : `${scales.x(i + 1)},${scales.y(value)}`);
    const lines = [["chance", chance], ["gamma", gamma]].filter(([, value]) => value !== null && value !== undefined);
    const last = running[Math.min(view.k_cds, n) - 1] ?? null;
    const label = `Distance by rank: ${emd.map((value, i) => `${i + 1}: ${value === null ? "none" : infoscope.show(value)}`).join(", ")}. `
      + `CDS over ${Math.min(view.k_cds, n)} ranks: ${last === null ? "none" : infoscope.show(last)}`
      + lines.map(([name, value]) => `, ${name} ${infoscope.show(value)}`).join("") + ".";
    const ticks = [1, ...[4, 8, 12, 16, 24, 32, 48, 64].filter((rank) => rank <= n)];
    return html`<div class="plot-with-key"><${Plot} scales=${scales} xTicks=${ticks} xName="rank, or k"
      yName="share of largest distance" label=${label}>
      ${view.k_cds <= n && html`<line class="mark" x1=${scales.x(view.k_cds)} x2=${scales.x(view.k_cds)}
        y1=${scales.y(0)} y2=${TOP} />
        <text x=${scales.x(view.k_cds)} y=${TOP - 5} text-anchor="middle">k = ${view.k_cds}</text>`}
      ${lines.map(([name, value]) => html`<line class=${`level ${name}`} x1=${LEFT} x2=${RIGHT} y1=${scales.y(value)}
        y2=${scales.y(value)} />
        <text x=${RIGHT - 2} y=${scales.y(value) - 3} text-anchor="end">${name}</text>`)}
      ${emd.map((value, i) => value === null
        ? html`<path class="none" d=${`M${scales.x(i + 1) - 3} ${scales.y(0) - 6}l6 6m0 -6l-6 6`} />`
        : html`<circle class="rank" cx=${scales.x(i + 1)} cy=${scales.y(value)} r="3.5" />`)}
      <polyline class="running" points=${path.filter(Boolean).join(" ")} />
    </${Plot}>
    <p class="key">Dots: the EMD at each rank (×: none). Line: CDS over the first k ranks.</p></div>`;
  };

  const Strip = ({ view, shown, of, unpacked, scale, size, describe }) => of.images.length === 0
    ? html`<p class="absent">It fires in none of these images.</p>` : html`<ul
      class="strip">${of.images.map((image, i) => image >= 0 && html`
    <li key=${i}><${infoscope.MappedPicture} view=${view} set=${of.set ?? view.set} image=${image} map=${unpacked[i]}
      shown=${shown} scale=${scale}
      size=${size} name=${describe(i)} />
      <p>${describe(i)}<br /><${infoscope.ImageName} view=${view} set=${of.set ?? view.set} image=${image}
        /></p></li>`)}</ul>`;

  const Spread = ({ spread, marks }) => {
    const { edges, counts } = spread, shownValues = marks.flatMap(({ values }) => values);
    const xs = [edges[0], Math.max(edges[edges.length - 1], ...shownValues)], ys = [0, Math.max(1, ...counts)];
    const scales = makeScales(xs, ys);
    const label = `Peak activation over ${infoscope.count(spread.n_firing, "image")} in which it fires: `
      + counts.map((count, i) => `${count} from ${infoscope.show(edges[i], 2)} to ${infoscope.show(edges[i + 1], 2)}`).join(", ") + ".";
    return html`<div class="plot-with-key"><${Plot} scales=${scales}
      xName="peak activation" yName="images" label=${label}>
      ${counts.map((count, i) => html`<rect class="bar" x=${scales.x(edges[i]) + 0.5}
        width=${Math.max(1, scales.x(edges[i + 1]) - scales.x(edges[i]) - 1)}
        y=${scales.y(count)} height=${scales.y(0) - scales.y(count)} />`)}
      ${marks.flatMap(({ name, values }) => values.filter((value) => value > 0).map((value) => html`<path
        class=${`shown-${name}`}
        d=${name === "top" ? `M${scales.x(value)} ${scales.y(0)}v-14` : name === "levels"
          ? `M${scales.x(value)} ${scales.y(0) - 10}l4 -7h-8z` : `M${scales.x(value) - 3} ${scales.y(0) - 28}h6v6h-6z`}><title>${name} image: ${infoscope.show(value)}</title></path>`))}
    </${Plot}>
    <p class="key">It fires in ${infoscope.count(spread.n_firing, "image")} of ${infoscope.show(spread.n_images)}. Where the pictures lie:
      ticks top images, triangles quantiles, squares random images.</p></div>`;
  };

  const Bars = ({ rows, caption }) => html`<table
    class="bars"><caption>${caption}</caption><tbody>${rows.map(({ name, value, share }) => html`<tr>
    <th scope="row">${name}</th><td class="number">${value}</td>
    <td class="bar-cell"><span class="bar"
      style=${{ width: `${100 * Math.min(1, share)}%` }}></span></td></tr>`)}</tbody></table>`;

  const listClasses = ({ classes, values }, names) => {
    const rest = 1 - values.reduce((sum, value) => sum + value, 0);
    const rows = classes.map((index, i) => ({ name: names[index] ?? `class ${index}`, share: values[i] }));
    return [...rows, ...(rows.length && rest > 5e-4 ? [{ name: "all other classes", share: rest }] : [])]
      .map(({ name, share }) => ({ name, share, value: `${infoscope.show(100 * share, 2)}%` }));
  };

  const LATENT_COLUMNS = ["cds", "group", "name"];

  const Neighbour = ({ view, latent, value, columns, children }) => {
    const name = infoscope.valueOf(columns?.name, latent);
    return html`<tr><th scope="row">${children}<a
      href=${infoscope.address({ page: "latent", view: view.id, latent })}>${latent}</a>${name ? ` ${name}` : ""}</th>
      <td class="number">${infoscope.show(value)}</td><td
        class="number">${infoscope.show(infoscope.valueOf(columns?.cds, latent))}</td>
      <td><${infoscope.GroupMark} view=${view} group=${infoscope.valueOf(columns?.group, latent)} /></td></tr>`;
  };

  const Near = ({ view, of, caption, unit }) => {
    const columns = infoscope.useColumns(view, LATENT_COLUMNS);
    if (of.latents.length === 0) return html`<p class="absent">${caption}: none.</p>`;
    return html`<table class="near"><caption>${caption}</caption><thead><tr><th scope="col">latent</th><th
      scope="col">${unit}</th>
      <th scope="col">CDS</th><th
        scope="col">group</th></tr></thead><tbody>${of.latents.map((latent, i) => latent >= 0 && html`<${Neighbour}
        key=${i} view=${view} latent=${latent} value=${of.values[i]} columns=${columns} />`)}</tbody></table>`;
  };

  const Elsewhere = ({ view, one, latent }) => {
    const other = infoscope.manifest.views.find(({ id }) => id === one.view);
    const columns = infoscope.useColumns(other ?? view, LATENT_COLUMNS);
    if (!other) return null;
    const name = infoscope.valueOf(columns?.name, one.latent);
    return html`<tr><th scope="row">${other.title}</th>
      <td><a href=${infoscope.address({ page: "latent", view: other.id, latent: one.latent })}>${one.latent}</a>${name ? ` ${name}` : ""}</td>
      <td class="number">${infoscope.show(one.value)} <span
        class="unit">${view.matched_by?.[one.view] ?? ""}</span></td>
      <td class="number">${infoscope.show(infoscope.valueOf(columns?.cds, one.latent))}</td>
      <td><${infoscope.GroupMark} view=${other} group=${infoscope.valueOf(columns?.group, one.latent)} /></td>
      <td><a href=${infoscope.address({ page: "compare", view: view.id, other: other.id, pair: `${latent}-${one.latent}` })}>side by side</a></td></tr>`;
  };

  const Places = ({ view, latent, detail }) => {
    const elsewhere = detail.elsewhere ?? [], places = detail.places ?? [];
    if (elsewhere.length + places.length === 0) {
      return html`<p
        class="absent">There is no other SAE, seed or layer here that its latents were matched with: compute more seeds or layers, or name
        other explorers in <code>explore.beside</code>, then <code>infoscope stage=explore</code>.</p>`;
    }
    return html`<table class="near"><caption>Its best match in other SAEs, seeds and layers</caption><thead><tr><th
      scope="col">where</th><th scope="col">latent</th>
      <th scope="col">match</th><th scope="col">CDS</th><th scope="col">group</th><th
        scope="col"></th></tr></thead><tbody>
      ${elsewhere.map((one) => html`<${Elsewhere} key=${one.view} view=${view} one=${one} latent=${latent} />`)}
      ${places.map((one) => html`<tr><th scope="row">${one.of}</th><td>${infoscope.show(one.latent)}</td><td
        class="number">${infoscope.show(one.value)}</td>
        <td class="number">${infoscope.show(one.cds)}</td><td><${infoscope.GroupMark} view=${view} group=${one.group}
          /></td>
        <td>${one.why ?? ""}</td></tr>`)}</tbody></table>`;
  };

  const Removal = ({ view, latent }) => {
    const names = view.columns.filter(({ name }) => name.startsWith("effect_")).map(({ name }) => name);
    const columns = infoscope.useColumns(view, names);
    if (names.length === 0) return html`<${infoscope.Absent} what="Effects of single latents were"
      how="infoscope stage=effects" />`;
    if (!columns) return null;
    const rows = names.map((name) => {
      const column = columns[name], value = infoscope.valueOf(column, latent);
      if (value === null) return { name, task: column.heading, words: "not known" };
      let most = 0, nSmaller = 0, n = 0;
      for (const one of column.values) {
        if (Number.isNaN(one)) continue;
        most = Math.max(most, Math.abs(one));
        n += 1;
        nSmaller += Math.abs(one) < Math.abs(value);
      }
      const words = value === 0 ? "nothing changes" : `the loss ${value > 0 ? "rises: it is missed" : "falls: the task is better without it"}`
        + `; more than for ${Math.floor((100 * nSmaller) / n)}% of latents`;
      return { name, task: column.heading.split(", ").pop(), value, unit: column.unit, share: value / (most || 1), words };
    });
    return html`<table
      class="bars removal"><caption>Change of each task's loss when this latent alone is removed; bars: share of the largest change of any latent</caption>
      <tbody>${rows.map((row) => html`<tr key=${row.name}><th scope="row">${row.task}</th>
        <td class="number">${row.value > 0 ? "+" : ""}${infoscope.show(row.value)} <span
          class="unit">${row.unit}</span></td>
        <td class="bar-cell signed"><span class=${row.share < 0 ? "bar down" : "bar"}
          style=${{ width: `${50 * Math.abs(row.share ?? 0)}%`,
          marginLeft: row.share < 0 ? `${50 * (1 + row.share)}%` : "50%" }}></span></td><td>${row.words}</td></tr>`)}</tbody></table>`;
  };

  /** Profile({view, shown, latent, detail, scale, size}): all of it; `detail` with its maps unpacked. */
  infoscope.Profile = ({ view, shown, latent, detail, scale, size }) => {
    const { levels, random, spread, near, classes } = detail, setClasses = infoscope.manifest.sets[view.set]?.classes;
    const marks = [{ name: "top", values: detail.ranks?.activation ?? [] }, { name: "levels", values: levels?.activation ?? [] },
      { name: "random", values: random?.activation ?? [] }];
    return html`
      <${Section} id="levels" title="Weaker images">${levels ? html`
        <p>Images at quantiles of its peak activation, among those in which it fires${view.levels_of ? `: ${view.levels_of}` : ""}.</p>
        <${Strip} view=${view} shown=${shown} of=${levels} unpacked=${levels.unpacked} scale=${scale} size=${size}
          describe=${(i) => `${infoscope.show(100 * levels.at[i])}% quantile, activation ${infoscope.show(levels.activation[i])}`} />`
        : html`<${infoscope.Absent} what="Images at activation quantiles were" />`}</${Section}>
      <${Section} id="random" title="Random images">${random ? html`
        <p>Drawn without regard to activation.</p>
        <${Strip} view=${view} shown=${shown} of=${random} unpacked=${random.unpacked} scale=${scale} size=${size}
          describe=${(i) => random.activation[i] > 0 ? `activation ${infoscope.show(random.activation[i])}` : "silent"}
            />`
        : html`<${infoscope.Absent} what="Random images were" />`}</${Section}>
      <${Section} id="spread" title="How strongly it fires">${spread ? html`<${Spread} spread=${spread} marks=${marks}
        />`
        : html`<${infoscope.Absent} what="The spread of its activation was" />`}</${Section}>
      <${Section} id="classes" title="Classes">${classes && setClasses ? html`<${Bars}
        caption="Share of its activation by the class of the image"
rows=${listClasses(classes, setClasses)} />`
        : setClasses ? html`<${infoscope.Absent} what="Its activation by class was" />` : html`<p
          class="absent">These images have no classes.</p>`}</${Section}>
      <${Section} id="near" title="Nearest latents"><div class="columns">
        ${near?.decoder ? html`<${Near} view=${view} of=${near.decoder} caption="By decoder: what they write"
          unit="cosine" />`
          : html`<${infoscope.Absent} what="Nearest decoder rows were" />`}
        ${near?.coactive ? html`<${Near} view=${view} of=${near.coactive} caption="By co-activation: when they fire"
          unit="correlation" />`
          : html`<${infoscope.Absent} what="Co-activation was" />`}</div></${Section}>
      <${Section} id="elsewhere" title="Over layers, seeds and other SAEs"><${Places} view=${view} latent=${latent}
        detail=${detail} /></${Section}>
      <${Section} id="removal" title="Without it"><${Removal} view=${view} latent=${latent} /></${Section}>`;
  };
})();
