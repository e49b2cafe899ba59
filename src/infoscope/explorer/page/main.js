"use strict";
// The frame of all pages: which view, which page, what is missing; then the page itself.
(() => {
  const { html } = infoscope;
  const PAGES = { overview: "Overview", latent: "Latent", image: "Image", compare: "Side by side" };

  const Frame = () => {
    const shown = infoscope.useShown(), view = infoscope.view();
    const [nMissing, setMissing] = infoscope.useState(0);
    infoscope.useEffect(() => {
      const count = () => setMissing(infoscope.countMissing());
      window.addEventListener("infoscope-missing", count);
      return () => window.removeEventListener("infoscope-missing", count);
    }, []);
    const Page = { overview: infoscope.Overview, latent: infoscope.LatentPage, image: infoscope.ImagePage,
      compare: infoscope.ComparePage }[shown.page];
    return html`
      <a class="skip" href="#content" onClick=${(event) => { event.preventDefault(); document.getElementById("content").focus(); }}>Skip to the content</a>
      <header>
        <h1>${infoscope.manifest.title}</h1>
        <nav aria-label="Pages">${Object.entries(PAGES).map(([page, name]) => html`
          <a href=${infoscope.address({ page })} aria-current=${shown.page === page ? "page" : null}>${name}</a>`)}</nav>
        <label>SAE <select value=${view.id} onChange=${(event) => infoscope.go({ view: event.target.value })}>
          ${infoscope.manifest.views.map((one) => html`<option value=${one.id}>${one.title}</option>`)}</select></label>
      </header>
      ${nMissing > 0 && html`<p class="warning" role="status">${infoscope.count(nMissing, "image")} could not be shown: the files are not where the explorer was written.</p>`}
      <main id="content" tabindex="-1">${Page ? html`<${Page} view=${view} shown=${shown} />`
        : html`<p>There is no page of this name: <a href="#/overview">the overview</a>.</p>`}</main>`;
  };

  const root = document.getElementById("app");
  infoscope.load("manifest").then((manifest) => {
    infoscope.manifest = manifest;
    document.title = manifest.title;
    root.replaceChildren();
    preact.render(html`<${Frame} />`, root);
  }).catch((error) => {
    root.textContent = `The explorer's folder is not whole: ${error.message}`;
  });
})();
