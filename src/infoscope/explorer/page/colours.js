"use strict";
// Colours that colour-blind readers tell apart: Okabe and Ito's for groups, viridis for activation.
(() => {
  const LOW = "#0072B2", HIGH = "#D55E00";
  const GROUPS = { low: LOW, middle: "#009E73", high: HIGH, undecided: "#7A7A7A", unscored: "#AAAAAA",
    narrow: LOW, wide: HIGH, narrower: LOW, wider: HIGH, "patch-driven": LOW, "context-driven": HIGH };
  const VIRIDIS = // of 64 steps, six digits each
    "44015446075a470d6047136548186a481d6f482374482878472d7b46327e453781443b844240864045883e49893d4e8a3a538b"
    + "38588c365c8d34608d32648e31688e2f6c8e2d708e2c738e2a778e297b8e277f8e26828e24868e238a8d218e8d20928c1f968b"
    + "1f9a8a1f9e891fa18721a58523a98326ad812ab07f2fb47c35b7793bbb7542be714ac16d52c5695ac86465cb5e6ece5877d153"
    + "81d34d8bd64695d840a0da39aadc32b5de2bc0df25cae11fd5e21adfe318eae51af4e61efde725";

  /** The colour of a group; bands run through viridis in their order. */
  infoscope.groupColour = (name, names = []) => {
    const bands = names.filter((one) => !Object.hasOwn(GROUPS, one));
    const place = bands.indexOf(name);
    if (Object.hasOwn(GROUPS, name)) return GROUPS[name];
    return heat(bands.length > 1 ? (0.9 * place) / (bands.length - 1) : 0.5);
  };

  /** Red, green and blue (0 to 255) of a value, 0 to 1. */
  infoscope.heatParts = (value) => {
    const place = 6 * Math.max(0, Math.min(63, Math.round(value * 63)));
    return [0, 2, 4].map((at) => Number.parseInt(VIRIDIS.slice(place + at, place + at + 2), 16));
  };

  const heat = (value) => `rgb(${infoscope.heatParts(value).join(" ")})`;

  /** All of the colours of activation, from left to right, as a CSS image. */
  infoscope.heatGradient = () =>
    `linear-gradient(to right, ${Array.from({ length: 17 }, (_, i) => heat(i / 16)).join(", ")})`;
})();
