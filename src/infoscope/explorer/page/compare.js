"use strict";
(() => {
  const { html } = infoscope;

  infoscope.ComparePage = ({ view, shown }) => html`<p>${view.title}</p>`;
})();
