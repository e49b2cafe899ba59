"use strict";
// Two views side by side, or one under two thresholds: histograms, groups crossed, matched latents and pairs of them.
(() => {
  const { html } = infoscope;
  const COLUMNS = ["cds", "group", "mass", "name"], N_BINS = 40, N_ROWS = 50;
  const NONE = "no match";

  const readNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : null;

  /** The group of each latent, and their names in order: those of a threshold, or (gamma null) the view's own. */
  infoscope.groupLatents = (view, columns, gamma) => {
    const cds = columns.cds?.values, own = gamma === null;
    if (own && columns.group) {
      const { texts, values } = columns.group, groups = Array.from(values, (code) => texts[code] || "in no group");
      const names = (view.groups?.names ?? []).filter((name) => texts.includes(name));
      return { groups, names: [...names, ...[...new Set(groups)].filter((name) => !names.includes(name)).sort()] };
    }
    const cut = gamma ?? view.groups?.gamma ?? null;
    if (!cds || cut === null) return null;
    const groups = Array.from(cds, (value) => Number.isNaN(value) ? "unscored" : value > cut ? "high" : "low");
    return { groups, names: ["low", "high", ...(groups.includes("unscored") ? ["unscored"] : [])] };
  };

  /** Latents of one view and their matches: {latents, values (null: the same latents), how (in words)} or {why}. */
  infoscope.findMatches = async (one, other) => {
    if (one.id === other.id || one.same_as?.[other.id]) {
      return { latents: Int32Array.from({ length: one.d_sae }, (_, i) => i < other.d_sae ? i : -1), values: null,
        how: one.id === other.id ? "the same latents" : `the same latents: ${one.same_as[other.id]}` };
    }
    if (!one.matched_by?.[other.id]) {
      return { why: one.unmatched?.[other.id] ?? "These two were not matched when the explorer was written: their latents do not read the same"
        + " images or layer, or one of them came without its matches." };
    }
    const found = await infoscope.load(`${one.id}/columns/match_${other.id}`);
    return { latents: infoscope.unpack(found.latents), values: infoscope.unpack(found.values), how: one.matched_by[other.id] };
  };

  /** How many latents of one are in each group of it and of the other, and their share of its mass: {[group]: {[other]: {n, mass}}}. */
  infoscope.crossGroups = (one, other, matches, minimal, mass) => {
    const cells = {};
    let total = 0;
    one.groups.forEach((group, latent) => {
      const to = matches.latents[latent];
      const isMatched = to >= 0 && (matches.values === null || matches.values[latent] >= minimal);
      const cell = (cells[group] ??= {})[isMatched ? other.groups[to] : NONE] ??= { n: 0, mass: 0 };
      const weight = mass && mass[latent] > 0 ? mass[latent] : 0;
      cell.n += 1;
      cell.mass += weight;
      total += weight;
    });
    for (const row of Object.values(cells)) for (const cell of Object.values(row)) cell.mass = total > 0 ? cell.mass / total : null;
    return cells;
  };

  const rank = (values) => {
    const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]), ranks = new Float64Array(values.length);
    for (let start = 0; start < order.length;) {
      let end = start;
      while (end < order.length && values[order[end]] === values[order[start]]) end++;
      for (let i = start; i < end; i++) ranks[order[i]] = (start + end - 1) / 2;
      start = end;
    }
    return ranks;
  };

  /** Spearman's correlation of two lists of numbers; null where one has no order. */
  infoscope.spearman = (ones, others) => {
    const [a, b] = [rank(ones), rank(others)], mean = (a.length - 1) / 2;
    let ab = 0, aa = 0, bb = 0;
    a.forEach((_, i) => { ab += (a[i] - mean) * (b[i] - mean); aa += (a[i] - mean) ** 2; bb += (b[i] - mean) ** 2; });
    return aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : null;
  };

  const Controls = ({ view, other, shown, isMatched }) => {
    const { views } = infoscope.manifest;
    const choose = (key) => (event) => infoscope.go({ [key]: event.target.value, pair: "" });
    const change = (key) => (event) => infoscope.go({ [key]: event.target.value.trim() }, true);
    const gamma = (key, one) => html`<label>threshold gamma <input type="number" min="0" max="1" step="any"
      value=${shown[key]} onInput=${change(key)}
      placeholder=${one.groups?.gamma === null || one.groups?.gamma === undefined ? "its own groups" : `its own: ${infoscope.show(one.groups.gamma)}`} /></label>`;
    const select = (key, value, label) => html`<label>${label} <select value=${value} onChange=${choose(key)}>
      ${views.map((one) => html`<option value=${one.id}>${one.title}</option>`)}</select></label>`;
    return html`<div class="compare-controls">
      <fieldset><legend><span
        class="swatch of-first"></span>first</legend>${select("view", view.id, "SAE")} ${gamma("gamma", view)}</fieldset>
      <fieldset><legend><span
        class="swatch of-second"></span>second</legend>${select("other", other.id, "SAE")} ${gamma("otherGamma", other)}</fieldset>
      ${isMatched && html`<label>least match <input type="number" min="-1" max="1" step="0.05" value=${shown.minimal}
        placeholder="any" onInput=${change("minimal")} /></label>`}
    </div>`;
  };

  const bin = (cds, most) => {
    const shares = new Array(N_BINS).fill(0), known = cds.filter((value) => !Number.isNaN(value));
    for (const value of known) shares[Math.min(N_BINS - 1, Math.floor((N_BINS * value) / most))] += 1 / known.length;
    return { shares, n: known.length };
  };

  const nameGamma = (sides, i, scales) => {
    const { cut } = sides[i], isRight = cut > (sides[1 - i].cut ?? cut) || (i === 1 && cut === sides[0].cut);
    return html`<text x=${scales.x(cut) + (isRight ? 3 : -3)} y=${scales.top - 4}
      text-anchor=${isRight ? "start" : "end"}>gamma ${i + 1}</text>`;
  };

  const Histograms = ({ sides }) => {
    const most = sides.reduce((found, { columns }) => columns.cds.values.reduce((a, b) => b > a ? b : a, found), 1e-6);
    const [one, other] = sides.map(({ columns }) => bin(columns.cds.values, most));
    const scales = infoscope.makeScales([0, most], [0, Math.max(...one.shares, ...other.shares, 1e-6)], 240);
    const step = (shares) => shares.map((share, i) => `${scales.x((i * most) / N_BINS)},${scales.y(share)} ${scales.x(((i + 1) * most) / N_BINS)},${scales.y(share)}`).join(" ");
    const label = "CDS of both, shares of the scored latents. " + sides.map(({ view, columns, cut }, i) => {
      const known = Array.from(columns.cds.values).filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
      return `${i ? "Second" : "First"}, ${view.title}: ${infoscope.count(known.length, "scored latent")}, median ${infoscope.show(known[known.length >> 1] ?? null)}`
        + (cut === null ? "" : `, gamma ${infoscope.show(cut)}`);
    }).join(". ") + ".";
    return html`<div class="plot-with-key"><${infoscope.Plot} scales=${scales} xName="CDS"
      yName="share of scored latents" label=${label}>
      <polygon class="first"
        points=${`${scales.left},${scales.bottom} ${step(one.shares)} ${scales.right},${scales.bottom}`} />
      <polyline class="second"
        points=${`${scales.left},${scales.bottom} ${step(other.shares)} ${scales.right},${scales.bottom}`} />
      ${sides.map(({ cut }, i) => cut !== null && cut <= most && html`<line class=${i ? "gamma-second" : "gamma-first"}
        x1=${scales.x(cut)} x2=${scales.x(cut)} y1=${scales.bottom} y2=${scales.top} />
        ${nameGamma(sides, i, scales)}`)}
    </${infoscope.Plot}>
    <p class="key">Filled: first. Line: second.</p></div>`;
  };

  const Crossed = ({ sides, matches, minimal }) => {
    const [one, other] = sides, mass = one.columns.mass?.values;
    const cells = infoscope.useMemo(() => infoscope.crossGroups(one.grouped, other.grouped, matches, minimal, mass),
      [one.grouped, other.grouped, matches, minimal]);
    const names = one.grouped.names, hasNone = names.some((name) => cells[name]?.[NONE]);
    const others = [...other.grouped.names, ...(hasNone ? [NONE] : [])];
    const sum = (list) => list.reduce((all, cell) => ({ n: all.n + (cell?.n ?? 0), mass: all.mass + (cell?.mass ?? 0) }), { n: 0, mass: 0 });
    const show = (cell, key) => html`<td key=${key} class="number">${infoscope.show(cell?.n ?? 0)}${mass && html` <span
      class="unit">${infoscope.show(100 * (cell?.mass ?? 0), 2)}%</span>`}</td>`;
    return html`<div class="wide"><table
      class="crossed"><caption>Latents of the first by their group (rows) and the group of ${matches.values === null
      ? "the same latent" : "their best match"} in the second (columns)${mass ? "; per cent of the first's activation mass" : ""}</caption>
      <thead><tr><th scope="col">first \\ second</th>${others.map((name) => html`<th scope="col">${name}</th>`)}<th
        scope="col">all</th></tr></thead>
      <tbody>${names.map((name) => html`<tr key=${name} data-group=${name}><th scope="row"><${infoscope.GroupMark}
        view=${one.view} group=${name} /></th>
        ${others.map((to) => show(cells[name]?.[to], to))}${show(sum(others.map((to) => cells[name]?.[to])), "all")}</tr>`)}
        <tr data-group="all"><th
          scope="row">all</th>${others.map((to) => show(sum(names.map((name) => cells[name]?.[to])), to))}
        ${show(sum(names.flatMap((name) => others.map((to) => cells[name]?.[to]))), "all")}</tr></tbody></table></div>`;
  };

  const listPairs = (sides, matches, minimal) => {
    const found = [], [one, other] = sides;
    const number = (value) => value === undefined || Number.isNaN(value) ? null : value;
    matches.latents.forEach((to, latent) => {
      if (to < 0 || (matches.values !== null && !(matches.values[latent] >= minimal))) return;
      const cds = number(one.columns.cds?.values[latent]), otherCds = number(other.columns.cds?.values[to]);
      found.push({ latent, other: to, match: matches.values === null ? null : matches.values[latent], cds, otherCds,
        difference: cds === null || otherCds === null ? null : otherCds - cds,
        isSame: !one.grouped || !other.grouped || one.grouped.groups[latent] === other.grouped.groups[to] });
    });
    return found;
  };

  const Scatter = ({ pairs, sides }) => {
    const canvas = infoscope.useRef(null), known = infoscope.useMemo(() => pairs.filter(({ difference }) => difference !== null), [pairs]);
    const most = infoscope.useMemo(() => known.reduce((found, { cds, otherCds }) => Math.max(found, cds, otherCds), 1e-6), [known]);
    const rho = infoscope.useMemo(() => infoscope.spearman(known.map(({ cds }) => cds), known.map(({ otherCds }) => otherCds)), [known]);
    const scales = infoscope.makeScales([0, most], [0, most], 420), width = scales.right - scales.left, height = scales.bottom - scales.top;
    const place = ({ cds, otherCds }) => [(cds / most) * width, height - (otherCds / most) * height];
    infoscope.useEffect(() => {
      const context = canvas.current.getContext("2d");
      canvas.current.width = 2 * width;
      canvas.current.height = 2 * height;
      context.scale(2, 2);
      const style = getComputedStyle(canvas.current);
      const colours = ["--grey", "--other"].map((name) => style.getPropertyValue(name));
      for (const pair of [...known.filter(({ isSame }) => isSame), ...known.filter(({ isSame }) => !isSame)]) {
        const [x, y] = place(pair);
        context.fillStyle = colours[pair.isSame ? 0 : 1];
        context.globalAlpha = 0.7;
        context.beginPath();
        if (pair.isSame) context.arc(x, y, 2.5, 0, 2 * Math.PI); else context.rect(x - 2.5, y - 2.5, 5, 5);
        context.fill();
      }
    }, [known]);
    const open = (event) => {
      const box = canvas.current.getBoundingClientRect();
      const [x, y] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      let best = null, least = 12;
      for (const pair of known) {
        const [left, top] = place(pair), distance = Math.hypot(left - x, top - y);
        if (distance < least) [best, least] = [pair, distance];
      }
      if (best) infoscope.go({ pair: `${best.latent}-${best.other}` });
    };
    const words = `${infoscope.count(known.length, "pair")} with a CDS in both${rho === null ? "" : `, Spearman ${infoscope.show(rho)}`}`;
    const percent = (part, all) => `${(100 * part) / all}%`;
    return html`<div class="plot-with-key"><div class="scatter"><${infoscope.Plot} scales=${scales}
      xName="CDS in the first" yName="CDS in the second"
        label=${`CDS of matched latents: ${words}.`}>
        <line class="level" x1=${scales.x(0)} y1=${scales.y(0)} x2=${scales.x(most)} y2=${scales.y(most)} />
        ${sides[0].cut !== null && sides[0].cut <= most && html`<line class="mark" x1=${scales.x(sides[0].cut)}
          x2=${scales.x(sides[0].cut)} y1=${scales.bottom} y2=${scales.top} />`}
        ${sides[1].cut !== null && sides[1].cut <= most && html`<line class="mark" y1=${scales.y(sides[1].cut)}
          y2=${scales.y(sides[1].cut)} x1=${scales.left} x2=${scales.right} />`}
      </${infoscope.Plot}><canvas ref=${canvas} onClick=${open} aria-hidden="true"
        style=${{ left: percent(scales.left, scales.width), top: percent(scales.top, scales.height),
        width: percent(width, scales.width), height: percent(height, scales.height) }}></canvas></div>
      <p class="key">${words}. Circles: the same group in both; squares: another. Dotted: gamma. A click opens the pair, as the list does.</p></div>`;
  };

  const HEADINGS = { latent: "first", other: "second", match: "match", cds: "CDS, first", otherCds: "CDS, second", difference: "second - first" };

  const Matches = ({ pairs, shown, sides, matches }) => {
    const [nRows, setRows] = infoscope.useState(N_ROWS);
    const key = shown.order.replace(/^-/, ""), sign = shown.order.startsWith("-") ? -1 : 1;
    const sorted = infoscope.useMemo(() => pairs.slice().sort((a, b) => {
      if (a[key] === null || b[key] === null) return (a[key] === null) - (b[key] === null) || a.latent - b.latent;
      return sign * (a[key] - b[key]) || a.latent - b.latent;
    }), [pairs, key, sign]);
    const headings = Object.entries(HEADINGS).filter(([name]) => name !== "match" || matches.values !== null);
    const link = (view, latent, columns) => html`<a
      href=${infoscope.address({ page: "latent", view: view.id, latent })}>${latent}</a> ${infoscope.valueOf(columns.name, latent) ?? ""}`;
    return html`<div class="wide"><table
      class="matches"><caption>${infoscope.count(pairs.length, "pair")}, matched by ${matches.how}</caption>
      <thead><tr>${headings.map(([name, heading]) => html`<th key=${name} scope="col"
        aria-sort=${name === key ? (sign > 0 ? "ascending" : "descending") : "none"}>
        <button class="sort"
          onClick=${() => infoscope.go({ order: name === key && sign < 0 ? name : `-${name}` }, true)}>${heading}${name === key ? (sign > 0 ? " ↑" : " ↓") : ""}</button></th>`)}
        <th scope="col"></th></tr></thead>
      <tbody>${sorted.slice(0, nRows).map((pair) => html`<tr
        key=${pair.latent}><td>${link(sides[0].view, pair.latent, sides[0].columns)}</td><td>${link(sides[1].view, pair.other, sides[1].columns)}</td>
        ${matches.values !== null && html`<td class="number">${infoscope.show(pair.match)}</td>`}
        <td class="number">${infoscope.show(pair.cds)}</td><td class="number">${infoscope.show(pair.otherCds)}</td>
        <td class="number">${pair.difference > 0 ? "+" : ""}${infoscope.show(pair.difference)}</td>
        <td><a href=${infoscope.address({ pair: `${pair.latent}-${pair.other}` })}
          aria-label=${`latent ${pair.latent} and latent ${pair.other} side by side`}>side by side</a></td></tr>`)}</tbody></table>
      ${nRows < sorted.length && html`<button
        onClick=${() => setRows(nRows + 4 * N_ROWS)}>Show more of them</button>`}</div>`;
  };

  const Half = ({ view, latent, columns, shown }) => {
    const { value: detail, error } = infoscope.useDetail(view, latent);
    return html`<section aria-label=${`${view.title}, latent ${latent}`}><h4>${view.title}: <a
      href=${infoscope.address({ page: "latent", view: view.id, latent })}>latent ${latent}</a>
        ${" "}${infoscope.valueOf(columns.name, latent) ?? ""}</h4>
      <p>CDS ${infoscope.show(infoscope.valueOf(columns.cds, latent)) || "none"} · <${infoscope.GroupMark} view=${view}
        group=${infoscope.valueOf(columns.group, latent)} /></p>
      ${error && html`<p class="warning" role="alert">${error}</p>`}
      ${detail && (detail.ranks ? html`<${infoscope.Pairs} view=${view} shown=${shown} ranks=${detail.ranks}
        scale=${detail.ranks.maps.scale} limit=${4} />`
        : html`<p class="absent">There are no pictures of this latent here.</p>`)}</section>`;
  };

  const Opened = ({ sides, shown, pair, matches }) => {
    const heading = infoscope.useRef(null), [latent, other] = pair;
    infoscope.useEffect(() => heading.current.focus(), []);
    const isPair = matches?.latents && matches.latents[latent] === other;
    const value = isPair && matches.values ? matches.values[latent] : null;
    return html`<div class="opened"><h3 ref=${heading}
      tabindex="-1">Latent ${latent} beside latent ${other}${value === null ? "" : `, ${matches.how} ${infoscope.show(value)}`}
        ${" "}<a class="close" href=${infoscope.address({ pair: "" })}>close</a></h3>
      <${infoscope.MapControls} shown=${shown} scale=${null} hasFlow />
      <div class="halves">${sides.map(({ view, columns }, i) => html`<${Half} key=${`${i}/${view.id}/${pair[i]}`}
        view=${view} latent=${pair[i]} columns=${columns} shown=${shown} />`)}</div></div>`;
  };

  infoscope.ComparePage = ({ view, shown }) => {
    const { views } = infoscope.manifest;
    const other = views.find(({ id }) => id === shown.other) ?? views.find(({ id }) => id !== view.id && view.matched_by?.[id]) ?? view;
    return html`<${Both} key=${`${view.id}/${other.id}`} view=${view} other=${other} shown=${shown} />`;
  };

  const Both = ({ view, other, shown }) => {
    const loaded = [infoscope.useColumns(view, COLUMNS), infoscope.useColumns(other, COLUMNS)];
    const { value: matches, error } = infoscope.useLoaded(() => infoscope.findMatches(view, other), []);
    const gammas = [readNumber(shown.gamma), readNumber(shown.otherGamma)], minimal = readNumber(shown.minimal) ?? -Infinity;
    const isReady = loaded[0] && loaded[1];
    const sides = infoscope.useMemo(() => isReady && [view, other].map((one, i) => ({ view: one, columns: loaded[i],
      cut: gammas[i] ?? one.groups?.gamma ?? null, grouped: infoscope.groupLatents(one, loaded[i], gammas[i]) })), [isReady, ...gammas]);
    const pairs = infoscope.useMemo(() => sides && matches?.latents ? listPairs(sides, matches, minimal) : null, [sides, matches, minimal]);
    const numbers = /^(\d+)-(\d+)$/.exec(shown.pair)?.slice(1).map(Number);
    const opened = numbers && numbers[0] < view.d_sae && numbers[1] < other.d_sae ? numbers : null;
    const canCross = sides && matches?.latents && sides.every(({ grouped }) => grouped);
    return html`<div class="in-depth"><h2>Side by side</h2>
      <${Controls} view=${view} other=${other} shown=${shown} isMatched=${matches?.values} />
      ${infoscope.manifest.views.length === 1 && html`<p
        class="absent">There is one SAE here: it can be seen under two thresholds. More of them:
        <code>seeds=[0,1]</code>, or other explorers
        in <code>explore.beside</code>, then <code>infoscope stage=explore</code>.</p>`}
      ${error && html`<p class="warning" role="alert">Their matches cannot be read: ${error}</p>`}
      ${matches?.why && html`<p class="absent" role="status">${matches.why} What stands below needs no matches.</p>`}
      ${matches?.how && html`<p>Matched by: ${matches.how}${matches.values && Number.isFinite(minimal) ? `, at least ${infoscope.show(minimal)}` : ""}.</p>`}
      ${sides && opened && html`<${Opened} key=${shown.pair} sides=${sides} shown=${shown} pair=${opened}
        matches=${matches} />`}
      ${sides && html`<div class="columns">
        ${sides.every(({ columns }) => columns.cds) ? html`<section aria-labelledby="both-cds"><h3
          id="both-cds">CDS of both</h3><${Histograms} sides=${sides} /></section>`
          : html`<${infoscope.Absent} what="The CDS of one of them was" how="infoscope stage=score" />`}
        ${canCross && html`<section aria-labelledby="crossed"><h3 id="crossed">Groups crossed</h3><${Crossed}
          sides=${sides} matches=${matches} minimal=${minimal} /></section>`}
        ${pairs && view.id !== other.id && html`<section aria-labelledby="scatter"><h3
          id="scatter">CDS of matched latents</h3><${Scatter} pairs=${pairs} sides=${sides} /></section>`}
      </div>
      ${pairs && html`<section aria-labelledby="matches"><h3 id="matches">Matched latents</h3><${Matches} pairs=${pairs}
        shown=${shown} sides=${sides} matches=${matches} /></section>`}`}</div>`;
  };
})();
