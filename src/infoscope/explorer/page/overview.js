"use strict";
(() => {
  const { html } = infoscope;

  infoscope.Overview = ({ view, shown }) => html`<p>${view.title}</p>`;
})();
