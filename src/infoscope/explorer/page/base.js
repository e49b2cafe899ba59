"use strict";
// The one global name of the page, and what every part of it uses: markup, numbers in words.
// Markup is made by htm and preact, which set text as text: nothing that comes from data is ever parsed as HTML.
const infoscope = {
  html: htm.bind(preact.h),
  useState: preactHooks.useState,
  useEffect: preactHooks.useEffect,
  useLayoutEffect: preactHooks.useLayoutEffect,
  useMemo: preactHooks.useMemo,
  useRef: preactHooks.useRef,

  /** A value as people read it: numbers with three significant digits, thousands apart; "" where there is none. */
  show(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size < 1e-13) return "0"; // what rounding left of a difference
    return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 1);
  },

  /** The same words with a capital first, for headings and sentences. */
  capitalise(words) {
    return words[0].toUpperCase() + words.slice(1);
  },

  /** "1 image", "2 images". */
  count(n, one, many = one + "s") {
    return n.toLocaleString("en-US") + " " + (n === 1 ? one : many);
  },
};
