"use strict";
(() => {
  const { html } = infoscope;

  infoscope.LatentPage = ({ view, shown }) => html`<p>${view.title}</p>`;
})();
