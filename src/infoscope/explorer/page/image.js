"use strict";
// One image: what fires on chosen patches, in the whole image or in both crops, and what the model predicts of it.
(() => {
  const { html, show, count } = infoscope;
  const ROWS = 50; // of the table, before it is asked for more
  const WIDE_PX = 1200, BESIDE_PX = 700; // from which on two pictures, or one above the other, stand beside the table
  const COMMIT_MS = 150; // a drag or a held key becomes one address, not a hundred
  const HEADINGS = {
    mean: "mean", peak: "peak", one: "crop 1", two: "crop 2", difference: "crop 2 − crop 1",
  };

  // what the table of latents says of a latent, by functions of it: null where it says nothing; measure: what the
  // groups divide
  const useFacts = (view) => {
    const names = { measure: infoscope.divided(view).name, group: "group", name: "name" };
    const columns = infoscope.useColumns(view, Object.values(names));
    return infoscope.useMemo(() => Object.fromEntries(Object.entries(names).map(
      ([key, name]) => [key, (latent) => infoscope.valueOf(columns?.[name], latent)])), [columns]);
  };

  const PatchLatents = ({ view, side, found, facts, looked, maps, onLook }) => {
    const [sort, setSort] = infoscope.useState("mean"), [nShown, setShown] = infoscope.useState(ROWS);
    const names = side === 0 ? ["mean", "peak", "measure"] : ["mean", "peak", "one", "two", "difference", "measure"];
    const by = names.includes(sort) ? sort : "mean";
    const valueOf = (row, name) => name === "measure" ? facts.measure(row.latent) : row[name];
    const headings = { ...HEADINGS, measure: infoscope.columnLabel(infoscope.divided(view)) };
    const sizeOf = (row) => {
      const value = valueOf(row, by);
      return value === null ? -1 : Math.abs(value);
    };
    const compare = (a, b) => sizeOf(b) - sizeOf(a) || b.mean - a.mean || a.latent - b.latent;
    const rows = infoscope.useMemo(() => [...found.rows].sort(compare), [found, by, facts]);
    const say = (row, name) => {
      const value = valueOf(row, name);
      if (value === null) return "–";
      return (name === "difference" && value > 0 ? "+" : "") + show(value);
    };
    const nMore = rows.length - nShown;
    return html`<${infoscope.Wide} label="Latents that fire there"><table class="patch-latents">
      <thead><tr><th scope="col">latent</th><th scope="col">group</th>
        ${names.map((name) => html`<th scope="col" class="number" aria-sort=${by === name ? "descending" : null}>
          <button type="button" onClick=${() => setSort(name)}>
            ${headings[name]}${by === name ? "\u00a0▾" : ""}</button>
        </th>`)}
      </tr></thead>
      <tbody>${rows.slice(0, nShown).map((row) => html`
        <tr key=${row.latent} data-latent=${row.latent} class=${row.latent === looked ? "is-chosen" : ""}
          onPointerEnter=${() => onLook(row.latent)} onFocusCapture=${() => onLook(row.latent)}>
          <th scope="row">
            <a href=${infoscope.address({ page: "latent", latent: row.latent, view: view.id })}>${row.latent}</a>
            ${" "}<span class="of-latent">${facts.name(row.latent)}</span></th>
          <td><${infoscope.GroupMark} view=${view} group=${facts.group(row.latent)} /></td>
          ${names.map((name) => html`<td class="number" data-column=${name}>${say(row, name)}</td>`)}</tr>
        ${maps && row.latent === looked && html`<tr key="maps"><td colspan=${2 + names.length}>${maps}</td></tr>`}
      `)}</tbody>
    </table>
    ${nMore > 0 && html`<button type="button" onClick=${() => setShown(nShown + 4 * ROWS)}>
      Show ${Math.min(4 * ROWS, nMore)} of ${count(nMore, "more latent")}</button>`}</${infoscope.Wide}>`;
  };

  // {size: the side of the large pictures, nAcross: how many stand beside each other, 0: as many as there is room for,
  // above the table, so that a latent's row has its own}
  const useLayout = () => {
    const find = () => {
      const width = document.documentElement.clientWidth - 32;
      if (width >= WIDE_PX) return { size: Math.min(440, Math.floor((width - 690) / 2)), nAcross: 2 };
      if (width >= BESIDE_PX) return { size: Math.max(200, Math.min(260, width - 640)), nAcross: 1 };
      return { size: Math.max(200, Math.min(360, width)), nAcross: 0 };
    };
    const [found, set] = infoscope.useState(find);
    infoscope.useEffect(() => {
      const follow = () => set(find());
      window.addEventListener("resize", follow);
      return () => window.removeEventListener("resize", follow);
    }, []);
    return found;
  };

  /** The choice of patches, which is shown at once, and written into the address when it stays. */
  const useChoice = (shown) => {
    const [draft, setDraft] = infoscope.useState(null), timer = infoscope.useRef(null);
    infoscope.useEffect(() => {
      if (timer.current === null) setDraft(null); // else a newer choice waits to be written
    }, [shown.side, shown.patches]);
    infoscope.useEffect(() => () => clearTimeout(timer.current), []);
    const choose = (changes) => {
      setDraft(changes);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => {
        timer.current = null;
        infoscope.go(changes, true);
      }, COMMIT_MS);
    };
    return [draft ?? { side: shown.side, patches: shown.patches }, choose];
  };

  const SideChooser = ({ side, onChoose }) => html`
    <fieldset class="patch-side"><legend>Look at</legend>
      ${[[1, "both crops"], [0, "the whole image, as the model sees it"]].map(([to, words]) => html`
        <label><input type="radio" name="side" checked=${(side > 0) === (to > 0)} onChange=${() => onChoose(to)} />
          ${" "}${words}</label>`)}
    </fieldset>
    <p id="patch-keys" class="quiet">Click a patch or drag over several; on the keyboard the arrow keys move, Shift and
      arrows extend, Escape chooses all.${side > 0 && html` What the other crop does not show is shaded: all else is the
      same pixels in both, so that what differs comes from the context alone.`}</p>`;

  const Said = ({ crops, side, box, found }) => {
    const { nPatches, nShared } = found, { nLeftOut } = crops[side];
    const where = side === 0 ? "the whole image" : `crop ${side}`;
    const firing = count(found.rows.filter((row) => row.peak > 0).length, "latent fires", "latents fire");
    const on = box.isAll ? "" : ` on ${nPatches === 1 ? "this patch" : `these ${nPatches} patches`}`;
    const nOther = found.rows.filter((row) => row.peak <= 0).length;
    return html`
      <p role="status" class="patch-said">${infoscope.nameBox(box)} of ${where}: ${firing}${on}${nOther > 0
        && `; ${count(nOther, "other fires", "others fire")} there in crop ${3 - side} alone`}.</p>
      ${side > 0 && nShared === 0 && html`<p class="quiet">Crop ${3 - side} does not
        show ${nPatches === 1 ? "this patch" : "any of these patches"}: there is nothing to compare.</p>`}
      ${side > 0 && nShared > 0 && nShared < nPatches && html`<p class="quiet">Crop ${3 - side} does not
        show ${nPatches - nShared} of these ${nPatches} patches: “crop 1” and “crop 2” are means over the
        other ${nShared}.</p>`}
      ${nLeftOut > 0 && html`<p class="quiet">${count(nLeftOut, "more latent fires", "more latents fire")} in ${where}:
        weaker everywhere in the image (activation times norm of the decoder row) than those that are listed.</p>`}`;
  };

  const Patches = ({ view, shown, set, image, content, facts }) => {
    const { size, nAcross } = useLayout(), [chosen, choose] = useChoice(shown);
    const [looked, setLooked] = infoscope.useState(null);
    const crops = infoscope.useMemo(() => content.crops.map(infoscope.readCrop), [content]);
    const side = ["0", "1", "2"].includes(chosen.side) ? Number(chosen.side) : 1, seen = side === 0 ? [0] : [1, 2];
    const choice = infoscope.readPatches(chosen.patches, view.grid), box = infoscope.boxOf(choice, view.grid);
    const measure = () => infoscope.measureBox(view, crops, side, box);
    const found = infoscope.useMemo(measure, [view, crops, side, chosen.patches]);
    const maps = infoscope.useMemo(
      () => looked === null ? [] : crops.map((crop) => infoscope.mapOf(crop, looked)), [crops, looked]);
    const scale = looked === null ? null : Math.max(...seen.map((crop) => maps[crop].peak));
    const nameOf = (crop) => crop === 0 ? "The whole image" : `Crop ${crop}`;
    const drawn = (crop) => ({
      view, set, image, crop, map: maps[crop] ?? null, opacity: shown.opacity,
      scale: maps[crop] ? infoscope.mapScale(shown, maps[crop], scale) : 0,
    });
    const look = (to) => {
      const corners = choice && [choice.anchor, choice.head].map((patch) => infoscope.movePatch(view, patch, side, to));
      choose({ side: String(to), patches: corners ? infoscope.writePatches(...corners) : "" });
    };
    const pick = (crop) => (anchor, head) =>
      choose({ side: String(crop), patches: anchor ? infoscope.writePatches(anchor, head) : "" });
    const across = Math.min(nAcross, seen.length);
    const tellMap = (crop) => {
      if (looked !== null) return `Latent ${looked} is ${infoscope.describeMap(maps[crop], view.grid)}.`;
      return crop === seen[0] && `${nAcross === 0 ? "Touch" : "Point at or focus"} a row to see the map of its latent.`;
    };
    const small = nAcross === 0 && looked !== null && html`<div class="patch-pictures">${seen.map((crop) => html`
      <${infoscope.Picture} ...${drawn(crop)} size=${150} alt=${`${nameOf(crop)}, latent ${looked}`} />`)}</div>`;
    return html`<${SideChooser} side=${side} onChoose=${look} />
      <div class="patch-parts">
        <div class="patch-shown" style=${{ width: across ? `${across * (size + 24) - 24}px` : null }}>
          <div class="patch-pictures">${seen.map((crop) => html`
          <figure key=${crop} style=${{ width: `${size}px` }}>
          <figcaption>${nameOf(crop)}${crop === side && side > 0 ? " (patches chosen here)" : ""}</figcaption>
          <${infoscope.PatchPicker} ...${drawn(crop)} url=${content.picture} size=${size}
            box=${crop === side ? box : infoscope.moveBox(view, box, side, crop)}
            choice=${crop === side ? choice : null} label=${`${nameOf(crop)}: choose patches`} onChoose=${pick(crop)} />
          <p class="quiet map-words">${tellMap(crop)}</p>
        </figure>`)}</div>
        <${infoscope.MapControls} shown=${shown} scale=${scale} /></div>
        <div class="patch-found">
          <${Said} ...${{ crops, side, box, found }} />
          ${found.rows.length > 0 && html`<${PatchLatents} ...${{ view, side, found, facts, looked, maps: small }}
            onLook=${setLooked} />`}
        </div>
      </div>`;
  };

  const skip = (event) => {
    event.preventDefault();
    document.querySelector(".image-title")?.focus();
  };

  const Chooser = ({ view, set, image }) => html`<nav class="image-chooser" aria-label="Images">
    <a class="skip" href="#content" onClick=${skip}>Skip to the chosen image</a>
    ${Object.entries(view.images).filter(([, images]) => images.length > 0).map(([id, images]) => html`<div key=${id}>
      <h2>${infoscope.manifest.sets[id]?.name ?? id}: ${count(images.length, "image")}</h2>
      <div class="choices">${images.map((one) => html`<a key=${one}
        aria-current=${id === set && one === image ? "true" : null}
        href=${infoscope.address({ page: "image", set: id, image: one, patches: "" })}>
        <${infoscope.Picture} view=${view} set=${id} image=${one} size=${64} alt=${`${id} image ${one}`} /></a>`)}</div>
    </div>`)}</nav>`;

  const Title = ({ set, image }) => {
    const name = infoscope.useLoaded(() => infoscope.imageName(set, image), [set, image]).value;
    const label = infoscope.manifest.sets[set].classes?.[name?.label];
    const said = name && !name.is_missing ? name.id : `image ${image}`;
    return html`<h2 class="image-title" tabindex="-1"><bdi>${said}</bdi>
      ${" "}<span class="quiet">${set} image ${image}${label !== undefined
        && html` · class <bdi>${label}</bdi>`}</span></h2>`;
  };

  const Browsed = ({ view, shown, set, image, facts }) => {
    const ask = () => infoscope.load(`${view.id}/images/${set}-${image}`);
    const { value, error } = infoscope.useLoaded(ask, [view.id, set, image]);
    if (error) return html`<p class="warning" role="alert">What fires in this image cannot be shown: ${error}</p>`;
    if (!value) return html`<${infoscope.Loading} what="What fires in this image" />`;
    return html`<${infoscope.Guard} what="What fires in this image">
        <${Patches} ...${{ view, shown, set, image, facts }} content=${value} /></${infoscope.Guard}>
      <${infoscope.Guard} what="What is predicted">
        <${infoscope.ImagePredictions} ...${{ view, set, facts }} off=${shown.off} predictions=${value.predictions} />
      </${infoscope.Guard}>`;
  };

  infoscope.ImagePage = ({ view, shown }) => {
    const facts = useFacts(view), all = Object.entries(view.images ?? {}).flatMap(([set, images]) =>
      images.map((image) => ({ set, image })));
    if (all.length === 0) {
      return html`<h2>Images</h2><p>No image was written with all that fires in it:
        <code>infoscope stage=explore explore.n_browsed=24</code> writes some.</p>`;
    }
    const { set, image } = shown.set ? shown : all[0], isKnown = Object.hasOwn(infoscope.manifest.sets, set);
    const more = html`<code>infoscope stage=explore explore.n_browsed=${2 * all.length}</code> writes more of them.`;
    return html`<div class="image-page">
      <${Chooser} view=${view} set=${set} image=${image} />
      ${!isKnown && html`<p>There is no set of images “${set}” here: choose one of the images above. ${more}</p>`}
      ${isKnown && html`<${Title} set=${set} image=${image} />`}
      ${isKnown && (view.images[set]?.includes(image)
        ? html`<${Browsed} key=${`${view.id} ${set} ${image}`} ...${{ view, shown, set, image, facts }} />`
        : html`<p>What fires in this image was not written: only what fires in
            the ${count(all.length, "image")} above. ${more}</p>
          <${infoscope.Picture} view=${view} set=${set} image=${image} size=${240} alt=${`${set} image ${image}`} />`)}
    </div>`;
  };
})();
