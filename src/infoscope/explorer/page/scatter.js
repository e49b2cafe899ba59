"use strict";
// The scatter: uPlot makes the axes and the box that is dragged, the points are painted as pixels.
(() => {
  const { html, useEffect, useRef, useState } = infoscope;
  const { HEIGHT, ink, useFrame, makeAxis, whenReady, onClick } = infoscope.plotParts;
  const POINT = 3,
    NEAR = 9; // pixels: side of a point; how near the pointer finds it

  // a colour as the little-endian pixel of ImageData
  const toPixel = (colour) => {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  };

  const pad = ({ extent: { low, high, positive }, isLog }) => {
    if (isLog) {
      const least = positive / 1.2,
        power = 10 ** Math.floor(Math.log10(least));
      return [Math.min(least, 9.4 * power), high * 1.2]; // from 9.5 times a power of ten on uPlot finds ticks for ever
    }
    const room = (high - low || Math.abs(high) || 1) * 0.03;
    return [low - room, high + room];
  };

  // where each latent lies along an axis, in pixels of the canvas; NaN or infinite where it has no place
  const placeAll = (u, scale, axis, start) => {
    const turn = axis.isLog ? Math.log10 : (value) => value,
      [low, high] = pad(axis);
    const first = u.valToPos(low, scale, true) - start,
      last = u.valToPos(high, scale, true) - start;
    const step = (last - first) / (turn(high) - turn(low)),
      places = new Float32Array(axis.values.length);
    for (let i = 0; i < places.length; i++) places[i] = first + step * (turn(axis.values[i]) - turn(low));
    return places;
  };

  const paintPoints = (canvas, width, height, x, y, colours, groups, mask) => {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d"),
      image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer),
      size = Math.round(POINT * devicePixelRatio),
      half = size >> 1;
    for (let i = 0; i < x.length; i++) {
      if (!mask[i]) continue;
      const left = Math.round(x[i]) - half,
        top = Math.round(y[i]) - half,
        colour = colours[groups[i]];
      if (!(left >= 0 && top >= 0 && left + size <= width && top + size <= height)) continue;
      for (let row = top; row < top + size; row++) pixels.fill(colour, row * width + left, row * width + left + size);
    }
    context.putImageData(image, 0, 0);
  };

  const drawSelected = ({ ctx, bbox: { left, top } }, { px, py }, selected) => {
    ctx.save();
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.strokeStyle = ink("--ink");
    for (const latent of selected) {
      if (!Number.isFinite(px[latent] + py[latent])) continue;
      ctx.beginPath();
      ctx.arc(left + px[latent], top + py[latent], 5 * devicePixelRatio, 0, 2 * Math.PI);
      ctx.stroke();
    }
    ctx.restore();
  };

  const findNear = ({ px, py }, mask, left, top) => {
    const x = left * devicePixelRatio,
      y = top * devicePixelRatio;
    let latent = null,
      least = (NEAR * devicePixelRatio) ** 2;
    for (let i = 0; i < px.length; i++) {
      const distance = (px[i] - x) ** 2 + (py[i] - y) ** 2;
      if (mask[i] && distance < least) [latent, least] = [i, distance];
    }
    return latent === null ? null : { latent, left: px[latent] / devicePixelRatio, top: py[latent] / devicePixelRatio };
  };

  const readBox = (u) => {
    const { left, top, width, height } = u.select;
    if (width <= 3 || height <= 3) return null;
    return [u.posToVal(left, "x"), u.posToVal(left + width, "x"), u.posToVal(top + height, "y"), u.posToVal(top, "y")];
  };

  // `now()`: {mask, selected, onBox, onOpen, setHovered} of the moment
  const makeScatter = (element, { x, y, groups, groupOf, width }, now) => {
    const canvas = document.createElement("canvas"),
      colours = groups.map(({ colour }) => toPixel(colour));
    let places = { px: [], py: [] },
      placed = "";
    const draw = (u) => {
      const { left, top, width: wide, height: high } = u.bbox,
        key = [left, top, wide, high].join();
      if (key !== placed) places = { px: placeAll(u, "x", x, left), py: placeAll(u, "y", y, top) };
      placed = key;
      paintPoints(canvas, wide, high, places.px, places.py, colours, groupOf, now().mask);
      u.ctx.drawImage(canvas, left, top);
      drawSelected(u, places, now().selected);
    };
    const find = (left, top) => (left >= 0 ? findNear(places, now().mask, left, top) : null);
    const scale = (axis) => ({ time: false, distr: axis.isLog ? 3 : 1, range: () => pad(axis) });
    const values = (_, splits) => splits.map((one) => (one === null ? "" : String(Number(one.toPrecision(4)))));
    const u = new uPlot(
      {
        width,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 12, 0, 0],
        scales: { x: scale(x), y: scale(y) },
        axes: [makeAxis(x.label, { values }), makeAxis(y.label, { size: 62, values })],
        series: [{}, { paths: () => null, points: { show: false } }],
        cursor: { drag: { x: true, y: true, uni: 0, setScale: false }, points: { show: false } },
        hooks: {
          draw: [draw],
          setSelect: [() => now().onBox(readBox(u))],
          setCursor: [() => now().setHovered(find(u.cursor.left, u.cursor.top))],
        },
      },
      [pad(x), pad(y)],
      element,
    );
    onClick(u, (left, top) => {
      const found = find(left, top);
      if (found) now().onOpen(found.latent);
      else now().onBox(null);
    });
    return u;
  };

  /**
   * Scatter({x, y: {label, values, isLog, extent}, groups, groupOf, mask, selected, box: [x0, x1, y0, y1] or null,
   * onBox(box or null), onOpen(latent), tell(latent): words, description}): a point per latent that `mask` lets pass.
   */
  infoscope.Scatter = ({ x, y, groups, groupOf, mask, selected, box, onBox, onOpen, tell, description }) => {
    const element = useRef(null),
      plot = useRef(null),
      drawn = useRef(null),
      now = useRef(null);
    const [width, count] = useFrame(element),
      [hovered, setHovered] = useState(null);
    const frame = [x.values, y.values, x.isLog, y.isLog, x.label, y.label, groupOf, width, count];
    now.current = { mask, selected, onBox, onOpen, setHovered };
    useEffect(() => {
      if (!width || !x.extent || !y.extent) return undefined;
      plot.current = makeScatter(element.current, { x, y, groups, groupOf, width }, () => now.current);
      drawn.current = now.current;
      return () => {
        plot.current.destroy();
        plot.current = null;
      };
    }, frame);
    useEffect(() => {
      if (plot.current && drawn.current !== now.current) plot.current.redraw(false);
    }, [mask, selected]);
    useEffect(() => {
      const u = plot.current;
      if (!u) return;
      const at = (value, scale, size) => Math.max(0, Math.min(size, u.valToPos(value, scale)));
      whenReady(u, () => {
        const { clientWidth: wide, clientHeight: high } = u.over,
          [x0, x1, y0, y1] = box ?? [];
        const [left, right] = box ? [at(x0, "x", wide), at(x1, "x", wide)] : [0, 0];
        const [bottom, top] = box ? [at(y0, "y", high), at(y1, "y", high)] : [0, 0];
        u.setSelect({ left, width: right - left, top, height: bottom - top }, false);
      });
    }, [box?.join(), ...frame]);
    const isRight = hovered?.left > width / 2,
      top = `${hovered?.top + 16}px`; // then its words stand to the left
    const place = isRight ? { top, right: `${width - 60 - hovered.left}px` } : { top, left: `${hovered?.left + 70}px` };
    return html`<div class="chart">
      <div ref=${element} role="img" aria-label=${description}></div>
      ${hovered && html`<div class="tip" style=${place}>${tell(hovered.latent)}</div>`}
    </div>`;
  };
})();
