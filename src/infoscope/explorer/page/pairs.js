"use strict";
// The top images of a latent: both crops with their maps, and what moves between them.
(() => {
  const { html } = infoscope;
  const MOST_AT_ONCE = 800; // active patches up to which a flow takes a fraction of a second; others must be asked for
  const LARGEST_ERROR = 1e-3; // of a stored EMD against that of its maps, beside the rounding of the maps

  // what is far down the page is computed when it comes near, one after the other
  const useNear = (element) => {
    const [isNear, set] = infoscope.useState(false);
    infoscope.useEffect(() => {
      const see = ([entry]) => entry.isIntersecting && set(true);
      const observer = new IntersectionObserver(see, { rootMargin: "300px" });
      observer.observe(element.current);
      return () => observer.disconnect();
    }, []);
    return isNear;
  };

  /** ImageName({view, set, image}): an image's name and class; a link to its page where it can be browsed. */
  infoscope.ImageName = ({ view, set, image }) => {
    const { value } = infoscope.useLoaded(() => infoscope.imageName(set, image), [set, image]);
    const classes = infoscope.manifest.sets[set]?.classes;
    const name = value ? value.id : `image ${image}`, label = value?.label ?? null;
    const isBrowsed = view.images?.[set]?.includes(image);
    const words = html`<bdi>${name}</bdi>`; // letters that turn what follows around stay within the name
    return html`<span class="image-name" title=${name}>${isBrowsed
      ? html`<a href=${infoscope.address({ page: "image", set, image, view: view.id })}>${words}</a>` : words}
      ${label !== null && classes?.[label] !== undefined && html` (<bdi>${classes[label]}</bdi>)`}</span>`;
  };

  /** MappedPicture({view, set, image, crop, map, shown, scale, size, name}): with a map, which its alt text tells. */
  infoscope.MappedPicture = ({ view, set, image, crop = 0, map, shown, scale, size, name }) => {
    const side = view.grid - view.shift, start = crop ? infoscope.sharedStart(view, crop) : null;
    const percent = (patches) => `${(100 * patches) / view.grid}%`;
    return html`<${infoscope.Picture} view=${view} set=${set} image=${image} crop=${crop} map=${map} size=${size}
      scale=${infoscope.mapScale(shown, map, scale)} opacity=${Number(shown.opacity)}
      alt=${`${name}: ${infoscope.describeMap(map, view.grid)}`}>
      ${crop > 0 && html`<div class="shared" style=${{ left: percent(start.column), top: percent(start.row),
        width: percent(side), height: percent(side) }}></div>`}
    </${infoscope.Picture}>`;
  };

  // why an EMD that is kept is not that of its maps, in words; "" where they agree
  const findFault = (stored, { emd, slack, why }, isExact) => {
    if (emd === null && stored === null) return "";
    if (emd !== null && stored !== null && !isExact) return ""; // Sinkhorn's is another number, near it
    if (emd !== null && stored !== null) {
      return Math.abs(emd - stored) <= LARGEST_ERROR + slack ? ""
        : `The EMD that is kept, ${infoscope.show(stored)}, is not that of these maps, ${infoscope.show(emd)}: the`
          + " folder is damaged, or of another version. Write it again.";
    }
    return stored === null
      ? `No EMD is kept, but these maps have one, ${infoscope.show(emd)}: the folder is damaged. Write it again.`
      : `These maps are ${why}, or too weak to be kept, but an EMD of ${infoscope.show(stored)} is.`;
  };

  /** By what the images of the ranks were chosen, in words. */
  infoscope.sayRanked = ({ ranked_by: by }) => ({
    drawn: "Images drawn from all in which it fires, whether weakly or strongly",
    mean: "The images in which its mean activation over the patches is largest, best first",
  })[by] ?? "The images in which it fires most, best first";

  const sayActivation = (ranks, i) => {
    if (ranks.activation) return ` · activation ${infoscope.show(ranks.activation[i])}`;
    return ranks.mean_activation ? ` · mean activation ${infoscope.show(ranks.mean_activation[i])}` : "";
  };

  const Pair = ({ view, shown, rank, image, maps, emd, activation, scale, step, size }) => {
    const element = infoscope.useRef(null), isNear = useNear(element), [pair, setPair] = infoscope.useState(null);
    const [isAsked, ask] = infoscope.useState(maps.every((map) => map.places.length <= MOST_AT_ONCE));
    const isFlowShown = shown.flow === "on";
    infoscope.useEffect(() => {
      if (!isNear || !isFlowShown || !isAsked || pair) return undefined;
      const timer = setTimeout(() => setPair(infoscope.pairFlow(view, ...maps, step)));
      return () => clearTimeout(timer);
    }, [isNear, isFlowShown, isAsked]);
    const why = infoscope.useMemo(() => emd === null ? infoscope.pairFlow(view, ...maps, step).why : "", []);
    const fault = pair && findFault(emd, pair, view.emd !== "sinkhorn");
    const crop = (number) => html`<figure>
      <${infoscope.MappedPicture} view=${view} set=${view.set} image=${image} crop=${number} map=${maps[number - 1]}
        shown=${shown} scale=${scale} size=${size} name=${`Rank ${rank}, crop ${number}`} />
      <figcaption>crop ${number}</figcaption></figure>`;
    return html`<li class="pair" ref=${element} data-rank=${rank}>
      <p><b>${rank}</b> <${infoscope.ImageName} view=${view} set=${view.set} image=${image} /><br />
        <span class="numbers">EMD ${emd === null ? "none" : infoscope.show(emd)}${activation}</span></p>
      <div class="crops">${crop(1)}${crop(2)}
        ${isFlowShown && pair?.flow && html`<figure>
          <${infoscope.FlowPicture} view=${view} set=${view.set} image=${image} pair=${pair} size=${size}
            alt=${`Rank ${rank}, the region that both crops share`} />
          <figcaption>what moves</figcaption></figure>`}</div>
      ${isFlowShown && !isAsked && html`<p><button onClick=${() => ask(true)}>Show what moves</button>
        ${" "}(it takes seconds: the latent fires on very many patches)</p>`}
      ${emd === null && html`<p class="why">No EMD: ${why || "none was measured"}.</p>`}
      ${isFlowShown && emd !== null && html`<p class="flow-words">${pair?.flow && infoscope.tellMoved(pair)}</p>`}
      ${fault && html`<p class="warning" role="alert">${fault}</p>`}
    </li>`;
  };

  /** Pairs({view, shown, ranks, scale, limit}): the top images in order of rank; `ranks` as of useDetail. */
  infoscope.Pairs = ({ view, shown, ranks, scale, limit = Infinity }) => {
    const size = infoscope.usePictureSize(shown);
    const at = ranks.images.map((_, i) => i).filter((i) => ranks.images[i] >= 0).slice(0, limit);
    const silent = at.filter((i) => ranks.emd[i] === null);
    if (at.length === 0) return html`<p class="absent">It fires in no image of this set.</p>`;
    return html`
      ${silent.length > 0 && html`<p>${infoscope.count(silent.length, "pair")} of ${at.length}
        ${silent.length === 1 ? " has" : " have"} no EMD, for the latent is silent on what both crops share: rank
        ${" "}${silent.map((i) => i + 1).join(", ")}.</p>`}
      <ol class=${shown.large === "on" ? "pairs large" : "pairs"}>${at.map((i) => html`
        <${Pair} key=${i} view=${view} shown=${shown} rank=${i + 1} image=${ranks.images[i]} emd=${ranks.emd[i]}
          maps=${[ranks.unpacked[2 * i], ranks.unpacked[2 * i + 1]]} activation=${sayActivation(ranks, i)}
          scale=${scale} step=${ranks.maps.scale / 65535} size=${size} />`)}</ol>`;
  };
})();
