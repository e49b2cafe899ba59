"use strict";
// All latents of an SAE: histogram, scatter and table, which one brush, one filter and one selection run through.
(() => {
  const { html, useEffect, useMemo, useRef, useState } = infoscope;

  /** A hook: {data: Map of the columns that are loaded, isReady: whether all of `names` are, error}. */
  const useColumns = (view, names) => {
    const [state, set] = useState({ id: null, data: new Map(), error: null });
    useEffect(() => {
      let isCurrent = true;
      Promise.all(names.map((name) => infoscope.column(view.id, name))).then((found) => {
        if (!isCurrent) return;
        const data = new Map(found.map((column, i) => [names[i], column]));
        data.set("latent", { values: Uint32Array.from({ length: view.d_sae }, (_, i) => i), texts: null });
        set({ id: view.id, data, error: null });
      }, (error) => isCurrent && set({ id: view.id, data: new Map(), error: error.message }));
      return () => { isCurrent = false; };
    }, [view.id, names.join()]);
    const isOf = state.id === view.id;
    return { data: isOf ? state.data : new Map(), isReady: isOf && names.every((name) => state.data.has(name)), error: state.error };
  };

  /** What filters may ask for: the columns of the table, and whether a latent is selected. */
  const listColumns = (view) => [...view.columns, { name: "selected", kind: "switch", heading: "in the selection" }];

  const markSelected = (selected, n) => {
    const mask = new Uint8Array(n);
    for (const latent of selected) mask[latent] = 1;
    return mask;
  };

  const both = (a, b) => a.map((one, i) => one & b[i]);

  const within = (n, ...ranges) => {
    const mask = new Uint8Array(n).fill(1);
    for (const [values, [low, high]] of ranges) {
      for (let i = 0; i < n; i++) if (!(values[i] >= low && values[i] <= high)) mask[i] = 0;
    }
    return mask;
  };

  const readNumbers = (text, n) => {
    const parts = text.split(",").map((part, i) => (part.trim() === "" ? [-Infinity, Infinity][i % 2] : Number(part)));
    return text && parts.length === n && !parts.some(Number.isNaN) ? parts : null;
  };
  const writeNumbers = (numbers) => (numbers ?? []).map((one) => (Number.isFinite(one) ? Number(one.toPrecision(5)) : "")).join(",");

  /** What the address says, made whole: names of columns that there are, brushes, the filter or why it is none. */
  const readShown = (view, shown) => {
    const numbers = view.columns.filter((one) => one.kind === "number" && one.n_known !== 0).map((one) => one.name);
    const find = (name, otherwise) => (numbers.includes(name) ? name : otherwise);
    const y = find(shown.y, find("cds", numbers[0]));
    const x = find(shown.x, find("firing_rate", numbers.find((name) => name !== y) ?? y));
    const known = new Set(["latent", ...view.columns.map((one) => one.name)]);
    const columns = shown.columns.split(",").filter((name) => name !== "latent" && known.has(name));
    const by = shown.sort.replace(/^-/, ""), sort = known.has(by) ? shown.sort : "latent";
    return { x, y, sort, numbers, score: find("cds", null), columns: columns.length ? columns : infoscope.defaultColumns(view),
      brush: readNumbers(shown.brush, 2), box: readNumbers(shown.box, 4) };
  };

  /** A hook: the groups of a view, {groups: [{name, colour, n}], groupOf: the group of each latent}. */
  const useGroups = (view, column) => useMemo(() => {
    const groupOf = new Uint8Array(view.d_sae), named = view.groups?.names ?? [];
    if (!column?.texts) return { groups: [{ name: "latents", colour: infoscope.groupColour("low"), n: view.d_sae }], groupOf };
    const names = [...named, ...column.texts.filter((text) => !named.includes(text))];
    const groups = names.map((name) => ({ name: name || "without a group", colour: infoscope.groupColour(name, named), n: 0 }));
    const places = column.texts.map((text) => names.indexOf(text));
    for (let i = 0; i < view.d_sae; i++) groups[groupOf[i] = places[column.values[i]]].n += 1;
    return { groups, groupOf };
  }, [view.id, column]);

  const Legend = ({ groups }) => html`<ul class="legend" aria-label="Groups">${groups.filter(({ n }) => n > 0).map(({ name, colour, n }) => html`
    <li><span class="swatch" style=${{ background: colour }}></span>${name} <small>${infoscope.show(n)}</small></li>`)}</ul>`;

  const RangeField = ({ label, value, onValue }) => html`<label>${label} <input type="number" step="any"
    value=${Number.isFinite(value) ? value : ""} onChange=${(event) => onValue(event.target.value)} /></label>`;

  const ScopeFigure = ({ view, state, data, groups, groupOf, mask }) => {
    const { values } = data.get("cds"), { gamma, rule } = view.groups ?? {};
    const landmarks = useMemo(() => [...(view.landmarks ?? []).filter((one) => Number.isFinite(one.value)),
      ...(Number.isFinite(gamma) ? [{ name: "gamma", value: gamma }] : [])], [view.id]);
    const range = useMemo(() => {
      const found = infoscope.extent(values) ?? { low: 0, high: 1 };
      return { low: Math.min(0, found.low), high: Math.max(found.high, ...landmarks.map((one) => one.value)) * 1.02 || 1 };
    }, [values, landmarks]);
    const bins = useMemo(() => infoscope.countBins(values, groupOf, groups.length, mask, range), [values, groupOf, mask, range]);
    const nUnscored = useMemo(() => values.reduce((n, one) => n + (Number.isNaN(one) ? 1 : 0), 0), [values]);
    const { brush } = state;
    const setBrush = (numbers) => infoscope.go({ brush: numbers && numbers.some(Number.isFinite) ? writeNumbers(numbers) : "" });
    const setEnd = (at, otherwise) => (text) => setBrush([brush?.[0] ?? -Infinity, brush?.[1] ?? Infinity]
      .map((one, i) => (i === at ? (text === "" ? otherwise : Number(text)) : one)));
    const description = `Histogram of the CDS of ${infoscope.count(view.d_sae - nUnscored, "latent")}, from ${infoscope.show(range.low)} to`
      + ` ${infoscope.show(range.high)}. ${landmarks.map(({ name, value }) => `${name}: ${infoscope.show(value)}`).join(", ")}`;
    return html`<figure>
      <figcaption><h2>Scope</h2> <span>Drag over the histogram to choose a range of the CDS.</span></figcaption>
      <${infoscope.Histogram} label="CDS, share of the largest distance" ...${{ bins, groups, landmarks, range: brush, onRange: setBrush, description }} />
      <${Legend} groups=${groups} />
      <p class="controls"><span>CDS</span>
        <${RangeField} label="from" value=${brush?.[0]} onValue=${setEnd(0, -Infinity)} />
        <${RangeField} label="to" value=${brush?.[1]} onValue=${setEnd(1, Infinity)} />
        ${brush && html`<button type="button" onClick=${() => setBrush(null)}>Clear</button>`}
        <span class="quiet">${nUnscored ? `${infoscope.count(nUnscored, "latent has", "latents have")} no CDS and ${nUnscored === 1 ? "is" : "are"} not drawn. ` : ""}${rule ? `Groups: ${rule}.` : ""}</span></p>
    </figure>`;
  };

  const useAxis = (view, data, name, scale) => useMemo(() => {
    const column = view.columns.find((one) => one.name === name), { values } = data.get(name), extent = infoscope.extent(values);
    const canBeLog = extent !== null && extent.positive !== null;
    const isLog = canBeLog && (scale === "log" || (scale === "" && infoscope.isLogBetter(extent)));
    let nHidden = 0;
    for (let i = 0; i < values.length; i++) if (Number.isNaN(values[i]) || (isLog && values[i] <= 0)) nHidden += 1;
    const label = infoscope.columnLabel(column) + (column.unit && column.unit !== "1" ? ` (${column.unit})` : "");
    return { name, values, extent, isLog, canBeLog, nHidden, label: label.length > 40 ? infoscope.columnLabel(column) : label };
  }, [view.id, name, data.get(name), scale]);

  const ScatterFigure = ({ view, shown, state, data, groups, groupOf, mask, selected, names }) => {
    const x = useAxis(view, data, state.x, shown.xScale), y = useAxis(view, data, state.y, shown.yScale);
    const choose = (axis, label, found) => html`
      <label>${label} <select value=${found.name} onChange=${(event) => infoscope.go({ [axis]: event.target.value, [`${axis}Scale`]: "", box: "" })}>
        ${state.numbers.map((name) => html`<option value=${name}>${infoscope.columnLabel(view.columns.find((one) => one.name === name))}</option>`)}</select></label>
      <label><input type="checkbox" checked=${found.isLog} disabled=${!found.canBeLog}
        onChange=${(event) => infoscope.go({ [`${axis}Scale`]: event.target.checked ? "log" : "linear" })} /> log</label>`;
    const hidden = [...new Set([x, y])].filter((one) => one.nHidden).map((one) =>
      `${infoscope.count(one.nHidden, "latent")} without a value${one.isLog ? " above 0" : ""} of ${infoscope.columnLabel({ name: one.name })}`);
    const nameOf = (latent) => [`latent ${latent}`, names?.texts?.[names.values[latent]],
      ...[x, y].map((one) => `${infoscope.columnLabel({ name: one.name })} ${infoscope.show(one.values[latent])}`)].filter(Boolean).join(", ");
    const description = `Scatter of ${y.label} against ${x.label}, a point per latent. With the keyboard, filters and the table do the same.`;
    return html`<figure>
      <figcaption><h2>Scatter</h2> <span>Drag a box to choose latents; click a point to open it.</span></figcaption>
      <${infoscope.Scatter} ...${{ x, y, groups, groupOf, mask, selected, box: state.box, nameOf, description }}
        onBox=${(box) => infoscope.go({ box: writeNumbers(box) })} onOpen=${(latent) => infoscope.go({ page: "latent", latent })} />
      <p class="controls">${choose("y", "up", y)} ${choose("x", "across", x)}
        ${state.box && html`<button type="button" onClick=${() => infoscope.go({ box: "" })}>Clear the box</button>`}
        <span class="quiet">${hidden.length ? `Not drawn: ${hidden.join("; ")}.` : ""}</span></p>
    </figure>`;
  };

  const FilterHelp = ({ view }) => html`<details class="help"><summary>How filters are written</summary>
    <p>Columns are compared with <code>${"< <= > >= = !="}</code>, joined by <code>&</code>, <code>|</code>, <code>!</code> (or <code>and or not</code>) and
    parentheses: <code>${"cds > 0.1 & rate < 1%"}</code>. Texts stand in quotes, <code>name ~ "dog"</code> finds those that contain it, in capitals or not.
    Switches stand alone: <code>!undecided</code>. <code>known(ms)</code> asks whether there is a value; comparisons with one that is not known are
    false. The beginning of a name will do where no other begins alike.</p>
    <dl>${listColumns(view).map((column) => html`<dt><code>${column.name}</code></dt><dd>${column.heading}${column.unit && column.unit !== "1" ? `, ${column.unit}` : ""}</dd>`)}</dl></details>`;

  const FilterField = ({ view, filter }) => {
    const [text, setText] = useState(filter), isEditing = useRef(false), timer = useRef(null);
    useEffect(() => { if (!isEditing.current) setText(filter); }, [filter]);
    const error = useMemo(() => {
      try {
        infoscope.parseFilter(text, listColumns(view));
        return null;
      } catch (found) {
        return found;
      }
    }, [text, view.id]);
    const apply = (value) => {
      clearTimeout(timer.current);
      try {
        infoscope.parseFilter(value, listColumns(view));
      } catch {
        return; // the last valid filter stays
      }
      if (value === infoscope.state().filter) return;
      infoscope.go({ filter: value }, isEditing.current);
      isEditing.current = true; // one entry of the history for one change of the text, however many letters
    };
    const type = (event) => {
      const { value } = event.target;
      setText(value);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => apply(value), 150);
    };
    return html`<form class="filter" role="search" onSubmit=${(event) => { event.preventDefault(); apply(text); isEditing.current = false; }}>
      <label for="filter">Filter</label>
      <input id="filter" type="text" value=${text} onInput=${type} onBlur=${() => { apply(text); isEditing.current = false; }} spellcheck=${false} autocomplete="off"
        autocapitalize="off" placeholder="cds > 0.1 & rate < 0.01" aria-invalid=${Boolean(error)} aria-describedby="filter-error" />
      ${text && html`<button type="button" onClick=${() => { setText(""); apply(""); isEditing.current = false; }}>Clear</button>`}
      <div id="filter-error" role="status">${error && html`<p class="error">${error.message} The last filter that could be read still holds.</p>
        <pre aria-hidden="true">${`${text}\n${" ".repeat(error.at)}${"^".repeat(Math.max(1, error.length))}`}</pre>`}</div>
      <${FilterHelp} view=${view} /></form>`;
  };

  const ColumnChooser = ({ view, columns }) => {
    const set = (name, isShown) => infoscope.go({ columns: view.columns.map((one) => one.name)
      .filter((one) => (one === name ? isShown : columns.includes(one))).sort((a, b) => (columns.indexOf(a) + 1 || 1e6) - (columns.indexOf(b) + 1 || 1e6)).join(",") });
    return html`<details class="chooser"><summary>Columns: ${columns.length} of ${view.columns.length}</summary>
      <div>${view.columns.map((column) => html`<label title=${infoscope.columnTitle(column)}><input type="checkbox" checked=${columns.includes(column.name)}
        disabled=${column.n_known === 0 || (columns.length === 1 && columns[0] === column.name)} onChange=${(event) => set(column.name, event.target.checked)} /> ${infoscope.columnLabel(column)}${column.n_known === 0 ? " (no values)" : ""}</label>`)}</div>
      <button type="button" onClick=${() => infoscope.go({ columns: "" })}>Those of the beginning</button></details>`;
  };

  const Downloads = ({ view, rows, selected }) => {
    const [said, say] = useState(""), latents = selected.size ? [...selected].sort((a, b) => a - b) : rows;
    const name = infoscope.fileName(`${infoscope.manifest.title}-${view.id}`);
    const save = (make, ending) => async () => {
      say("The file is being made ...");
      try {
        infoscope.save(await make(), `${name}.${ending}`);
        say(ending === "png" && selected.size > 50 ? "The picture shows the first 50 of the selection." : "");
      } catch (error) {
        say(error.message);
      }
    };
    const csv = async () => new Blob([await infoscope.makeCsv(view, latents)], { type: "text/csv;charset=utf-8" });
    return html`<span class="downloads">
      <button type="button" disabled=${!latents.length} onClick=${save(csv, "csv")}>Save ${selected.size ? "the selection" : "these rows"} as csv</button>
      <button type="button" disabled=${!selected.size} onClick=${save(() => infoscope.drawLatents(view, latents), "png")}
        title="a picture of the selected latents with crop pairs of their images">Save the selection as PNG</button>
      <span role="status">${said}</span></span>`;
  };

  /** The overview of a view. */
  infoscope.Overview = ({ view, shown }) => {
    const state = useMemo(() => readShown(view, shown), [view.id, shown]), n = view.d_sae;
    const last = useRef({ filter: infoscope.parseFilter("", []) });
    const filter = useMemo(() => {
      try {
        return infoscope.parseFilter(shown.filter, listColumns(view));
      } catch {
        return infoscope.parseFilter("", []);
      }
    }, [view.id, shown.filter]);
    const there = view.columns.map((one) => one.name), by = state.sort.replace(/^-/, "");
    const names = [...new Set([...["cds", "cds_low", "cds_high", "group", "name"].filter((name) => there.includes(name)), ...state.columns,
      state.x, state.y, ...(by === "latent" ? [] : [by]), ...filter.needs.filter((name) => name !== "selected")])].filter(Boolean);
    const { data, isReady, error } = useColumns(view, names);
    const selected = useMemo(() => infoscope.readSelected(shown.selected, n), [shown.selected, view.id]);
    const { groups, groupOf } = useGroups(view, data.get("group"));
    const found = useMemo(() => {
      if (!isReady) return last.current;
      const passed = filter.mask(new Map([...data, ["selected", { values: markSelected(selected, n), texts: null }]]), n);
      const inBrush = state.brush && data.has("cds") ? within(n, [data.get("cds").values, state.brush]) : passed;
      const inBox = state.box ? within(n, [data.get(state.x).values, state.box.slice(0, 2)], [data.get(state.y).values, state.box.slice(2)]) : passed;
      const forHistogram = both(passed, inBox), forScatter = both(passed, inBrush), order = infoscope.orderBy(data.get(by), n, state.sort.startsWith("-"));
      return { view: view.id, data, state, forHistogram, forScatter, rows: infoscope.pick(order, both(forHistogram, forScatter)) };
    }, [isReady, data, filter, shown.brush, shown.box, state.x, state.y, state.sort, state.columns.join(), view.id, filter.needs.includes("selected") && selected]);
    last.current = found;
    const actions = useMemo(() => ({ sort: (sort) => infoscope.go({ sort }), open: (latent) => infoscope.go({ page: "latent", latent }),
      select: (latents) => infoscope.go({ selected: infoscope.writeSelected(latents) }, true) }), []);
    if (error) return html`<p class="warning" role="alert">${error}</p>`;
    if (found.view !== view.id) return html`<p role="status">The table is being read ...</p>`;
    const parts = { view, shown, state: found.state, data: found.data, groups, groupOf };
    return html`<div class="overview">
      <div class="plots">
        ${found.data.has("cds") && html`<${ScopeFigure} ...${{ ...parts, state, mask: found.forHistogram }} />`}
        ${found.state.x && html`<${ScatterFigure} ...${{ ...parts, mask: found.forScatter, selected, names: found.data.get("name") }} />`}
      </div>
      <section aria-labelledby="latents-heading"><h2 id="latents-heading">Latents</h2>
        <${FilterField} view=${view} filter=${shown.filter} />
        <div class="toolbar"><span aria-live="polite" id="n-rows">${found.rows.length === n ? infoscope.count(n, "latent") : `${infoscope.show(found.rows.length)} of ${infoscope.count(n, "latent")}`}${selected.size ? `, ${infoscope.show(selected.size)} selected` : ""}</span>
          ${selected.size > 0 && html`<button type="button" onClick=${() => infoscope.go({ filter: "selected", brush: "", box: "" })}>Show only these</button>
            <button type="button" onClick=${() => infoscope.go({ selected: "", filter: shown.filter === "selected" ? "" : shown.filter })}>Select none</button>`}
          <${Downloads} view=${view} rows=${found.rows} selected=${selected} />
          <${ColumnChooser} view=${view} columns=${state.columns} /></div>
        <${infoscope.LatentTable} ...${{ view, actions, columns: found.state.columns, data: found.data, rows: found.rows, sort: found.state.sort, selected }} />
        <p class="quiet">A click selects a row, with Ctrl or the box further ones, with Shift all up to it; the number opens the latent. Keys: arrows, Space selects, Enter opens.</p>
      </section></div>`;
  };
})();
