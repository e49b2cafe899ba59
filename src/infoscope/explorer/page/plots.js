"use strict";
// Histogram and scatter (uPlot): what is dragged over is a brush, which the rows of the table follow.
(() => {
  const { html } = infoscope;
  const HEIGHT = 280,
    N_BINS = 60,
    POINT = 3,
    NEAR = 9;

  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** A hook: counts up when the colours of the page change or the element gets another width: [width, count]. */
  const useFrame = (element) => {
    const [frame, set] = infoscope.useState([0, 0]);
    infoscope.useEffect(() => {
      const dark = window.matchMedia("(prefers-color-scheme: dark)");
      const change = () => set(([width, count]) => [width, count + 1]);
      const watcher = new ResizeObserver(([{ contentRect }]) => {
        set(([width, count]) =>
          Math.floor(contentRect.width) === width ? [width, count] : [Math.floor(contentRect.width), count],
        );
      });
      watcher.observe(element.current);
      dark.addEventListener("change", change);
      return () => {
        watcher.disconnect();
        dark.removeEventListener("change", change);
      };
    }, []);
    return frame;
  };

  const makeAxis = (label, more = {}) => ({
    label,
    stroke: ink("--ink"),
    grid: { stroke: ink("--faint"), width: 1 },
    ticks: { stroke: ink("--faint"), width: 1 },
    font: "12px system-ui, sans-serif",
    labelFont: "13px system-ui, sans-serif",
    labelSize: 22,
    size: 34,
    ...more,
  });

  /** {low, high, positive: the smallest above 0, or null} of the values that are known; null: none is. */
  infoscope.extent = (values) => {
    let low = Infinity,
      high = -Infinity,
      positive = Infinity;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (!Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
      if (value > 0 && value < positive) positive = value;
    }
    return low <= high ? { low, high, positive: positive < Infinity ? positive : null } : null;
  };

  /** Whether an axis is better logarithmic: no value below 0, and those above it span more than three decades. */
  infoscope.isLogBetter = (extent) =>
    extent !== null && extent.low >= 0 && extent.positive !== null && extent.high / extent.positive > 1000;

  /** Return {edges, counts: one Uint32Array per group} of the latents that `mask` lets pass. */
  infoscope.countBins = (values, groups, nGroups, mask, { low, high }, nBins = N_BINS) => {
    const counts = Array.from({ length: nGroups }, () => new Uint32Array(nBins)),
      width = (high - low) / nBins || 1;
    for (let i = 0; i < values.length; i++) {
      if (!mask[i] || !(values[i] >= low)) continue;
      counts[groups[i]][Math.min(nBins - 1, Math.floor((values[i] - low) / width))] += 1;
    }
    return { edges: Float64Array.from({ length: nBins + 1 }, (_, i) => low + i * width), counts };
  };

  const drawLandmarks = (plot, landmarks) => {
    const { ctx } = plot,
      { left, top, width, height } = plot.bbox,
      ratio = devicePixelRatio;
    ctx.save();
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    Object.assign(ctx, { textBaseline: "top", textAlign: "left" });
    const ends = []; // of each line of labels, where its last one ends
    for (const { name, value } of [...landmarks].sort((a, b) => a.value - b.value)) {
      const at = plot.valToPos(value, "x", true),
        room = ctx.measureText(name).width + 10 * ratio;
      if (!(at >= left && at <= left + width)) continue;
      ctx.strokeStyle = ctx.fillStyle = ink("--ink");
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
      const isLeft = at + room > left + width,
        from = isLeft ? at - room + 4 * ratio : at + 4 * ratio;
      let line = ends.findIndex((end) => end <= from);
      if (line < 0) line = ends.length;
      ends[line] = from + room;
      ctx.fillText(name, from, top + (2 + 15 * line) * ratio);
    }
    ctx.restore();
  };

  // uPlot knows its scales when it has drawn for the first time, a moment after it was made
  const whenReady = (u, act) => {
    if (u.status === 1) act();
    else (u.hooks.ready ??= []).push(act);
  };

  // a click that is no drag; uPlot has put away the brush by then
  const onClick = (u, act) => {
    let down = null;
    u.over.addEventListener("mousedown", (event) => {
      down = [event.clientX, event.clientY];
    });
    u.over.addEventListener("click", (event) => {
      if (!down || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 3) return;
      const { left, top } = u.over.getBoundingClientRect();
      act(event.clientX - left, event.clientY - top);
    });
  };

  const bars = uPlot.paths.bars({ size: [1, Infinity], align: 1 });

  /**
   * Histogram({label, bins, groups: [{name, colour}], landmarks: [{name, value}], range: [from, to] or null,
   * onRange([from, to] or null), description}): groups stand on each other, the first at the bottom.
   */
  infoscope.Histogram = ({ label, bins, groups, landmarks, range, onRange, description }) => {
    const element = infoscope.useRef(null),
      plot = infoscope.useRef(null),
      [width, count] = useFrame(element);
    const follow = infoscope.useRef(null);
    follow.current = onRange;
    infoscope.useEffect(() => {
      if (!width || !bins) return undefined;
      const nBins = bins.edges.length - 1,
        sum = new Float64Array(nBins),
        stacked = [];
      for (const counts of bins.counts) {
        for (let i = 0; i < nBins; i++) sum[i] += counts[i];
        stacked.push(Array.from(sum));
      }
      const options = {
        width,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 12, 0, 0],
        scales: {
          x: { time: false, range: () => [bins.edges[0], bins.edges[nBins]] },
          y: { range: (u, low, high) => [0, Math.max(1, high * (landmarks.length ? 1.3 : 1.05))] },
        },
        axes: [makeAxis(label), makeAxis("latents", { size: 56 })],
        series: [
          {},
          ...groups
            .map(({ name, colour }) => ({
              label: name,
              fill: colour,
              stroke: ink("--ground"),
              width: 0.5,
              paths: bars,
              points: { show: false },
            }))
            .reverse(),
        ],
        cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, y: false },
        hooks: {
          draw: [(u) => drawLandmarks(u, landmarks)],
          setSelect: [
            (u) => {
              const { left, width: wide } = u.select;
              follow.current(wide > 2 ? [u.posToVal(left, "x"), u.posToVal(left + wide, "x")] : null);
            },
          ],
        },
      };
      const u = (plot.current = new uPlot(
        options,
        [Array.from(bins.edges.subarray(0, nBins)), ...stacked.reverse()],
        element.current,
      ));
      onClick(u, () => follow.current(null));
      return () => {
        u.destroy();
        plot.current = null;
      };
    }, [bins, width, count]);
    infoscope.useEffect(() => {
      const u = plot.current;
      if (!u) return;
      const place = (value) => Math.max(0, Math.min(u.over.clientWidth, u.valToPos(value, "x")));
      whenReady(u, () => {
        const [left, right] = range ? range.map(place) : [0, 0];
        u.setSelect({ left, width: right - left, top: 0, height: range ? u.over.clientHeight : 0 }, false);
      });
    }, [range?.[0], range?.[1], bins, width, count]);
    return html`<div class="chart" ref=${element} role="img" aria-label=${description}></div>`;
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

  // a colour as the little-endian pixel of ImageData
  const toPixel = (colour) => {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  };

  const pad = ({ low, high, positive }, isLog) => {
    if (isLog) return [positive / 1.2, high * 1.2];
    const room = (high - low || Math.abs(high) || 1) * 0.03;
    return [low - room, high + room];
  };

  /**
   * Scatter({x, y: {label, values, isLog, extent}, groups, groupOf, mask, selected, box: [x0, x1, y0, y1] or null,
   * onBox(box or null), onOpen(latent), tell(latent): words, description}): a point per latent that `mask` lets pass.
   */
  infoscope.Scatter = ({ x, y, groups, groupOf, mask, selected, box, onBox, onOpen, tell, description }) => {
    const element = infoscope.useRef(null),
      plot = infoscope.useRef(null),
      [width, count] = useFrame(element);
    const act = infoscope.useRef({}),
      [hovered, setHovered] = infoscope.useState(null),
      places = infoscope.useRef(null);
    act.current = { onBox, onOpen };
    infoscope.useEffect(() => {
      if (!width || !x.extent || !y.extent) return undefined;
      const canvas = document.createElement("canvas"),
        colours = groups.map(({ colour }) => toPixel(colour));
      const place = (axis, scale, u) =>
        Float32Array.from(axis.values, (value) =>
          Number.isFinite(value) && !(axis.isLog && value <= 0) ? u.valToPos(value, scale, true) : NaN,
        );
      const draw = (u) => {
        const { left, top, width: wide, height: high } = u.bbox;
        const px = place(x, "x", u).map((at) => at - left),
          py = place(y, "y", u).map((at) => at - top);
        places.current = { px, py };
        paintPoints(canvas, wide, high, px, py, colours, groupOf, mask);
        u.ctx.drawImage(canvas, left, top);
        drawSelected(u);
      };
      const drawSelected = (u) => {
        const {
            ctx,
            bbox: { left, top },
          } = u,
          { px, py } = places.current;
        ctx.save();
        ctx.lineWidth = 2 * devicePixelRatio;
        ctx.strokeStyle = ink("--ink");
        for (const latent of selected) {
          if (Number.isNaN(px[latent] + py[latent])) continue;
          ctx.beginPath();
          ctx.arc(left + px[latent], top + py[latent], 5 * devicePixelRatio, 0, 2 * Math.PI);
          ctx.stroke();
        }
        ctx.restore();
      };
      const scale = (axis) => ({ time: false, distr: axis.isLog ? 3 : 1, range: () => pad(axis.extent, axis.isLog) });
      const write = (u, values) => values.map((value) => (value === null ? "" : String(Number(value.toPrecision(4)))));
      const options = {
        width,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 12, 0, 0],
        scales: { x: scale(x), y: scale(y) },
        axes: [makeAxis(x.label, { values: write }), makeAxis(y.label, { size: 62, values: write })],
        series: [{}, { show: true, paths: () => null, points: { show: false } }],
        cursor: { drag: { x: true, y: true, uni: 0, setScale: false }, points: { show: false } },
        hooks: {
          draw: [draw],
          setSelect: [
            (u) => {
              const { left, top, width: wide, height: high } = u.select;
              act.current.onBox(
                wide > 3 && high > 3
                  ? [
                      u.posToVal(left, "x"),
                      u.posToVal(left + wide, "x"),
                      u.posToVal(top + high, "y"),
                      u.posToVal(top, "y"),
                    ]
                  : null,
              );
            },
          ],
          setCursor: [(u) => setHovered(findNear(u, u.cursor.left, u.cursor.top))],
        },
      };
      const findNear = (u, left, top) => {
        if (!places.current || !(left >= 0)) return null;
        const { px, py } = places.current,
          ratio = devicePixelRatio;
        let best = null,
          least = (NEAR * ratio) ** 2;
        for (let i = 0; i < px.length; i++) {
          if (!mask[i]) continue;
          const distance = (px[i] - left * ratio) ** 2 + (py[i] - top * ratio) ** 2;
          if (distance < least) {
            least = distance;
            best = i;
          }
        }
        return best === null ? null : { latent: best, left: px[best] / ratio, top: py[best] / ratio };
      };
      const u = (plot.current = new uPlot(options, [pad(x.extent, x.isLog), pad(y.extent, y.isLog)], element.current));
      onClick(u, (left, top) => {
        const found = findNear(u, left, top);
        if (found) act.current.onOpen(found.latent);
        else act.current.onBox(null);
      });
      return () => {
        u.destroy();
        plot.current = null;
        places.current = null;
      };
    }, [x.values, y.values, x.isLog, y.isLog, groupOf, mask, selected, width, count]);
    infoscope.useEffect(() => {
      const u = plot.current;
      if (!u) return;
      const at = (value, scale, size) => Math.max(0, Math.min(size, u.valToPos(value, scale)));
      whenReady(u, () => {
        const { clientWidth: wide, clientHeight: high } = u.over;
        const [left, right, bottom, top] = box
          ? [at(box[0], "x", wide), at(box[1], "x", wide), at(box[2], "y", high), at(box[3], "y", high)]
          : [0, 0, 0, 0];
        u.setSelect({ left, width: right - left, top, height: bottom - top }, false);
      });
    }, [box?.join(), x.values, y.values, x.isLog, y.isLog, mask, selected, width, count]);
    const isRight = hovered?.left > width / 2,
      top = `${hovered?.top + 16}px`; // of the middle: then it stands to the left
    const place = isRight ? { top, right: `${width - 60 - hovered.left}px` } : { top, left: `${hovered?.left + 70}px` };
    return html`<div class="chart"><div ref=${element} role="img" aria-label=${description}></div>
      ${hovered && html`<div class="tip" style=${place}>${tell(hovered.latent)}</div>`}</div>`;
  };
})();
