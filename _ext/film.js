// The front page's film, drawn with the kit of drawing.js. Its still stands in for it on paper and without scripts.
const { make, whole, short, percent, mean, ticks, chart, line, rule, level, dot, slider, key, strong, status } = kdDraw;

const FRAME = 110; // ms: all of it in about five seconds

/** Colours of the levels, [red, green, blue, alpha] each: dark, then the arm's own colour, then white. */
function ramp(dark, colour, count) {
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const stops = [dark, colour, "#ffffff"].map(parts);
  return [...Array(count).keys()].map((level) => {
    const at = (2 * level) / (count - 1), i = Math.min(1, Math.floor(at));
    return [...stops[i].map((v, c) => Math.round(v + (at - i) * (stops[i + 1][c] - v))), 255];
  });
}

/** One student: its name, its accuracy now, its weights; `show(frame)` draws. */
function heatMap(arm, data) {
  const { d, k, student_width: neurons } = data.setting, levels = new Map([...data.levels].map((sign, i) => [sign, i]));
  const canvas = make("canvas", { width: neurons, height: d, role: "img" }), now = make("span", { class: "kd-now" });
  const pixels = canvas.getContext("2d"), image = pixels.createImageData(neurons, d);
  const colours = ramp(data.dark, arm.colour, data.levels.length), inside = (bit) => data.support.includes(bit);
  const host = make("div", { class: "kd-map-of-weights" }, make("p", {}, key(arm, arm.name)), make("p", {}, now, " right"),
    make("div", { class: "kd-pixels", style: `--support: ${(100 * k) / d}%` }, canvas));
  const show = (frame) => {
    const found = [...arm.frames[frame]].map((sign) => levels.get(sign));
    found.forEach((level, i) => image.data.set(colours[level], 4 * i));
    pixels.putImageData(image, 0, 0);
    const size = (side) => mean(found.filter((_, i) => inside(Math.floor(i / neurons)) === side).map((level) => level ** 2)); // a level is a root
    now.textContent = percent(arm.accuracy[frame]);
    canvas.setAttribute("aria-label", `${arm.name}: weights on the support ${(size(true) / size(false)).toFixed(1)} times those off it, on average.`);
  };
  return { host, show };
}

function film(data, figure) {
  const { d, k, batch, student_width: neurons, teacher_width: wide } = data.setting, last = data.steps.length - 1;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const arms = data.arms, maps = arms.map((arm) => heatMap(arm, data));
  const samples = data.steps.map((step) => step * batch), begin = samples[1] / 1.15; // the start has no place on this axis
  const x = samples.map((n) => Math.log10(Math.max(n, begin)));
  const curve = chart({ x: [x[0], x[last]], y: [0.4, 1.02], xlabel: "training samples", ylabel: "held-out accuracy", height: 190,
    named: ticks(begin, samples[last], 0, true).map((n) => [Math.log10(n), short(n)]) });
  const words = status(); // to be heard: the eye has it from the maps and the slider, which go on while the film plays
  words.host.classList.add("visually-hidden");
  const scrub = slider("Training so far:", last, still ? data.still : 0, (i) => `${whole(samples[i])} samples`, () => (stop(), draw()));
  const play = make("button", { type: "button", click: () => (timer ? stop() : start()) }, "Play");
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const start = () => {
    if (+scrub.input.value === last) move(0);
    play.textContent = "Pause";
    timer = setInterval(() => { move(+scrub.input.value + 1); if (+scrub.input.value === last) stop(); }, FRAME);
  };
  const move = (frame) => { scrub.input.value = frame; scrub.told(); draw(); };
  const draw = () => {
    const frame = +scrub.input.value;
    maps.forEach((map) => map.show(frame));
    curve.show(
      [level(data.threshold), rule(x[frame]), ...arms.map((arm) => line(x, arm.accuracy, arm, 1.4, 0.35)),
        ...arms.flatMap((arm) => [line(x.slice(0, frame + 1), arm.accuracy.slice(0, frame + 1), arm), dot(x[frame], arm.accuracy[frame], arm, 4)])],
      [strong("Accuracy"), ", chance is one half"], "Held-out accuracy of the four students against training samples.");
    words.say(`After ${whole(samples[frame])} samples: ${arms.map((arm) => `${arm.name} ${percent(arm.accuracy[frame])}`).join(", ")}.`);
  };
  const host = make("section", { class: "kd-live", "aria-label": "Film of four students" },
    make("div", { class: "kd-maps" }, ...maps.map((map) => map.host)),
    make("div", { class: "kd-controls" }, play, scrub.host), curve.host,
    make("p", {}, `${d} bits, of which ${k} matter (the bar at their side); student ${neurons} neurons, teacher ${whole(wide)}; learning rates ${arms.map((arm) => arm.rate).join(", ")}.`), words.host);
  figure.classList.add("kd-alive");
  figure.insertBefore(host, figure.querySelector("figcaption"));
  draw();
  if (still) return;
  const seen = new IntersectionObserver(([{ isIntersecting }]) => { if (isIntersecting) { seen.disconnect(); if (scrub.input.value === "0") start(); } }, { threshold: 0.4 });
  seen.observe(host);
}

function showFilm() {
  const figure = document.querySelector("figure.kd-film");
  if (figure && globalThis.kdFilm) film(globalThis.kdFilm, figure);
}
