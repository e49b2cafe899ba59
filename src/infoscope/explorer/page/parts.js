"use strict";
// What pages are made of: what is loading, failed, was not measured or is too wide; sections; the mark of a group.
(() => {
  const { html, useEffect, useRef, useState } = infoscope;

  /** Loading({what}): keeps room for what is loading, and says so when that takes more than a moment. */
  infoscope.Loading = ({ what }) => html`
    <div class="loading"><p role="status">${what} is loading ...</p></div>`;

  /** Guard({what, of, children}): what was to be shown, or that it failed and why, until `of` is something else. */
  infoscope.Guard = ({ what, of, children }) => {
    const [error, tryAgain] = preactHooks.useErrorBoundary(console.error);
    useEffect(() => {
      if (error) tryAgain();
    }, [of]);
    if (!error) return children;
    return html`<p class="warning" role="alert">${what} failed (${error.message}): the folder is damaged or of another
      version, or the address is none of this explorer. <a href="#/overview">The overview</a>.</p>`;
  };

  /** Wide({label, children}): what may be wider or longer than its place: scrolled by keys too, then. */
  infoscope.Wide = ({ label, children }) => {
    const element = useRef(null), [isCut, setCut] = useState(false);
    useEffect(() => {
      const box = element.current;
      const see = () => setCut(box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1);
      const watcher = new ResizeObserver(see);
      for (const one of [box, ...box.children]) watcher.observe(one);
      return () => watcher.disconnect();
    }, []);
    const scrolled = isCut ? { tabindex: 0, role: "group", "aria-label": label } : {};
    return html`<div class="wide" ref=${element} ...${scrolled}>${children}</div>`;
  };

  /** Section({id, title, children}): a part of the page under its heading; where it fails, the others stay. */
  infoscope.Section = ({ id, title, children }) => html`<section aria-labelledby=${id}><h3 id=${id}>${title}</h3>
    <${infoscope.Guard} what="This part">${children}</${infoscope.Guard}></section>`;

  /** Absent({what, how}): what was not measured, and the command that measures it before that of the explorer. */
  infoscope.Absent = ({ what, how = "" }) => html`<p class="absent">${what} not measured: run${" "}
    ${how && html`<code>${how}</code>, then `}<code>infoscope stage=explore</code>${how ? "" : " again"}.</p>`;

  /** GroupMark({view, group}): its colour and its name. */
  infoscope.GroupMark = ({ view, group }) => group && html`<span class="group"><span class="swatch" aria-hidden="true"
    style=${{ background: infoscope.groupColour(group, view.groups?.names) }}></span>${group}</span>`;
})();
