"use strict";
// An image, or a crop of it, with an activation map over it. A thumbnail shows the square that crops are cut from.
(() => {
  const { html } = infoscope;
  const missing = new Set();

  /** How many images that were asked for could not be shown. */
  infoscope.countMissing = () => missing.size;

  /** Where a crop lies in the thumbnail: {left, top, share of its side}; 0: all of it, "shared": what both show. */
  infoscope.cropPlace = (view, crop) => {
    const side = view.grid + view.shift, start = view.shift / side;
    if (crop === 0) return { left: 0, top: 0, share: 1 };
    if (crop === "shared") return { left: start, top: start, share: (view.grid - view.shift) / side };
    const isDown = crop === 2, isRight = view.diagonal === "main" ? crop === 2 : crop === 1;
    return { left: isRight ? start : 0, top: isDown ? start : 0, share: view.grid / side };
  };

  /** How a thumbnail lies in an element that shows a crop of it, as a style. */
  infoscope.cropStyle = (view, crop) => {
    const { left, top, share } = infoscope.cropPlace(view, crop);
    return { width: `${100 / share}%`, left: `${(-100 * left) / share}%`, top: `${(-100 * top) / share}%` };
  };

  /** Where the shared region begins in a crop (1 or 2), in patches: {row, column}; its side is grid - shift. */
  infoscope.sharedStart = (view, crop) => ({
    row: crop === 1 ? view.shift : 0,
    column: (view.diagonal === "main") === (crop === 1) ? view.shift : 0,
  });

  /** What a map of a crop has on the shared region, row by row. */
  infoscope.cutShared = (view, map, crop) => {
    const { row, column } = infoscope.sharedStart(view, crop), side = view.grid - view.shift;
    const found = new Float64Array(side * side);
    map.places.forEach((place, i) => {
      const down = Math.floor(place / view.grid) - row, right = (place % view.grid) - column;
      if (down >= 0 && down < side && right >= 0 && right < side) found[down * side + right] = map.values[i];
    });
    return found;
  };

  /** A map in words, for those who do not see it. */
  infoscope.describeMap = (map, grid) => {
    if (map.places.length === 0) return "silent";
    let best = 0;
    map.values.forEach((value, i) => { if (value > map.values[best]) best = i; });
    const row = Math.floor(map.places[best] / grid) + 1, column = (map.places[best] % grid) + 1;
    return `active on ${map.places.length} of ${infoscope.count(grid * grid, "patch", "patches")}, most `
      + `(${infoscope.show(map.values[best])}) in row ${row}, column ${column}`;
  };

  /** The activation that is drawn fully: `scale` for all maps, or each map's own largest. */
  infoscope.mapScale = (shown, map, scale) => shown.maps === "normalised" ? Math.max(0, ...map.values) : scale;

  /** A hook: the side of a picture in pixels, smaller on a phone, or large. */
  infoscope.usePictureSize = (shown) => {
    const media = infoscope.useMemo(() => window.matchMedia("(max-width: 480px)"), []);
    const [isNarrow, set] = infoscope.useState(media.matches);
    infoscope.useEffect(() => {
      const follow = () => set(media.matches);
      media.addEventListener("change", follow);
      return () => media.removeEventListener("change", follow);
    }, []);
    if (shown.large === "on") return isNarrow ? 340 : 288;
    return isNarrow ? 108 : 128;
  };

  // what the colours of maps mean; scale null: each latent has its own
  const tellColours = (isRaw, scale) => {
    if (!isRaw) return ["largest of each map", "Colours run from 0 to the largest of each map"];
    const end = scale === null ? "largest of each latent" : `${infoscope.show(scale)} (activation)`;
    return [end, `Colours run from 0 to ${end}`];
  };

  /** MapControls({shown, scale, hasFlow}): how maps are drawn on a page, with the bar of their colours. */
  infoscope.MapControls = ({ shown, scale, hasFlow = false }) => {
    const isRaw = shown.maps !== "normalised";
    const set = (name) => (event) => infoscope.go({ [name]: event.target.value }, true);
    const check = (name, off) => (event) => infoscope.go({ [name]: event.target.checked ? "on" : off }, true);
    const [end, label] = tellColours(isRaw, scale);
    return html`<div class="map-controls" role="group" aria-label="How maps are drawn">
      <label>Opacity of maps <input type="range" min="0" max="1" step="0.05" value=${shown.opacity}
        onInput=${set("opacity")} aria-valuetext=${`${Math.round(100 * shown.opacity)}%`} /></label>
      <label>Maps <select value=${isRaw ? "raw" : "normalised"} onChange=${set("maps")}>
        <option value="raw">raw: one scale for all</option>
        <option value="normalised">normalised: each by its largest</option></select></label>
      ${hasFlow && html`<label><input type="checkbox" checked=${shown.flow === "on"} onChange=${check("flow", "off")} />
        what moves between the crops</label>
        <label><input type="checkbox" checked=${shown.large === "on"} onChange=${check("large", "")} />
        large pictures</label>`}
      <span class="colour-bar" role="img" aria-label=${label}>0
        <span class="ramp" style=${{ backgroundImage: infoscope.heatGradient() }}></span>${end}</span>
    </div>`;
  };

  /** Draw a map of [grid, grid] patches into a canvas; `scale`: the activation that is drawn fully. */
  infoscope.drawMap = (canvas, map, grid, scale) => {
    canvas.width = canvas.height = grid;
    const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(grid, grid);
    map?.places.forEach((place, i) => {
      const share = scale > 0 ? map.values[i] / scale : 0;
      image.data.set([...infoscope.heatParts(share), 255 * (0.35 + 0.65 * Math.min(1, share))], 4 * place);
    });
    context.putImageData(image, 0, 0);
  };

  /**
   * Picture({view, set, image, crop, map, scale, opacity, alt, size, children}): crop 0 is the whole square, of which a
   * map has grid x grid patches too. Children are drawn over it, in per cent of it.
   */
  infoscope.Picture = (options) => {
    const { view, set, image, crop = 0, map = null, scale = 0, opacity = 0.6, alt, size = 128, children } = options;
    const [isMissing, setMissing] = infoscope.useState(false), [url, setUrl] = infoscope.useState(null);
    const canvas = infoscope.useRef(null);
    infoscope.useEffect(() => {
      let isCurrent = true;
      setMissing(false);
      setUrl(null);
      infoscope.thumbnail(set, image).then((found) => isCurrent && setUrl(found), () => isCurrent && fail());
      return () => { isCurrent = false; };
    }, [set, image]);
    infoscope.useEffect(() => {
      if (canvas.current) infoscope.drawMap(canvas.current, map, view.grid, scale);
    }, [map, scale, view.grid]);
    const fail = () => {
      setMissing(true);
      missing.add(`${set}/${image}`);
      window.dispatchEvent(new CustomEvent("infoscope-missing"));
    };
    return html`<div class="picture" style=${{ width: `${size}px`, height: `${size}px` }}>
      ${isMissing
        ? html`<div class="missing" role="img" aria-label=${`${alt}: the image is missing`}>missing</div>`
        : url && html`<img src=${url} alt=${alt} style=${infoscope.cropStyle(view, crop)} onError=${fail}
          draggable=${false} />`}
      ${map && html`<canvas ref=${canvas} class="map" style=${{ opacity }} aria-hidden="true"></canvas>`}
      ${children}
    </div>`;
  };
})();
