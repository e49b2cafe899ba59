"use strict";
// All latents of an SAE: histogram, scatter and table, which one brush, one filter and one selection run through.
(() => {
  const { html, useEffect, useMemo, useRef, useState } = infoscope;

  const FilterHelp = ({ view }) => html`<details class="help">
    <summary>How filters are written</summary>
    <p>Columns are compared with <code>${"< <= > >= = !="}</code>, joined by <code>&</code> (and), <code>|</code>
      ${" (or), "}<code>!</code> (not) and parentheses: <code>${"cds > 0.1 & rate < 1%"}</code>. Texts stand in
      quotes: <code>name ~ "dog"</code> finds those that contain it, in capitals or not. Yes and no stand alone:${" "}
      <code>undecided</code>, <code>!undecided</code>. The number of a latent is <code>latent</code>.${" "}
      <code>known(ms)</code> asks whether there is a value; comparisons with one that is not known are false. The
      beginning of a name will do where no other begins alike.</p>
    <${infoscope.Wide} label="Columns that filters may name"><dl>${infoscope.filterColumns(view).map(
      (column) => html`<dt><code>${column.name}</code></dt>
        <dd>${column.heading}${column.unit && column.unit !== "1" ? `, ${column.unit}` : ""}</dd>`,
    )}</dl></${infoscope.Wide}>
  </details>`;

  const FilterError = ({ text, error, holds }) => html`
    <p class="error">${error.message}${" "}
      ${holds ? "The last filter that could be read still holds." : "Nothing is filtered."}</p>
    <pre aria-hidden="true">${`${text}\n${" ".repeat(error.at)}${"^".repeat(Math.max(1, error.length))}`}</pre>`;

  const findError = (view, text) => {
    try {
      infoscope.parseFilter(text, infoscope.filterColumns(view));
      return null;
    } catch (error) {
      return error;
    }
  };

  const FilterField = ({ view, filter }) => {
    const [text, setText] = useState(filter),
      isEditing = useRef(false),
      timer = useRef(null);
    useEffect(() => {
      if (!isEditing.current) setText(filter);
    }, [filter]);
    useEffect(() => () => clearTimeout(timer.current), []);
    const error = useMemo(() => findError(view, text), [text, view.id]);
    const holds = filter !== "" && !findError(view, filter);
    const apply = (value) => {
      clearTimeout(timer.current);
      if (value === infoscope.state().filter || findError(view, value)) return; // the last valid filter stays
      infoscope.go({ filter: value }, isEditing.current);
      isEditing.current = true; // one entry of the history for one change of the text, however many letters
    };
    const finish = (value) => {
      apply(value);
      isEditing.current = false;
    };
    const type = (event) => {
      const { value } = event.target;
      setText(value);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => apply(value), 150);
    };
    const submit = (event) => {
      event.preventDefault();
      finish(text);
    };
    const clear = () => {
      setText("");
      finish("");
    };
    const example = `${infoscope.divided(view).name} > 0.1 & rate < 0.01`;
    return html`<form class="filter" role="search" onSubmit=${submit}>
      <label for="filter">Filter</label>
      <input id="filter" type="text" value=${text} onInput=${type} onBlur=${() => finish(text)} spellcheck=${false}
        autocomplete="off" autocapitalize="off" placeholder=${example} aria-invalid=${Boolean(error)}
        aria-describedby="filter-error" />
      ${text && html`<button type="button" onClick=${clear}>Clear</button>`}
      <div id="filter-error" role="status">${error && html`<${FilterError} ...${{ text, error, holds }} />`}</div>
      <${FilterHelp} view=${view} />
    </form>`;
  };

  const ColumnChooser = ({ view, columns }) => {
    const names = view.columns.map((one) => one.name);
    const turn = (name) => {
      const isShown = columns.includes(name),
        rest = columns.filter((one) => one !== name);
      infoscope.go({ columns: (isShown ? rest : [...columns, name]).join(",") });
    };
    return html`<details class="chooser">
      <summary>Columns: ${columns.length} of ${names.length}</summary>
      <div>${view.columns.map((column) => {
        const isShown = columns.includes(column.name),
          isEmpty = column.n_known === 0;
        return html`<label title=${infoscope.columnTitle(column)}><input type="checkbox" checked=${isShown}
          disabled=${isEmpty || (isShown && columns.length === 1)} onChange=${() => turn(column.name)} />
          ${" "}${infoscope.columnLabel(column)}${isEmpty && " (no values)"}</label>`;
      })}</div>
      <button type="button" onClick=${() => infoscope.go({ columns: "" })}>The usual columns</button>
    </details>`;
  };

  const Downloads = ({ view, rows, selected }) => {
    const [said, say] = useState(""),
      latents = selected.size ? [...selected].sort((a, b) => a - b) : rows;
    const name = infoscope.fileName(`${infoscope.manifest.title}-${view.id}`);
    const save = async (make, ending, done) => {
      say("The file is being made ...");
      try {
        infoscope.save(await make(), `${name}.${ending}`);
        say(done);
      } catch (error) {
        say(error.message);
      }
    };
    const saveCsv = () => save(() => infoscope.makeCsv(view, latents), "csv", "");
    const savePng = () => {
      const most = infoscope.MOST_DRAWN,
        done = selected.size > most ? `The picture shows the first ${most}.` : "";
      return save(() => infoscope.drawLatents(view, latents), "png", done);
    };
    return html`<span class="downloads">
      <button type="button" disabled=${!latents.length} onClick=${saveCsv}>
        Save ${selected.size ? "the selection" : "these rows"} as csv</button>
      <button type="button" disabled=${!selected.size} onClick=${savePng}
        title="the selected latents with crop pairs of their images">Save the selection as PNG</button>
      <span role="status">${said}</span></span>`;
  };

  const actions = {
    sort: (sort) => infoscope.go({ sort }),
    open: (latent) => infoscope.go({ page: "latent", latent }),
    select: (latents) => infoscope.go({ selected: infoscope.writeSelected(latents) }, true),
  };

  const countRows = (view, rows, selected) => {
    const all = infoscope.count(view.d_sae, "latent"),
      chosen = `, ${infoscope.show(selected.size)} selected`;
    const isFull = selected.size >= infoscope.MOST_SELECTED ? ", the most that can be" : "";
    const passed = rows.length === view.d_sae ? all : `${infoscope.show(rows.length)} of ${all}`;
    return passed + (selected.size ? chosen + isFull : "");
  };

  /** The overview of a view. */
  infoscope.Overview = ({ view, shown }) => {
    const found = infoscope.useRows(view, shown);
    const selected = useMemo(() => infoscope.readSelected(shown.selected, view.d_sae), [shown.selected, view.id]);
    const { groups, groupOf } = infoscope.useGroups(view, found?.data?.get("group"));
    if (found?.error) return html`<p class="warning" role="alert">${found.error}</p>`;
    if (!found) return html`<${infoscope.Loading} what="The table" />`;
    const { table, data, rows } = found,
      parts = { view, shown, table, data, groups, groupOf, selected };
    const showSelected = () => infoscope.go({ filter: "selected", brush: "", box: "" });
    const selectNone = () => infoscope.go({ selected: "", filter: shown.filter === "selected" ? "" : shown.filter });
    return html`<div class="overview">
      <div class="plots">
        ${
          data.has(table.divided)
            ? html`<${infoscope.ScopeFigure} ...${parts} mask=${found.forHistogram} />`
            : html`<p>The scope of these latents was not measured: <code>infoscope stage=score</code> does.</p>`
        }
        ${table.x && html`<${infoscope.ScatterFigure} ...${parts} mask=${found.forScatter} />`}
      </div>
      <section aria-labelledby="latents-heading"><h2 id="latents-heading">Latents</h2>
        <${FilterField} view=${view} filter=${shown.filter} />
        <div class="toolbar"><span aria-live="polite" id="n-rows">${countRows(view, rows, selected)}</span>
          ${
            selected.size > 0 &&
            html`
            <button type="button" onClick=${showSelected}>Show only these</button>
            <button type="button" onClick=${selectNone}>Select none</button>`
          }
          <${Downloads} view=${view} rows=${rows} selected=${selected} />
          <${ColumnChooser} view=${view} columns=${table.columns} /></div>
        <${infoscope.LatentTable} ...${{ view, actions, data, rows, selected }}
          columns=${table.columns} sort=${table.sort} />
        <p class="quiet">A click selects a row, with Ctrl or the box further ones, with Shift all up to it; the number
          opens the latent. Keys: arrows, Space selects, Enter opens.</p>
      </section></div>`;
  };
})();
