"use strict";
// An image, or a crop of it, with an activation map over it. Each thumbnail shows the whole square that both crops are cut from.
(() => {
  const { html } = infoscope;
  const missing = new Set();

  /** How many images that were asked for could not be shown. */
  infoscope.countMissing = () => missing.size;

  /** Where a crop lies in the square of the thumbnail: {left, top, share of its side}; crop 0: all of it. */
  infoscope.cropPlace = (view, crop) => {
    const side = view.grid + view.shift, start = view.shift / side;
    if (crop === 0) return { left: 0, top: 0, share: 1 };
    const isDown = crop === 2, isRight = view.diagonal === "main" ? crop === 2 : crop === 1;
    return { left: isRight ? start : 0, top: isDown ? start : 0, share: view.grid / side };
  };

  /** Draw a map of [grid, grid] patches into a canvas; `scale`: the activation that is drawn fully. */
  infoscope.drawMap = (canvas, map, grid, scale) => {
    canvas.width = canvas.height = grid;
    const context = canvas.getContext("2d"), image = context.createImageData(grid, grid);
    map?.places.forEach((place, i) => {
      const share = scale > 0 ? map.values[i] / scale : 0;
      image.data.set([...infoscope.heatParts(share), 255 * (0.35 + 0.65 * Math.min(1, share))], 4 * place);
    });
    context.putImageData(image, 0, 0);
  };

  /**
   * Picture({view, set, image, crop, map, scale, opacity, alt, size, children}): crop 0 is the whole square, of which a map
   * has grid x grid patches too. Children are drawn over it, in per cent of it.
   */
  infoscope.Picture = ({ view, set, image, crop = 0, map = null, scale = 0, opacity = 0.6, alt, size = 128, children }) => {
    const [isMissing, setMissing] = infoscope.useState(false), [url, setUrl] = infoscope.useState(null);
    const canvas = infoscope.useRef(null);
    const { left, top, share } = infoscope.cropPlace(view, crop);
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
    const place = { width: `${100 / share}%`, left: `${(-100 * left) / share}%`, top: `${(-100 * top) / share}%` };
    return html`<div class="picture" style=${{ width: `${size}px`, height: `${size}px` }}>
      ${isMissing
        ? html`<div class="missing" role="img" aria-label=${`${alt}: the image is missing`}>missing</div>`
        : url && html`<img src=${url} alt=${alt} style=${place} onError=${fail} draggable=${false} />`}
      ${map && html`<canvas ref=${canvas} class="map" style=${{ opacity }} aria-hidden="true"></canvas>`}
      ${children}
    </div>`;
  };
})();
