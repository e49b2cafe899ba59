"use strict";
// What is shown, in one store (zustand), and in the address, so that a view can be sent to others and gone back to.
(() => {
  const DEFAULTS = {
    page: "overview", // overview, latent, image, compare
    view: "", // id of the view; "": the first
    other: "", // id of the second view, side by side
    latent: 0,
    set: "", image: 0, // of the image page
    patches: "", // chosen patches of it: "row,column" or "row,column-row,column"
    side: "1", // which crop of it
    off: "", // what it is predicted without: "group high", "latent 17"; "": nothing
    filter: "", sort: "", columns: "", selected: "", // of the table; sort "": by what the groups divide
    x: "", y: "", xScale: "", yScale: "", // of the scatter: columns; log, linear or what suits them
    brush: "", box: "", // ranges that are chosen in the histogram ("0.1,0.2") and the scatter (x, x, y, y)
    gamma: "", otherGamma: "", // thresholds side by side; "": the view's own groups
    minimal: "", order: "-match", pair: "", // side by side: least match, order of the list, opened latents "3-17"
    opacity: "0.6", maps: "raw", flow: "on", // of pictures: maps over them; raw or normalised; what moves between crops
    large: "", // "on": larger pictures
  };
  const PATH = ["page", "latent", "set", "image"]; // of these is the path of an address, of all else its query
  const KNOWN = "known"; // marks entries of the history that were shown before
  const store = zustandVanilla.createStore(() => ({ ...DEFAULTS }));

  const decode = (part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part; // an address that was cut off within a letter
    }
  };

  /** A whole number of the address; what is none stays the text that it is, of which the page says that it is none. */
  const toWhole = (part = "") => (/^\d*$/.test(part) ? Number(part) : part);

  const read = () => {
    const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
    const found = { ...DEFAULTS };
    const [page, ...parts] = path.split("/").map(decode);
    if (page) found.page = page;
    if (page === "latent") found.latent = toWhole(parts[0]);
    if (page === "image") [found.set, found.image] = [parts[0] ?? "", toWhole(parts[1])];
    for (const [key, value] of new URLSearchParams(query ?? "")) {
      if (Object.hasOwn(DEFAULTS, key) && !PATH.includes(key)) found[key] = value;
    }
    return found;
  };

  const write = (state) => {
    const parts = { latent: [state.latent], image: [state.set, state.image] }[state.page] ?? [];
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) {
      if (!PATH.includes(key) && value !== DEFAULTS[key]) query.set(key, value);
    }
    const path = [state.page, ...parts].map(encodeURIComponent).join("/");
    return `#/${path}${query.size ? "?" + query : ""}`;
  };

  // what is shown after some changes; what is chosen of an SAE's latents is not of another's
  const change = (changes) => {
    const state = store.getState(), before = infoscope.view(), after = infoscope.view(changes.view ?? state.view);
    const isAlike = infoscope.divided(before).name === infoscope.divided(after).name;
    return { ...state, ...(before === after ? {} : { selected: "", box: "", off: "", pair: "" }),
      ...(isAlike ? {} : { brush: "" }), ...changes };
  };

  /** Return what is shown. */
  infoscope.state = () => store.getState();

  // at once: a scroll that takes time ends where the page before had its end
  const showBeginning = () => window.scrollTo({ top: 0, behavior: "instant" });

  /** Change what is shown: a new entry of the history, or (`isSmall`) a change of the present one. */
  infoscope.go = (changes, isSmall = false) => {
    const state = change(changes);
    history[isSmall ? "replaceState" : "pushState"](KNOWN, "", write(state));
    store.setState(state, true);
    if (!isSmall && changes.page) showBeginning();
  };

  /** The address of what would be shown after some changes, for links. */
  infoscope.address = (changes) => write(change(changes));

  /** A hook: what is shown, anew whenever it changes. */
  infoscope.useShown = () => {
    const [state, set] = infoscope.useState(store.getState());
    infoscope.useEffect(() => store.subscribe(set), []);
    return state;
  };

  /** Return the view of an id, by default the one that is shown; the first where there is none. */
  infoscope.view = (id = store.getState().view) =>
    infoscope.manifest.views.find((view) => view.id === id) ?? infoscope.manifest.views[0];

  const CDS = { name: "cds", words: "CDS", below: "low", above: "high" };

  /** What the groups of a view divide: {name: its column, words, below and above: the groups up to and above gamma}. */
  infoscope.divided = (view) => view.groups?.by ?? CDS;

  // comes for links too, for addresses differ behind their # alone; what a link opens is shown from its beginning
  window.addEventListener("popstate", ({ state: mark }) => {
    const before = store.getState(), now = read();
    store.setState(now, true);
    if (mark === KNOWN) return; // back or forward
    history.replaceState(KNOWN, "");
    if (PATH.some((key) => now[key] !== before[key])) showBeginning();
  });
  history.replaceState(KNOWN, "");
  store.setState(read(), true);
})();
