"use strict";
// The language of filters, as in `cds > 0.1 & rate < 0.01 & !undecided`: words, a tree, a mask of all latents.
(() => {
  const SHORT = {
    rate: ["firing_rate"],
    frequency: ["firing_rate"],
    entropy: ["label_entropy"],
    corrected: ["cds_minus_chance"],
    monosemanticity: ["ms"],
    outlier: ["outlier_share", "outlier_ratio", "on_outlier"],
    scope: ["cds"],
  };
  const WORD = /[\p{L}_][\p{L}\p{N}_.]*/uy,
    NUMBER = /[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?%?/iy;
  const SIGNS = ["<=", ">=", "==", "!=", "&&", "||", "<", ">", "=", "~", "&", "|", "!", "(", ")"];
  const SAME = { "==": "=", "&&": "&", "||": "|", and: "&", or: "|", not: "!" };
  const LONGEST = 4000,
    DEEPEST = 100; // letters, and parentheses within each other: what people write has fewer, and all of it is fast
  const COMPARISONS = ["<", "<=", ">", ">=", "=", "!=", "~"];

  /** Why a text is no filter: `message` is a sentence, `at` the place in the text, `length` how much of it is meant. */
  class FilterError extends Error {
    constructor(message, at, length) {
      super(message);
      Object.assign(this, { at, length });
    }
  }

  const split = (text) => {
    const words = [];
    if (text.length > LONGEST)
      throw new FilterError(`Expected at most ${LONGEST} letters, but there are ${text.length}.`, 0, 1);
    const match = (pattern, at) => {
      pattern.lastIndex = at;
      return pattern.exec(text)?.[0];
    };
    for (let at = 0; at < text.length;) {
      if (/\s/.test(text[at])) {
        at += 1;
        continue;
      }
      const quote = "\"'`".includes(text[at]) ? text[at] : null;
      let word;
      if (quote) {
        const end = text.indexOf(quote, at + 1);
        if (end < 0)
          throw new FilterError(`Expected ${quote} at the end of the text that begins here.`, at, text.length - at);
        word = { kind: quote === "`" ? "column" : "text", value: text.slice(at + 1, end), length: end + 1 - at };
      } else {
        const number = match(NUMBER, at),
          name = match(WORD, at),
          sign = SIGNS.find((one) => text.startsWith(one, at));
        if (number) {
          const size = Number.parseFloat(number) / (number.endsWith("%") ? 100 : 1);
          word = { kind: "number", value: size, length: number.length };
          const rest = match(WORD, at + number.length);
          if (rest)
            throw new FilterError(
              `Expected a number such as 0.01, 1e-3 or 5%, but found "${number + rest}".`,
              at,
              (number + rest).length,
            );
        } else if (name) {
          const isSign = ["and", "or", "not"].includes(name.toLowerCase());
          word = {
            kind: isSign ? "sign" : "column",
            value: isSign ? SAME[name.toLowerCase()] : name,
            length: name.length,
          };
        } else if (sign) {
          word = { kind: "sign", value: SAME[sign] ?? sign, length: sign.length };
        } else {
          throw new FilterError(
            `Expected a column, a number or one of ${SIGNS.join(" ")}, but found "${text[at]}".`,
            at,
            1,
          );
        }
      }
      words.push({ ...word, at, text: text.slice(at, at + word.length) });
      at += word.length;
    }
    return words;
  };

  /** Return the column that a word stands for: its name, a short name, or what alone begins like it. */
  const findColumn = (word, columns) => {
    const key = word.value.toLowerCase();
    const named = columns.filter((one) => one.name.toLowerCase() === key);
    if (named.length) return named.find((one) => one.name === word.value) ?? named[0];
    for (const name of Object.hasOwn(SHORT, key) ? SHORT[key] : []) {
      const found = columns.find((one) => one.name === name);
      if (found) return found;
    }
    const begin = columns.filter((one) => one.name.toLowerCase().startsWith(key));
    if (begin.length === 1) return begin[0];
    const list = (some) =>
      some
        .slice(0, 5)
        .map((one) => one.name)
        .join(", ") + (some.length > 5 ? ", ..." : "");
    if (begin.length) {
      throw new FilterError(`Expected one column, but "${word.value}" could be ${list(begin)}.`, word.at, word.length);
    }
    const near = columns.filter((one) => one.name.toLowerCase().includes(key));
    throw new FilterError(
      `Expected a column, but there is none called "${word.value}"` +
        `${near.length ? `: did you mean ${list(near)}?` : ": the names are those under Columns."}`,
      word.at,
      word.length,
    );
  };

  // Masks: one byte for each latent. A comparison with a value that is not known is false.
  const compareNumbers = (n, left, sign, right) => {
    const mask = new Uint8Array(n),
      isOne = typeof right === "number";
    const a = left,
      b = isOne ? null : right;
    switch (sign) {
      case "<":
        for (let i = 0; i < n; i++) mask[i] = a[i] < (isOne ? right : b[i]) ? 1 : 0;
        break;
      case "<=":
        for (let i = 0; i < n; i++) mask[i] = a[i] <= (isOne ? right : b[i]) ? 1 : 0;
        break;
      case ">":
        for (let i = 0; i < n; i++) mask[i] = a[i] > (isOne ? right : b[i]) ? 1 : 0;
        break;
      case ">=":
        for (let i = 0; i < n; i++) mask[i] = a[i] >= (isOne ? right : b[i]) ? 1 : 0;
        break;
      case "=":
        for (let i = 0; i < n; i++) mask[i] = a[i] === (isOne ? right : b[i]) ? 1 : 0;
        break;
      default:
        for (let i = 0; i < n; i++) {
          const x = a[i],
            y = isOne ? right : b[i];
          mask[i] = x < y || x > y ? 1 : 0;
        }
    }
    return mask;
  };
  const markTexts = (n, column, test) => {
    const of = Uint8Array.from(column.texts, (text) => (text !== "" && test(text) ? 1 : 0));
    const mask = new Uint8Array(n);
    for (let i = 0; i < n; i++) mask[i] = of[column.values[i]];
    return mask;
  };
  const markKnown = (n, column) => {
    if (column.texts) return markTexts(n, column, () => true);
    const mask = new Uint8Array(n);
    for (let i = 0; i < n; i++) mask[i] = Number.isNaN(column.values[i]) ? 0 : 1;
    return mask;
  };
  const combine = (a, b, isAnd) => {
    for (let i = 0; i < a.length; i++) a[i] = isAnd ? a[i] & b[i] : a[i] | b[i];
    return a;
  };

  class Parser {
    constructor(text, columns) {
      Object.assign(this, { text, columns, words: split(text), place: 0, depth: 0, needs: new Set() });
    }

    get next() {
      return this.words[this.place];
    }

    take(...signs) {
      const { next } = this;
      if (next?.kind !== "sign" || !signs.includes(next.value)) return null;
      this.place += 1;
      return next;
    }

    fail(expected, word = this.next) {
      const before = this.words[this.words.indexOf(word ?? null) - 1] ?? (word ? null : this.words.at(-1));
      const after = before ? ` after "${before.text}"` : "";
      const found = word ? `found "${word.text}"` : "the filter ends";
      throw new FilterError(
        `Expected ${expected}${after}, but ${found}.`,
        word?.at ?? this.text.length,
        word?.length ?? 1,
      );
    }

    column(word) {
      const found = findColumn(word, this.columns);
      if (found.name !== "latent") this.needs.add(found.name);
      return found;
    }

    parse() {
      const found = this.either();
      if (this.next) this.fail("& or | or the end");
      return found;
    }

    either() {
      let left = this.both();
      while (this.take("|")) {
        const a = left,
          b = this.both();
        left = (data, n) => combine(a(data, n), b(data, n), false);
      }
      return left;
    }

    both() {
      let left = this.single();
      while (this.take("&")) {
        const a = left,
          b = this.single();
        left = (data, n) => combine(a(data, n), b(data, n), true);
      }
      return left;
    }

    single() {
      if (this.depth === DEEPEST) this.fail(`at most ${DEEPEST} of ! and ( within each other`);
      this.depth += 1;
      const found = this.negation() ?? this.parentheses() ?? this.comparison();
      this.depth -= 1;
      return found;
    }

    negation() {
      if (!this.take("!")) return null;
      const of = this.single();
      return (data, n) => of(data, n).map((one) => 1 - one);
    }

    parentheses() {
      if (!this.take("(")) return null;
      const found = this.either();
      if (!this.take(")")) this.fail(")");
      return found;
    }

    comparison() {
      const word = this.next;
      if (!word || word.kind === "sign") this.fail("a column, a number, ! or (");
      this.place += 1;
      if (word.kind === "column" && word.value.toLowerCase() === "known" && this.take("(")) return this.known();
      if (word.kind === "text") this.fail("a column or a number (texts stand on the right)", word);
      const left = word.kind === "column" ? this.column(word) : word.value;
      const sign = this.take(...COMPARISONS)?.value;
      if (!sign) {
        if (left.kind === "switch") {
          const { name } = left;
          return (data, n) => compareNumbers(n, data.get(name).values, "=", 1);
        }
        this.fail(`one of ${COMPARISONS.join(" ")}`);
      }
      return left.kind === "text" ? this.texts(left, sign) : this.numbers(left, sign, word);
    }

    known() {
      const word = this.next;
      if (word?.kind !== "column") this.fail("a column");
      this.place += 1;
      const { name } = this.column(word);
      if (!this.take(")")) this.fail(")");
      return (data, n) => markKnown(n, data.get(name));
    }

    texts(column, sign) {
      const word = this.next;
      if (!["=", "!=", "~"].includes(sign)) {
        this.fail(`=, != or ~ (contains), for ${column.name} holds text,`, this.words[this.place - 1]);
      }
      if (!word || word.kind === "sign") this.fail("a text in quotes");
      this.place += 1;
      const value = word.kind === "number" ? word.text : word.value,
        lower = value.toLowerCase();
      const test = {
        "=": (text) => text === value,
        "!=": (text) => text !== value,
        "~": (text) => text.toLowerCase().includes(lower),
      }[sign];
      return (data, n) => markTexts(n, data.get(column.name), test);
    }

    numbers(left, sign, leftWord) {
      const word = this.next;
      if (sign === "~") this.fail("<, <=, >, >=, = or !=, for numbers contain no text,", this.words[this.place - 1]);
      if (word?.kind !== "number" && word?.kind !== "column") this.fail("a number or a column of numbers");
      this.place += 1;
      const isTruth = left.kind === "switch" && ["true", "false"].includes(String(word.value).toLowerCase());
      const right = isTruth
        ? Number(word.value.toLowerCase() === "true")
        : word.kind === "number"
          ? word.value
          : this.column(word);
      if (right.kind === "text") this.fail(`a number or a column of numbers, for ${right.name} holds text,`, word);
      if (typeof left === "number" && typeof right === "number") this.fail("a column on one side", leftWord);
      const values = (data, side) => (typeof side === "number" ? side : data.get(side.name).values);
      if (typeof left === "number") {
        const turned = { "<": ">", "<=": ">=", ">": "<", ">=": "<=" }[sign] ?? sign;
        return (data, n) => compareNumbers(n, values(data, right), turned, left);
      }
      return (data, n) => compareNumbers(n, values(data, left), sign, values(data, right));
    }
  }

  /**
   * Return a filter: {needs: names of the columns that it reads, mask(data, n): one byte for each of n latents};
   * `data`: Map from names to columns, with "latent". An empty text lets all pass.
   * Throws an error with {message, at, length}.
   */
  infoscope.parseFilter = (text, columns) => {
    if (!text.trim()) return { needs: [], mask: (data, n) => new Uint8Array(n).fill(1) };
    const all = columns.some((one) => one.name === "latent")
      ? columns
      : [{ name: "latent", kind: "number" }, ...columns];
    const parser = new Parser(text, all),
      mask = parser.parse();
    return { needs: [...parser.needs], mask };
  };
})();
