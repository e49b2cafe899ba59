"use strict";
// What a latent is beside its top images: weaker and random images, classes, neighbours, other SAEs, removal.
(() => {
  const { html, Absent, GroupMark, Section, Wide } = infoscope;
  const SILENT = "It fires in none of the images that this was measured on.";

  const STRIP_PX = 110; // of a picture, so that five of them lie in half of a usual window

  const Strip = ({ view, shown, of, scale, describe }) => {
    const usual = infoscope.usePictureSize(shown), size = shown.large === "on" ? usual : Math.min(usual, STRIP_PX);
    if (of.images.length === 0) return html`<p class="absent">${SILENT}</p>`;
    return html`<ul class="strip" style=${{ "--side": `${size}px` }}>
      ${of.images.map((image, i) => image >= 0 && html`<li key=${i}>
      <${infoscope.MappedPicture} view=${view} set=${view.set} image=${image} map=${of.unpacked[i]} shown=${shown}
        scale=${scale} size=${size} name=${describe(i)} />
      <p>${describe(i)}<br /><${infoscope.ImageName} view=${view} set=${view.set} image=${image} /></p>
    </li>`)}</ul>`;
  };

  const Levels = ({ view, shown, levels, scale }) => html`
    <p>Images at quantiles of its peak activation, among those in which it
      fires${view.levels_of ? `: ${view.levels_of}` : ""}.</p>
    <${Strip} view=${view} shown=${shown} of=${levels} scale=${scale} describe=${(i) =>
      `${infoscope.show(100 * levels.at[i])}% quantile, activation ${infoscope.show(levels.activation[i])}`} />`;

  const Random = ({ view, shown, random, scale }) => html`
    <p>Drawn without regard to activation.</p>
    <${Strip} view=${view} shown=${shown} of=${random} scale=${scale} describe=${(i) =>
      random.activation[i] > 0 ? `activation ${infoscope.show(random.activation[i])}` : "silent"} />`;

  const Classes = ({ classes: { classes, values }, names }) => {
    const rest = 1 - values.reduce((sum, value) => sum + value, 0);
    const rows = classes.map((index, i) => ({ name: names[index] ?? `class ${index}`, share: values[i] }));
    if (rows.length === 0) return html`<p class="absent">${SILENT}</p>`;
    if (rest > 5e-4) rows.push({ name: "all other classes", share: rest });
    return html`<table class="lengths"><caption>Share of its activation by the class of the image</caption>
      <tbody>${rows.map(({ name, share }) => html`<tr>
        <th scope="row">${name}</th><td class="number">${infoscope.show(100 * share, 2)}%</td>
        <td class="bar-cell"><span class="length" style=${{ width: `${100 * Math.min(1, share)}%` }}></span></td>
      </tr>`)}</tbody></table>`;
  };

  // what tables of other latents have of each: first what a view's groups divide
  const listColumns = ({ name }) => [name, "group", "name"];

  // a row on a latent of this view or another: its link, how near it is, what is divided and its group
  const Other = ({ view, divided, latent, value, columns, first = null, last = null }) => html`<tr>
    ${first}
    <td><a href=${infoscope.address({ page: "latent", view: view.id, latent })}>${latent}</a>
      ${" "}${infoscope.valueOf(columns?.name, latent)}</td>
    <td class="number">${infoscope.show(value)}</td>
    <td class="number">${infoscope.show(infoscope.valueOf(columns?.[divided.name], latent))}</td>
    <td><${GroupMark} view=${view} group=${infoscope.valueOf(columns?.group, latent)} /></td>
    ${last}</tr>`;

  const NotNear = ({ what }) => html`<p class="absent">${what} not measured: set
    ${" "}<code>explore.n_near</code> above 0, then
    ${" "}<code>infoscope stage=explore</code>.</p>`;

  const Near = ({ view, of, caption, unit }) => {
    const divided = infoscope.divided(view), columns = infoscope.useColumns(view, listColumns(divided));
    if (of.latents.length === 0) return html`<p class="absent">${caption}: none.</p>`;
    return html`<table class="near"><caption>${caption}</caption>
      <thead><tr><th scope="col">latent</th><th scope="col" class="number">${unit}</th>
        <th scope="col" class="number">${infoscope.columnLabel(divided)}</th>
        <th scope="col">group</th></tr></thead>
      <tbody>${of.latents.map((latent, i) => html`
        <${Other} key=${i} ...${{ view, divided, latent, columns }} value=${of.values[i]} />`)}</tbody>
    </table>`;
  };

  const Elsewhere = ({ view, other, latent, one }) => {
    const pair = `${latent}-${one.latent}`;
    const divided = infoscope.divided(view), columns = infoscope.useColumns(other, listColumns(divided));
    const beside = infoscope.address({ page: "compare", view: view.id, other: other.id, pair });
    return html`<${Other} view=${other} divided=${divided} latent=${one.latent} value=${one.value}
      columns=${columns} first=${html`<th scope="row">${other.title}</th>`}
      last=${html`<td><a href=${beside}>side by side</a></td>`} />`;
  };

  const Places = ({ view, latent, detail }) => {
    const byId = Object.fromEntries(infoscope.manifest.views.map((one) => [one.id, one]));
    const elsewhere = (detail.elsewhere ?? []).filter((one) => one.view in byId);
    const hows = new Set(elsewhere.map((one) => view.matched_by?.[one.view]).filter(Boolean));
    const others = Object.entries(view.unmatched ?? {}).map(([id, why]) => html`
      <p class="absent">${byId[id]?.title ?? id}: its latents were not matched. ${why}</p>`);
    const isMatched = Object.keys(view.matched_by ?? {}).length > 0;
    if (isMatched && !detail.elsewhere) return html`<${Absent} what="Its matches were" />`;
    if (elsewhere.length === 0) {
      return html`<p class="absent">${isMatched ? "No latent of the others here is like it, or it never fires."
        : html`There is no other SAE, seed or layer here that its latents were matched with: compute more seeds or
          layers, or name other explorers in <code>explore.beside</code>, then <code>infoscope stage=explore</code>.`}
        </p>${others}`;
    }
    return html`<${Wide} label="Its best matches"><table class="near">
      <caption>Its best match in other SAEs, seeds and layers</caption>
      <thead><tr><th scope="col">where</th><th scope="col">latent</th><th scope="col" class="number">match</th>
        <th scope="col" class="number">${infoscope.columnLabel(infoscope.divided(view))}</th>
        <th scope="col">group</th><td></td></tr></thead>
      <tbody>${elsewhere.map((one) => html`
        <${Elsewhere} key=${one.view} view=${view} other=${byId[one.view]} latent=${latent} one=${one} />`)}
      </tbody></table></${Wide}>
      ${hows.size > 0 && html`<p class="key">Match: ${[...hows].join("; ")}.</p>`}${others}`;
  };

  const describeEffect = (column, latent) => {
    const value = infoscope.valueOf(column, latent), task = column.heading.split(", ").pop();
    if (value === null) return { task, share: 0, words: "not known" };
    const sizes = Array.from(column.values, Math.abs).filter((size) => !Number.isNaN(size));
    const nSmaller = sizes.filter((size) => size < Math.abs(value)).length;
    const most = sizes.reduce((found, size) => Math.max(found, size), 0);
    const change = value > 0 ? "the loss rises: the task needs it" : "the loss falls: the task is better without it";
    const words = value === 0 ? "nothing changes"
      : `${change}; a larger change than without ${Math.floor((100 * nSmaller) / sizes.length)}% of latents`;
    return { task, value, unit: column.unit, share: value / (most || 1), words };
  };

  const Removal = ({ view, latent }) => {
    const names = view.columns.filter(({ name }) => name.startsWith("effect_")).map(({ name }) => name);
    const columns = infoscope.useColumns(view, names);
    if (names.length === 0) {
      return html`<${Absent} what="Effects of single latents were" how="infoscope stage=effects" />`;
    }
    return columns && html`<p>Change of each task's loss when this latent alone is removed. Bars: share of the largest
      change of any latent; to the right where the loss rises.</p>
      <table class="lengths removal" aria-labelledby="removal"><tbody>${names.map((name) => {
        const { task, value, unit, share, words } = describeEffect(columns[name], latent);
        const place = { width: `${50 * Math.abs(share)}%`, marginLeft: `${50 * (1 + Math.min(0, share))}%` };
        const said = html`<b>${value > 0 ? "+" : ""}${infoscope.show(value)}</b> <span class="unit">${unit}</span>`;
        return html`<tr key=${name}><th scope="row">${task}</th>
          <td><span class="signed"><span class=${share < 0 ? "length down" : "length"} style=${place}></span></span>
            ${value !== undefined && html`${said}: `}${words}</td></tr>`;
      })}</tbody></table>`;
  };

  /** Profile({view, shown, latent, detail, scale}): all of it; `detail` as of useDetail. */
  infoscope.Profile = ({ view, shown, latent, detail, scale }) => {
    const { ranks, levels, random, spread, near, classes } = detail, names = infoscope.manifest.sets[view.set]?.classes;
    const marks = { top: ranks?.activation ?? [], levels: levels?.activation ?? [], random: random?.activation ?? [] };
    return html`
      <${Section} id="spread" title="How strongly it fires">
        ${spread ? html`<${infoscope.SpreadPlot} spread=${spread} marks=${marks} />`
          : html`<${Absent} what="The spread of its activation was" />`}</${Section}>
      <${Section} id="levels" title="Weaker images">
        ${levels ? html`<${Levels} view=${view} shown=${shown} levels=${levels} scale=${scale} />`
          : html`<${Absent} what="Images at activation quantiles were" />`}</${Section}>
      <${Section} id="random" title="Random images">
        ${random ? html`<${Random} view=${view} shown=${shown} random=${random} scale=${scale} />`
          : html`<${Absent} what="Random images were" />`}</${Section}>
      <${Section} id="classes" title="Classes">
        ${!names ? html`<p class="absent">These images have no classes.</p>`
          : classes ? html`<${Classes} classes=${classes} names=${names} />`
          : html`<${Absent} what="Its activation by class was" />`}</${Section}>
      <${Section} id="near" title="Nearest latents"><div class="columns">
        ${near?.decoder ? html`<${Near} view=${view} of=${near.decoder} caption="By decoder: what they write"
          unit="cosine" />` : html`<${NotNear} what="Nearest decoder rows were" />`}
        ${near?.coactive ? html`<${Near} view=${view} of=${near.coactive} caption="By co-activation: when they fire"
          unit="correlation" />` : html`<${NotNear} what="Co-activation was" />`}</div></${Section}>
      <${Section} id="elsewhere" title="Over layers, seeds and other SAEs">
        <${Places} view=${view} latent=${latent} detail=${detail} /></${Section}>
      <${Section} id="removal" title="Without it"><${Removal} view=${view} latent=${latent} /></${Section}>`;
  };
})();
