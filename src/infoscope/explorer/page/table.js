"use strict";
// The table of all latents: SlickGrid draws the rows that are seen; values stay in typed arrays, a row is a number.
(() => {
  const DEFAULT = [
    ["cds"],
    ["cds_minus_chance"],
    ["extent"],
    ["mean_extent"],
    ["context_effect"],
    ["group"],
    ["undecided"],
    ["firing_rate"],
    ["mass"],
    ["support"],
    ["label_entropy"],
    ["ms"],
    ["name"],
    ["outlier_share", "outlier_ratio", "on_outlier"],
  ];
  const LABELS = {
    cds: "CDS",
    cds_low: "CDS from",
    cds_high: "CDS to",
    cds_minus_chance: "CDS − chance",
    own_patch: "own patch kept",
    without_patch: "own patch replaced",
    ms: "MS",
  };
  const MOST_SELECTED = (infoscope.MOST_SELECTED = 2000); // what an address holds

  /** The columns that are shown unless others are chosen, of those that there are: first what the groups divide. */
  infoscope.defaultColumns = (view) => {
    const there = new Set(view.columns.filter((one) => one.n_known !== 0).map((one) => one.name));
    const usual = [[infoscope.divided(view).name], ...DEFAULT];
    const found = [...new Set(usual.map((names) => names.find((name) => there.has(name))).filter(Boolean))];
    return found.length ? found : view.columns.slice(0, 10).map((one) => one.name);
  };

  /** What a column is called where there is little room; what it is in words is in its tooltip. */
  infoscope.columnLabel = ({ name }) => (Object.hasOwn(LABELS, name) ? LABELS[name] : name.replaceAll("_", " "));

  /** What a column is in words: heading, unit, source and its name in filters. */
  infoscope.columnTitle = (column) =>
    [
      column.heading + (column.unit && column.unit !== "1" ? ` (${column.unit})` : ""),
      column.source && `from stage=${column.source}`,
      `in filters: ${column.name}`,
    ]
      .filter(Boolean)
      .join("\n");

  /** Return the set of latents that "3,17,40-60" stands for, of n. */
  infoscope.readSelected = (text, n) => {
    const found = new Set();
    for (const part of text.split(",")) {
      const match = /^(\d+)(?:-(\d+))?$/.exec(part.trim());
      if (!match) continue;
      const last = Math.min(Number(match[2] ?? match[1]), n - 1);
      for (let i = Number(match[1]); i <= last && found.size < MOST_SELECTED; i++) found.add(i);
    }
    return found;
  };

  /** The text of a set of latents, with runs of three or more as "40-60". */
  infoscope.writeSelected = (latents) => {
    const sorted = [...latents].sort((a, b) => a - b),
      parts = [];
    for (let i = 0; i < sorted.length;) {
      let end = i;
      while (sorted[end + 1] === sorted[end] + 1) end += 1;
      parts.push(...(end - i > 1 ? [`${sorted[i]}-${sorted[end]}`] : sorted.slice(i, end + 1)));
      i = end + 1;
    }
    return parts.join(",");
  };

  // the first place in sorted values where one stands
  const findPlace = (sorted, value) => {
    let low = 0,
      high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  // Numbers alone sort faster than by a function that compares; then each latent takes the place of its value.
  const sortLatents = (values, known, isDown, order) => {
    const n = known.length,
      sorted = new Float64Array(n),
      places = new Uint32Array(n);
    for (let i = 0; i < n; i++) sorted[i] = values[known[i]];
    sorted.sort();
    const counts = new Uint32Array(n),
      seen = new Uint32Array(n); // of latents whose values are equal
    for (let i = 0; i < n; i++) {
      places[i] = findPlace(sorted, values[known[i]]);
      counts[places[i]] += 1;
    }
    for (let i = 0; i < n; i++) {
      const place = places[i],
        start = isDown ? n - place - counts[place] : place;
      order[start + seen[place]++] = known[i];
    }
  };

  const orders = new WeakMap();

  /**
   * Return all n latents in the order of a column's values: those that are equal in the order of the latents, those
   * without a value last, whichever way. Each order is made once.
   */
  infoscope.orderBy = (column, n, isDown) => {
    const found = orders.get(column) ?? {},
      { values, texts } = column;
    orders.set(column, found);
    if (found[isDown]) return found[isDown];
    const isEmpty = texts?.map((text) => text === ""),
      known = new Uint32Array(n),
      order = new Uint32Array(n);
    let nKnown = 0,
      nUnknown = 0;
    const unknown = new Uint32Array(n);
    for (let i = 0; i < n; i++) {
      if (isEmpty ? isEmpty[values[i]] : Number.isNaN(values[i])) unknown[nUnknown++] = i;
      else known[nKnown++] = i;
    }
    order.set(unknown.subarray(0, nUnknown), nKnown);
    sortLatents(values, known.subarray(0, nKnown), isDown, order); // texts lie in their order, so their codes do
    found[isDown] = order;
    return order;
  };

  /** Return those latents of an order that a mask lets pass. */
  infoscope.pick = (order, mask) => {
    const rows = new Uint32Array(order.length);
    let n = 0;
    for (let i = 0; i < order.length; i++) if (mask[order[i]]) rows[n++] = order[i];
    return rows.slice(0, n);
  };

  /** A value as it is shown, of any kind of column. */
  infoscope.cellText = (column, kind, latent) => {
    const value = column.values[latent];
    if (column.texts) return column.texts[value];
    return kind === "switch" ? (value ? "yes" : "") : infoscope.show(value);
  };

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  /** The table in an element: `show(...)` gives it what to show, `actions` {sort(text), select(set), open(latent)}. */
  class LatentGrid {
    constructor(element, view, actions) {
      Object.assign(this, {
        element,
        view,
        actions,
        rows: new Uint32Array(0),
        selected: new Set(),
        anchor: null,
        data: new Map(),
      });
      const provider = {
        getLength: () => this.rows.length,
        getItem: (row) => (row < this.rows.length ? { latent: this.rows[row] } : null),
      };
      this.grid = new Slick.Grid(element, provider, [], {
        nonce: document.body.dataset.nonce,
        enableHtmlRendering: false,
        enableColumnReorder: false,
        rowHeight: 30,
        explicitInitialization: true,
        forceFitColumns: false,
        enableTextSelectionOnCells: true,
        alwaysShowVerticalScroll: true,
      });
      const { grid } = this;
      grid.onSort.subscribe((event, { sortCol, sortAsc }) => actions.sort((sortAsc ? "" : "-") + sortCol.id));
      grid.onClick.subscribe((event, { row, cell }) => this.click(event.getNativeEvent(), row, cell));
      grid.onDblClick.subscribe((event, { row }) => actions.open(this.rows[row]));
      grid.onKeyDown.subscribe((event, { row }) => this.press(event, row));
      grid.onRendered.subscribe(() => this.mark());
      grid.onHeaderCellRendered.subscribe((event, { node, column }) => this.dressHeader(node, column));
      grid.init();
      element.setAttribute("aria-label", "Latents");
      element.setAttribute("aria-multiselectable", "true");
      this.holdFocus();
      this.watcher = new ResizeObserver(() => grid.resizeCanvas());
      this.watcher.observe(element);
    }

    // The Tab key stops once at the rows, where the cell that has the focus is what screen readers read. SlickGrid has
    // many stops, keeps the focus in an element without content and would go through all cells. What scrolls is
    // the stop, for Firefox would stop there anyway.
    holdFocus() {
      const { grid, element } = this,
        viewport = grid.getViewportNode();
      for (const one of element.querySelectorAll("[tabindex='0']:not(.slick-header-column)"))
        one.removeAttribute("tabindex");
      viewport.tabIndex = 0;
      viewport.setAttribute("role", "rowgroup");
      grid.setFocus = () => grid.getActiveCellNode()?.focus({ preventScroll: true });
      viewport.addEventListener("focus", () => {
        const first = Math.max(0, Math.min(this.rows.length - 1, grid.getViewport().top));
        if (this.rows.length && !grid.getActiveCell()) grid.setActiveCell(first, 1);
        grid.setFocus();
      });
      viewport.addEventListener("focusin", () => {
        viewport.tabIndex = -1;
      });
      viewport.addEventListener("focusout", ({ relatedTarget }) => {
        if (!viewport.contains(relatedTarget)) viewport.tabIndex = 0;
      });
      element.addEventListener("mousedown", (event) => {
        if (event.shiftKey) event.preventDefault(); // it selects rows, not texts
      });
      element.addEventListener(
        "keydown",
        (event) => {
          if (event.key === "Tab") event.stopPropagation();
        },
        true,
      );
    }

    destroy() {
      this.watcher.disconnect();
      this.grid.destroy();
    }

    /** {columns: names, data: Map of loaded columns, rows: latents, sort: "-cds", selected: Set}. */
    show({ columns, data, rows, sort, selected }) {
      const { grid } = this,
        isNew = columns.join() !== this.columns?.join();
      Object.assign(this, { columns, data, selected, sort });
      if (this.rows !== rows) {
        this.rows = rows;
        this.element.setAttribute("aria-rowcount", rows.length + 1);
        grid.resetActiveCell();
        grid.getViewportNode().tabIndex = 0;
        if (!isNew) grid.invalidate();
        grid.scrollRowToTop(0);
      }
      const list = () => this.fill([this.picker(), this.number(), ...columns.map((name) => this.column(name))]);
      if (isNew) grid.setColumns(list());
      grid.setSortColumns([{ columnId: sort.replace(/^-/, ""), sortAsc: !sort.startsWith("-") }]);
      for (const node of this.element.querySelectorAll(".slick-header-column")) this.dressSort(node);
      this.mark();
    }

    // columns that leave room share it
    fill([picker, ...columns]) {
      const total = columns.reduce((sum, { width }) => sum + width, picker.width),
        room = this.element.clientWidth - 20 - total; // beside the scroll bar
      if (room > 0) for (const one of columns) one.width += Math.floor(Math.min(room / columns.length, one.width));
      return [picker, ...columns];
    }

    picker() {
      return {
        id: "+picked",
        name: make("span", { className: "sr", textContent: "selected" }),
        width: 34,
        resizable: false,
        formatter: () => make("input", { type: "checkbox", tabIndex: -1 }),
      };
    }

    number() {
      const formatter = (row, cell, value, column, { latent }) =>
        make("a", { textContent: latent, tabIndex: -1, href: infoscope.address({ page: "latent", latent }) });
      return {
        id: "latent",
        name: make("span", { textContent: "latent" }),
        toolTip: "number of the latent in the SAE; opens its page",
        width: 76,
        sortable: true,
        cssClass: "is-number",
        headerCssClass: "is-number",
        formatter,
      };
    }

    column(name) {
      const column = this.view.columns.find((one) => one.name === name),
        isText = column.kind === "text";
      const hasInterval = name === "cds" && this.data.has("cds_low") && this.data.has("cds_high");
      const formatter = (row, cell, value, _, { latent }) => {
        const found = this.data.get(name),
          text = infoscope.cellText(found, column.kind, latent);
        if (name === "group") return this.group(text);
        const span = make("span", isText ? { textContent: text, title: text } : { textContent: text });
        if (!hasInterval || text === "") return span;
        const ends = ["cds_low", "cds_high"].map((one) => infoscope.show(this.data.get(one).values[latent]));
        return ends[0] ? make("span", {}, span, make("small", { textContent: ` ${ends[0]} to ${ends[1]}` })) : span;
      };
      const label = infoscope.columnLabel(column) + (hasInterval ? " (95% interval)" : "");
      const longest = Math.max(...label.split(" ").map((word) => word.length));
      const cssClass = column.kind === "number" && !hasInterval ? "is-number" : "";
      const width = hasInterval ? 190 : isText ? this.textWidth(name) : Math.max(88, 20 + 8.5 * longest);
      return {
        id: name,
        name: make("span", { textContent: label }),
        toolTip: infoscope.columnTitle(column),
        width,
        sortable: true,
        defaultSortAsc: isText,
        cssClass,
        headerCssClass: cssClass,
        formatter,
      };
    }

    textWidth(name) {
      const groups = this.view.groups?.names ?? [];
      if (name === "group") return Math.max(120, ...groups.map((one) => Math.min(240, 44 + 8 * one.length)));
      return name === "name" ? 190 : 120;
    }

    group(text) {
      const mark = make("span", { className: "swatch" });
      mark.style.background = infoscope.groupColour(text, this.view.groups?.names);
      return make("span", {}, mark, text);
    }

    dressHeader(node, column) {
      if (!column.sortable) return;
      node.tabIndex = 0;
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        node.click();
        this.element.querySelector(`.slick-header-column[data-id="${CSS.escape(column.id)}"]`)?.focus();
      });
      this.dressSort(node);
    }

    dressSort(node) {
      const { sort = "" } = this,
        isBy = node.dataset.id === sort.replace(/^-/, "");
      node.parentElement?.setAttribute("role", "row");
      if (node.tabIndex === 0)
        node.setAttribute("aria-sort", isBy ? (sort.startsWith("-") ? "descending" : "ascending") : "none");
    }

    mark() {
      for (const node of this.element.querySelectorAll(".slick-row")) {
        const row = Number(node.dataset.row),
          isSelected = this.selected.has(this.rows[row]);
        node.classList.toggle("is-selected", isSelected);
        node.setAttribute("aria-selected", isSelected);
        node.setAttribute("aria-rowindex", row + 2);
        const box = node.querySelector("input");
        if (box) Object.assign(box, { checked: isSelected, ariaLabel: `latent ${this.rows[row]}` });
      }
    }

    click(event, row, cell) {
      const latent = this.rows[row];
      if (event.target.closest?.("a")) {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.actions.open(latent);
        return;
      }
      const isToggle = event.ctrlKey || event.metaKey || cell === 0;
      if (event.shiftKey && this.anchor !== null) this.extend(row, isToggle);
      else if (isToggle) this.toggle(latent);
      else this.select(this.selected.size === 1 && this.selected.has(latent) ? [] : [latent]);
      if (!event.shiftKey) this.anchor = latent;
    }

    toggle(latent) {
      const found = new Set(this.selected);
      if (!found.delete(latent)) found.add(latent);
      this.select(found);
    }

    extend(row, isAdded) {
      const from = this.rows.indexOf(this.anchor),
        [first, last] = from < 0 ? [row, row] : [Math.min(from, row), Math.max(from, row)];
      this.select([
        ...(isAdded ? this.selected : []),
        ...this.rows.subarray(first, Math.min(last + 1, first + MOST_SELECTED)),
      ]);
    }

    select(latents) {
      this.actions.select(new Set([...latents].slice(0, MOST_SELECTED)));
    }

    press(event, row) {
      const { key, shiftKey } = event.getNativeEvent(),
        latent = this.rows[row];
      if (latent === undefined) return;
      if (key === "Enter") this.actions.open(latent);
      if (key === " ") {
        if (shiftKey && this.anchor !== null) this.extend(row, true);
        else this.toggle(latent);
        if (!shiftKey) this.anchor = latent;
      }
      if (key === "Enter" || key === " ") {
        event.preventDefault();
        event.stopImmediatePropagation();
      }
    }
  }

  /** LatentTable({view, columns, data, rows, sort, selected, actions}): see LatentGrid. */
  infoscope.LatentTable = ({ view, actions, ...shown }) => {
    const element = infoscope.useRef(null),
      grid = infoscope.useRef(null);
    infoscope.useLayoutEffect(() => {
      grid.current = new LatentGrid(element.current, view, actions);
      return () => grid.current.destroy();
    }, [view.id]);
    infoscope.useLayoutEffect(
      () => grid.current.show(shown),
      [view.id, shown.columns, shown.data, shown.rows, shown.sort, shown.selected],
    );
    return infoscope.html`<div class="latents" ref=${element}></div>`;
  };
})();
