// Samples to 95 % of both students, a setting of the playground (an address) and a seed: JSON in, JSON out.
const path = require("node:path");
const folder = path.join(__dirname, "..", "..", "site_assets", "play");
const engine = require(path.join(folder, "engine.js"))(), teachers = require(path.join(folder, "teachers.js")), S = require(path.join(folder, "settings.js"));
const { addresses, seeds } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(addresses.map((address) => seeds.map((seed) => {
  const { settings, problems } = S.parse(address), held = teachers.teachers[`${settings.d},${settings.k}`];
  if (problems.length) throw new Error(problems.join(" "));
  const networks = Object.fromEntries(Object.entries(held).map(([name, kept]) => [name, kept.weights]));
  const run = engine.start(S.forEngine({ ...settings, seed }), { width: teachers.width, networks });
  const reached = () => run.students.map((s) => {
    const at = s.curve.findIndex((value) => value >= 0.95);
    return at < 0 ? null : run.looked[at] * engine.BATCH;
  });
  while (!run.done && reached().includes(null)) run.advance(100);
  return reached();
}))));
