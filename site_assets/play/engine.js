// Distillation on typed arrays: kdutils' MLP, SGD, SparseParity and signals, for two students side by side.
// One function that needs nothing around it, so that its own text can be run in a worker. No page is touched here.
// A network is { d, width, W, b, V, c }: hidden = ReLU(W x + b), logits = V hidden + c; rows of W are neurons.
function kdEngine() {
  "use strict";
  const BATCH = 32, CALIBRATION = 1024, HELD_OUT = 1024, PROBE = 16384; // samples

  /** Random numbers by name: a stream is a function of its names alone (sfc32, seeded by an FNV hash of them). */
  function stream(...names) {
    let h = 2166136261;
    for (const letter of names.join("/")) h = Math.imul(h ^ letter.codePointAt(0), 16777619);
    let [a, b, c, count] = [h, h ^ 0x9e3779b9, h ^ 0x243f6a88, 1];
    const word = () => {
      const t = (a + b + count++) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = (((c << 21) | (c >>> 11)) + t) | 0;
      return t;
    };
    for (let i = 0; i < 15; i++) word();
    const uniform = () => ((word() >>> 0) + 0.5) / 4294967296; // never 0 or 1
    const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
    const signs = (n) => {
      const out = new Float32Array(n);
      for (let i = 0, bits = 0; i < n; i++, bits >>>= 1) {
        if (i % 32 === 0) bits = word();
        out[i] = bits & 1 ? -1 : 1;
      }
      return out;
    };
    return { uniform, normal, signs };
  }

  /** A network as torch builds it: entries uniform within one over the square root of what comes in. */
  function fresh(d, width, random) {
    const fill = (n, fan) => new Float32Array(n).map(() => (2 * random.uniform() - 1) / Math.sqrt(fan));
    return { d, width, W: fill(width * d, d), b: fill(width, d), V: fill(2 * width, width), c: fill(2, width) };
  }

  /** A teacher from the text that tools/playground_teachers.py packs. */
  function decode(text, d, width) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const head = new Float32Array(bytes.buffer.slice(0, 4 * (d + 5))), rows = new Int8Array(bytes.buffer, 4 * (d + 5));
    const at = (j, column) => rows[j * (d + 3) + column] * head[column];
    const each = (n, value) => new Float32Array(n).map((_, i) => value(i));
    return {
      d, width, W: each(width * d, (i) => at(Math.floor(i / d), i % d)), b: each(width, (j) => at(j, d)),
      V: each(2 * width, (i) => at(i % width, d + 1 + Math.floor(i / width))), c: head.slice(d + 3),
    };
  }

  /** Products (n, rows) of x (n, columns) with M (rows, columns) transposed, four rows at a time: sums need not wait for one another. */
  function product(x, n, M, rows, columns, out) {
    for (let s = 0, o = 0; s < n; s++) {
      const begin = s * columns;
      let r = 0, m = 0;
      for (; r + 4 <= rows; r += 4, m += 3 * columns, o += 4) {
        let a = 0, b = 0, c = 0, e = 0;
        for (let i = 0; i < columns; i++, m++) {
          const v = x[begin + i];
          a += M[m] * v;
          b += M[m + columns] * v;
          c += M[m + 2 * columns] * v;
          e += M[m + 3 * columns] * v;
        }
        out[o] = a;
        out[o + 1] = b;
        out[o + 2] = c;
        out[o + 3] = e;
      }
      for (; r < rows; r++, o++) {
        let a = 0;
        for (let i = 0; i < columns; i++, m++) a += M[m] * x[begin + i];
        out[o] = a;
      }
    }
    return out;
  }

  /** Activations (n, width) of inputs x (n, d), after the ReLU. */
  function hidden({ d, width, W, b }, x, n, out = new Float32Array(n * width)) {
    product(x, n, W, width, d, out);
    for (let s = 0, o = 0; s < n; s++)
      for (let j = 0; j < width; j++, o++) {
        const sum = out[o] + b[j];
        out[o] = sum > 0 ? sum : 0;
      }
    return out;
  }

  /** Probabilities (n, 2) of the two classes from activations (n, width). */
  function probabilities({ width, V, c }, act, n, out = new Float32Array(2 * n)) {
    for (let s = 0, a = 0; s < n; s++) {
      let gap = c[1] - c[0]; // logit of class 1 less that of class 0
      for (let j = 0; j < width; j++, a++) gap += (V[width + j] - V[j]) * act[a];
      out[2 * s] = 1 / (1 + Math.exp(gap));
      out[2 * s + 1] = 1 / (1 + Math.exp(-gap));
    }
    return out;
  }

  /** The mean of every unit of h (n, width), and one root mean square of all of them around these. */
  function moments(h, n, width) {
    const centre = new Float64Array(width);
    for (let i = 0; i < n * width; i++) centre[i % width] += h[i] / n;
    let sum = 0;
    for (let i = 0; i < n * width; i++) sum += (h[i] - centre[i % width]) ** 2;
    return [centre, Math.max(Math.sqrt(sum / (n * width)), 1e-12)];
  }

  /** Classes of x (n, d): 0 where the product of the first k bits is +1, else 1. */
  function labels(x, n, d, k) {
    const y = new Uint8Array(n);
    for (let s = 0; s < n; s++) {
      let product = 1;
      for (let i = 0; i < k; i++) product *= x[s * d + i];
      y[s] = product < 0 ? 1 : 0;
    }
    return y;
  }

  /**
   * A signal tied to a student of `width`: { hidden, units, target(x, n) }. What is matched are the probabilities of two
   * classes, or with `hidden` as many activations as the student has neurons, P h centred and divided by one size.
   */
  function bind(signal, { d, k, width, calibration, projection }) {
    if (signal.kind === "labels") {
      const target = (x, n) => labels(x, n, d, k).reduce((wanted, y, s) => wanted.fill(1, 2 * s + y, 2 * s + y + 1), new Float32Array(2 * n));
      return { hidden: false, units: 2, target };
    }
    const { teacher } = signal;
    let act, out;
    if (signal.kind === "output") {
      const target = (x, n) => {
        if (out?.length !== 2 * n) [act, out] = [new Float32Array(n * teacher.width), new Float32Array(2 * n)];
        return probabilities(teacher, hidden(teacher, x, n, act), n, out);
      };
      return { hidden: false, units: 2, target };
    }
    const sample = calibration(), n = sample.length / d, wide = teacher.width, h = hidden(teacher, sample, n);
    const P = projection(signal.projection, width, wide), project = (rows, m, out) => product(rows, m, P, width, wide, out);
    const mu = project(moments(h, n, wide)[0], 1, new Float32Array(width));
    const [, size] = moments(project(h, n, new Float32Array(n * width)), n, width);
    const target = (x, m) => {
      if (out?.length !== m * width) [act, out] = [new Float32Array(m * wide), new Float32Array(m * width)];
      project(hidden(teacher, x, m, act), m, out);
      for (let s = 0, i = 0; s < m; s++) for (let j = 0; j < width; j++, i++) out[i] = (out[i] - mu[j]) / size;
      return out;
    };
    return { hidden: true, units: width, target };
  }

  /** One step of SGD on a batch x (n, d): half the squared distance of the hidden layers, or the cross-entropy to probabilities. */
  function learn(net, rate, x, n, bound, work) {
    const { d, width, W, b, V, c } = net, wanted = bound.target(x, n), act = hidden(net, x, n, work.act), back = work.back;
    if (bound.hidden) {
      for (let i = 0; i < n * width; i++) back[i] = act[i] > 0 ? (act[i] - wanted[i]) / n : 0;
    } else {
      const p = probabilities(net, act, n, work.p);
      for (let i = 0; i < 2 * n; i++) p[i] = (p[i] - wanted[i]) / n;
      for (let s = 0, i = 0; s < n; s++)
        for (let j = 0; j < width; j++, i++) back[i] = act[i] > 0 ? p[2 * s] * V[j] + p[2 * s + 1] * V[width + j] : 0;
      for (let r = 0; r < 2; r++) {
        let bias = 0;
        for (let s = 0; s < n; s++) bias += p[2 * s + r];
        c[r] -= rate * bias;
        for (let j = 0; j < width; j++) {
          let sum = 0;
          for (let s = 0, i = j; s < n; s++, i += width) sum += p[2 * s + r] * act[i];
          V[r * width + j] -= rate * sum;
        }
      }
    }
    const row = work.row;
    for (let j = 0; j < width; j++) {
      row.fill(0);
      let bias = 0;
      for (let s = 0, g = j; s < n; s++, g += width) {
        const slope = back[g];
        if (slope === 0) continue;
        bias += slope;
        for (let i = 0, at = s * d; i < d; i++, at++) row[i] += slope * x[at];
      }
      b[j] -= rate * bias;
      for (let i = 0, w = j * d; i < d; i++, w++) W[w] -= rate * row[i];
    }
  }

  /** Where a run's random numbers come from; a test gives those of kdutils instead. */
  function chance({ d, width, seed }) {
    const data = stream(seed, "data"), held = stream(0, "held-out"), probe = stream(0, "probe");
    return {
      initial: () => fresh(d, width, stream(seed, "init")),
      untrained: (teacherWidth) => fresh(d, teacherWidth, stream(1, "untrained")),
      batch: () => data.signs(BATCH * d),
      heldOut: () => held.signs(HELD_OUT * d),
      probe: () => probe.signs(PROBE * d),
      calibration: (stage) => stream(seed, "calibration", stage).signs(CALIBRATION * d),
      projection(kind, rows, columns) {
        const random = stream(seed, "projection"), P = new Float32Array(rows * columns);
        if (kind === "dense") return P.map(() => random.normal() / Math.sqrt(columns));
        const order = Array.from({ length: columns }, (_, i) => [random.uniform(), i]).sort((a, b) => a[0] - b[0]);
        for (let r = 0; r < rows; r++) P[r * columns + order[r][1]] = 1;
        return P;
      },
    };
  }

  /** |correlation| of each bit with what is matched: (d,), the r.m.s. over units, which are centred and of r.m.s. 1 together. */
  function spectrum(bound, x, d) {
    const n = x.length / d, { units } = bound, sums = new Float64Array(d * units), part = 1024, pieces = [];
    for (let s = 0; s < n; s += part) pieces.push(bound.target(x.slice(s * d, (s + part) * d), Math.min(part, n - s)).slice());
    const all = new Float32Array(n * units);
    pieces.reduce((at, piece) => (all.set(piece, at), at + piece.length), 0);
    const [centre, size] = moments(all, n, units);
    for (let s = 0; s < n; s++)
      for (let u = 0; u < units; u++) {
        const value = (all[s * units + u] - centre[u]) / size / n;
        for (let i = 0; i < d; i++) sums[i * units + u] += value * x[s * d + i];
      }
    const square = (i) => sums.subarray(i * units, (i + 1) * units).reduce((sum, c) => sum + c * c, 0);
    return Float32Array.from({ length: d }, (_, i) => Math.sqrt(square(i) / units));
  }

  /**
   * Two students, or any number, on the same samples from the same initial weights.
   * settings: { d, k, width, seed, steps, every, students: [{ rate, stages: [{ signal, steps }] }] }; the last stage may be open.
   * teachers: { width, networks: { final, middle, early } } as packed texts. A signal is one of their names (its output),
   * "labels", "dense" or "sparse" (a projection of the final teacher's hidden layer) or "untrained" (a dense one of a new network's).
   */
  function start(settings, teachers, source = chance(settings)) {
    const { d, k, width, steps, every } = settings, networks = {};
    for (const [name, text] of Object.entries(teachers.networks)) networks[name] = decode(text, d, teachers.width);
    networks.untrained = source.untrained(teachers.width);
    const signal = (name) => {
      if (name === "labels") return { kind: "labels" };
      if (name === "dense" || name === "sparse") return { kind: "hidden", teacher: networks.final, projection: name };
      if (name === "untrained") return { kind: "hidden", teacher: networks.untrained, projection: "dense" };
      return { kind: "output", teacher: networks[name] };
    };
    const held = source.heldOut(), count = held.length / d, truth = labels(held, count, d, k), probe = source.probe(), seen = {};
    const room = { act: new Float32Array(BATCH * width), back: new Float32Array(BATCH * width), p: new Float32Array(2 * BATCH), row: new Float64Array(d) }, first = source.initial();
    const students = settings.students.map((plan) => {
      let end = 0;
      const ends = plan.stages.map((stage) => (end = stage.steps === null ? Math.max(steps, end) : end + stage.steps));
      return { ...plan, ends, net: structuredClone(first), stage: -1, bound: null, curve: [], spectra: [], diverged: null };
    });
    const judge = ({ net }) => {
      const p = probabilities(net, hidden(net, held, count), count);
      let right = 0;
      for (let s = 0; s < count; s++) right += p[2 * s + 1] > p[2 * s] ? truth[s] : 1 - truth[s];
      return right / count;
    };
    const enter = (student) => {
      const name = student.stages[++student.stage].signal, stage = student.stage;
      student.bound = bind(signal(name), { d, k, width, calibration: () => source.calibration(stage), projection: source.projection });
      student.spectra.push((seen[name] ??= spectrum(student.bound, probe, d)));
    };
    const run = { step: 0, students, looked: [0], get done() { return run.step >= steps; } };
    const look = (student) => {
      if (!student.diverged && !student.net.W.every(Number.isFinite)) student.diverged = run.step;
      student.curve.push(student.diverged ? 0.5 : judge(student));
    };
    run.advance = (number) => {
      for (let i = 0; i < number && run.step < steps; i++) {
        const x = source.batch();
        for (const student of students) {
          if (run.step >= student.ends[student.stage] && student.stage < student.stages.length - 1) enter(student);
          if (!student.diverged) learn(student.net, student.rate, x, BATCH, student.bound, room);
        }
        run.step++;
        if (run.step % every === 0 || run.step === steps) {
          run.looked.push(run.step);
          students.forEach(look);
        }
      }
    };
    students.forEach((student) => (enter(student), look(student)));
    return run;
  }

  /** Answer messages: { start: [settings, teachers], id } begins a run, { advance: steps, id } goes on; what there is to draw comes back. */
  function serve(answer) {
    let run, sent;
    return (message) => {
      const begun = performance.now();
      if (message.start) [run, sent] = [start(...message.start), 0];
      else run.advance(message.advance);
      const from = sent;
      sent = run.looked.length;
      answer({
        id: message.id, step: run.step, done: run.done, seconds: (performance.now() - begun) / 1000, looked: run.looked.slice(from),
        students: run.students.map((s) => ({ accuracy: s.curve.slice(from), stage: s.stage, spectra: s.spectra, weights: s.net.W.slice(), diverged: s.diverged })),
      });
    };
  }

  return { BATCH, CALIBRATION, HELD_OUT, PROBE, stream, fresh, decode, hidden, probabilities, labels, bind, learn, spectrum, start, serve };
}
if (typeof module !== "undefined") module.exports = kdEngine;
