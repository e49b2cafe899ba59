"use strict";
(() => {
  const { html } = infoscope;

  infoscope.ImagePage = ({ view, shown }) => html`<p>${view.title}</p>`;
})();
