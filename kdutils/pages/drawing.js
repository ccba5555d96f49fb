// The drawing kit of every page that moves: axes, lines, bars, heat maps, labelled controls, words for screen readers.
// A plain script: `kdDraw` is all that it leaves. The explorers have it before them in one module; the playground loads it.
const kdDraw = (() => {
const DRAWN = new Set(["svg", "g", "path", "line", "rect", "circle", "text"]);

/** An element with attributes, listeners (functions) and children; nothing is made of null. */
function make(tag, attributes = {}, ...children) {
  const e = DRAWN.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") e.addEventListener(name, value);
    else if (value != null && value !== false) e.setAttribute(name, value === true ? "" : value);
  }
  e.append(...children.filter((child) => child != null));
  return e;
}

const whole = (v) => Math.round(v).toLocaleString("en");
const short = (v) => (v >= 1e6 ? `${+(v / 1e6).toPrecision(3)}M` : v >= 1e3 ? `${+(v / 1e3).toPrecision(3)}k` : `${+v.toPrecision(3)}`);
const percent = (v) => `${Math.round(100 * v)}\u00a0%`;
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const largest = (values) => values.flat(Infinity).reduce((a, b) => Math.max(a, b), 0);
const paint = (look) => ({ class: "kd-ink", style: `--c:${look.colour}` });
const dashes = (look, width) => look.dash.map((d) => d * width).join(" ") || null;

function ticks(low, high, count, log) {
  if (log) {
    const powers = [...Array(12).keys()].flatMap((p) => [1, 2, 5].map((m) => m * 10 ** p));
    return powers.filter((v) => v >= low && v <= high);
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return [...Array(Math.floor(high / step + 1e-9) - first + 1).keys()].map((i) => +((first + i) * step).toPrecision(12));
}

/** Axes that fill their column. `show(marks, heading, description)` draws; marks are functions of the two scales. */
function chart({ x, y, xlabel, ylabel, height = 190, log = false, named = null }) {
  const heading = make("div", { class: "kd-heading" }), svg = make("svg", { role: "img" });
  const host = make("div", { class: "kd-chart" }, heading, svg);
  const full = height;
  let marks = [];
  const draw = () => {
    const width = Math.max(host.clientWidth, 120), [left, right, top, bottom] = [46, 12, 8, 38];
    height = width < 340 ? 0.8 * full : full; // a phone
    const lift = log ? Math.log10 : (v) => v;
    const sx = (v) => left + ((v - x[0]) / (x[1] - x[0])) * (width - left - right);
    const sy = (v) => height - bottom - ((lift(v) - lift(y[0])) / (lift(y[1]) - lift(y[0]))) * (height - top - bottom);
    const text = (label, px, py, anchor, more = {}) => make("text", { x: px, y: py, "text-anchor": anchor, ...more }, label);
    const across = named ?? ticks(x[0], x[1], width / 70, false).map((v) => [v, short(v)]);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.replaceChildren(
      ...ticks(y[0], y[1], (height - bottom) / 36, log).flatMap((v) => [
        make("line", { class: "kd-grid", x1: left, x2: width - right, y1: sy(v), y2: sy(v) }),
        text(short(v), left - 6, sy(v) + 4, "end"),
      ]),
      ...across.map(([v, label]) => text(label, sx(v), height - bottom + 16, "middle")),
      text(xlabel, (left + width - right) / 2, height - 5, "middle", { class: "kd-axis" }),
      text(ylabel, 11, (height - bottom + top) / 2, "middle", { class: "kd-axis", transform: `rotate(-90 11 ${(height - bottom + top) / 2})` }),
      ...marks.flatMap((mark) => mark({ sx, sy, floor: height - bottom, top, left, end: width - right })),
    );
  };
  new ResizeObserver(draw).observe(host);
  const show = (drawn, title, description) => {
    marks = drawn;
    heading.replaceChildren(...title);
    svg.setAttribute("aria-label", description);
    draw();
  };
  return { host, show };
}

const line = (x, y, look, width = 2.2, opacity = 1) => ({ sx, sy }) =>
  make("path", { ...paint(look), d: "M" + x.map((v, i) => `${sx(v).toFixed(1)},${sy(y[i]).toFixed(1)}`).join("L"),
    fill: "none", "stroke-width": width, "stroke-dasharray": dashes(look, width), opacity });
const band = (x, low, high, look) => ({ sx, sy }) => {
  const edge = (ys) => x.map((v, i) => `${sx(v).toFixed(1)},${sy(ys[i]).toFixed(1)}`);
  return make("path", { ...paint(look), class: "kd-ink kd-band", d: `M${[...edge(high), ...edge(low).reverse()].join("L")}Z` });
};
const rule = (x) => ({ sx, floor, top }) => make("line", { class: "kd-rule", x1: sx(x), x2: sx(x), y1: top, y2: floor });
const level = (y) => ({ sy, left, end }) => make("line", { class: "kd-rule", x1: left, x2: end, y1: sy(y), y2: sy(y) });
const dot = (x, y, look, radius = 5, opacity = 1) => ({ sx, sy }) =>
  make("circle", { ...paint(look), class: "kd-ink kd-dot", cx: sx(x), cy: sy(y), r: radius, opacity });

/** One bar a bit; the support has its own colour and a mark below the axis; the grey strip is sampling noise. */
const bars = (values, data, noise) => ({ sx, sy, floor, left, end }) => [
  noise ? make("rect", { class: "kd-noise", x: left, width: end - left, y: sy(noise), height: floor - sy(noise) }) : null,
  ...values.map((value, bit) => {
    const on = data.support.includes(bit), wide = (sx(1) - sx(0)) * 0.76;
    const look = { class: "kd-ink kd-bar", style: `--c:${on ? data.colours.on : data.colours.off}`, "data-on": on || null };
    return make("rect", { ...look, x: sx(bit) - wide / 2, width: wide, y: sy(value), height: Math.max(0, floor - sy(value)) });
  }),
  ...data.support.map((bit) => make("rect", { class: "kd-mark", x: sx(bit - 0.38), width: sx(bit + 0.38) - sx(bit - 0.38), y: floor + 1, height: 3 })),
].filter(Boolean);

function select(label, names, chosen, changed) {
  const options = names.map((name, i) => make("option", { value: i, selected: i === chosen }, name));
  const list = make("select", { change: () => changed(+list.value) }, ...options);
  return { host: make("label", { class: "kd-field" }, make("span", {}, label), list), list };
}

function slider(label, last, at, said, moved) {
  const now = make("span", { class: "kd-now", "aria-hidden": "true" });
  const input = make("input", { type: "range", min: 0, max: last, step: 1, value: at });
  const told = () => {
    now.textContent = said(+input.value);
    input.setAttribute("aria-valuetext", now.textContent);
  };
  input.addEventListener("input", () => (told(), moved()));
  told();
  return { host: make("label", { class: "kd-field kd-slide" }, make("span", {}, label, " ", now), input), input, told };
}

/** A swatch with words: a line `width` thick, or a block. */
const key = (look, words, width = 2.4) => {
  const drawn = width
    ? make("line", { ...paint(look), x1: 1, x2: 27, y1: 6, y2: 6, "stroke-width": width, "stroke-dasharray": dashes(look, width) })
    : make("rect", { ...paint(look), class: "kd-ink kd-bar", x: 0, y: 0, width: 12, height: 12 });
  return make("span", { class: "kd-key" }, make("svg", { style: `width: ${width ? 28 : 12}px`, height: 12, "aria-hidden": "true" }, drawn), words);
};
const bitKeys = (data) => [["on", "on the support"], ["off", "off the support"]].map(([side, words]) => key({ colour: data.colours[side], dash: [] }, words, 0));
const strong = (words) => make("strong", {}, words);

/** What is shown in words, for everybody and for screen readers; it waits until the controls rest. */
function status() {
  const host = make("p", { role: "status", class: "kd-status" });
  let timer;
  const write = (sentences) => host.replaceChildren(...sentences.map((words) => make("span", {}, words)));
  return { host, say: (...sentences) => (clearTimeout(timer), (timer = setTimeout(write, 250, sentences))) };
}

const sides = (values, support) => {
  const [on, off] = [true, false].map((side) => mean(values.filter((_, bit) => support.includes(bit) === side)));
  return { on, off, ratio: on / off };
};
const bitAxes = (data, high, ylabel, height = 160) => chart({ x: [-0.7, data.bits - 0.3], y: [0, high * 1.05], xlabel: "bit", ylabel, height });
/** Axes for curves of accuracy: `runs` hold all that will be drawn, and one may lie below one half. */
const accuracy = (runs, height = 210) => {
  const low = Math.min(0.4, ...runs.flatMap((run) => run.y ?? run.curves.flat()));
  const end = largest(runs.map((run) => run.x));
  return chart({ x: [0, end], y: [Math.floor(10 * low) / 10, 1.02], xlabel: "training samples", ylabel: "held-out accuracy", height });
};

/** Cells of a table (rows, columns): the larger a number is, whatever its sign, the more ink; below it, the scale. `show(values, high, words)` draws. */
function heat({ rows, columns, support, xlabel, ylabel }) {
  const heading = make("div", { class: "kd-heading" }), canvas = make("canvas", { role: "img", width: columns, height: rows });
  const marks = make("div", { class: "kd-under", style: `grid-template-columns: repeat(${columns}, 1fr)`, "aria-hidden": "true" });
  marks.append(...[...Array(columns).keys()].map((bit) => make("span", { class: support.includes(bit) ? "kd-on" : null })));
  const names = make("div", { class: "kd-across", "aria-hidden": "true" }, xlabel);
  const most = make("span", {}), scale = make("div", { class: "kd-scale", "aria-hidden": "true" }, "size 0", make("span", { class: "kd-ramp" }), most);
  const host = make("div", { class: "kd-heat" }, heading, make("div", { class: "kd-up", "aria-hidden": "true" }, make("span", {}, ylabel)), canvas, marks, names, scale);
  const pen = canvas.getContext("2d"), image = pen.createImageData(columns, rows);
  const show = (values, high, title, description) => {
    values.forEach((value, i) => {
      image.data.set([0, 0, 0, 255 * Math.min(1, Math.abs(value) / high)], 4 * i);
    });
    pen.putImageData(image, 0, 0);
    most.textContent = +high.toPrecision(2);
    heading.replaceChildren(...title);
    canvas.setAttribute("aria-label", description);
  };
  return { host, show };
}

return {
  make, whole, short, percent, mean, largest, paint, ticks, chart, line, band, rule, level, dot, bars, select,
  slider, key, bitKeys, strong, status, sides, bitAxes, accuracy, heat,
};
})();
