"use strict";
// What an earth mover's distance is made of: which mass moves from which patch to which.
(() => {
  const { html } = infoscope;
  const ROUNDING = 1e-15; // of normalised mass, as in infoscope.scope.emd

  /**
   * Move supply onto demand at least cost: successive shortest augmenting paths with potentials (Edmonds and Karp,
   * 1972; each path found as by Jonker and Volgenant, 1987). Changes `supply` and `demand`; cost is row by row.
   * Exact: reduced costs stay at least 0 and are 0 where mass flows, so no cycle can make the plan cheaper.
   */
  const transport = (supply, demand, cost) => {
    const n = supply.length, m = demand.length;
    const flow = new Float64Array(n * m), u = new Float64Array(n), v = new Float64Array(m).fill(Infinity);
    const givers = Array.from({ length: m }, () => []); // sources whose mass flows into a sink
    for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) v[j] = Math.min(v[j], cost[i * m + j]);
    const distance = new Float64Array(m), via = new Int32Array(m); // of each sink: from which source it is reached
    const reached = new Float64Array(n), through = new Int32Array(n); // of each source: through which sink
    const open = new Int32Array(m), settled = [];
    for (let start = 0; start < n; start++) {
      while (supply[start] > ROUNDING) {
        distance.fill(Infinity);
        through.fill(-1);
        for (let j = 0; j < m; j++) open[j] = j;
        settled.length = 0;
        const sources = [start];
        let nOpen = m, length = 0, end = -1;
        reached[start] = 0;
        const relax = (i) => {
          const base = reached[i] - u[i], row = i * m;
          for (let place = 0; place < nOpen; place++) {
            const j = open[place], reach = base + cost[row + j] - v[j];
            if (reach < distance[j]) { distance[j] = reach; via[j] = i; }
          }
        };
        relax(start);
        while (nOpen > 0) {
          let best = 0;
          for (let place = 1; place < nOpen; place++) if (distance[open[place]] < distance[open[best]]) best = place;
          const j = open[best];
          open[best] = open[--nOpen];
          length = Math.max(length, distance[j]);
          if (demand[j] > ROUNDING) { end = j; break; }
          settled.push(j);
          for (const i of givers[j]) {
            if (i === start || through[i] >= 0) continue;
            through[i] = j;
            reached[i] = length;
            sources.push(i);
            relax(i);
          }
        }
        if (end < 0) break; // what is left of the supply is rounding
        for (const i of sources) u[i] += length - reached[i];
        for (const j of settled) v[j] -= length - distance[j];
        let mass = Math.min(supply[start], demand[end]);
        for (let j = end, i = via[j]; i !== start; j = through[i], i = via[j]) {
          mass = Math.min(mass, flow[i * m + through[i]]);
        }
        for (let j = end; ;) {
          const i = via[j];
          if (flow[i * m + j] === 0) givers[j].push(i);
          flow[i * m + j] += mass;
          if (i === start) break;
          j = through[i];
          flow[i * m + j] -= mass;
          if (flow[i * m + j] <= ROUNDING) {
            flow[i * m + j] = 0;
            givers[j].splice(givers[j].indexOf(i), 1);
          }
        }
        supply[start] -= mass;
        demand[end] -= mass;
      }
    }
    return flow;
  };

  /**
   * An optimal plan that moves one map onto another: {cost, moved, kept, moves}, or null where a map is silent. cost:
   * the earth mover's distance in patches, each map divided by its sum. moves: [{from, to, mass, distance}], patches
   * counted row by row, most mass first; moved: their mass; kept: per patch, the mass that stays.
   *
   * What both maps have in a patch stays there, which is exact: by the triangle inequality mass that came into the
   * patch from A and left it for B can as well go from A to B.
   *
   * map1, map2: [side * side] not negative.
   */
  infoscope.flow = (map1, map2, side) => {
    const sums = [map1, map2].map((map) => map.reduce((sum, value) => sum + value, 0));
    if (!(sums[0] > 0 && sums[1] > 0)) return null;
    const kept = new Float64Array(side * side), sources = [], sinks = [], supply = [], demand = [];
    for (let at = 0; at < side * side; at++) {
      const one = map1[at] / sums[0], two = map2[at] / sums[1];
      kept[at] = Math.min(one, two);
      if (one - two > ROUNDING) { sources.push(at); supply.push(one - two); }
      if (two - one > ROUNDING) { sinks.push(at); demand.push(two - one); }
    }
    const n = sources.length, m = sinks.length, distances = new Float64Array(n * m);
    for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) {
      const down = Math.floor(sources[i] / side) - Math.floor(sinks[j] / side);
      distances[i * m + j] = Math.hypot(down, (sources[i] % side) - (sinks[j] % side));
    }
    const plan = transport(Float64Array.from(supply), Float64Array.from(demand), distances), moves = [];
    plan.forEach((mass, at) => {
      if (mass > 0) {
        moves.push({ from: sources[Math.floor(at / m)], to: sinks[at % m], mass, distance: distances[at] });
      }
    });
    moves.sort((a, b) => b.mass - a.mass);
    const cost = moves.reduce((sum, move) => sum + move.mass * move.distance, 0);
    return { cost, moved: moves.reduce((sum, move) => sum + move.mass, 0), kept, moves };
  };

  const MOST_ARROWS = 60;

  /**
   * The flow between the maps of both crops on the shared region: {flow, emd (share of the largest distance), slack (by
   * how much the rounding of maps to multiples of `step` can change it), why (in words, where there is none)}.
   */
  infoscope.pairFlow = (view, map1, map2, step) => {
    const side = view.grid - view.shift;
    const parts = [map1, map2].map((map, i) => infoscope.cutShared(view, map, i + 1));
    const sums = parts.map((part) => part.reduce((sum, value) => sum + value, 0));
    const silent = [1, 2].filter((crop) => !(sums[crop - 1] > 0));
    if (silent.length) {
      const isOutside = silent.every((crop) => [map1, map2][crop - 1].places.length > 0);
      const where = silent.length === 2 ? "both crops" : `crop ${silent[0]}`;
      return { flow: null, emd: null, slack: 0,
        why: `silent on the shared region of ${where}${isOutside ? " (it fires beside it)" : ""}` };
    }
    const flow = infoscope.flow(...parts, side), slack = side * side * (step / 2) * (1 / sums[0] + 1 / sums[1]);
    return { flow, emd: flow.cost / (Math.SQRT2 * (side - 1)), slack, why: "" };
  };

  /** The flow in a few words: how much moves, and how far. */
  infoscope.tellMoved = ({ flow }) => {
    if (flow.moved < 1e-9) return "Nothing moves: both maps are alike.";
    const share = infoscope.show(100 * flow.moved, 2), mean = infoscope.show(flow.cost / flow.moved, 2);
    return `${share}% moves, ${mean} ${mean === "1" ? "patch" : "patches"} on average.`;
  };

  // the flow in words, with the distance that it makes
  const describeFlow = ({ flow, emd }) => `${infoscope.tellMoved({ flow })} Over all of the mass: `
    + `${infoscope.show(flow.cost)} patches, ${infoscope.show(emd)} of the largest distance.`;

  const drawArrow = (move, side, width) => {
    const [[x1, y1], [x2, y2]] = [move.from, move.to].map((at) => [(at % side) + 0.5, Math.floor(at / side) + 0.5]);
    const length = Math.hypot(x2 - x1, y2 - y1), [right, down] = [(x2 - x1) / length, (y2 - y1) / length];
    const unit = Math.max(1, side / 9); // heads stay visible on a fine grid
    const head = Math.min(0.5 * unit, 0.6 * length), half = (unit * width) / 2, wing = half + 0.13 * unit;
    const outline = [[0, -half], [length - head, -half], [length - head, -wing], [length, 0], [length - head, wing],
      [length - head, half], [0, half]];
    const turn = ([far, aside]) => [x1 + far * right - aside * down, y1 + far * down + aside * right];
    return outline.map((point) => turn(point).map((at) => at.toFixed(3)).join(",")).join(" ");
  };

  /** FlowPicture({view, set, image, pair, alt, size}): the shared region; arrows: what moves, dots: what stays. */
  infoscope.FlowPicture = ({ view, set, image, pair, alt, size }) => {
    const side = view.grid - view.shift, { kept, moves, moved } = pair.flow;
    const drawn = moves.slice(0, MOST_ARROWS), most = Math.max(...kept, moves[0]?.mass ?? 0);
    const share = drawn.reduce((sum, move) => sum + move.mass, 0) / (moved || 1);
    const percent = infoscope.show(100 * share, 2);
    const words = drawn.length === moves.length ? ""
      : ` Drawn: the ${drawn.length} largest of ${moves.length} moves, ${percent}% of their mass.`;
    return html`<${infoscope.Picture} view=${view} set=${set} image=${image} crop="shared" size=${size}
      alt=${`${alt}. ${describeFlow(pair)}${words}`}>
      <svg class="flow" viewBox=${`0 0 ${side} ${side}`} aria-hidden="true" data-moves=${moves.length}
        data-moved=${moved}>
        <title>${describeFlow(pair) + words}</title>
        ${Array.from(kept, (mass, at) => mass > most / 400 && html`
          <circle cx=${(at % side) + 0.5} cy=${Math.floor(at / side) + 0.5} r=${0.42 * Math.sqrt(mass / most)} />`)}
        ${drawn.map((move) => html`
          <polygon points=${drawArrow(move, side, 0.09 + (0.32 * move.mass) / most)} data-mass=${move.mass} />`)}
      </svg>
    </${infoscope.Picture}>`;
  };
})();
