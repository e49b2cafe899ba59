"use strict";
// The histogram (uPlot), and what plots share: what is dragged over is a brush, which the rows of the table follow.
(() => {
  const { html, useEffect, useRef } = infoscope;
  const HEIGHT = 280,
    N_BINS = 60; // pixels of a plot, bars

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

  const keepWhole = (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick : null)); // of counts

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
        words = `${name} ${infoscope.show(value)}`,
        room = ctx.measureText(words).width + 10 * ratio;
      if (!(at >= left && at <= left + width)) continue;
      ctx.strokeStyle = ctx.fillStyle = ink("--ink");
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
      const isLeft = at + room > left + width,
        from = isLeft ? Math.max(left, at - room + 4 * ratio) : at + 4 * ratio;
      let line = ends.findIndex((end) => end <= from);
      if (line < 0) line = ends.length;
      ends[line] = from + room;
      const labelTop = top + (2 + 15 * line) * ratio;
      ctx.fillStyle = ink("--ground"); // behind words that stand over bars and lines of others
      ctx.globalAlpha = 0.75;
      ctx.fillRect(from - 2 * ratio, labelTop, room - 4 * ratio, 14 * ratio);
      ctx.globalAlpha = 1;
      ctx.fillStyle = ink("--ink");
      ctx.fillText(words, from, labelTop);
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

  // a label, without the unit in brackets where there is no room for it
  const fit = (label, width) => (8 * label.length < width - 90 ? label : label.replace(/ \(.*/, ""));

  // the places of the bars, then the heights to which groups stand on each other, the highest first
  const stack = ({ edges, counts }) => {
    const sum = new Float64Array(edges.length - 1),
      stacked = [];
    for (const group of counts) {
      for (let i = 0; i < sum.length; i++) sum[i] += group[i];
      stacked.push(Array.from(sum));
    }
    return [Array.from(edges.subarray(0, sum.length)), ...stacked.reverse()];
  };

  const makeHistogram = (element, { label, bins, groups, landmarks, width, onRange }) => {
    const [low, high] = [bins.edges[0], bins.edges.at(-1)];
    const series = groups.map(({ name, colour }) => ({
      label: name,
      fill: colour,
      stroke: ink("--ground"),
      width: 0.5,
      paths: bars,
      points: { show: false },
    }));
    const setSelect = (u) => {
      const { left, width: wide } = u.select;
      onRange(wide > 2 ? [u.posToVal(left, "x"), u.posToVal(left + wide, "x")] : null);
    };
    const top = landmarks.length ? 1.3 : 1.05; // room for their names
    const u = new uPlot(
      {
        width,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 12, 0, 0],
        scales: {
          x: { time: false, range: () => [low, high] },
          y: { range: (_, least, most) => [0, Math.max(1, most * top)] },
        },
        axes: [makeAxis(fit(label, width)), makeAxis("latents", { size: 56, filter: keepWhole })],
        series: [{}, ...series.reverse()],
        cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, y: false },
        hooks: { draw: [() => drawLandmarks(u, landmarks)], setSelect: [setSelect] },
      },
      stack(bins),
      element,
    );
    onClick(u, () => onRange(null));
    return u;
  };

  /**
   * Histogram({label, bins, groups: [{name, colour}], landmarks: [{name, value}], range: [from, to] or null,
   * onRange([from, to] or null), description}): groups stand on each other, the first at the bottom.
   */
  infoscope.Histogram = ({ label, bins, groups, landmarks, range, onRange, description }) => {
    const element = useRef(null),
      plot = useRef(null),
      drawn = useRef(null),
      [width, count] = useFrame(element);
    useEffect(() => {
      if (!width) return undefined;
      plot.current = makeHistogram(element.current, { label, bins, groups, landmarks, width, onRange });
      drawn.current = bins;
      return () => {
        plot.current.destroy();
        plot.current = null;
      };
    }, [bins.edges[0], bins.edges.at(-1), groups, landmarks, label, width, count]);
    useEffect(() => {
      if (plot.current && drawn.current !== bins) plot.current.setData(stack(bins));
      drawn.current = bins;
    }, [bins]);
    useEffect(() => {
      const u = plot.current;
      if (!u) return;
      const place = (value) => Math.max(0, Math.min(u.over.clientWidth, u.valToPos(value, "x")));
      whenReady(u, () => {
        const [left, right] = range ? range.map(place) : [0, 0];
        u.setSelect({ left, width: right - left, top: 0, height: range ? u.over.clientHeight : 0 }, false);
      });
    }, [range?.join(), bins.edges[0], bins.edges.at(-1), groups, landmarks, width, count]);
    return html`<div class="chart" ref=${element} role="img" aria-label=${description}></div>`;
  };

  infoscope.plotParts = { HEIGHT, ink, useFrame, makeAxis, whenReady, onClick };
})();
