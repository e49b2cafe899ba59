"use strict";
// The two plots of the overview, with what chooses in them.
(() => {
  const { html, useMemo } = infoscope;

  // unscored: by the CDS, unless it is said by what
  const nameGroup = (view, name) => {
    const { name: divided, words } = infoscope.divided(view);
    if (name === "unscored" && divided !== "cds") return `${name}: ${words} not known`;
    return name || "without a group";
  };

  /** A hook: the groups of a view, {groups: [{name, colour, n}], groupOf: the group of each latent}. */
  infoscope.useGroups = (view, column) =>
    useMemo(() => {
      const groupOf = new Uint8Array(view.d_sae),
        named = view.groups?.names ?? [];
      if (!column?.texts)
        return { groups: [{ name: "latents", colour: infoscope.groupColour("low"), n: view.d_sae }], groupOf };
      const names = [...named, ...column.texts.filter((text) => !named.includes(text))];
      const groups = names.map((name) => ({
        name: nameGroup(view, name),
        colour: infoscope.groupColour(name, named),
        n: 0,
      }));
      const places = column.texts.map((text) => names.indexOf(text));
      for (let i = 0; i < view.d_sae; i++) groups[(groupOf[i] = places[column.values[i]])].n += 1;
      return { groups, groupOf };
    }, [view.id, column]);

  const showUnit = ({ unit }) => (unit && unit !== "1" ? ` (${unit})` : "");

  const Legend = ({ groups }) => {
    const there = groups.filter(({ n }) => n > 0);
    return html`<ul class="legend" aria-label="Groups">${there.map(
      ({ name, colour, n }) => html`<li>
        <span class="swatch" style=${{ background: colour }}></span>${name} <small>${infoscope.show(n)}</small>
      </li>`,
    )}</ul>`;
  };

  const RangeField = ({ label, value, onValue }) => html`<label
    >${label} <input type="number" step="any" value=${Number.isFinite(value) ? value : ""}
      onChange=${(event) => onValue(event.target.value)}
  /></label>`;

  // landmarks are values of the CDS
  const findLandmarks = (view) => {
    const { gamma } = view.groups ?? {},
      ofScore = infoscope.divided(view).name === "cds" ? (view.landmarks ?? []) : [];
    return [...ofScore, { name: "gamma", value: gamma }].filter((one) => Number.isFinite(one.value));
  };

  const WHY_UNKNOWN = {
    cds: "too few pairs of crops have a distance",
    extent: "not measured, or nearly as active in other images as in the top ones",
    mean_extent: "not measured, or nearly as active in other images as in the top ones",
    context_effect: "not measured, or nothing varies",
  };

  /** Why a latent has no value of what can be divided, in words. */
  infoscope.whyUnknown = (name) => (Object.hasOwn(WHY_UNKNOWN, name) ? WHY_UNKNOWN[name] : "not measured");

  const countUnknown = (values) => values.reduce((n, one) => n + (Number.isNaN(one) ? 1 : 0), 0);

  /** The histogram of what the groups divide, and the range that is chosen in it; `mask`: the latents it counts. */
  infoscope.ScopeFigure = ({ view, table, data, groups, groupOf, mask }) => {
    const { name, words } = infoscope.divided(view),
      { values } = data.get(name),
      landmarks = useMemo(() => findLandmarks(view), [view.id]);
    const range = useMemo(() => {
      const found = infoscope.extent(values) ?? { low: 0, high: 1 };
      return {
        low: Math.min(0, found.low),
        high: 1.02 * Math.max(found.high, ...landmarks.map((one) => one.value)) || 1,
      };
    }, [values, landmarks]);
    const bins = useMemo(
      () => infoscope.countBins(values, groupOf, groups.length, mask, range),
      [values, groupOf, mask, range],
    );
    const nUnknown = useMemo(() => countUnknown(values), [values]);
    const { brush } = table;
    const setBrush = (numbers) => {
      infoscope.go({ brush: numbers?.some(Number.isFinite) ? infoscope.writeNumbers(numbers) : "" });
    };
    const setEnd = (at, none) => (text) => {
      const numbers = brush ? [...brush] : [-Infinity, Infinity];
      numbers[at] = text === "" ? none : Number(text);
      setBrush(numbers);
    };
    const said = landmarks.map(({ name, value }) => `${name}: ${infoscope.show(value)}`).join(", ");
    const description =
      `Histogram of the ${words} of ${infoscope.count(view.d_sae - nUnknown, "latent")}, from ` +
      `${infoscope.show(range.low)} to ${infoscope.show(range.high)}. ${said}`;
    const column = view.columns.find((one) => one.name === name),
      short = infoscope.columnLabel(column);
    const label = (name === "cds" ? column.heading : words) + showUnit(column);
    const title = name === "cds" ? "Scope" : infoscope.capitalise(words);
    const isOne = nUnknown === 1,
      none = `no ${words}: ${infoscope.whyUnknown(name)}. `;
    return html`<figure>
      <figcaption><h2>${title}</h2> <span>Drag over the histogram, or write a range below it.</span></figcaption>
      <${infoscope.Histogram} ...${{ label, bins, groups, landmarks, range: brush, onRange: setBrush, description }} />
      <${Legend} groups=${groups} />
      <p class="controls">
        <${RangeField} label=${`${short} from`} value=${brush?.[0]} onValue=${setEnd(0, -Infinity)} />
        <${RangeField} label=${`${short} to`} value=${brush?.[1]} onValue=${setEnd(1, Infinity)} />
        ${brush && html`<button type="button" onClick=${() => setBrush(null)}>Clear the range</button>`}
        <span class="quiet">${
          nUnknown > 0 && `${infoscope.count(nUnknown, "latent")} ${isOne ? "has" : "have"} ${none}`
        }
        ${view.groups?.rule && `Groups: ${view.groups.rule}.`}</span></p>
    </figure>`;
  };

  const isShare = (name) => name.startsWith("cds") || ["extent", "mean_extent", "context_effect"].includes(name);

  const nameColumn = (name) => infoscope.columnLabel({ name });

  const useAxis = (view, data, name, scale) =>
    useMemo(() => {
      const column = view.columns.find((one) => one.name === name),
        { values } = data.get(name);
      const extent = infoscope.extent(values),
        canBeLog = extent !== null && extent.positive !== null;
      const isLog =
        canBeLog && (scale === "log" || (scale === "" && !isShare(name) && infoscope.isLogBetter(extent)));
      let nHidden = 0;
      for (let i = 0; i < values.length; i++) if (Number.isNaN(values[i]) || (isLog && values[i] <= 0)) nHidden += 1;
      const label = nameColumn(name),
        unit = showUnit(column);
      return {
        name,
        values,
        extent,
        isLog,
        canBeLog,
        nHidden,
        label: label.length + unit.length > 36 ? label : label + unit,
      };
    }, [view.id, name, data.get(name), scale]);

  const AxisField = ({ axis, label, found, numbers }) => {
    const choose = (event) => infoscope.go({ [axis]: event.target.value, [`${axis}Scale`]: "", box: "" });
    const turn = (event) => infoscope.go({ [`${axis}Scale`]: event.target.checked ? "log" : "linear" });
    return html`<span class="axis-field"><label>${label} <select value=${found.name} onChange=${choose}>
        ${numbers.map((name) => html`<option value=${name}>${nameColumn(name)}</option>`)}</select></label>
      <label><input type="checkbox" checked=${found.isLog} disabled=${!found.canBeLog} onChange=${turn}
        aria-label=${`${label}: log scale`} /> log</label></span>`;
  };

  /** The scatter of two columns and the box that is chosen in it; `mask`: the latents that it shows. */
  infoscope.ScatterFigure = ({ view, shown, table, data, groups, groupOf, mask, selected }) => {
    const x = useAxis(view, data, table.x, shown.xScale),
      y = useAxis(view, data, table.y, shown.yScale);
    const axes = x.name === y.name ? [x] : [x, y],
      names = data.get("name"),
      { box } = table;
    const hidden = axes
      .filter((one) => one.nHidden)
      .map(
        (one) =>
          `${infoscope.count(one.nHidden, "latent")} without ${nameColumn(one.name)}${one.isLog ? " above 0" : ""}`,
      );
    const tell = (latent) => {
      const values = axes.map((one) => `${nameColumn(one.name)} ${infoscope.show(one.values[latent])}`);
      return [`latent ${latent}`, names?.texts?.[names.values[latent]], ...values].filter(Boolean).join(", ");
    };
    const description =
      `Scatter of ${y.label} against ${x.label}, a point per latent. ` +
      "With the keyboard, filters and the table do the same.";
    const onBox = (numbers) => infoscope.go({ box: infoscope.writeNumbers(numbers) });
    const onOpen = (latent) => infoscope.go({ page: "latent", latent });
    return html`<figure>
      <figcaption><h2>Scatter</h2> <span>Drag a box to choose latents, or write a filter; click a point to open
        it.</span></figcaption>
      <${infoscope.Scatter} ...${{ x, y, groups, groupOf, mask, selected, box, tell, description, onBox, onOpen }} />
      <p class="controls">
        <${AxisField} axis="y" label="Vertical" found=${y} numbers=${table.numbers} />
        <${AxisField} axis="x" label="Horizontal" found=${x} numbers=${table.numbers} />
        ${box && html`<button type="button" onClick=${() => onBox(null)}>Clear the box</button>`}
        <span class="quiet">${hidden.length > 0 && `Not drawn: ${hidden.join("; ")}.`}</span></p>
    </figure>`;
  };
})();
