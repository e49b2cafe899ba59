"use strict";
// One image: what fires on chosen patches, in the whole image or in both crops, and what the model predicts without some of it.
(() => {
  const { html, show, count } = infoscope;
  const ROWS = 50; // of the table, before it is asked for more
  const WIDE_PX = 1200; // from which on the table stands beside the pictures
  const NARROW_PX = 700; // below which the maps of a row are shown under it, for the large pictures are out of sight
  const COMMIT_MS = 150; // a drag or a held key becomes one address, not a hundred
  const SILENT = { places: [], values: [], peak: 0 };
  const FACTS = ["cds", "group", "undecided", "name"];
  const percent = (share) => `${(100 * share).toFixed(2)}%`;

  /** Where the first patch of a crop lies in the square that both are cut from: [row, column]. */
  const origin = (view, crop) => {
    const isMain = view.diagonal === "main";
    return crop === 1 ? [0, isMain ? 0 : view.shift] : [view.shift, isMain ? view.shift : 0];
  };

  /** Return "row,column" or "row,column-row,column" as its two corners, or null: what is not on the grid is no choice. */
  infoscope.readPatches = (text, grid) => {
    const corners = text.split("-").map((corner) => corner.split(",").map(Number));
    const isOn = (corner) => corner.length === 2 && corner.every((at) => Number.isInteger(at) && at >= 0 && at < grid);
    if (!text || corners.length > 2 || !corners.every(isOn)) return null;
    return { anchor: corners[0], head: corners.at(-1) };
  };

  const writePatches = (anchor, head) => anchor.join() === head.join() ? anchor.join() : `${anchor.join()}-${head.join()}`;

  const boxOf = (choice, grid) => {
    if (!choice) return { top: 0, left: 0, bottom: grid - 1, right: grid - 1, isAll: true };
    const [rows, columns] = [0, 1].map((axis) => [choice.anchor[axis], choice.head[axis]].sort((a, b) => a - b));
    return { top: rows[0], bottom: rows[1], left: columns[0], right: columns[1], isAll: false };
  };

  /** The same place of the image in the other crop; parts of it may lie outside of that. */
  const moveBox = (box, view, from, to) => {
    const down = origin(view, from)[0] - origin(view, to)[0], right = origin(view, from)[1] - origin(view, to)[1];
    return { top: box.top + down, bottom: box.bottom + down, left: box.left + right, right: box.right + right, isAll: box.isAll };
  };

  const cutBox = (box, grid) => ({
    top: Math.max(0, box.top), left: Math.max(0, box.left), bottom: Math.min(grid - 1, box.bottom),
    right: Math.min(grid - 1, box.right), isAll: box.isAll,
  });

  const countPatches = (box) => Math.max(0, box.bottom - box.top + 1) * Math.max(0, box.right - box.left + 1);

  /** About the same patch when the whole image is looked at instead of a crop, or the other way round. */
  const movePatch = (view, patch, from, to) => patch.map((at, axis) => {
    const side = view.grid + view.shift;
    const place = from === 0 ? (at + 0.5) / view.grid : (at + origin(view, from)[axis] + 0.5) / side;
    const found = to === 0 ? place * view.grid : place * side - origin(view, to)[axis];
    return Math.max(0, Math.min(view.grid - 1, Math.floor(found)));
  });

  const nameBox = (box) => {
    if (box.isAll) return "All patches";
    const span = (first, last, one) => first === last ? `${one} ${first + 1}` : `${one}s ${first + 1} to ${last + 1}`;
    const said = `${span(box.top, box.bottom, "row")}, ${span(box.left, box.right, "column")}`;
    return said[0].toUpperCase() + said.slice(1);
  };

  /** {latents: Map of latent -> {places, values, peak}, nLeftOut} of an image or a crop. */
  const readCrop = (crop) => {
    const maps = infoscope.unpackMaps(crop.maps), peaks = crop.peaks ? infoscope.unpack(crop.peaks) : null;
    const latents = new Map(crop.latents.map((latent, i) => {
      const { places, values } = maps[i];
      const activations = peaks ? values.map((share) => share * peaks[i]) : values;
      return [latent, { places, values: activations, peak: activations.reduce((a, b) => Math.max(a, b), 0) }];
    }));
    return { latents, nLeftOut: crop.n_left_out };
  };

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
   * What fires on a box of patches: rows {latent, mean, peak}, and of crops {one, two, difference}: means over those of the
   * patches that both crops show, null where there are none; a latent that fires there in the other crop alone has a row.
   */
  infoscope.measureBox = (view, crops, side, box) => {
    const { grid } = view, other = 3 - side;
    const shared = side === 0 ? null : cutBox(moveBox(box, view, side, other), grid);
    const nShared = side === 0 ? 0 : countPatches(shared);
    const own = nShared ? moveBox(shared, view, other, side) : null;
    const latents = new Set([...crops[side].latents.keys(), ...(nShared ? crops[other].latents.keys() : [])]);
    const rows = [];
    for (const latent of latents) {
      const map = crops[side].latents.get(latent) ?? SILENT;
      const row = { latent, ...measure(map, box, grid), one: null, two: null, difference: null };
      if (nShared) {
        const here = measure(map, own, grid).mean;
        const there = measure(crops[other].latents.get(latent) ?? SILENT, shared, grid).mean;
        [row.one, row.two] = side === 1 ? [here, there] : [there, here];
        row.difference = row.two - row.one;
      }
      if (row.peak > 0 || (row.difference ?? 0) !== 0) rows.push(row);
    }
    return { rows, nPatches: countPatches(box), nShared };
  };

  /** A picture on which patches are chosen: by a click, a drag, or the arrow keys. */
  const PatchPicker = ({ view, set, image, url, crop, map, scale, size, box, choice, onChoose, label, opacity }) => {
    const start = infoscope.useRef(null), { grid, shift } = view;
    const find = (event) => {
      const area = event.currentTarget.getBoundingClientRect();
      const at = (share) => Math.max(0, Math.min(grid - 1, Math.floor(share * grid)));
      return [at((event.clientY - area.top) / area.height), at((event.clientX - area.left) / area.width)];
    };
    const press = (event) => {
      if (event.button !== 0) return;
      event.currentTarget.setPointerCapture(event.pointerId);
      start.current = event.shiftKey && choice ? choice.anchor : find(event);
      onChoose(start.current, find(event));
    };
    const drag = (event) => start.current && onChoose(start.current, find(event));
    const release = () => { start.current = null; };
    const step = (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Escape") onChoose(null);
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const head = choice ? choice.head.map((at, axis) => Math.max(0, Math.min(grid - 1, at + move[axis]))) : [0, 0];
      onChoose(event.shiftKey && choice ? choice.anchor : head, head);
    };
    const lines = Array.from({ length: grid - 1 }, (_, i) => `M0 ${i + 1}H${grid}M${i + 1} 0V${grid}`).join("");
    const seen = box && cutBox(box, grid), { left, top, share } = infoscope.cropPlace(view, crop);
    const place = { width: `${100 / share}%`, left: `${(-100 * left) / share}%`, top: `${(-100 * top) / share}%` };
    const [row, column] = crop === 0 ? [0, 0] : origin(view, 3 - crop).map((at, axis) => at - origin(view, crop)[axis]);
    return html`<div class="patch-picker" role="application" tabindex="0" aria-label=${label} aria-describedby="patch-keys"
      onPointerDown=${press} onPointerMove=${drag} onPointerUp=${release} onPointerCancel=${release} onKeyDown=${step}
      style=${{ width: `${size}px` }}>
      <${infoscope.Picture} view=${view} set=${set} image=${image} crop=${crop} map=${map} scale=${scale} size=${size}
        alt=${label} opacity=${opacity}>
        ${url && html`<img class="large" src=${url} alt="" style=${place} draggable=${false} />`}
        <svg viewBox=${`0 0 ${grid} ${grid}`} aria-hidden="true">
          <path class="grid-lines" d=${lines} />
          ${crop > 0 && html`<path class="unshared" fill-rule="evenodd" d=${`M0 0H${grid}V${grid}H0Z`
            + `M${Math.max(0, column)} ${Math.max(0, row)}h${grid - shift}v${grid - shift}h${shift - grid}Z`} />`}
          ${seen && !seen.isAll && countPatches(seen) > 0 && ["under", "over"].map((name) => html`
            <rect class=${`chosen ${name}`} x=${seen.left} y=${seen.top} width=${seen.right - seen.left + 1}
              height=${seen.bottom - seen.top + 1} />`)}
        </svg>
      <//>
    </div>`;
  };

  const LatentName = ({ view, latent, facts }) => html`
    <a href=${infoscope.address({ page: "latent", latent, view: view.id })}>${latent}</a>
    ${facts.name(latent) && html` <span class="of-latent">${facts.name(latent)}</span>`}`;

  const GroupMark = ({ view, group }) => group && html`
    <span class="group-mark" style=${{ background: infoscope.groupColour(group, view.groups.names) }} aria-hidden="true"></span>${group}`;

  /** What the table of latents says of some latents: functions of a latent, "" where it says nothing. */
  const useFacts = (view) => {
    const known = FACTS.filter((name) => view.columns.some((column) => column.name === name));
    const found = infoscope.useLoaded(() => Promise.all(known.map((name) => infoscope.column(view.id, name))), [view.id]);
    return infoscope.useMemo(() => {
      const facts = {};
      for (const name of FACTS) {
        const column = found.value?.[known.indexOf(name)];
        facts[name] = (latent) => column ? (column.texts ? column.texts[column.values[latent]] : column.values[latent]) : "";
      }
      return facts;
    }, [found.value]);
  };

  const sayMap = (map, latent) => !map ? "Hover or focus a row of the table to see the latent’s map."
    : map.places.length === 0 ? `latent ${latent} is silent here`
      : `latent ${latent}: peak ${show(map.peak)}, on ${count(map.places.length, "patch", "patches")}`;

  const sayOutside = (found, nOutside, other) => found.nShared === 0
    ? `Crop ${other} shows none of these patches: there is nothing to compare.`
    : `Crop ${other} does not show ${nOutside} of these ${found.nPatches} patches: “crop 1” and “crop 2” are means over the other ${found.nShared}.`;

  const HEADINGS = {
    mean: "mean", peak: "peak", one: "crop 1", two: "crop 2", difference: "crop 2 − crop 1", cds: "CDS",
  };

  const PatchLatents = ({ view, side, found, facts, looked, inline, onLook }) => {
    const [sort, setSort] = infoscope.useState("mean"), [nShown, setShown] = infoscope.useState(ROWS);
    const names = side === 0 ? ["mean", "peak", "cds"] : ["mean", "peak", "one", "two", "difference", "cds"];
    const by = names.includes(sort) ? sort : "mean";
    const valueOf = (row, name) => name === "cds" ? facts.cds(row.latent) : row[name];
    const sizeOf = (row) => {
      const value = valueOf(row, by);
      return typeof value === "number" && !Number.isNaN(value) ? Math.abs(value) : -1;
    };
    const rows = infoscope.useMemo(() => [...found.rows].sort((a, b) => sizeOf(b) - sizeOf(a) || b.mean - a.mean || a.latent - b.latent),
      [found, by, facts]);
    const say = (row, name) => {
      const value = valueOf(row, name);
      if (value === null || value === "" || Number.isNaN(value)) return "–";
      return (name === "difference" && value > 0 ? "+" : "") + show(value);
    };
    return html`<div class="wide-table"><table class="patch-latents">
      <thead><tr><th scope="col">latent</th><th scope="col">group</th>
        ${names.map((name) => html`<th scope="col" class="number" aria-sort=${by === name ? "descending" : null}>
          <button type="button" onClick=${() => setSort(name)}>${HEADINGS[name]}${by === name ? " ▾" : ""}</button></th>`)}
      </tr></thead>
      <tbody>${rows.slice(0, nShown).map((row) => html`<tr key=${row.latent} data-latent=${row.latent}
        onPointerEnter=${() => onLook(row.latent)} onFocusCapture=${() => onLook(row.latent)}>
        <th scope="row"><${LatentName} view=${view} latent=${row.latent} facts=${facts} /></th>
        <td><${GroupMark} view=${view} group=${facts.group(row.latent)} /></td>
        ${names.map((name) => html`<td class="number" data-column=${name}>${say(row, name)}</td>`)}</tr>
        ${inline && row.latent === looked && html`<tr key="maps" class="row-maps"><td colspan=${2 + names.length}>${inline}</td></tr>`}`)}</tbody>
    </table>
    ${rows.length > nShown && html`<button type="button" onClick=${() => setShown(nShown + 4 * ROWS)}>
      Show ${Math.min(4 * ROWS, rows.length - nShown)} more of ${count(rows.length - nShown, "latent")}</button>`}</div>`;
  };

  /** The side of the large pictures: two of them stand beside the table where there is room for it. */
  const usePictureSize = () => {
    const find = () => {
      const width = document.documentElement.clientWidth - 32;
      return width >= WIDE_PX ? Math.min(400, Math.floor((width - 690) / 2)) : Math.max(200, Math.min(360, width));
    };
    const [size, set] = infoscope.useState(find());
    infoscope.useEffect(() => {
      const follow = () => set(find());
      window.addEventListener("resize", follow);
      return () => window.removeEventListener("resize", follow);
    }, []);
    return size;
  };

  /** The choice that is shown at once, and written into the address when it stays. */
  const useChoice = (shown) => {
    const [draft, setDraft] = infoscope.useState(null), timer = infoscope.useRef(null);
    infoscope.useEffect(() => setDraft(null), [shown.side, shown.patches]);
    infoscope.useEffect(() => () => clearTimeout(timer.current), []);
    const choose = (changes) => {
      setDraft(changes);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => infoscope.go(changes, true), COMMIT_MS);
    };
    return [draft ?? { side: shown.side, patches: shown.patches }, choose];
  };

  const Patches = ({ view, shown, set, image, content, facts }) => {
    const { grid } = view, size = usePictureSize();
    const crops = infoscope.useMemo(() => content.crops.map(readCrop), [content]);
    const [chosen, choose] = useChoice(shown), [looked, setLooked] = infoscope.useState(null);
    const side = ["0", "1", "2"].includes(chosen.side) ? Number(chosen.side) : 1;
    const choice = infoscope.readPatches(chosen.patches, grid), box = boxOf(choice, grid);
    const found = infoscope.useMemo(() => infoscope.measureBox(view, crops, side, box), [view, crops, side, chosen.patches]);
    const seen = side === 0 ? [0] : [1, 2];
    const maps = looked === null ? {} : Object.fromEntries(seen.map((crop) => [crop, crops[crop].latents.get(looked) ?? SILENT]));
    const scale = Math.max(0, ...Object.values(maps).map((map) => map.peak));
    const nameOf = (crop) => crop === 0 ? "The whole image" : `Crop ${crop}`;
    const where = side === 0 ? "the whole image" : `crop ${side}`;
    const nOutside = found.nPatches - found.nShared, firing = found.rows.filter((row) => row.peak > 0).length;
    const inline = document.documentElement.clientWidth < NARROW_PX && looked !== null
      && html`<div class="patch-pictures">${seen.map((crop) => html`<${infoscope.Picture} ...${{ view, set, image, crop, scale }} size=${150}
        map=${maps[crop]} opacity=${0.7} alt=${`${nameOf(crop)}, latent ${looked}`} />`)}</div>`;
    const look = (to) => {
      const from = side;
      const patches = choice ? writePatches(...[choice.anchor, choice.head].map((patch) => movePatch(view, patch, from, to))) : "";
      choose({ side: String(to), patches });
    };
    return html`
      <fieldset class="patch-side"><legend>Look at</legend>
        ${[[1, "both crops"], [0, "the whole image, as the model sees it"]].map(([to, words]) => html`
          <label><input type="radio" name="side" checked=${(side > 0) === (to > 0)} onChange=${() => look(to)} /> ${words}</label>`)}
      </fieldset>
      <p id="patch-keys" class="quiet">Click a patch or drag over several; with the keyboard the arrow keys move, Shift and arrows
        extend, Escape chooses all.${side > 0 && " The shaded border is what the other crop does not show: everything else is the same pixels in both, so what differs comes from the context alone."}</p>
      <div class="patch-parts">
        <div class="patch-shown"><div class="patch-pictures">${seen.map((crop) => html`<figure key=${crop}>
          <figcaption>${nameOf(crop)}${crop === side && seen.length > 1 ? " (patches chosen here)" : ""}</figcaption>
          <${PatchPicker} ...${{ view, set, image, crop, scale, size }} url=${content.picture} map=${maps[crop]}
            label=${`${nameOf(crop)}: choose patches`} box=${crop === side || side === 0 ? box : moveBox(box, view, side, crop)}
            choice=${crop === side ? choice : null}
            onChoose=${(anchor, head) => choose({ side: String(crop), patches: anchor ? writePatches(anchor, head) : "" })} />
          <p class="quiet map-words">${sayMap(maps[crop], looked)}</p>
        </figure>`)}</div>
        ${looked !== null && html`<p class="quiet colour-scale">Map of latent ${looked}: 0 <span class="ramp" style=${{
          backgroundImage: `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(infoscope.heat).join(", ")})` }}></span> ${show(scale)}</p>`}
        </div>
        <div class="patch-found">
          <p role="status" class="patch-said">${nameBox(box)} of ${where}: ${count(firing, "latent fires", "latents fire")}${
            box.isAll ? "" : ` on ${found.nPatches === 1 ? "this patch" : `these ${found.nPatches} patches`}`}.</p>
          ${side > 0 && nOutside > 0 && html`<p class="quiet">${sayOutside(found, nOutside, 3 - side)}</p>`}
          ${crops[side].nLeftOut > 0 && html`<p class="quiet">${count(crops[side].nLeftOut, "latent that fires", "latents that fire")} in
            ${where} not listed: weaker everywhere in the image (activation times norm of the decoder row) than those that are.</p>`}
          ${found.rows.length > 0 && html`<${PatchLatents} ...${{ view, side, found, facts, looked, inline }} onLook=${setLooked} />`}
        </div>
      </div>`;
  };

  const Predictions = ({ view, set, predictions, facts }) => {
    const [off, setOff] = infoscope.useState("nothing");
    if (!predictions) {
      return html`<section class="predictions"><h3>Predictions</h3><p>This image was not predicted without some of its latents. Of a
        model with a text tower, on data with class names: <code>infoscope stage=predict</code>, then
        <code>infoscope stage=explore</code> again.</p></section>`;
    }
    const names = predictions.classes.map((place, i) => predictions.texts?.[i]
      ?? infoscope.manifest.sets[set]?.classes?.[place] ?? `class ${place}`);
    const best = (values) => values.indexOf(Math.max(...values));
    const { before } = predictions, top = best(before), label = predictions.classes.indexOf(predictions.label);
    const switches = [
      { id: "nothing", words: "nothing", probabilities: before },
      ...predictions.groups.map((one) => ({ id: `group ${one.name}`, group: one.name, probabilities: one.probabilities })),
      ...predictions.latents.map((one) => ({ id: `latent ${one.latent}`, latent: one.latent, probabilities: one.probabilities })),
    ];
    const chosen = switches.find((one) => one.id === off) ?? switches[0], after = chosen.probabilities, then = best(after);
    const what = chosen.group !== undefined ? `Without all latents of the group ${chosen.group}`
      : chosen.latent !== undefined ? `Without latent ${chosen.latent}` : "With nothing switched off";
    const said = chosen === switches[0] ? `${what}, ${names[top]} is most probable: ${percent(before[top])}.`
      : then === top ? `${what}, ${names[top]} stays most probable: ${percent(before[top])} before, ${percent(after[top])} after.`
        : `${what}, the most probable class changes from ${names[top]} (${percent(before[top])} before, ${percent(after[top])} after) `
          + `to ${names[then]} (${percent(before[then])} before, ${percent(after[then])} after).`;
    const rest = (values) => Math.max(0, 1 - values.reduce((a, b) => a + b, 0)), nOthers = predictions.n_classes - names.length;
    return html`<section class="predictions"><h3>Predictions</h3>
      <p class="quiet">${view.predictions} Each row below is a measurement of its own: the image predicted once more without these
        latents, all else kept. What several would do together is not the sum of their rows.</p>
      <p role="status" class="prediction-said">${said}</p>
      <div class="prediction-parts">
        <div class="wide-table"><table class="bars"><caption>Probability of each class${nOthers > 0 && ` (${names.length} of ${predictions.n_classes}; the other ${nOthers} together: ${percent(rest(before))} before, ${percent(rest(after))} after)`}</caption>
          <thead><tr><th scope="col">class</th><th scope="col"><span class="bar-key before"></span>before</th>
            <th scope="col"><span class="bar-key after"></span>after</th><td></td></tr></thead>
          <tbody>${names.map((name, i) => html`<tr key=${i}><th scope="row">${name}${i === label && html` <span class="quiet">(true)</span>`}</th>
            <td class="number">${percent(before[i])}</td><td class="number">${percent(after[i])}</td>
            <td class="bar-pair" aria-hidden="true"><span class="bar before" style=${{ width: `${100 * before[i]}%` }}></span>
              <span class="bar after" style=${{ width: `${100 * after[i]}%` }}></span></td></tr>`)}</tbody></table></div>
        <div class="wide-table switches"><table><caption>Switch off</caption>
          <thead><tr><th scope="col">without</th><th scope="col" class="number">${names[top]}</th><th scope="col">then most probable</th></tr></thead>
          <tbody>${switches.map((one) => html`<tr key=${one.id} aria-selected=${one === chosen ? "true" : null}>
            <td><label><input type="radio" name="off" value=${one.id} checked=${one === chosen} onChange=${() => setOff(one.id)} /> ${
              one.group !== undefined ? html`group <${GroupMark} view=${view} group=${one.group} />`
                : one.latent === undefined ? one.words : `latent ${one.latent}`}</label>
              ${one.latent !== undefined && html` <span class="of-latent">${facts.name(one.latent)}</span> <a
                href=${infoscope.address({ page: "latent", latent: one.latent, view: view.id })} aria-label=${`page of latent ${one.latent}`}>page</a>`}</td>
            <td class="number">${percent(one.probabilities[top])}</td>
            <td>${best(one.probabilities) === top ? "the same" : html`<strong>${names[best(one.probabilities)]}</strong>`}</td></tr>`)}</tbody></table></div>
      </div></section>`;
  };

  const Chooser = ({ view, set, image }) => html`<nav class="image-chooser" aria-label="Images">
    ${Object.entries(view.images).filter(([, images]) => images.length > 0).map(([id, images]) => html`<div key=${id}>
      <h3>${infoscope.manifest.sets[id]?.name ?? id}: ${count(images.length, "image")}</h3>
      <div class="choices">${images.map((one) => html`<a key=${one} aria-current=${id === set && one === image ? "true" : null}
        href=${infoscope.address({ page: "image", set: id, image: one, patches: "" })}><${infoscope.Picture} view=${view} set=${id}
          image=${one} size=${64} alt=${`${id} image ${one}`} /></a>`)}</div></div>`)}</nav>`;

  const Title = ({ set, image }) => {
    const name = infoscope.useLoaded(() => infoscope.imageName(set, image), [set, image]).value;
    const { classes } = infoscope.manifest.sets[set];
    const label = name && name.label !== null && classes ? classes[name.label] : null;
    return html`<h2 class="image-title">${name && !name.is_missing ? name.id : `image ${image}`} <span class="quiet">${set} image ${image}${label !== null
      && ` · class ${label}`}</span></h2>`;
  };

  const Browsed = ({ view, shown, set, image, facts }) => {
    const { value, error } = infoscope.useLoaded(() => infoscope.load(`${view.id}/images/${set}-${image}`), [view.id, set, image]);
    if (error) return html`<p class="warning">What fires in this image cannot be shown: ${error}</p>`;
    if (!value) return html`<p>Loading …</p>`;
    return html`<${Patches} view=${view} shown=${shown} set=${set} image=${image} content=${value} facts=${facts} />
      <${Predictions} view=${view} set=${set} predictions=${value.predictions} facts=${facts} />`;
  };

  const MORE = html`more of them: <code>infoscope stage=explore explore.n_browsed=48</code>`;

  infoscope.ImagePage = ({ view, shown }) => {
    const facts = useFacts(view), browsed = view.images ?? {};
    const all = Object.entries(browsed).flatMap(([set, images]) => images.map((image) => ({ set, image })));
    if (all.length === 0) {
      return html`<h2>Images</h2><p>No image of ${view.title} was written with all that fires in it:
        <code>infoscope stage=explore explore.n_browsed=24</code> does.</p>`;
    }
    const { set, image } = shown.set ? shown : all[0];
    const isWritten = browsed[set]?.includes(image) ?? false, isKnown = set in infoscope.manifest.sets;
    return html`<div class="image-page">
      <${Chooser} view=${view} set=${set} image=${image} />
      ${isKnown && html`<${Title} set=${set} image=${image} />`}
      ${isWritten ? html`<${Browsed} key=${`${view.id} ${set} ${image}`} view=${view} shown=${shown} set=${set} image=${image} facts=${facts} />`
        : isKnown ? html`<p>What fires in this image was not written, only what fires in ${count(all.length, "image")} above;
            ${MORE}.</p><${infoscope.Picture} view=${view} set=${set} image=${image} size=${240} alt=${`${set} image ${image}`} />`
          : html`<p>There is no set of images “${set}” here: choose one of the images above; ${MORE}.</p>`}
    </div>`;
  };
})();
