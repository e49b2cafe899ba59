"use strict";
// Files that the page makes: the table as csv, chosen latents as a picture. Nothing is sent anywhere.
(() => {
  const ROWS = 1000; // of a table, that are written at once
  const PAIRS = 4,
    SIDE = 112,
    GAP = 8,
    LEFT = 190,
    TOP = 44; // of the picture, in pixels

  /** Latents that one picture shows at most. */
  infoscope.MOST_DRAWN = 50;

  /** Offer a blob to be saved under a name. */
  infoscope.save = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };

  /** A word that may stand in a file's name. */
  infoscope.fileName = (text) => text.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 80) || "latents";

  // texts are data of strangers: a spreadsheet would compute one that begins like a formula (OWASP, CSV injection)
  const quote = (text) => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  const toCell = (column, kind, latent) => {
    const value = column.values[latent];
    if (column.texts) return quote(column.texts[value]);
    if (kind === "switch") return value ? "true" : "false";
    return Number.isNaN(value) ? "" : String(value);
  };

  /**
   * Return a promise of a csv (RFC 4180, a blob) of all columns of some latents, every number with all its digits. It
   * is made in parts, so that a large table never stands in memory as one text.
   */
  infoscope.makeCsv = async (view, latents) => {
    const columns = await Promise.all(view.columns.map(({ name }) => infoscope.column(view.id, name)));
    const toLine = (latent) =>
      [latent, ...columns.map((column, i) => toCell(column, view.columns[i].kind, latent))].join(",");
    const parts = [["latent", ...view.columns.map(({ name }) => quote(name))].join(",") + "\r\n"];
    for (let start = 0; start < latents.length; start += ROWS) {
      const lines = Array.from(latents.slice(start, start + ROWS), toLine);
      parts.push(new Blob([lines.join("\r\n") + "\r\n"]));
      await new Promise((resolve) => setTimeout(resolve)); // the page stays alive meanwhile
    }
    return new Blob(parts, { type: "text/csv;charset=utf-8" });
  };

  const loadPicture = async (set, image) => {
    try {
      const picture = new Image();
      picture.src = await infoscope.thumbnail(set, image);
      await picture.decode();
      return picture;
    } catch {
      return null;
    }
  };

  const drawCrop = (context, view, picture, crop, map, scale, x, y) => {
    const { left, top, share } = infoscope.cropPlace(view, crop);
    if (picture) {
      const { width, height } = picture;
      context.drawImage(picture, left * width, top * height, share * width, share * height, x, y, SIDE, SIDE);
    } else {
      context.fillStyle = "#9a9a9a";
      context.fillRect(x, y, SIDE, SIDE);
      context.fillStyle = "#222";
      context.fillText("missing", x + 30, y + SIDE / 2 + 4);
      return;
    }
    const canvas = document.createElement("canvas");
    infoscope.drawMap(canvas, map, view.grid, scale);
    context.globalAlpha = 0.6;
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, x, y, SIDE, SIDE);
    context.imageSmoothingEnabled = true;
    context.globalAlpha = 1;
  };

  const drawLatent = async (context, view, latent, words, y) => {
    context.fillStyle = "#222";
    context.font = "bold 15px system-ui, sans-serif";
    context.fillText(`latent ${latent}`, GAP, y + 18);
    context.font = "13px system-ui, sans-serif";
    words.forEach((line, i) => context.fillText(line, GAP, y + 38 + 18 * i, LEFT - 2 * GAP));
    const detail = await infoscope.latent(view, latent).catch(() => null),
      ranks = detail?.ranks;
    if (!ranks) {
      context.fillText("no pictures of it in this explorer", LEFT, y + 20);
      return;
    }
    const maps = ranks.maps ? infoscope.unpackMaps(ranks.maps) : [];
    for (let rank = 0, place = 0; rank < ranks.images.length && place < PAIRS; rank++) {
      if (ranks.images[rank] < 0) continue;
      const picture = await loadPicture(view.set, ranks.images[rank]);
      for (const crop of [1, 2]) {
        const x = LEFT + place * (2 * SIDE + 2 * GAP) + (crop - 1) * (SIDE + 2);
        drawCrop(context, view, picture, crop, maps[2 * rank + crop - 1], ranks.maps?.scale ?? 0, x, y);
      }
      place += 1;
    }
  };

  /**
   * Return a promise of a PNG (a blob) of latents, one below the other: what is known of each in words, and the crop
   * pairs of its first images with their maps. At most MOST_DRAWN latents.
   */
  infoscope.drawLatents = async (view, latents) => {
    const shown = [...latents].slice(0, infoscope.MOST_DRAWN),
      canvas = document.createElement("canvas"),
      row = SIDE + GAP;
    canvas.width = LEFT + PAIRS * (2 * SIDE + 2 * GAP);
    canvas.height = TOP + shown.length * row;
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#222";
    context.font = "bold 16px system-ui, sans-serif";
    context.fillText(`${infoscope.manifest.title}: ${view.title}`, GAP, 20, canvas.width - 2 * GAP);
    context.font = "13px system-ui, sans-serif";
    context.fillText(`Crop pairs, with its activation over them. ${infoscope.sayRanked(view)}.`, GAP, 37);
    const named = [infoscope.divided(view).name, "group", "firing_rate", "name"]
      .map((name) => view.columns.find((one) => one.name === name))
      .filter(Boolean);
    const columns = await Promise.all(named.map(({ name }) => infoscope.column(view.id, name)));
    for (const [i, latent] of shown.entries()) {
      const words = named.map((column, at) => {
        const text = infoscope.cellText(columns[at], column.kind, latent) || "not known";
        return column.kind === "text" ? text : `${infoscope.columnLabel(column)} ${text}`;
      });
      await drawLatent(context, view, latent, words, TOP + i * row);
    }
    return new Promise((resolve, reject) => {
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser made no picture."))), "image/png");
    });
  };
})();
