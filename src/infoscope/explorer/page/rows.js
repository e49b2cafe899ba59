"use strict";
// Which latents the table and the plots show: what the address asks for, made rows.
(() => {
  const { useMemo, useRef } = infoscope;

  /** What filters may ask for: the columns of the table, and whether a latent is selected. */
  infoscope.filterColumns = (view) => [
    ...view.columns,
    { name: "selected", kind: "switch", heading: "in the selection" },
  ];

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

  /** The text of a range or a box in the address: five digits, nothing where there is no end. */
  infoscope.writeNumbers = (numbers) =>
    (numbers ?? []).map((one) => (Number.isFinite(one) ? Number(one.toPrecision(5)) : "")).join(",");

  const readFilter = (view, text) => {
    try {
      return infoscope.parseFilter(text, infoscope.filterColumns(view));
    } catch {
      return infoscope.parseFilter("", []); // the field says why
    }
  };

  /** What the address asks for, made whole: columns that there are, ranges as numbers, the filter. */
  infoscope.readTable = (view, shown) => {
    const { name: divided } = infoscope.divided(view);
    const numbers = view.columns.filter((one) => one.kind === "number" && one.n_known !== 0).map((one) => one.name);
    const find = (name, otherwise) => (numbers.includes(name) ? name : otherwise);
    const y = find(shown.y, find(divided, numbers[0]));
    const usual = divided === "cds" ? "firing_rate" : "cds"; // the histogram shows what is divided
    const x = find(shown.x, find(usual, numbers.find((name) => name !== y) ?? y));
    const known = new Set(["latent", ...view.columns.map((one) => one.name)]);
    const columns = shown.columns.split(",").filter((name) => name !== "latent" && known.has(name));
    const asked = shown.sort || `-${divided}`,
      sort = known.has(asked.replace(/^-/, "")) ? asked : "latent";
    return {
      divided,
      x,
      y,
      sort,
      by: sort.replace(/^-/, ""),
      isDown: sort.startsWith("-"),
      numbers,
      columns: columns.length ? columns : infoscope.defaultColumns(view),
      brush: known.has(divided) ? readNumbers(shown.brush, 2) : null,
      box: x ? readNumbers(shown.box, 4) : null,
      filter: readFilter(view, shown.filter),
      selected: infoscope.readSelected(shown.selected, view.d_sae),
    };
  };

  const listNeeded = ({ filter, by, divided, brush, box, x, y }) =>
    [...new Set([...filter.needs, by, ...(brush ? [divided] : []), ...(box ? [x, y] : [])])].filter(
      (name) => name !== "latent" && name !== "selected",
    );

  const loadColumns = async (view, names) => {
    const found = await Promise.all(names.map((name) => infoscope.column(view.id, name)));
    const data = new Map(found.map((column, i) => [names[i], column]));
    return data.set("latent", { values: Uint32Array.from({ length: view.d_sae }, (_, i) => i), texts: null });
  };

  /*
   * Return masks of the latents of a table (`readTable`): those that all but the brush let pass, {forHistogram}, all
   * but the box, {forScatter}, and all, {passed}.
   */
  const chooseLatents = (view, table, data) => {
    const n = view.d_sae,
      { divided, brush, box, x, y } = table,
      isSelected = { values: markSelected(table.selected, n), texts: null };
    const found = table.filter.mask(new Map(data).set("selected", isSelected), n);
    const inBrush = brush ? within(n, [data.get(divided).values, brush]) : found;
    const inBox = box ? within(n, [data.get(x).values, box.slice(0, 2)], [data.get(y).values, box.slice(2)]) : found;
    const forHistogram = both(found, inBox);
    return { forHistogram, forScatter: both(found, inBrush), passed: both(forHistogram, inBrush) };
  };

  const orderRows = (view, { by, isDown }, data, passed) =>
    infoscope.pick(infoscope.orderBy(data.get(by), view.d_sae, isDown), passed);

  /** Return a promise of the latents of a view that the table shows, in its order. */
  infoscope.order = async (view) => {
    const table = infoscope.readTable(view, infoscope.state()),
      data = await loadColumns(view, listNeeded(table));
    return orderRows(view, table, data, chooseLatents(view, table, data).passed);
  };

  /**
   * A hook: {table, data, forHistogram, forScatter, rows} of a view, the last ones until all that is asked for is
   * loaded, null before; {error} where a column cannot be read. Arrays stay the same until others are asked for.
   */
  infoscope.useRows = (view, shown) => {
    const table = useMemo(() => infoscope.readTable(view, shown), [view.id, shown]),
      last = useRef(null);
    const there = new Set(view.columns.map((one) => one.name)),
      { x, y, sort, columns, divided } = table;
    const always = [divided, "cds", "cds_low", "cds_high", "group", "name"].filter((name) => there.has(name));
    const names = [...new Set([...always, ...columns, ...listNeeded(table), ...[x, y].filter(Boolean)])];
    const { value: data, error } = infoscope.useLoaded(() => loadColumns(view, names), [view.id, names.join()]);
    const { filter, brush, box, selected } = shown,
      isBySelection = table.filter.needs.includes("selected");
    const asked = [view.id, filter, brush, box, box && x, box && y, isBySelection && selected].join("\n");
    if (data) {
      const { current } = last,
        isSame = current?.asked === asked;
      const masks = isSame ? current.masks : chooseLatents(view, table, data);
      const rows = isSame && current.table.sort === sort ? current.rows : orderRows(view, table, data, masks.passed);
      last.current = { view, asked, table, data, masks, rows };
    }
    if (error) return { error };
    return last.current?.view === view ? { ...last.current, ...last.current.masks } : null;
  };
})();
