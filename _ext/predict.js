// Predict first: a question in the place where kdutils.pages.predict put it; what follows waits for an answer or a skip.
// What the reader answered stays in this browser alone, where it may be kept at all.

const remembered = {
  get(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* not kept */ } },
  forget(name) { try { localStorage.removeItem(name); } catch { /* not kept */ } },
};

/** What a question keeps back: the outputs after it in its cell, and the rest of its section, with the sections inside it. */
function after(host) {
  const rest = (e) => { const found = []; while ((e = e?.nextElementSibling)) found.push(e); return found; };
  const part = host.closest(".output") ?? host, own = host.closest(".cell");
  return [...rest(part), ...rest(own)].filter((e) => !e.matches("script, style"));
}

/** A slider between two numbers, in equal steps or equal ratios. */
function askNumber({ question, scale: [low, high], step, unit }) {
  const last = step ? Math.round((high - low) / step) : 60;
  const value = (i) => (step ? +(low + i * step).toPrecision(6) : +(low * (high / low) ** (i / last)).toPrecision(2));
  const asked = slider(question, last, Math.round(last / 2), (i) => value(i).toLocaleString("en") + unit, () => {});
  return { host: asked.host, first: asked.input, answer: () => value(+asked.input.value), said: (v) => v.toLocaleString("en") + unit };
}

function askChoice({ question, options }) {
  const name = `kd-${Math.random().toString(36).slice(2)}`;
  const buttons = options.map((option) => make("input", { type: "radio", name, value: option, required: true }));
  const labels = buttons.map((button) => make("label", {}, button, " ", button.value));
  const host = make("fieldset", {}, make("legend", {}, question), ...labels);
  return { host, first: buttons[0], answer: () => buttons.find((button) => button.checked)?.value ?? null, said: (v) => v };
}

/** The guess above a line, what was measured and its interval below it. */
function beside(data, guess, said) {
  const [low, high] = data.scale, lift = data.step ? (v) => v : Math.log;
  const place = (v) => `${(100 * Math.min(1, Math.max(0, (lift(v) - lift(low)) / (lift(high) - lift(low))))).toFixed(1)}%`;
  const [from, to] = data.interval.map((end, i) => place(end ?? data.scale[i]));
  const mark = (kind, at, words) => [make("i", { class: `kd-${kind}`, style: `left: ${at}` }), make("span", { class: `kd-${kind}-said`, style: `--at: ${at}` }, words)];
  return make("div", { class: "kd-beside", "aria-hidden": "true" }, make("i", { class: "kd-between", style: `left: ${from}; right: calc(100% - ${to})` }),
    ...(guess === null ? [] : mark("yours", place(guess), `you: ${said(guess)}`)), ...mark("found", place(data.answer), data.said));
}

/** How a guess lies to what was measured. */
function verdict(data, guess) {
  if (data.kind === "choice") return guess === data.said ? "You were right." : "";
  const [low, high] = data.interval;
  const near = Math.abs(guess - data.answer) <= (data.step ? data.step / 2 : 0.05 * data.answer); // as near as the slider can
  if (low === high) return near ? "You were right." : guess < data.answer ? "Your guess was too low." : "Your guess was too high.";
  if (guess < (low ?? -Infinity)) return "Your guess lies below the interval.";
  return guess > (high ?? Infinity) ? "Your guess lies above the interval." : "Your guess lies inside the interval.";
}

function predict(host) {
  const data = JSON.parse(host.dataset.guess), memory = `kd-guess ${data.question}`, kept = after(host);
  const panel = make("section", { class: "kd-live kd-guess", "aria-label": "Predict first" });
  const ask = data.kind === "number" ? askNumber : askChoice;
  const veil = (on) => kept.forEach((e) => e.classList.toggle("kd-veiled", on));
  const question = (focus) => {
    const field = ask(data), answered = (value) => (remembered.set(memory, { value }), result(value, true));
    veil(true);
    panel.replaceChildren(make("p", { class: "kd-title" }, "Predict first"),
      make("form", { submit: (event) => (event.preventDefault(), answered(field.answer())) }, field.host,
        make("p", { class: "kd-controls" }, make("button", { type: "submit" }, "Show what happened"),
          make("button", { type: "button", click: () => answered(null) }, "Skip"))),
      make("p", { class: "kd-waits" }, "The rest of this section opens then. Your guess stays in this browser."));
    if (focus) field.first.focus();
  };
  const result = (value, focus) => {
    const { said } = ask(data), guess = value === null ? "" : `Your guess: ${said(value)}. `;
    veil(false);
    const words = make("p", { class: "kd-result", tabindex: -1 }, make("strong", {}, `${guess}Measured: ${data.said}. `), value === null ? "" : `${verdict(data, value)} `, data.why);
    panel.replaceChildren(make("p", { class: "kd-title" }, data.question), ...(data.kind === "number" ? [beside(data, value, said)] : []), words,
      make("p", { class: "kd-controls" }, make("button", { type: "button", click: () => (remembered.forget(memory), question(true)) }, "Ask me again")));
    if (focus) words.focus({ preventScroll: false });
  };
  const fits = (v) => v === null || (data.kind === "number" ? Number.isFinite(v) : data.options.includes(v));
  const before = remembered.get(memory);
  host.hidden = false;
  host.append(panel);
  if (before && fits(before.value)) result(before.value);
  else question();
  // A link to something that waits shows it.
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest(".kd-veiled")) return;
    result(null);
    target.scrollIntoView();
  };
  follow();
  addEventListener("hashchange", follow);
}

function askAll() {
  document.querySelectorAll(".kd-predict[data-guess]").forEach(predict);
}
