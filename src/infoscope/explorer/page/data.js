"use strict";
// Data files are scripts that call infoscope.put(key, value); a page opened from the disk can load nothing else.
(() => {
  const arrays = {
    float64: Float64Array, float32: Float32Array, int32: Int32Array, uint32: Uint32Array, uint16: Uint16Array,
    uint8: Uint8Array,
  };
  const LARGE = /^(?!images\/)[^/]+\/(latents|images)\//; // up to 3 MB each: blocks of latents, browsed images
  const kept = { large: new Map(), small: new Map() }; // key -> promise of its value, the longest unused first
  const MOST_KEPT = { large: 24, small: 400 }; // that may be asked for again
  const waiting = new Map(); // key -> what takes the value that arrives

  infoscope.put = (key, value) => {
    const take = waiting.get(key);
    waiting.delete(key);
    if (take) take(value);
  };

  /** Return a promise of the value of `data/<key>.js`, which is loaded once. */
  infoscope.load = (key) => {
    const size = LARGE.test(key) ? "large" : "small", those = kept[size];
    if (those.has(key)) {
      const found = those.get(key);
      those.delete(key);
      those.set(key, found);
      return found;
    }
    const promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const fail = (why) => { waiting.delete(key); those.delete(key); reject(new Error(`data/${key}.js ${why}`)); };
      waiting.set(key, resolve);
      script.onload = () => { script.remove(); if (waiting.has(key)) fail("is damaged: write the explorer again."); };
      script.onerror = () => { script.remove(); fail("cannot be read: was the folder copied whole?"); };
      script.src = `data/${key.split("/").map(encodeURIComponent).join("/")}.js`;
      document.head.append(script);
    });
    those.set(key, promise);
    for (const old of those.keys()) {
      if (those.size <= MOST_KEPT[size]) break;
      if (!waiting.has(old)) those.delete(old); // what is on its way would be asked for twice, and come once
    }
    return promise;
  };

  /** Return a packed array as a typed array. */
  infoscope.unpack = (packed) => {
    const text = atob(packed.base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new arrays[packed.dtype](bytes.buffer);
  };

  /** Return packed maps as an array of {places: Uint16Array, values: Float32Array}, of the active patches of each. */
  infoscope.unpackMaps = (packed) => {
    const [counts, places, steps] = [packed.counts, packed.places, packed.values].map(infoscope.unpack);
    const values = Float32Array.from(steps, (step) => (step / 65535) * packed.scale);
    let start = 0;
    return Array.from(counts, (count) => {
      const found = { places: places.subarray(start, start + count), values: values.subarray(start, start + count) };
      start += count;
      return found;
    });
  };

  /** Return a promise of a column of a view: {values: typed array, texts: array or null, NaN or "" where unknown}. */
  const columns = new Map();
  infoscope.column = (view, name) => {
    const key = `${view}/columns/${name}`;
    if (!columns.has(key)) {
      const about = infoscope.manifest.views.find(({ id }) => id === view);
      columns.set(key, infoscope.load(key).then((found) => {
        const texts = found.texts ?? null, values = infoscope.unpack(texts ? found.codes : found);
        if (about && values.length !== about.d_sae)
          throw new Error(`data/${key}.js is damaged: it has ${values.length} of ${about.d_sae} values.`);
        return { values, texts };
      }));
      columns.get(key).catch(() => columns.delete(key)); // whoever asks again may find it mended
    }
    return columns.get(key);
  };

  /** Return a promise of all that is known of one latent beside its row of the table. */
  infoscope.latent = async (view, latent) => {
    const block = Math.floor(latent / view.block_size);
    const found = await infoscope.load(`${view.id}/latents/${block}`);
    return found[latent] ?? null;
  };

  /** Return a promise of what an image is called and its label: {id, label, is_missing}. */
  infoscope.imageName = async (set, image) => {
    const size = infoscope.manifest.sets[set].block_size;
    const found = await infoscope.load(`sets/${set}/names/${Math.floor(image / size)}`);
    return found[image] ?? { id: String(image), label: null, is_missing: true };
  };

  /**
   * Return a promise of the thumbnail of an image as a data: URL; each is there once, whoever shows it. It lies in a
   * script as all data do, for the pixels of an image file cannot be read by a page that was opened from the disk. One
   * that is known to be missing is not asked for, for the console would tell of each.
   */
  infoscope.thumbnail = async (set, image) => {
    if (infoscope.manifest.sets[set].n_missing > 0 && (await infoscope.imageName(set, image)).is_missing) {
      throw new Error(`Image ${image} is missing.`);
    }
    const pad = (n, digits) => String(n).padStart(digits, "0");
    return infoscope.load(`images/${set}/${pad(Math.floor(image / 1000), 4)}/${pad(image, 7)}`);
  };

  const NOTHING = { value: null, error: null };

  /**
   * A hook: {value, error} of a promise that `ask` returns, both null until it is kept. It is asked again when one of
   * `when` changes; what came for others before is never returned.
   */
  infoscope.useLoaded = (ask, when) => {
    const [found, set] = infoscope.useState(null);
    infoscope.useEffect(() => {
      let isCurrent = true;
      Promise.resolve().then(ask).then(
        (value) => isCurrent && set({ when, value, error: null }),
        (error) => isCurrent && set({ when, value: null, error: error.message }),
      );
      return () => { isCurrent = false; };
    }, when);
    return found?.when.every((one, i) => one === when[i]) ? found : NOTHING;
  };

  /** A hook: the columns of a view that there are among `names`, by name; null until they are loaded. */
  infoscope.useColumns = (view, names) => {
    const found = view.columns.filter((column) => names.includes(column.name));
    const load = async (column) => [column.name, { ...column, ...(await infoscope.column(view.id, column.name)) }];
    const ask = async () => Object.fromEntries(await Promise.all(found.map(load)));
    return infoscope.useLoaded(ask, [view.id, names.join()]).value;
  };

  /** What a column has of a latent: a number, a text or a switch; null where it is not known. */
  infoscope.valueOf = (column, latent) => {
    const value = column?.values[latent];
    if (value === undefined || Number.isNaN(value)) return null;
    if (column.texts) return column.texts[value] || null;
    return column.kind === "switch" ? value > 0 : value;
  };
})();
