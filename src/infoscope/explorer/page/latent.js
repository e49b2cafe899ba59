"use strict";
// The page of one latent: what is known of it, its top images as pairs of crops, and what it is elsewhere.
(() => {
  const { html, useEffect, useState } = infoscope;
  const MAIN = [
    "cds", "cds_low", "cds_high", "cds_minus_chance", "extent", "mean_extent", "context_effect", "group", "undecided",
    "firing_rate", "mass", "name",
  ];

  /** A hook: {value, error} of all that is known of a latent beside its row, maps unpacked as `unpacked`. */
  infoscope.useDetail = (view, latent) => infoscope.useLoaded(async () => {
    const found = (await infoscope.latent(view, latent)) ?? {}, detail = { ...found };
    for (const part of ["ranks", "levels", "random"]) {
      if (found[part]) detail[part] = { ...found[part], unpacked: infoscope.unpackMaps(found[part].maps) };
    }
    return detail;
  }, [view.id, latent]);

  const Fact = ({ name, value, children }) => value !== null && value !== undefined && value !== ""
    && html`<div><dt>${name}</dt><dd>${value}${children}</dd></div>`;

  const Facts = ({ view, columns, latent }) => {
    const of = (name) => infoscope.valueOf(columns[name], latent), show = (name) => infoscope.show(of(name));
    const unit = (name) => html` <span class="unit">${columns[name]?.unit === "1" ? "" : columns[name]?.unit}</span>`;
    const cds = of("cds") === null ? "none: too few of its pairs have a distance" : show("cds");
    const ofWindows = (name) => {
      if (!columns[name]) return "";
      const isNone = of(name) === null && infoscope.divided(view).name === name;
      const value = isNone ? `none: ${infoscope.whyUnknown(name)}` : show(name);
      return html`<${Fact} name=${infoscope.columnLabel({ name })} value=${value}>${!isNone && unit(name)}</${Fact}>`;
    };
    return html`<dl class="facts">
      <${Fact} name="group" value=${of("group") && html`<${infoscope.GroupMark} view=${view} group=${of("group")} />`}>
        ${of("undecided") ? html` <span class="unit">undecided: its pairs leave its group open</span>` : ""}
      </${Fact}>
      ${columns.cds && html`<${Fact} name="CDS" value=${cds}>
        ${of("cds_low") !== null && html` <span class="unit" title=${columns.cds_low.heading}>
          95% interval ${show("cds_low")} to ${show("cds_high")}</span>`}
      </${Fact}>`}
      <${Fact} name="CDS − chance" value=${show("cds_minus_chance")} />
      ${["extent", "mean_extent", "context_effect"].map(ofWindows)}
      <${Fact} name="firing rate" value=${show("firing_rate")}>${unit("firing_rate")}</${Fact}>
      <${Fact} name="mass" value=${show("mass")}>${unit("mass")}</${Fact}>
    </dl>`;
  };

  const OtherColumns = ({ view, latent }) => {
    const columns = infoscope.useColumns(view, view.columns.map(({ name }) => name));
    if (!columns) return html`<${infoscope.Loading} what="The row" />`;
    const rows = view.columns.filter(({ name }) => !MAIN.includes(name));
    return html`<${infoscope.Wide} label="Columns of the table"><table class="all-columns">
      <thead><tr><th scope="col">what</th><th scope="col" class="number">value</th>
        <th scope="col">unit</th></tr></thead>
      <tbody>${rows.map(({ name, heading, unit }) => html`<tr key=${name}>
        <th scope="row" title=${name}>${heading || name}</th>
        <td class="number">${infoscope.show(infoscope.valueOf(columns[name], latent)) || "not known"}</td>
        <td class="unit">${unit === "1" ? "" : unit}</td>
      </tr>`)}</tbody></table></${infoscope.Wide}>`;
  };

  const FoldedColumns = ({ view, latent }) => {
    const [isOpen, setOpen] = useState(false);
    return html`<details onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>All else that the table knows of it</summary>
      ${isOpen && html`<${OtherColumns} view=${view} latent=${latent} />`}</details>`;
  };

  // which latents come before and after: in what the table shows, else by number; none until that is known
  const useNeighbours = (view, shown) => {
    const { value, error } = infoscope.useLoaded(() => infoscope.order(view),
      [view.id, shown.filter, shown.sort, shown.brush, shown.box, shown.selected]);
    if (!value && !error) return { before: null, after: null, words: "" };
    const place = value ? value.indexOf(shown.latent) : -1, isListed = place >= 0;
    const [before, after] = [-1, 1].map((step) => {
      const latent = isListed ? value[place + step] : shown.latent + step;
      return latent >= 0 && latent < view.d_sae ? latent : null;
    });
    const words = isListed ? `${infoscope.show(place + 1)} of ${infoscope.show(value.length)} in the order of the table`
      : "not among those that the table shows: steps are by number";
    return { before, after, words };
  };

  const goTo = (latent) => infoscope.go({ page: "latent", latent });
  const isTyping = (event) => event.target.closest("input, select, textarea, [role=grid], .wide[tabindex]");

  const Steps = ({ view, shown }) => {
    const { before, after, words } = useNeighbours(view, shown), steps = infoscope.useRef({});
    steps.current = { ArrowLeft: before, ArrowRight: after }; // a key never acts on what stood here before
    useEffect(() => {
      const press = (event) => {
        if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || isTyping(event)) return;
        const latent = steps.current[event.key] ?? null;
        if (latent === null) return;
        event.preventDefault();
        goTo(latent);
      };
      window.addEventListener("keydown", press);
      return () => window.removeEventListener("keydown", press);
    }, []);
    const submit = (event) => {
      event.preventDefault();
      goTo(Number.parseInt(new FormData(event.target).get("latent"), 10) || 0);
    };
    const step = (latent, text) => latent === null ? html`<span class="step off">${text}</span>`
      : html`<a class="step" href=${infoscope.address({ page: "latent", latent })}>${text}</a>`;
    return html`<nav class="steps" aria-label="Latents">${step(before, "← previous")} ${step(after, "next →")}
      <form onSubmit=${submit}><label>Latent <input name="latent" type="number" min="0" max=${view.d_sae - 1}
        key=${shown.latent} defaultValue=${shown.latent} required /></label> <button>Go</button></form>
      <span class="unit">${words && `${words}; `}keys ← and →</span></nav>`;
  };

  const TopImages = ({ view, shown, ranks, scale }) => html`
    <p>${infoscope.sayRanked(view)}, each in two crops that are shifted by
      ${" " + infoscope.count(view.shift, "patch", "patches")}; the outlined region is the same part of the image in
      both. EMD: how far its activation moves there, as a share of the largest
      distance${view.emd === "sinkhorn" ? " (by Sinkhorn's approximation; what moves is exact)" : ""}.</p>
    <${infoscope.MapControls} shown=${shown} scale=${scale} hasFlow />
    ${shown.flow === "on" && html`<p class="key">What moves, from crop 1 to crop 2: arrows, as wide as the mass that
      moves; dots: mass that stays.</p>`}
    <${infoscope.Pairs} view=${view} shown=${shown} ranks=${ranks} scale=${scale} />`;

  const Body = ({ view, shown, latent }) => {
    const columns = infoscope.useColumns(view, [...MAIN, "chance"]);
    const { value: detail, error } = infoscope.useDetail(view, latent);
    const name = infoscope.valueOf(columns?.name, latent), ranks = detail?.ranks, isDrawn = view.ranked_by === "drawn";
    const chance = infoscope.valueOf(columns?.chance, latent);
    const scale = Math.max(0, ...["ranks", "levels", "random"].map((part) => detail?.[part]?.maps.scale ?? 0));
    return html`
      <div class="latent-head">
        <h2>Latent ${latent}${name && html` <span class="latent-name">${name}</span>`}</h2>
        ${columns ? html`<${Facts} view=${view} columns=${columns} latent=${latent} />`
          : html`<div class="facts"></div>`}
        <${FoldedColumns} view=${view} latent=${latent} />
      </div>
      ${error && html`<p class="warning" role="alert">Its pictures cannot be shown: ${error}</p>`}
      ${!detail && !error && html`<${infoscope.Loading} what="What is known of this latent" />`}
      ${detail && html`
        <${infoscope.Section} id="pairs" title=${isDrawn ? "Images in which it fires" : "Top images"}>
          ${ranks ? html`<${TopImages} view=${view} shown=${shown} ranks=${ranks} scale=${scale} />`
            : html`<p class="absent">There are no pictures of this latent here: set <code>explore.n_images</code> above
              0, then <code>infoscope stage=explore</code>.</p>`}
        </${infoscope.Section}>
        <div class="parts">
          ${ranks && html`<${infoscope.Section} id="by-rank" title="CDS by rank">
            <${infoscope.RankPlot} view=${view} ranks=${ranks} chance=${chance} /></${infoscope.Section}>`}
          <${infoscope.Profile} view=${view} shown=${shown} latent=${latent} detail=${detail} scale=${scale} />
        </div>`}`;
  };

  infoscope.LatentPage = ({ view, shown }) => {
    const { latent } = shown;
    return html`<div class="in-depth"><${Steps} view=${view} shown=${shown} />
      ${Number.isInteger(latent) && latent < view.d_sae
        ? html`<${Body} key=${`${view.id}/${latent}`} view=${view} shown=${shown} latent=${latent} />`
        : html`<p>There is no latent ${latent}: this SAE has ${infoscope.show(view.d_sae)}, 0 to
          ${" "}${view.d_sae - 1}.</p>`}</div>`;
  };
})();
