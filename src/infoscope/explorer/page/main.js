"use strict";
// The frame of all pages: which view, which page, what is missing; then the page itself.
(() => {
  const { html } = infoscope;
  const PAGES = {
    overview: { name: "Overview", component: "Overview" },
    latent: { name: "Latent", component: "LatentPage" },
    image: { name: "Image", component: "ImagePage" },
    compare: { name: "Side by side", component: "ComparePage" },
  };

  const WORDS = {
    latent: "a feature of the SAE (sparse autoencoder); it fires on some patches of some images",
    patch: "a square of the image that the model reads as one token",
    activation: "how strongly a latent fires on a patch, in units of the SAE; its peak is the largest in an image",
    map: "the activation of a latent on all patches of an image or of a crop",
    crop: "each image is cut twice, with a shift: the region that both crops show has the same pixels in both",
    EMD: "earth mover's distance between the maps of both crops on that region: 0 nothing moves, 1 corner to corner",
    CDS: "contextual dependency score: the mean EMD over the images that a latent is ranked by",
    scope: "whether a latent stays where what it sees is (low), or moves with the context (high: CDS above gamma)",
    chance: "the CDS that a latent's maps would have if they belonged to different images",
    extent:
      "how wide a window around its strongest patch keeps half of its activation there: 0 that patch alone, 1 no " +
      "measured window is enough",
    "mean extent": "the share of that activation that such windows lose, averaged over their sizes",
    "context effect": "share of the variance of that activation that its surroundings make: 0 none, 1 all",
    mass: "mean activation times the norm of the decoder row: how much a latent writes",
    support: "share of the patches on which a latent fires, in images in which it does",
    MS: "monosemanticity: how alike the images are in which a latent fires",
    keys:
      "in the table arrows move, Space selects, Enter opens; on a latent's page ← and → go to its neighbours; on an " +
      "image arrows move, Shift and arrows extend, Escape chooses all patches",
  };

  const HOW = {
    extent: "how far the evidence of a latent reaches",
    mean_extent: "how far the evidence of a latent reaches",
    context_effect: "how much of a latent's activation its surroundings make",
  };

  // the words, with what the groups of a view are
  const explain = (view) => {
    const { name, words, above, below } = infoscope.divided(view);
    if (name === "cds") return WORDS;
    const how = Object.hasOwn(HOW, name) ? `${HOW[name]}: ` : "";
    return { ...WORDS, scope: `${how}${above} (${words} above gamma) or ${below} (up to gamma)` };
  };

  const Facts = ({ facts }) =>
    html`<dl class="facts">${Object.entries(facts ?? {}).map(
      ([name, text]) => html`<dt>${name}</dt><dd>${text}</dd>`,
    )}</dl>`;

  const size = (bytes) => {
    if (typeof bytes !== "number") return bytes;
    return bytes < 1e6 ? `${infoscope.show(bytes / 1e3)} kB` : `${infoscope.show(bytes / 1e6)} MB`;
  };

  const About = ({ view }) => {
    const { bytes, facts, made } = infoscope.manifest;
    const sizes = Object.entries(bytes ?? {})
      .map(([name, n]) => `${name} ${size(n)}`)
      .join(", ");
    const others = Object.entries(facts ?? {}).filter(([name, text]) => view.facts?.[name] !== text);
    return html`<footer>
    <details><summary>What the words mean, and keys</summary><${Facts} facts=${explain(view)} /></details>
    <details><summary>About this explorer</summary>
      <h2>${view.title}</h2>
      <${Facts} facts=${view.facts} />
      ${others.length > 0 && html`<h2>All SAEs here</h2><${Facts} facts=${Object.fromEntries(others)} />`}
      <h2>Files</h2>
      <p>${made && `Made by ${made}. `}${sizes && `On the disk: ${sizes}. `}
        Nothing is loaded from elsewhere, and nothing is sent. The page uses
        ${" "}<a href="page/vendor/README.md">libraries of others</a> under the licences MIT and
        Apache-2.0. <a href="tables.html">The tables for browsers without JavaScript</a>.</p>
    </details></footer>`;
  };

  // what is shown, in words, for the title of the window and for those who hear the page
  const nameOf = ({ page, latent, set, image }) => {
    if (page === "latent") return `Latent ${latent}`;
    if (page === "image" && set) return `Image ${image} of ${set}`;
    return Object.hasOwn(PAGES, page) ? PAGES[page].name : "No such page";
  };

  const Frame = () => {
    const shown = infoscope.useShown(),
      view = infoscope.view(),
      { title } = infoscope.manifest;
    const known = Object.values(infoscope.manifest.sets).reduce((sum, set) => sum + (set.n_missing ?? 0), 0);
    const [nMissing, setMissing] = infoscope.useState(known);
    infoscope.useEffect(() => {
      const count = () => setMissing(Math.max(known, infoscope.countMissing()));
      window.addEventListener("infoscope-missing", count);
      return () => window.removeEventListener("infoscope-missing", count);
    }, []);
    // the address is anybody's
    const Page = Object.hasOwn(PAGES, shown.page) ? infoscope[PAGES[shown.page].component] : null;
    const isFirst = infoscope.useRef(true),
      [said, say] = infoscope.useState(""),
      place = nameOf(shown);
    infoscope.useEffect(() => {
      if (!isFirst.current) document.getElementById("content").focus({ preventScroll: true });
    }, [shown.page]);
    infoscope.useEffect(() => {
      document.title = shown.page === "overview" ? title : `${place} · ${title}`;
      if (!isFirst.current) say(place);
      isFirst.current = false;
    }, [place]);
    return html`
      <a class="skip" href="#content" onClick=${(event) => {
        event.preventDefault();
        document.getElementById("content").focus();
      }}>Skip to the content</a>
      <header>
        <h1>${title}</h1>
        <nav aria-label="Pages">${Object.entries(PAGES).map(
          ([page, { name }]) => html`
          <a href=${infoscope.address({ page })} aria-current=${shown.page === page ? "page" : null}>${name}</a>`,
        )}</nav>
        <label>SAE <select value=${view.id} onChange=${(event) => infoscope.go({ view: event.target.value })}>
          ${infoscope.manifest.views.map((one) => html`<option value=${one.id}>${one.title}</option>`)}</select></label>
      </header>
      ${
        nMissing > 0 &&
        html`<p class="warning" role="status">${infoscope.count(nMissing, "image")} could not be shown:
        gone or changed when the explorer was written, or not copied with it. Grey tiles stand for them.</p>`
      }
      ${
        shown.view &&
        shown.view !== view.id &&
        html`<p class="warning" role="status">There is no SAE "${shown.view}" in this
        explorer: this is ${view.title}.</p>`
      }
      <main id="content" tabindex="-1">${
        Page
          ? html`<${infoscope.Guard} what="This page" of=${shown}>
              <${Page} view=${view} shown=${shown} /></${infoscope.Guard}>`
          : html`<p>There is no page of this name: <a href="#/overview">the overview</a>.</p>`
      }</main>
      <p class="sr" role="status">${said}</p>
      <${About} view=${view} />`;
  };

  const root = document.getElementById("app");
  const start = (manifest) => {
    infoscope.manifest = manifest;
    root.replaceChildren();
    preact.render(html`<${infoscope.Guard} what="The explorer"><${Frame} /></${infoscope.Guard}>`, root);
  };
  infoscope.load("manifest").then(start, (error) => {
    root.textContent = `The explorer's folder is not whole: ${error.message}`;
  });
})();
