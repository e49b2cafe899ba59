"use strict";
// Patches of an image: which are chosen and where, the same place in the other crop, what fires on them.
(() => {
  const { html } = infoscope;
  const SILENT = { places: [], values: [], peak: 0 };

  /** The two corners {anchor, head} of "row,column" or "row,column-row,column"; null: what is not on the grid. */
  infoscope.readPatches = (text, grid) => {
    const corners = text.split("-").map((corner) => corner.split(",").map(Number));
    const isOn = (corner) => corner.length === 2 && corner.every((at) => Number.isInteger(at) && at >= 0 && at < grid);
    if (!/^[\d,-]+$/.test(text) || corners.length > 2 || !corners.every(isOn)) return null;
    return { anchor: corners[0], head: corners.at(-1) };
  };

  /** What `readPatches` reads. */
  infoscope.writePatches = (anchor, head) =>
    anchor.join() === head.join() ? anchor.join() : `${anchor.join()}-${head.join()}`;

  /** The box of patches {top, left, bottom, right, isAll} of two corners; of null all patches. */
  infoscope.boxOf = (choice, grid) => {
    if (!choice) return { top: 0, left: 0, bottom: grid - 1, right: grid - 1, isAll: true };
    const [rows, columns] = [0, 1].map((axis) => [choice.anchor[axis], choice.head[axis]].sort((a, b) => a - b));
    return { top: rows[0], bottom: rows[1], left: columns[0], right: columns[1], isAll: false };
  };

  /** The same place of the image in another crop (1 or 2); parts of it may lie outside of that. */
  infoscope.moveBox = (view, box, from, to) => {
    const [here, there] = [from, to].map((crop) => infoscope.sharedStart(view, crop));
    const down = there.row - here.row, right = there.column - here.column;
    const { top, bottom, left } = box;
    return { ...box, top: top + down, bottom: bottom + down, left: left + right, right: box.right + right };
  };

  const cutBox = (box, grid) => ({
    ...box, top: Math.max(0, box.top), left: Math.max(0, box.left),
    bottom: Math.min(grid - 1, box.bottom), right: Math.min(grid - 1, box.right),
  });

  const countPatches = (box) => Math.max(0, box.bottom - box.top + 1) * Math.max(0, box.right - box.left + 1);

  /** About the same patch when the whole image (crop 0) is looked at instead of a crop, or the other way round. */
  infoscope.movePatch = (view, patch, from, to) => patch.map((at, axis) => {
    const side = view.grid + view.shift;
    const start = (crop) => Object.values(infoscope.sharedStart(view, 3 - crop))[axis]; // of the crop, in the square
    const place = from === 0 ? (at + 0.5) / view.grid : (at + start(from) + 0.5) / side;
    const found = to === 0 ? place * view.grid : place * side - start(to);
    return Math.max(0, Math.min(view.grid - 1, Math.floor(found)));
  });

  /** A box in words; rows and columns are counted from 1. */
  infoscope.nameBox = (box) => {
    if (box.isAll) return "All patches";
    const span = (first, last, one) => first === last ? `${one} ${first + 1}` : `${one}s ${first + 1} to ${last + 1}`;
    const said = `${span(box.top, box.bottom, "row")}, ${span(box.left, box.right, "column")}`;
    return said[0].toUpperCase() + said.slice(1);
  };

  /** What fires in an image or a crop: {latents: Map of latent -> {places, values, peak}, nLeftOut}. */
  infoscope.readCrop = (crop) => {
    const maps = infoscope.unpackMaps(crop.maps), peaks = crop.peaks ? infoscope.unpack(crop.peaks) : null;
    const latents = new Map(crop.latents.map((latent, i) => {
      const { places, values } = maps[i];
      const activations = peaks ? values.map((share) => share * peaks[i]) : values;
      return [latent, { places, values: activations, peak: activations.reduce((a, b) => Math.max(a, b), 0) }];
    }));
    return { latents, nLeftOut: crop.n_left_out };
  };

  /** The map of a latent on a crop, silent where it is not listed. */
  infoscope.mapOf = (crop, latent) => crop.latents.get(latent) ?? SILENT;

  const measure = (map, box, grid) => {
    let sum = 0, peak = 0;
    map.places.forEach((place, i) => {
      const row = Math.floor(place / grid), column = place % grid;
      if (row < box.top || row > box.bottom || column < box.left || column > box.right) return;
      sum += map.values[i];
      peak = Math.max(peak, map.values[i]);
    });
    const n = countPatches(box);
    return { mean: n ? sum / n : 0, peak };
  };

  /**
   * What fires on a box of patches of the whole image (side 0) or a crop: {rows, nPatches, nShared}. Rows are {latent,
   * mean, peak, one, two, difference}: means in crop 1 and 2 over those patches of the box that both show, null where
   * there are none. A latent that fires there in the other crop alone has a row too.
   */
  infoscope.measureBox = (view, crops, side, box) => {
    const { grid } = view, other = 3 - side;
    const there = side === 0 ? null : cutBox(infoscope.moveBox(view, box, side, other), grid);
    const nShared = there ? countPatches(there) : 0;
    const here = nShared ? infoscope.moveBox(view, there, other, side) : null;
    const latents = new Set([...crops[side].latents.keys(), ...(nShared ? crops[other].latents.keys() : [])]);
    const rows = [];
    for (const latent of latents) {
      const map = infoscope.mapOf(crops[side], latent);
      const row = { latent, ...measure(map, box, grid), one: null, two: null, difference: null };
      let isElsewhere = false;
      if (nShared) {
        const own = measure(map, here, grid).mean;
        const others = measure(infoscope.mapOf(crops[other], latent), there, grid).mean;
        [row.one, row.two] = side === 1 ? [own, others] : [others, own];
        row.difference = row.two - row.one;
        isElsewhere = others > 0;
      }
      if (row.peak > 0 || isElsewhere) rows.push(row);
    }
    return { rows, nPatches: countPatches(box), nShared };
  };

  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  const Overlay = ({ view, crop, box }) => {
    const { grid, shift } = view, side = grid - shift;
    const lines = Array.from({ length: grid - 1 }, (_, i) => `M0 ${i + 1}H${grid}M${i + 1} 0V${grid}`).join("");
    const { row, column } = crop === 0 ? {} : infoscope.sharedStart(view, crop);
    const seen = cutBox(box, grid), isShown = !box.isAll && countPatches(seen) > 0;
    const size = { x: seen.left, y: seen.top, width: seen.right - seen.left + 1, height: seen.bottom - seen.top + 1 };
    return html`<svg viewBox=${`0 0 ${grid} ${grid}`} aria-hidden="true">
      <path class="lines" d=${lines} />
      ${crop > 0 && html`<path class="unshared" fill-rule="evenodd"
        d=${`M0 0H${grid}V${grid}H0ZM${column} ${row}h${side}v${side}h${-side}Z`} />`}
      ${isShown && html`<rect class="chosen under" ...${size} /><rect class="chosen over" ...${size} />`}
    </svg>`;
  };

  /**
   * PatchPicker({url, size, box, choice, label, onChoose, ...what Picture takes}): a picture on which patches are
   * chosen by a click, a drag, or arrow keys: onChoose(anchor, head), or onChoose(null) for all of them. url: of a
   * larger picture than the thumbnail; box: the chosen patches; choice: their corners, where chosen in this crop.
   */
  infoscope.PatchPicker = ({ url, size, box, choice, label, onChoose, ...picture }) => {
    const start = infoscope.useRef(null), before = infoscope.useRef(null), { view, crop } = picture, { grid } = view;
    const clamp = (at) => Math.max(0, Math.min(grid - 1, at));
    const find = (event) => {
      const area = event.currentTarget.getBoundingClientRect();
      const shares = [(event.clientY - area.top) / area.height, (event.clientX - area.left) / area.width];
      return shares.map((share) => clamp(Math.floor(share * grid)));
    };
    const press = (event) => {
      if (event.button !== 0) return;
      event.currentTarget.setPointerCapture(event.pointerId);
      start.current = event.shiftKey && choice ? choice.anchor : find(event);
      before.current = choice;
      if (event.pointerType !== "touch") onChoose(start.current, find(event)); // a finger may be about to scroll
    };
    const drag = (event) => start.current && onChoose(start.current, find(event));
    const leave = () => { start.current = null; };
    const release = (event) => { drag(event); leave(); };
    const cancel = () => { // what began as a drag became a scroll
      leave();
      if (before.current) onChoose(before.current.anchor, before.current.head);
      else onChoose(null);
    };
    const step = (event) => {
      if (event.key === "Escape") onChoose(null);
      const move = MOVES[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const head = choice ? choice.head.map((at, axis) => clamp(at + move[axis])) : [0, 0];
      onChoose(event.shiftKey && choice ? choice.anchor : head, head);
    };
    return html`<div class="patch-picker" role="application" tabindex="0" aria-label=${label}
      aria-describedby="patch-keys" style=${{ width: `${size}px`, height: `${size}px` }} onKeyDown=${step}
      onPointerDown=${press} onPointerMove=${drag} onPointerUp=${release} onPointerCancel=${cancel}>
      <${infoscope.Picture} ...${picture} size=${size} alt=${label}>
        ${url && html`<img class="large" src=${url} alt="" draggable=${false}
          style=${infoscope.cropStyle(view, crop)} />`}
        <${Overlay} view=${view} crop=${crop} box=${box} />
      <//>
    </div>`;
  };
})();
