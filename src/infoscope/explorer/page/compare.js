"use strict";
// Two SAEs side by side, or one under two thresholds: their scores, groups crossed, and pairs of matched latents.
(() => {
  const { html, useEffect, useMemo, useRef, useState } = infoscope;
  const { Section } = infoscope, N_BINS = 40, N_ROWS = 50;

  const readNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : null;
  const known = (value) => value === undefined || Number.isNaN(value) ? null : value;
  const sortKnown = (values) => Float64Array.from(values).filter((value) => !Number.isNaN(value)).sort();

  const withArticle = (words) => `${/^[aeiou]/.test(words) ? "an" : "a"} ${words}`;

  // what both are shown by: what the groups of both divide, the CDS where they divide different things
  const CDS = { name: "cds", words: "CDS" };
  const findMeasure = (...views) => {
    const [one, other] = views.map(infoscope.divided), { name, words } = one.name === other.name ? one : CDS;
    return { name, words, label: infoscope.columnLabel({ name }) };
  };

  const Controls = ({ view, other, shown, isMatched }) => {
    const select = (key, value) => html`<label>SAE <select value=${value}
      onChange=${(event) => infoscope.go({ [key]: event.target.value, pair: "" })}>
      ${infoscope.manifest.views.map((one) => html`<option value=${one.id}>${one.title}</option>`)}</select></label>`;
    const change = (key) => (event) => infoscope.go({ [key]: event.target.value.trim() }, true);
    const numberOf = (key) => readNumber(shown[key]) === null ? "" : shown[key]; // the address is anybody's
    const gamma = (key, one) => html`<label>threshold gamma <input type="number" min="0" max="1" step="any"
      value=${numberOf(key)} onInput=${change(key)} placeholder=${infoscope.show(one.groups?.gamma) || "its own"}
      /></label>`;
    return html`<div class="compare-controls">
      <fieldset><legend><span class="swatch of-first"></span>first</legend>
        ${select("view", view.id)} ${gamma("gamma", view)}</fieldset>
      <fieldset><legend><span class="swatch of-second"></span>second</legend>
        ${select("other", other.id)} ${gamma("otherGamma", other)}</fieldset>
      ${isMatched && html`<label>least match <input type="number" min="-1" max="1" step="0.05" placeholder="any"
        value=${numberOf("minimal")} onInput=${change("minimal")} /></label>`}
    </div>`;
  };

  const findMedian = (sorted) => {
    const half = sorted.length >> 1;
    if (sorted.length === 0) return null;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };

  const tellScores = ({ view, scores, cut }, i) => {
    const sorted = sortKnown(scores), median = findMedian(sorted);
    return `${i ? "Second" : "First"}, ${view.title}: ${infoscope.count(sorted.length, "scored latent")}, median `
      + `${infoscope.show(median) || "none"}${cut === null ? "" : `, gamma ${infoscope.show(cut)}`}.`;
  };

  const Histograms = ({ sides, measure }) => {
    const all = useMemo(() => sides.map(({ scores }) => sortKnown(scores)), [sides]);
    const most = Math.max(1e-6, ...all.map((scores) => scores[scores.length - 1] ?? 0));
    const shares = all.map((scores) => {
      const found = new Array(N_BINS).fill(0);
      const place = (value) => Math.min(N_BINS - 1, Math.floor((N_BINS * value) / most));
      for (const value of scores) found[place(value)] += 1 / scores.length;
      return found;
    });
    const scales = infoscope.makeScales([0, most], [0, Math.max(1e-6, ...shares.flat())], 240), { x, y } = scales;
    const start = `${scales.left},${scales.bottom}`, end = `${scales.right},${scales.bottom}`;
    const [first, second] = shares.map((found) => found.flatMap((share, i) =>
      [i, i + 1].map((edge) => `${x((edge * most) / N_BINS)},${y(share)}`)).join(" "));
    const gammas = sides.map(({ cut }, i) => cut !== null && cut <= most && html`
      <line class=${i ? "gamma-second" : "gamma-first"} x1=${x(cut)} x2=${x(cut)} y1=${scales.bottom}
        y2=${scales.top} />
      <text x=${x(cut) + 4} y=${scales.top - 8 + 11 * i}>gamma ${i + 1}</text>`);
    return html`<div class="plot-with-key">
      <${infoscope.Plot} scales=${scales} xName=${measure.words} yName="share of scored latents"
        label=${`${infoscope.capitalise(measure.words)} of both, as shares of the scored latents. `
          + sides.map(tellScores).join(" ")}>
        <polygon class="first" points=${`${start} ${first} ${end}`} />
        <polyline class="second" points=${`${start} ${second} ${end}`} />
        ${gammas}
      </${infoscope.Plot}>
      <p class="key">Filled: first. Line: second.</p></div>`;
  };

  const Crossed = ({ sides, matches, minimal }) => {
    const [one, other] = sides, mass = one.columns.mass?.values, none = infoscope.NO_MATCH;
    const cells = useMemo(() => infoscope.crossGroups(one.grouped, other.grouped, matches, minimal, mass),
      [one.grouped, other.grouped, matches, minimal]);
    const rows = one.grouped.names, hasNone = rows.some((name) => cells[name]?.[none]);
    const columns = [...other.grouped.names, ...(hasNone ? [none] : [])];
    const sum = (found) => found.reduce(
      (all, cell) => ({ n: all.n + (cell?.n ?? 0), mass: all.mass + (cell?.mass ?? 0) }), { n: 0, mass: 0 });
    const show = (cell) => html`<td class="number">${infoscope.show(cell?.n ?? 0)}
      ${mass && html` <span class="unit">${(100 * (cell?.mass ?? 0)).toFixed(1)}%</span>`}</td>`;
    const row = (name, heading, found) => html`<tr key=${name} data-group=${name}><th scope="row">${heading}</th>
      ${found.map(show)}${show(sum(found))}</tr>`;
    const mark = (name) => html`<${infoscope.GroupMark} view=${one.view} group=${name} />`;
    return html`<p id="crossed-words" class="key">Latents of the first by their group (rows) and the group of
      ${matches.values === null ? " the same latent" : " their best match"} in the second
      (columns)${mass && "; per cent of the first's activation mass"}.</p>
      <${infoscope.Wide} label="Groups crossed"><table class="crossed" aria-labelledby="crossed-words">
        <thead><tr><th scope="col">first \\ second</th>
          ${[...columns, "all"].map((name) => html`<th scope="col" class="number">${name}</th>`)}</tr></thead>
        <tbody>${rows.map((name) => row(name, mark(name), columns.map((to) => cells[name]?.[to])))}
          ${row("all", "all", columns.map((to) => sum(rows.map((name) => cells[name]?.[to]))))}</tbody></table>
      </${infoscope.Wide}>`;
  };

  const listPairs = (sides, matches, minimal) => {
    const found = [], [one, other] = sides;
    matches.latents.forEach((to, latent) => {
      if (!infoscope.isMatched(matches, latent, minimal)) return;
      const score = known(one.scores?.[latent]), otherScore = known(other.scores?.[to]);
      found.push({
        latent, other: to, match: matches.values?.[latent] ?? null, score, otherScore,
        difference: score === null || otherScore === null ? null : otherScore - score,
        isSame: !one.grouped || !other.grouped || one.grouped.groups[latent] === other.grouped.groups[to],
      });
    });
    return found;
  };

  const drawPoints = (canvas, pairs, place, width, height) => {
    const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
    canvas.width = 2 * width;
    canvas.height = 2 * height;
    context.scale(2, 2);
    context.globalAlpha = 0.7;
    for (const isSame of [true, false]) {
      context.fillStyle = style.getPropertyValue(isSame ? "--grey" : "--other");
      for (const pair of pairs.filter((one) => one.isSame === isSame)) {
        const [x, y] = place(pair);
        context.beginPath();
        if (isSame) context.arc(x, y, 2.5, 0, 2 * Math.PI); else context.rect(x - 2.5, y - 2.5, 5, 5);
        context.fill();
      }
    }
  };

  const Scatter = ({ pairs, sides, measure: { words: name } }) => {
    const canvas = useRef(null), scored = useMemo(() => pairs.filter((pair) => pair.difference !== null), [pairs]);
    const most = useMemo(() => scored.reduce((size, one) => Math.max(size, one.score, one.otherScore), 1e-6), [scored]);
    const ask = () => infoscope.spearman(scored.map((one) => one.score), scored.map((one) => one.otherScore));
    const rho = useMemo(ask, [scored]);
    const scales = infoscope.makeScales([0, most], [0, most], 420), { x, y, left, right, top, bottom } = scales;
    const width = right - left, height = bottom - top;
    const cuts = sides.map(({ cut }) => cut !== null && cut <= most && cut);
    const place = ({ score, otherScore }) => [x(score) - left, y(otherScore) - top];
    useEffect(() => drawPoints(canvas.current, scored, place, width, height), [scored]);
    const open = (event) => {
      const box = canvas.current.getBoundingClientRect(), scale = width / box.width;
      let best = null, least = 12;
      for (const pair of scored) {
        const [atX, atY] = place(pair);
        const distance = Math.hypot(atX - scale * (event.clientX - box.left), atY - scale * (event.clientY - box.top));
        if (distance < least) [best, least] = [pair, distance];
      }
      if (best) infoscope.go({ pair: `${best.latent}-${best.other}` });
    };
    const words = `${infoscope.count(scored.length, "pair")} with ${withArticle(name)} in both`
      + (rho === null ? "" : `, Spearman ${infoscope.show(rho)}`);
    const percent = (part, all) => `${(100 * part) / all}%`;
    const over = { left: percent(left, scales.width), top: percent(top, scales.height),
      width: percent(width, scales.width), height: percent(height, scales.height) };
    return html`<div class="plot-with-key"><div class="scatter">
      <${infoscope.Plot} scales=${scales} xName=${`${name} in the first`} yName=${`${name} in the second`}
        label=${`${infoscope.capitalise(name)} of matched latents: ${words}.`}>
        <line class="level" x1=${x(0)} y1=${y(0)} x2=${x(most)} y2=${y(most)} />
        ${cuts[0] !== false && html`<line class="mark" x1=${x(cuts[0])} x2=${x(cuts[0])} y1=${bottom} y2=${top} />`}
        ${cuts[1] !== false && html`<line class="mark" y1=${y(cuts[1])} y2=${y(cuts[1])} x1=${left} x2=${right} />`}
      </${infoscope.Plot}>
      <canvas ref=${canvas} onClick=${open} aria-hidden="true" style=${over}></canvas></div>
      <p class="key">${words}. Circles: the same group in both; squares: another. Dotted: gamma. A click opens the pair,
        as the list does.</p></div>`;
  };

  const nameHeadings = (label) => ({ latent: "first", other: "second", match: "match", score: `${label}, first`,
    otherScore: `${label}, second`, difference: "second − first" });

  const Heading = ({ name, text, by, sign }) => {
    const isBy = name === by, order = isBy && sign < 0 ? name : `-${name}`;
    return html`<th scope="col" class=${["latent", "other"].includes(name) ? "" : "number"}
      aria-sort=${isBy ? (sign > 0 ? "ascending" : "descending") : "none"}>
      <button class="sort" onClick=${() => infoscope.go({ order }, true)}>
        ${text}${isBy ? (sign > 0 ? " ↑" : " ↓") : ""}</button></th>`;
  };

  const PairRow = ({ pair, sides, hasMatch }) => {
    const link = ({ view, columns }, latent) => html`<td>
      <a href=${infoscope.address({ page: "latent", view: view.id, latent })}>${latent}</a>
      ${" "}${infoscope.valueOf(columns.name, latent)}</td>`;
    return html`<tr>${link(sides[0], pair.latent)}${link(sides[1], pair.other)}
      ${hasMatch && html`<td class="number">${infoscope.show(pair.match)}</td>`}
      <td class="number">${infoscope.show(pair.score)}</td><td class="number">${infoscope.show(pair.otherScore)}</td>
      <td class="number">${pair.difference > 0 ? "+" : ""}${infoscope.show(pair.difference)}</td>
      <td><a href=${infoscope.address({ pair: `${pair.latent}-${pair.other}` })}
        aria-label=${`latent ${pair.latent} and latent ${pair.other} side by side`}>side by side</a></td></tr>`;
  };

  const Matches = ({ pairs, shown, sides, matches, measure }) => {
    const [nRows, setRows] = useState(N_ROWS), hasMatch = matches.values !== null;
    const by = shown.order.replace(/^-/, ""), sign = shown.order.startsWith("-") ? -1 : 1;
    const sorted = useMemo(() => pairs.slice().sort((a, b) => {
      const isUnknown = (a[by] === null) - (b[by] === null); // what is not known comes last
      return isUnknown || (a[by] === null ? 0 : sign * (a[by] - b[by])) || a.latent - b.latent;
    }), [pairs, by, sign]);
    const headings = Object.entries(nameHeadings(measure.label)).filter(([name]) => name !== "match" || hasMatch);
    return html`<${infoscope.Wide} label="Matched latents"><table class="matches">
      <caption>${infoscope.count(pairs.length, "pair")}</caption>
      <thead><tr>${headings.map(([name, text]) => html`
        <${Heading} name=${name} text=${text} by=${by} sign=${sign} />`)}<td></td></tr></thead>
      <tbody>${sorted.slice(0, nRows).map((pair) => html`
        <${PairRow} key=${pair.latent} pair=${pair} sides=${sides} hasMatch=${hasMatch} />`)}</tbody></table>
      ${nRows < sorted.length && html`<button onClick=${() => setRows(nRows + 4 * N_ROWS)}>Show more of them</button>`}
    </${infoscope.Wide}>`;
  };

  const Half = ({ view, latent, columns, group, shown }) => {
    const { name, words } = infoscope.divided(view);
    const { value: detail, error } = infoscope.useDetail(view, latent), ranks = detail?.ranks;
    return html`<section aria-label=${`${view.title}, latent ${latent}`}>
      <h4>${view.title}: <a href=${infoscope.address({ page: "latent", view: view.id, latent })}>latent ${latent}</a>
        ${" "}${infoscope.valueOf(columns.name, latent)}</h4>
      <p>${infoscope.capitalise(words)} ${infoscope.show(infoscope.valueOf(columns[name], latent)) || "none"} ·${" "}
        <${infoscope.GroupMark} view=${view} group=${group} /></p>
      ${error && html`<p class="warning" role="alert">Its pictures cannot be shown: ${error}</p>`}
      ${ranks && html`<${infoscope.Pairs} view=${view} shown=${shown} ranks=${ranks} scale=${ranks.maps.scale}
        limit=${4} />`}
      ${detail && !ranks && html`<p class="absent">There are no pictures of this latent here.</p>`}</section>`;
  };

  const Opened = ({ sides, shown, pair, matches }) => {
    const heading = useRef(null), [latent, other] = pair;
    useEffect(() => heading.current.focus(), []);
    const value = matches?.latents?.[latent] === other ? known(matches.values?.[latent]) : null;
    return html`<div class="opened">
      <h3 ref=${heading} tabindex="-1">Latent ${latent} beside latent ${other}
        ${value !== null && `, match ${infoscope.show(value)}`}
        ${" "}<a class="close" href=${infoscope.address({ pair: "" })}>close</a></h3>
      <${infoscope.MapControls} shown=${shown} scale=${null} hasFlow />
      <div class="halves">${sides.map(({ view, columns, grouped }, i) => html`
        <${Half} key=${i} view=${view} latent=${pair[i]} columns=${columns} group=${grouped?.groups[pair[i]]}
          shown=${shown} />`)}</div></div>`;
  };

  const Both = ({ view, other, shown }) => {
    const measure = findMeasure(view, other), [one, two] = [view, other].map(infoscope.divided);
    const list = ({ name }) => [measure.name, name, "group", "mass", "name"];
    const columns = [infoscope.useColumns(view, list(one)), infoscope.useColumns(other, list(two))];
    const { value: matches, error } = infoscope.useLoaded(() => infoscope.findMatches(view, other), []);
    const gammas = [readNumber(shown.gamma), readNumber(shown.otherGamma)];
    const minimal = readNumber(shown.minimal) ?? -Infinity, isReady = Boolean(columns[0] && columns[1]);
    const sides = useMemo(() => isReady && [view, other].map((one, i) => ({
      view: one, columns: columns[i], scores: columns[i][measure.name]?.values,
      cut: infoscope.divided(one).name === measure.name ? gammas[i] ?? one.groups?.gamma ?? null : null,
      grouped: infoscope.groupLatents(one, columns[i], gammas[i]),
    })), [isReady, ...gammas]);
    const pairs = useMemo(() => sides && matches?.latents ? listPairs(sides, matches, minimal) : null,
      [sides, matches, minimal]);
    const [, ...numbers] = (/^(\d+)-(\d+)$/.exec(shown.pair) ?? [""]).map(Number);
    const isOpen = numbers.length === 2 && numbers[0] < view.d_sae && numbers[1] < other.d_sae;
    const hasScores = sides && sides.every((side) => side.scores);
    return html`
      <${Controls} view=${view} other=${other} shown=${shown} isMatched=${matches?.values} />
      ${infoscope.manifest.views.length === 1 && html`<p class="absent">There is one SAE here: it can be seen under two
        thresholds. More of them: <code>seeds=[0,1]</code>, or other explorers in <code>explore.beside</code>, then
        ${" "}<code>infoscope stage=explore</code>.</p>`}
      ${one.name !== two.name && html`<p>The groups of the first divide the ${one.words}, those of the second the
        ${" "}${two.words}; both are shown by their CDS.</p>`}
      ${error && html`<p class="warning" role="alert">Their matches cannot be read: ${error}</p>`}
      ${matches?.why && html`<p class="absent" role="status">${matches.why} What stands below needs no matches.</p>`}
      ${matches?.how && html`<p>Matched by: ${matches.how}${matches.values && Number.isFinite(minimal)
        ? `, at least ${infoscope.show(minimal)}` : ""}.</p>`}
      ${sides && isOpen && html`
        <${Opened} key=${shown.pair} sides=${sides} shown=${shown} pair=${numbers} matches=${matches} />`}
      ${!sides && html`<${infoscope.Loading} what="What is known of both" />`}
      ${sides && html`<div class="parts two">
        ${!hasScores ? html`<${infoscope.Absent} what=${`The ${measure.words} of one of them was`}
          how=${`infoscope stage=${measure.name === "cds" ? "score" : "extent"}`} />`
          : html`<${Section} id="both-scores" title=${`${infoscope.capitalise(measure.words)} of both`}>
            <${Histograms} sides=${sides} measure=${measure} /></${Section}>`}
        ${pairs && sides.every((side) => side.grouped) && html`<${Section} id="crossed" title="Groups crossed">
          <${Crossed} sides=${sides} matches=${matches} minimal=${minimal} /></${Section}>`}
        ${pairs && hasScores && view.id !== other.id && html`<${Section} id="scatter"
          title=${`${infoscope.capitalise(measure.words)} of matched latents`}>
          <${Scatter} pairs=${pairs} sides=${sides} measure=${measure} /></${Section}>`}
        ${pairs && html`<${Section} id="matches" title="Matched latents">
          <${Matches} ...${{ pairs, shown, sides, matches, measure }} /></${Section}>`}
      </div>`}`;
  };

  infoscope.ComparePage = ({ view, shown }) => {
    const { views } = infoscope.manifest;
    const other = views.find(({ id }) => id === shown.other)
      ?? views.find(({ id }) => id !== view.id && view.matched_by?.[id]) ?? view;
    return html`<div class="in-depth"><h2>Side by side</h2>
      <${Both} key=${`${view.id}/${other.id}`} view=${view} other=${other} shown=${shown} /></div>`;
  };
})();
