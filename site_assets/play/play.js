// The playground's page: what is set, what the worker answers, what is drawn. The numbers come from engine.js.
(() => {
  "use strict";
  const { make, whole, percent, mean, chart, line, rule, level, bars, select, key, bitKeys, strong, status, heat } = kdDraw;
  const S = kdSettings, engine = kdEngine(), SOLVED = 0.95, FRAME = 100; // ms between two drawings
  const SPEEDS = [["slowly, 50 steps a second", 50], ["200 steps a second", 200], ["as fast as it goes", Infinity]];
  const DASHES = [[], [5, 1.5]], NAMES = ["A", "B"], PLANS = ["a", "b"], RATES = ["ra", "rb"];
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const host = document.getElementById("kd-playground");
  let { settings, problems } = S.parse(location.hash);
  let run, playing = false, speed = 1, task = 0, timer, others = [];

  /** A function that sends messages to the engine: in a worker, or here where there is none. */
  function worker(receive) {
    const inline = () => {
      const work = engine.serve(receive);
      return (message) => setTimeout(work, 0, message);
    };
    try {
      const text = `const work = (${kdEngine})().serve((m) => postMessage(m)); onmessage = (e) => work(e.data);`;
      const made = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
      made.onmessage = (e) => receive(e.data);
      let send = (message) => made.postMessage(message), last;
      made.onerror = () => ((send = inline()), made.terminate(), restart());
      return (message) => ((last = message), send(last));
    } catch {
      return inline();
    }
  }
  const send = worker((answer) => {
    if (answer.id !== task) return; // of a setting that is no more
    const steps = answer.step - run.step;
    run.looked.push(...answer.looked);
    run.students.forEach((s, i) => {
      const { accuracy, ...now } = answer.students[i];
      Object.assign(s, now);
      s.curve.push(...accuracy);
    });
    Object.assign(run, { step: answer.step, done: answer.done, ready: true });
    if (steps >= 50) Object.assign(run, { steps: run.steps + steps, seconds: run.seconds + answer.seconds }); // in few, the clock and the pictures count most
    run.pace = steps ? Math.max(1, Math.round((0.08 * steps) / Math.max(answer.seconds, 1e-4))) : 50;
    if (run.done && playing) pause();
    else draw();
    if (playing) timer = setTimeout(advance, speed === 2 || still.matches ? 0 : FRAME, 0);
  });
  const ahead = () => (speed === 2 || still.matches ? run.pace : Math.round((SPEEDS[speed][1] * FRAME) / 1000));
  function advance(steps) {
    if (run.ready && !run.done) {
      run.ready = false;
      send({ advance: steps || ahead(), id: task });
    }
  }
  function pause() {
    playing = false;
    clearTimeout(timer);
    play.textContent = "Play";
    draw();
  }
  function go() {
    if (run.done) restart();
    playing = true;
    play.textContent = "Pause";
    draw();
    if (run.ready) advance(0);
    else timer = setTimeout(function wait() { if (playing) run.ready ? advance(0) : (timer = setTimeout(wait, 20)); }, 20);
  }
  function restart() {
    clearTimeout(timer);
    playing = false;
    play.textContent = "Play";
    task++;
    run = { step: 0, done: false, ready: false, looked: [], steps: 0, seconds: 0, pace: 50, high: 0, students: PLANS.map(() => ({ curve: [], stage: 0 })) };
    const networks = Object.entries(kdTeachers.teachers[`${settings.d},${settings.k}`]).map(([name, kept]) => [name, kept.weights]);
    send({ start: [S.forEngine(settings), { width: kdTeachers.width, networks: Object.fromEntries(networks) }], id: task });
  }

  /** Take up other settings: the address, the controls, a new run. Another seed alone leaves the curves so far as thin lines. `refused` says what was not taken. */
  function change(more, focus, refused = []) {
    const seedOnly = Object.keys(more).every((name) => name === "seed");
    others = seedOnly && run.looked.length > 1 ? [...others.slice(-9), { x: run.looked, curves: run.students.map((s) => s.curve) }] : seedOnly ? others : [];
    Object.assign(settings, more);
    const fits = PLANS.filter((name) => typeof S.stages(settings[name], settings.steps) === "string");
    problems = refused.concat(fits.map((name) => `Student ${name.toUpperCase()}: ${S.stages(settings[name], settings.steps)}, so the run takes more steps.`));
    if (fits.length) settings.steps = S.choices.steps.find((n) => fits.every((name) => typeof S.stages(settings[name], n) !== "string"));
    history.replaceState(null, "", S.format(settings));
    build();
    restart();
    if (focus) (host.querySelector(`[data-key="${focus}"]`) ?? host.querySelector(`[data-key="${focus.split("-")[0]}-add"]`))?.focus();
  }

  // --- Controls

  const play = make("button", { type: "button", class: "kd-main", click: () => (playing ? pause() : go()) }, "Play");
  const words = status(), notice = make("div", { role: "alert", class: "kd-problems" }), progress = make("p", { class: "kd-progress" });
  const form = make("div"), top = make("div"), panels = make("div", { class: "kd-columns" }), keys = make("p", { class: "kd-keys" });
  const link = make("a", {}, "Link to this setting");
  const list = (label, name, values, words = String) => {
    const field = select(label, values.map(words), values.indexOf(settings[name]), (i) => change({ [name]: values[i] }, name));
    field.list.dataset.key = name;
    return field.host;
  };
  const button = (name, said, text, act, off = false) => make("button", { type: "button", "data-key": name, "aria-label": said, disabled: off, click: act }, text);

  function seeds() {
    const input = make("input", { type: "number", min: 0, max: S.most.seed, step: 1, value: settings.seed, "data-key": "seed" });
    input.addEventListener("change", () => {
      if (/^\d{1,6}$/.test(input.value)) change({ seed: +input.value }, "seed");
      else change({}, "seed", [`seed is a whole number from 0 to ${S.most.seed}; it stays ${settings.seed}`]);
    });
    return make("label", { class: "kd-field" }, make("span", {}, "Seed"), input);
  }

  /** The stages of one student, to be changed, moved, added and taken away. */
  function editor(i) {
    const at = PLANS[i], stages = S.stages(settings[at], settings.steps), names = Object.keys(S.signals), who = `Student ${NAMES[i]}`;
    const put = (list, focus) => {
      const closed = list.map(({ signal, steps }, n) => ({ signal, steps: n === list.length - 1 ? null : (steps ?? 50) }));
      change({ [at]: S.plan(closed) }, `${at}-${focus}`);
    };
    const rows = stages.map((stage, n) => {
      const others = stages.filter((_, m) => m !== n), last = n === stages.length - 1;
      const what = make("select", { "data-key": `${at}-${n}`, "aria-label": `${who}, stage ${n + 1}: match` }, ...names.map((name) => make("option", { value: name, selected: name === stage.signal }, S.signals[name].words)));
      what.addEventListener("change", () => put(stages.map((s, m) => (m === n ? { ...s, signal: what.value } : s)), n));
      const steps = make("input", { type: "number", min: 1, max: 99999, step: 1, value: stage.steps ?? "", "data-key": `${at}-steps${n}`, "aria-label": `${who}, stage ${n + 1}: steps` });
      steps.addEventListener("change", () => put(stages.map((s, m) => (m === n && /^[1-9]\d{0,4}$/.test(steps.value) ? { ...s, steps: +steps.value } : s)), `steps${n}`));
      const up = [...stages.slice(0, n - 1), stage, stages[n - 1], ...stages.slice(n + 1)];
      return make("li", {}, what, last ? make("span", {}, "the rest") : make("span", {}, steps, " steps"),
        make("span", { class: "kd-moves" }, button(`${at}-up${n}`, `${who}: stage ${n + 1} earlier`, "↑", () => put(up, `up${Math.max(n - 1, 1)}`), n === 0),
          button(`${at}-drop${n}`, `${who}: take stage ${n + 1} away`, "×", () => put(others, `drop${Math.min(n, others.length - 1)}`), stages.length === 1)));
    });
    const add = button(`${at}-add`, `${who}: add a stage`, "Add a stage", () => put([...stages, { signal: "final", steps: null }], stages.length), stages.length >= S.most.stages);
    return make("div", {}, make("ol", { class: "kd-stages" }, ...rows), add);
  }

  const opened = [false, false]; // the lists of stages
  function student(i) {
    const at = PLANS[i], names = Object.keys(S.presets), mine = S.preset(S.stages(settings[at], settings.steps));
    const chosen = opened[i] === "own" ? "own" : mine;
    const pick = select("Curriculum", [...names.map((name) => S.presets[name].words), "stages of my own"], chosen === "own" ? names.length : names.indexOf(chosen), (n) => {
      opened[i] = n === names.length ? "own" : opened[i] === "own" ? false : opened[i];
      change(n === names.length ? {} : { [at]: S.presets[names[n]].plan }, `${at}-plan`);
    });
    pick.list.dataset.key = `${at}-plan`;
    const folded = make("details", { class: "kd-fold", open: Boolean(opened[i]) }, make("summary", {}, "Its stages"), editor(i));
    folded.addEventListener("toggle", () => (opened[i] = folded.open && (opened[i] || true)));
    const rate = list("Learning rate", RATES[i], S.choices.rate);
    return make("fieldset", { class: "kd-student" }, make("legend", {}, key(look(i), `Student ${NAMES[i]}`)), make("div", { class: "kd-controls kd-choice" }, pick.host, rate), folded);
  }

  /** The colour of the book's method, and a dash that tells B from A whatever their methods are. */
  function look(i) {
    const stages = S.stages(settings[PLANS[i]], settings.steps), own = S.preset(stages);
    return { colour: `var(--kd-${own === "own" ? S.signals[stages[0].signal].look : S.presets[own].look})`, dash: DASHES[i] };
  }
  const named = (i) => {
    const own = S.preset(S.stages(settings[PLANS[i]], settings.steps));
    return `${NAMES[i]}, ${own === "own" ? "stages of your own" : S.presets[own].words}`;
  };

  // --- Drawings

  let curve, maps, spectra, columns;
  const ground = () => ({ support: [...Array(settings.k).keys()], colours: { on: "var(--text)", off: "color-mix(in srgb, var(--text) 40%, var(--card))" } });
  const loudest = [0, 0.2], noise = 2 * engine.PROBE ** -0.5; // two standard errors of a correlation that is 0
  function build() {
    form.replaceChildren(
      make("div", { class: "kd-controls" }, list("Bits, d", "d", S.choices.d), list("On the support, k", "k", S.choices.k), list("Student's neurons", "width", S.choices.width), list("Steps", "steps", S.choices.steps, whole), seeds()),
      make("div", { class: "kd-columns" }, student(0), student(1)));
    notice.replaceChildren(...problems.map((line) => make("p", {}, line)));
    link.href = S.format(settings);
    curve = chart({ x: [0, settings.steps * engine.BATCH], y: [0.3, 1.02], xlabel: "training samples", ylabel: "held-out accuracy", height: 230 });
    top.replaceChildren(curve.host);
    maps = NAMES.map(() => heat({ rows: settings.width, columns: settings.d, support: ground().support, xlabel: "bit (the support is marked)", ylabel: "neuron" }));
    spectra = NAMES.map(() => []); // a chart a stage, as they are entered
    columns = maps.map((m) => make("div", {}, m.host));
    panels.replaceChildren(...columns);
    loudest[1] = 0.2;
    keys.replaceChildren(...NAMES.map((_, i) => key(look(i), named(i))), ...bitKeys(ground()));
  }

  const reached = (s) => {
    const at = s.curve.findIndex((value) => value >= SOLVED);
    return at < 0 ? null : run.looked[at] * engine.BATCH;
  };
  /** What the two runs say beside one another, in a sentence. */
  function verdict([a, b]) {
    if (a === null && b === null) return run.done ? `Neither student is right about ${percent(SOLVED)} at the end of its steps.` : "";
    if (a === null || b === null) return run.done ? `Student ${a === null ? "A" : "B"} is not at ${percent(SOLVED)} at the end; the other one was there after ${whole(a ?? b)} samples.` : "";
    const ratio = Math.max(a, b) / Math.min(a, b);
    if (ratio < 1.25) return "The two need about as many samples as one another.";
    return `Student ${a < b ? "B" : "A"} needed ${ratio.toFixed(1)} times as many samples as student ${a < b ? "A" : "B"}.`;
  }

  function draw() {
    const speedy = run.steps > 200 ? `, ${whole(run.steps / run.seconds)} steps a second for each` : "";
    progress.textContent = run.looked.length ? `Step ${whole(run.step)} of ${whole(settings.steps)}, ${whole(run.step * engine.BATCH)} samples${speedy}` : "Getting ready";
    Object.assign(host.dataset, { step: run.step, done: run.done, playing });
    if (!run.looked.length || (still.matches && playing)) return; // with less motion: the pictures change when it rests
    const x = run.looked.map((step) => step * engine.BATCH), both = run.students.map((s, i) => ({ ...s, look: look(i), plan: S.stages(settings[PLANS[i]], settings.steps) }));
    const thin = others.flatMap((o) => o.curves.map((y, i) => line(o.x.map((step) => step * engine.BATCH), y, both[i].look, 1, 0.4)));
    curve.show([level(SOLVED), ...thin, ...both.map((s) => line(x, s.curve, s.look)), rule(run.step * engine.BATCH)], [strong("Accuracy"), ` on ${whole(engine.HELD_OUT)} held-out samples`],
      `Held-out accuracy against training samples of students ${named(0)}, and ${named(1)}: now ${both.map((s) => percent(s.curve.at(-1))).join(" and ")}.`);
    run.high = both.reduce((high, s) => s.weights.reduce((most, w) => (Math.abs(w) > most && Number.isFinite(w) ? Math.abs(w) : most), high), run.high);
    loudest[1] = 1.05 * Math.max(loudest[1] / 1.05, ...both.flatMap((s) => s.spectra.flatMap((values) => [...values])));
    const said = both.map((s, i) => {
      const { d, k } = settings, share = s.weights.reduce((sum, w, n) => sum + (n % d < k ? w * w : 0), 0) / s.weights.reduce((sum, w) => sum + w * w, 0);
      const at = reached(s);
      maps[i].show(s.weights, run.high, [strong(`${NAMES[i]}: `), "first-layer weights"], s.diverged ? "Weights that are no numbers any more." : `First-layer weights of student ${NAMES[i]}, neurons by bits: ${percent(share)} of their squares lie on the support; chance is ${percent(k / d)}.`);
      s.spectra.forEach((values, n) => {
        if (!spectra[i][n]) {
          spectra[i][n] = chart({ x: [-0.7, d - 0.3], y: loudest, xlabel: "bit", ylabel: "|correlation|", height: 150 });
          columns[i].append(spectra[i][n].host);
        }
        const matched = S.signals[s.plan[n].signal].words, [on, off] = [true, false].map((side) => mean([...values].filter((_, bit) => bit < k === side)));
        spectra[i][n].show([bars([...values], ground(), noise)], [strong(`${NAMES[i]}, stage ${n + 1}${n === s.stage ? ", now" : ""}: `), matched], `Correlation of each bit with ${matched}: ${on.toFixed(3)} on the support, ${off.toFixed(3)} off it, on average.`);
      });
      if (s.diverged) return `Student ${named(i)}: its numbers grew without end at step ${whole(s.diverged)}. Take a smaller learning rate.`;
      return `Student ${named(i)}: stage ${s.stage + 1} of ${s.plan.length}; accuracy ${percent(s.curve.at(-1))}` +
        `${at === null ? "" : `, ${percent(SOLVED)} after ${whole(at)} samples`}; ${percent(share)} of its squared first-layer weights on the support (chance ${percent(k / d)}).`;
    });
    const sum = verdict(both.map(reached));
    words.host.style.visibility = playing ? "hidden" : ""; // they are said at rest: while students learn they would be old
    words.say(`Step ${whole(run.step)}.`, ...said, ...(sum ? [sum] : []));
  }

  const pace = select("Speed", SPEEDS.map(([name]) => name), speed, (i) => (speed = i));
  const step = make("button", { type: "button", click: () => (playing ? pause() : run.done ? null : advance(S.forEngine(settings).every)) }, "Step");
  const again = make("button", { type: "button", click: () => restart() }, "Restart");
  const other = make("button", { type: "button", click: () => { const on = playing || run.done; change({ seed: (settings.seed + 1) % (S.most.seed + 1) }); if (on) go(); } }, "Another seed");
  host.classList.add("kd-explorer", "kd-play");
  host.replaceChildren(form, notice, make("div", { class: "kd-controls kd-go" }, play, step, again, other, pace.host),
    progress, top, keys, words.host, panels, make("p", { class: "kd-link" }, link));
  window.addEventListener("hashchange", () => {
    ({ settings, problems } = S.parse(location.hash));
    others = [];
    opened.fill(false);
    build();
    restart();
    host.scrollIntoView();
  });
  build();
  restart();
  if (location.hash.includes("=")) host.scrollIntoView(); // a link to a setting leads to what it sets
})();
