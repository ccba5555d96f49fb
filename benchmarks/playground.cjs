// Steps a second of one student of the playground (batch 32, d = 20, width 32), a line a signal: the best of five runs.
// Seconds are those of a core (all of the process's threads), so that other programs on the machine count little.
const path = require("node:path"), folder = path.join(__dirname, "..", "site_assets", "play");
const engine = require(path.join(folder, "engine.js"))(), teachers = require(path.join(folder, "teachers.js"));
const networks = Object.fromEntries(Object.entries(teachers.teachers["20,3"]).map(([name, kept]) => [name, kept.weights]));
for (const signal of ["labels", "final", "dense", "sparse"]) {
  const settings = { d: 20, k: 3, width: 32, seed: 1, steps: 1e6, every: 20, students: [{ rate: 0.1, stages: [{ signal, steps: null }] }] };
  const run = engine.start(settings, { width: teachers.width, networks }), rates = [];
  for (let i = 0; i < 6; i++) { // the first warms up
    const before = process.cpuUsage();
    run.advance(1500);
    const { user, system } = process.cpuUsage(before);
    rates.push((1500 / (user + system)) * 1e6);
  }
  console.log(`${signal} ${Math.max(...rates.slice(1))}`);
}
