// The four explorers: recorded runs, drawn with the kit of drawing.js, which stands before this in the widget's module.
// Each is given plain data and an element to fill. Nothing is fetched and nothing is computed but ratios.
const {
  make, whole, short, percent, largest, paint, chart, line, band, rule, level, dot, bars, select, slider, key,
  bitKeys, strong, status, sides, bitAxes, accuracy
} = kdDraw;

function player(data, el) {
  data.bits = data.arms[0].weights[0].length;
  const names = data.arms.map((arm) => arm.name), last = data.steps.length - 1, shown = [...data.start];
  const top = accuracy(data.arms);
  const [heavy, loud] = ["weights", "spectrum"].map((part) => largest(data.arms.map((arm) => arm[part])));
  const columns = [0, 1].map(() => ({ weights: bitAxes(data, heavy, "weight, r.m.s."), spectrum: bitAxes(data, loud, "|degree-1|") }));
  const words = status(), keys = make("p", { class: "kd-keys" });
  const lists = ["First arm", "Second arm"].map((label, i) => select(label, names, shown[i], (v) => ((shown[i] = v), draw())));
  const frames = data.arms[shown[0]].spectrum.map((values) => sides(values, data.support).on); // begin where it is loudest
  const scrub = slider("Step", last, frames.indexOf(Math.max(...frames)), (i) => `${whole(data.steps[i])} (${whole(data.steps[i] * data.batch)} samples)`, () => (stop(), draw()));
  const play = make("button", { type: "button", click: () => (timer ? stop() : start()) }, "Play");
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  const start = () => {
    if (+scrub.input.value === last) scrub.input.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => { scrub.input.value = +scrub.input.value + 1; scrub.told(); draw(); if (+scrub.input.value === last) stop(); }, 350);
  };
  const draw = () => {
    const frame = +scrub.input.value, step = data.steps[frame], arms = shown.map((i) => data.arms[i]), said = [];
    top.show(
      [rule(step * data.batch), ...arms.map((arm) => line(arm.x, arm.y, arm)), ...arms.map((arm) => dot(step * data.batch, arm.at[frame], arm))],
      [strong("The student's accuracy"), `, seed ${data.seed}`], `Held-out accuracy against training samples: ${arms.map((arm) => arm.name).join(" and ")}.`);
    keys.replaceChildren(...arms.map((arm) => key(arm, arm.name)), ...bitKeys(data));
    arms.forEach((arm, i) => {
      const stage = Math.max(0, arm.stages.findIndex(([, first, end]) => step <= end && (step > first || first === 0)));
      const w = sides(arm.weights[frame], data.support), c = sides(arm.spectrum[frame], data.support);
      const both = (part, s) => `${arm.name}: ${part} on the support ${s.on.toFixed(3)}, off it ${s.off.toFixed(3)}, on average.`;
      columns[i].weights.show([bars(arm.weights[frame], data)], [strong(`${arm.name}: `), "first-layer weights"], both("first-layer weights", w));
      columns[i].spectrum.show([bars(arm.spectrum[frame], data, data.noise)], [strong(`${arm.name}: `), "degree-1 spectrum of the output"], both("degree-1 coefficients", c));
      said.push(`${arm.name} (learning rate ${arm.rate}): stage ${stage + 1} of ${arm.stages.length}, ${arm.stages[stage][0].replaceAll("`", "")}; accuracy ${percent(arm.at[frame])}; ` +
        `weights on the support ${w.ratio.toFixed(1)} times those off it, coefficients ${c.ratio.toFixed(1)} times.`);
    });
    words.say(`Step ${whole(step)}.`, ...said);
  };
  const charts = ["weights", "spectrum"].flatMap((part) => columns.map((column) => column[part].host));
  el.append(make("div", { class: "kd-controls" }, ...lists.map((l) => l.host)), make("div", { class: "kd-controls" }, play, scrub.host),
    top.host, keys, make("div", { class: "kd-columns" }, ...charts), words.host);
  draw();
  return stop;
}

function picker(data, el) {
  data.bits = data.stops[0].spectrum.length;
  const { teacher, reference } = data, plain = { ...data.student, dash: [] }, words = status();
  const film = chart({ x: [0, teacher.x.at(-1)], y: [0.4, 1.02], xlabel: "teacher's step", ylabel: "accuracy", height: 160 });
  const spectrum = bitAxes(data, largest(data.stops.map((s) => s.spectrum)), "|degree-1|", 210), curve = accuracy([...data.stops, reference]);
  const pick = slider("Teacher checkpoint", data.stops.length - 1, data.start, (i) => `step ${whole(data.stops[i].step)}`, () => draw());
  const draw = () => {
    const now = data.stops[+pick.input.value], s = sides(now.spectrum, data.support);
    const marks = data.stops.map((stop) => dot(stop.step, stop.accuracy, teacher, stop === now ? 6 : 3.5, stop === now ? 1 : 0.55));
    film.show([rule(now.step), line(teacher.x, teacher.y, teacher, 1.8), ...marks], [strong("The teacher"), `, accuracy ${percent(now.accuracy)}`],
      `The teacher's accuracy along its training; at step ${whole(now.step)} it is ${percent(now.accuracy)}.`);
    spectrum.show([bars(now.spectrum, data, data.noise)], [strong("The checkpoint: "), "degree-1 spectrum"],
      `Degree-1 coefficients of the checkpoint: ${s.on.toFixed(3)} on the support, ${s.off.toFixed(3)} off it, on average.`);
    const others = data.stops.filter((stop) => stop !== now).map((stop) => line(stop.x, stop.y, plain, 1, 0.5));
    const end = now.reached === null ? `not at ${percent(data.threshold)} by ${whole(data.budget)} samples` : `${percent(data.threshold)} after ${whole(now.reached)} samples`;
    curve.show([level(data.threshold), ...others, line(reference.x, reference.y, reference, 1.6), line(now.x, now.y, plain, 2.6)], [strong("Its student: "), end],
      `Held-out accuracy of the student trained through this checkpoint: ${end}.`);
    words.say(`Checkpoint at step ${whole(now.step)}: accuracy ${percent(now.accuracy)}; degree-1 coefficients ${s.on.toFixed(3)} on the support, ${s.off.toFixed(3)} off it, on average.`,
      `The student that went through it (seed ${data.seed}): ${end}.`);
  };
  const keys = [key(plain, "through this checkpoint", 3), key(plain, "through another one", 1), key(reference, "final teacher only", 1.6), ...bitKeys(data)];
  el.append(make("div", { class: "kd-controls" }, pick.host), film.host, make("div", { class: "kd-columns" }, spectrum.host, curve.host), make("p", { class: "kd-keys" }, ...keys), words.host);
  draw();
}

function shares(data, el) {
  const words = status(), keys = make("p", { class: "kd-keys" }), told = make("div", {}, keys, words.host);
  const ks = [...new Set(data.cases.map((c) => c.k))], chosen = { k: data.start[0] };
  const options = () => data.cases.filter((c) => c.k === chosen.k), lift = Math.log10;
  const share = (s, n, c) => ((n - 1) * s.on + c.k) / ((n - 1) * (s.on + s.off) + c.d);
  const scatter = (v, r, c) => v * (1 - v) * Math.sqrt((2 / r) * (1 / c.k + 1 / (c.d - c.k)));
  const powers = [...Array(Math.floor(lift(data.samples.at(-1)) + 1e-9) + 1).keys()];
  const curve = chart({ x: [0, lift(data.samples.at(-1))], y: [0, 1], xlabel: "samples of the first step", ylabel: "share on the support", height: 260, named: powers.map((p) => [p, short(10 ** p)]) });
  const which = select("Bits on the support, k", ks.map(String), ks.indexOf(chosen.k), (i) => ((chosen.k = ks[i]), fit(data.start[1]), draw()));
  const bits = slider("Bits, d", 0, 0, (i) => whole(options()[i].d), () => draw());
  const many = slider("Samples", data.samples.length - 1, Math.floor(data.samples.length / 2), (i) => whole(data.samples[i]), () => draw());
  const views = slider("Random views of the layer", data.views.length - 1, data.views.length - 1, (i) => whole(data.views[i]), () => draw());
  function fit(d) {
    bits.input.max = options().length - 1;
    bits.input.value = Math.max(0, options().findIndex((c) => c.d === d));
    bits.input.disabled = options().length === 1;
    bits.told();
  }
  const draw = () => {
    const c = options()[+bits.input.value], n = data.samples[+many.input.value], r = data.views[+views.input.value], x = data.samples.map(lift);
    const now = c.signals.map((s) => ({ ...s, ...data.looks[s.look], y: data.samples.map((v) => share(s, v, c)), at: share(s, n, c) }));
    const layer = now.find((s) => s.name === data.banded), reach = layer.y.map((v) => scatter(v, r, c));
    const clip = (sign) => layer.y.map((v, i) => Math.min(1, Math.max(0, v + sign * reach[i])));
    curve.show([level(c.k / c.d), rule(lift(n)), band(x, clip(-1), clip(1), layer), ...now.flatMap((s) => [line(x, s.y, s), dot(lift(n), s.at, s, 4), ...s.points.map(([m, v]) => dot(lift(m), v, s, 5, 0.6))])],
      [strong(`k = ${c.k}, d = ${c.d}: `), "lines computed, larger dots recorded"], `Expected share of a first step on the support against samples, for ${now.map((s) => s.name).join(", ")}.`);
    told.style.minHeight = `${told.offsetHeight}px`; // it keeps its height, so what is below stays where it is
    keys.replaceChildren(...now.map((s) => key(s, s.name)));
    words.say(`k = ${c.k}, d = ${c.d}, ${whole(n)} samples; chance is ${percent(c.k / c.d)}.`, ...now.map((s) => `${s.name}: ${percent(s.at)} of the step on the support, ${s.half === null ? "never one half" : `one half at ${whole(s.half)} samples`}.`),
      `With ${whole(r)} random views one draw of the ${layer.name} line scatters by ±${(100 * scatter(layer.at, r, c)).toFixed(1)} points.`);
  };
  el.append(make("div", { class: "kd-controls" }, which.host, bits.host, many.host, views.host), curve.host, told);
  fit(data.start[1]);
  draw();
}

const KINDS = { "First step": shares, "Curriculum player": player, "Checkpoint picker": picker };

function render({ model, el }) {
  const kind = model.get("kind"), host = make("section", { class: "kd-explorer", "aria-label": kind }, make("p", { class: "kd-title" }, kind));
  el.append(host);
  return KINDS[kind](JSON.parse(model.get("payload")), host);
}
export default { render };
