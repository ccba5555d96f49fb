// Train the playground's students on numbers that kdutils drew: JSON in (see test_playground.py), weights and spectra out.
const path = require("node:path");
const folder = path.join(__dirname, "..", "..", "site_assets", "play");
const engine = require(path.join(folder, "engine.js"))(), teachers = require(path.join(folder, "teachers.js"));
const given = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const network = (n) => ({ ...n, W: floats(n.W), b: floats(n.b), V: floats(n.V), c: floats(n.c) });
const { d, k } = given.settings;
const networks = Object.fromEntries(Object.entries(teachers.teachers[`${d},${k}`]).map(([name, kept]) => [name, kept.weights]));

const batches = floats(given.batches), size = engine.BATCH * d;
let at = 0;
const run = engine.start(given.settings, { width: teachers.width, networks }, {
  initial: () => network(given.initial),
  untrained: () => network(given.untrained),
  batch: () => batches.subarray(at, (at += size)),
  heldOut: () => floats(given.heldOut),
  probe: () => floats(given.probe),
  calibration: (stage) => floats(given.calibration[stage]),
  projection: (kind) => floats(given.projection[kind]),
});
run.advance(given.settings.steps);
console.log(JSON.stringify(run.students.map(({ net, curve, spectra, ends }) => ({
  weights: Object.fromEntries(["W", "b", "V", "c"].map((name) => [name, [...net[name]]])), curve, spectra: spectra.map((s) => [...s]), ends,
}))));
