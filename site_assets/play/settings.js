// What one can set, its name in the page's address (#d=20&k=5&a=final&b=dense:50,final), and what an address may hold.
const kdSettings = (() => {
  "use strict";
  const choices = { d: [10, 15, 20, 25, 30], k: [2, 3, 4, 5], width: [8, 16, 32, 64], steps: [200, 500, 1000, 2000, 4000, 8000, 16000], rate: [0.1, 0.3, 0.5, 1, 2, 3, 10] };
  const start = { d: 20, k: 5, width: 32, steps: 2000, seed: 1, ra: 1, rb: 1, a: "final", b: "dense:50,final" };
  const most = { stages: 6, seed: 999999 };
  // A signal's name in the address, and what it says; `look` is the arm of the book whose colour it has.
  const signals = {
    labels: { words: "the labels", look: "labels" },
    final: { words: "the final teacher's output", look: "one-shot" },
    middle: { words: "the middle checkpoint's output", look: "progressive" },
    early: { words: "the early checkpoint's output", look: "progressive" },
    dense: { words: "a dense projection of the teacher's hidden layer", look: "extraction" },
    sparse: { words: "a sparse projection of the teacher's hidden layer", look: "extraction" },
    untrained: { words: "an untrained teacher's hidden layer", look: "untrained" },
  };
  const presets = {
    labels: { plan: "labels", words: "labels", look: "labels" },
    "one-shot": { plan: "final", words: "one-shot distillation", look: "one-shot" },
    progressive: { plan: "middle:100,final", words: "a checkpoint first", look: "progressive" },
    dense: { plan: "dense:50,final", words: "extraction, dense projection", look: "extraction" },
    sparse: { plan: "sparse:50,final", words: "extraction, sparse projection", look: "extraction" },
    untrained: { plan: "untrained:50,final", words: "extraction from an untrained teacher", look: "untrained" },
  };

  /** The stages of a plan, the last one open: "dense:50,final" -> [{ signal, steps: 50 }, { signal, steps: null }]; a text that says what is wrong. */
  function stages(plan, steps) {
    const parts = plan.split(",").map((part) => part.split(":"));
    if (parts.length > most.stages) return `it has ${parts.length} stages, and ${most.stages} is the most`;
    let before = 0;
    const found = [];
    for (const [i, [signal, length, more]] of parts.entries()) {
      const last = i === parts.length - 1;
      if (!Object.hasOwn(signals, signal)) return `stage ${i + 1} is "${signal}", and a stage is one of ${Object.keys(signals).join(", ")}`;
      if (last ? length !== undefined : !/^[1-9]\d{0,5}$/.test(length ?? "") || more !== undefined)
        return last ? "its last stage takes the steps that are left, and has no number" : `stage ${i + 1} needs a whole number of steps, as in ${signal}:50`;
      before += last ? 0 : +length;
      found.push({ signal, steps: last ? null : +length });
    }
    return before < steps ? found : `the stages before its last take ${before} of ${steps} steps`;
  }
  const plan = (list) => list.map(({ signal, steps }) => (steps === null ? signal : `${signal}:${steps}`)).join(",");

  /** The preset with the same signals in the same order, or "own". */
  const preset = (list) => {
    const bare = (list) => list.map(({ signal }) => signal).join();
    return Object.keys(presets).find((name) => bare(stages(presets[name].plan, 1e6)) === bare(list)) ?? "own";
  };

  /** Settings from the part of an address after #, and a line for each thing that it does not say well: there the default holds. */
  function parse(text) {
    const settings = { ...start }, problems = [];
    const set = (name, value, ok, advice) => {
      if (ok) settings[name] = value;
      else problems.push(`${name}=${value}: ${advice}; ${name}=${start[name]} is used instead.`);
    };
    for (const [name, value] of new URLSearchParams(text.replace(/^#/, ""))) {
      const listed = choices[name === "ra" || name === "rb" ? "rate" : name];
      if (listed) set(name, listed.includes(+value) && value.trim() ? +value : value, listed.includes(+value) && value.trim(), `${name} is one of ${listed.join(", ")}`);
      else if (name === "seed") set(name, /^\d{1,6}$/.test(value) ? +value : value, /^\d{1,6}$/.test(value), `seed is a whole number from 0 to ${most.seed}`);
      else if (name === "a" || name === "b") settings[name] = value;
      else problems.push(`${name}=${value}: there is no setting ${name}; the settings are ${Object.keys(start).join(", ")}.`);
    }
    for (const name of ["a", "b"]) {
      const found = stages(settings[name], settings.steps);
      const instead = typeof found === "string" && typeof stages(start[name], settings.steps) === "string" ? "final" : start[name];
      if (typeof found === "string") problems.push(`${name}=${settings[name]}: ${found}; ${name}=${instead} is used instead.`);
      settings[name] = typeof found === "string" ? instead : settings[name];
    }
    return { settings, problems };
  }

  /** The address of settings, all of them: a link means the same when the start changes. */
  const format = (settings) => `#${Object.keys(start).map((name) => `${name}=${settings[name]}`).join("&")}`;

  /** What the engine is given. */
  const forEngine = (s) => ({
    d: s.d, k: s.k, width: s.width, seed: s.seed, steps: s.steps, every: Math.max(10, Math.round(s.steps / 100)),
    students: [["a", "ra"], ["b", "rb"]].map(([p, r]) => ({ rate: s[r], stages: stages(s[p], s.steps) })),
  });

  return { choices, start, most, signals, presets, stages, plan, preset, parse, format, forEngine };
})();
if (typeof module !== "undefined") module.exports = kdSettings;
