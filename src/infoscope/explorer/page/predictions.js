"use strict";
// What the model predicts of an image, before and after a group or a single latent is switched off.
(() => {
  const { html } = infoscope;
  const percent = (share) => {
    if (share > 0 && share < 5e-5) return "<0.01%";
    return share < 1 && share > 0.99995 ? ">99.99%" : `${(100 * share).toFixed(2)}%`;
  };
  const best = (values) => values.indexOf(Math.max(...values));

  const listSwitches = ({ before, groups, latents }) => [
    { id: "nothing", what: "With nothing switched off", probabilities: before },
    ...groups.map(({ name, probabilities }) =>
      ({ id: `group ${name}`, what: `Without all latents of the group ${name}`, group: name, probabilities })),
    ...latents.map(({ latent, probabilities }) =>
      ({ id: `latent ${latent}`, what: `Without latent ${latent}`, latent, probabilities })),
  ];

  const sayChange = (names, before, { id, what, probabilities: after }) => {
    const [top, then] = [best(before), best(after)];
    const of = (i) => `${percent(before[i])} before, ${percent(after[i])} after`;
    if (id === "nothing") return `${what}, ${names[top]} is most probable: ${percent(before[top])}.`;
    if (then === top) return `${what}, ${names[top]} stays most probable: ${of(top)}.`;
    return `${what}, the most probable class changes from ${names[top]} (${of(top)}) to ${names[then]} (${of(then)}).`;
  };

  const Bars = ({ predictions, names, after }) => {
    const { before, n_classes: n } = predictions, label = predictions.classes.indexOf(predictions.label);
    const rest = (values) => percent(Math.max(0, 1 - values.reduce((a, b) => a + b, 0))), nOthers = n - names.length;
    return html`<${infoscope.Wide} label="Probabilities"><table class="class-bars">
      <caption>Probability of each class${nOthers > 0
        && ` (${names.length} of ${n}; the others together ${rest(before)} before, ${rest(after)} after)`}</caption>
      <thead><tr><th scope="col">class</th><th scope="col"><span class="bar-key before"></span>before</th>
        <th scope="col"><span class="bar-key after"></span>after</th></tr></thead>
      <tbody>${names.map((name, i) => html`<tr key=${i}>
        <th scope="row"><span class="class-name">${name}</span>
          ${i === label && html` <span class="quiet">(true)</span>`}
          <span class="bar before" style=${{ width: `${100 * before[i]}%` }}></span>
          <span class="bar after" style=${{ width: `${100 * after[i]}%` }}></span></th>
        <td class="number">${percent(before[i])}</td><td class="number">${percent(after[i])}</td></tr>`)}</tbody>
    </table></${infoscope.Wide}>`;
  };

  const Switches = ({ view, facts, names, top, switches, chosen, onChoose }) => html`
    <${infoscope.Wide} label="What is switched off"><table class="switches">
    <caption>Switch off: nothing, a group of latents, or one latent: those of largest attribution, the
      largest first</caption>
    <thead><tr><th scope="col">without</th><th scope="col" class="number">${names[top]}</th>
      <th scope="col">most probable then</th></tr></thead>
    <tbody>${switches.map((one) => html`<tr key=${one.id} class=${one === chosen ? "is-chosen" : ""}>
      <td><label><input type="radio" name="off" value=${one.id} checked=${one === chosen}
          onChange=${() => onChoose(one.id)} /> ${one.group === undefined ? one.id
            : html`group <${infoscope.GroupMark} view=${view} group=${one.group} />`}</label>
        ${one.latent !== undefined && html` <span class="of-latent">${facts.name(one.latent)}</span> <a
          href=${infoscope.address({ page: "latent", latent: one.latent, view: view.id })}
          aria-label=${`page of latent ${one.latent}`}>page</a>`}</td>
      <td class="number">${percent(one.probabilities[top])}</td>
      <td>${best(one.probabilities) === top ? "the same"
        : html`<strong>${names[best(one.probabilities)]}</strong>`}</td></tr>`)}</tbody>
  </table></${infoscope.Wide}>`;

  /** ImagePredictions({view, set, off, predictions, facts}): of one image; what makes them where there are none. */
  infoscope.ImagePredictions = ({ view, set, off, predictions, facts }) => {
    const switches = infoscope.useMemo(() => predictions ? listSwitches(predictions) : [], [predictions]);
    if (!predictions) {
      return html`<section class="predictions"><h3>Predictions</h3>
        <p>No predictions were made with this SAE. A model with a text tower makes them, on data with class
        names: <code>infoscope stage=predict</code>, then <code>infoscope stage=explore</code>, both
        with the settings of this explorer.</p></section>`;
    }
    const names = predictions.classes.map((place, i) => predictions.texts?.[i]
      ?? infoscope.manifest.sets[set]?.classes?.[place] ?? `class ${place}`);
    const chosen = switches.find((one) => one.id === off) ?? switches[0], top = best(predictions.before);
    return html`<section class="predictions"><h3>Predictions</h3>
      <p class="quiet">${view.predictions} Each row of the second table is a measurement of its own: the image predicted
        once more without these latents, all else kept. What several would do together is not the sum of their rows.</p>
      <p role="status" class="prediction-said">${sayChange(names, predictions.before, chosen)}</p>
      <div class="prediction-parts">
        <${Bars} predictions=${predictions} names=${names} after=${chosen.probabilities} />
        <${Switches} ...${{ view, facts, names, top, switches, chosen }}
          onChoose=${(id) => infoscope.go({ off: id === "nothing" ? "" : id }, true)} />
      </div></section>`;
  };
})();
