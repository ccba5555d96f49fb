// Drive the playground in headless Chromium, by keys where a reader would use keys; one JSON line a check.
// node play.mjs CHROMIUM playground.html
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";
const require = createRequire(path.join(process.env.NODE_HOME, "x.js"));
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");
const here = createRequire(import.meta.url), [executablePath, file] = process.argv.slice(2), folder = "../../site_assets/play/";
const S = here(`${folder}settings.js`), engine = here(`${folder}engine.js`)(), teachers = here(`${folder}teachers.js`);
const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
const address = (hash) => pathToFileURL(file).href + hash;

/** What the page has to say of a setting: the engine run here, to its end. */
function expected(hash) {
  const { settings } = S.parse(hash), networks = Object.entries(teachers.teachers[`${settings.d},${settings.k}`]).map(([name, kept]) => [name, kept.weights]);
  const run = engine.start(S.forEngine(settings), { width: teachers.width, networks: Object.fromEntries(networks) });
  run.advance(settings.steps);
  return run.students.map((s) => {
    const at = s.curve.findIndex((value) => value >= 0.95);
    return { accuracy: Math.round(100 * s.curve.at(-1)), reached: at < 0 ? null : run.looked[at] * engine.BATCH, spectra: s.spectra.map((v) => [...v]) };
  });
}

async function open(hash, { width = 1280, dark = false, still = false } = {}) {
  const context = await browser.newContext({ viewport: { width, height: 860 }, colorScheme: dark ? "dark" : "light", reducedMotion: still ? "reduce" : "no-preference" });
  const page = await context.newPage(), bad = [];
  page.setDefaultTimeout(120_000); // ms: only a page that is broken waits so long
  await context.route(/^(?!file:|data:|blob:|about:)/, (route) => (bad.push(route.request().url()), route.abort()));
  page.on("pageerror", (e) => bad.push(e.message));
  page.on("console", (m) => m.type() === "error" && bad.push(m.text()));
  await page.goto(address(hash), { waitUntil: "load" });
  await page.waitForSelector("#kd-playground[data-step='0'] [role=status] span");
  return { page, bad, context };
}
const state = (page) => page.evaluate(() => {
  const host = document.getElementById("kd-playground"), plain = (e) => e.innerText.replaceAll("\u00a0", " ");
  return {
    step: +host.dataset.step, done: host.dataset.done === "true", words: plain(host.querySelector("[role=status]")), hash: location.hash, progress: plain(host.querySelector(".kd-progress")),
    problems: [...host.querySelectorAll("[role=alert] p")].map(plain), lines: host.querySelectorAll(".kd-chart path").length, drawn: host.querySelector(".kd-chart svg").innerHTML.length,
    bars: [...host.querySelectorAll(".kd-chart svg")].map((svg) => [...svg.querySelectorAll(".kd-bar")].map((b) => +b.getAttribute("height"))).filter((b) => b.length),
    maps: [...host.querySelectorAll("canvas")].map((c) => [c.width, c.height, c.getAttribute("aria-label")]), focus: document.activeElement.dataset.key ?? document.activeElement.textContent,
    wide: document.documentElement.scrollWidth > document.documentElement.clientWidth, sticking: [...host.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > host.getBoundingClientRect().right + 1).map((e) => e.outerHTML.slice(0, 80)),
    link: host.querySelector(".kd-link a").getAttribute("href"),
  };
});
const press = async (page, name, key = "Enter") => (await page.getByRole("button", { name, exact: true }).focus(), page.keyboard.press(key));
const fast = (page) => page.getByLabel("Speed").selectOption({ index: 2 });
/** The words wait until the controls rest, and longer on a busy machine: until they name the step that is drawn, and are not those `before`. */
const told = async (page, before = "", end = false) => {
  await page.waitForFunction(([before, end]) => {
    const host = document.getElementById("kd-playground"), words = host.querySelector("[role=status]").innerText.replaceAll("\u00a0", " ");
    return words.startsWith(`Step ${(+host.dataset.step).toLocaleString("en")}.`) && words !== before && (!end || host.dataset.done === "true");
  }, [before, end]);
  return state(page);
};
const finished = (page, before) => told(page, before, true);
const say = (check, report) => console.log(JSON.stringify({ check, ...report }));

for (const width of [1280, 360]) { // by keys to the end of a run, then its numbers
  const hash = "#d=20&k=3&width=32&steps=500&seed=3&ra=1&rb=1&a=labels&b=dense:50,final", { page, bad, context } = await open(hash, { width });
  const before = await state(page), workers = page.workers().length;
  await page.getByLabel("Speed").selectOption({ index: 0 });
  await press(page, "Play");
  await page.waitForFunction(() => +document.getElementById("kd-playground").dataset.step > 4);
  await press(page, "Pause", "Space");
  const paused = await told(page);
  await page.waitForTimeout(500);
  const later = await state(page);
  await fast(page);
  await press(page, "Play");
  const after = await finished(page);
  await press(page, "Another seed");
  const seeded = await finished(page, after.words);
  say("run", { width, bad, before, paused, later, after, seeded, workers, expected: expected(hash) });
  await context.close();
}
{ // settings by keys; stages of one's own
  const { page, bad, context } = await open("");
  const steps = [];
  const act = async (what, doing) => (await doing(), await page.waitForTimeout(350), steps.push({ what, ...(await state(page)) }));
  await act("d", async () => (await page.getByLabel("Bits, d").focus(), page.keyboard.press("ArrowUp")));
  await act("k", async () => (await page.getByLabel("On the support, k").focus(), page.keyboard.press("ArrowUp")));
  await act("plan", () => page.getByLabel("Curriculum").nth(1).selectOption("6"));
  await act("add", () => press(page, "Student B: add a stage"));
  await act("signal", () => page.getByLabel("Student B, stage 2: match").selectOption("labels"));
  await act("steps", async () => (await page.getByLabel("Student B, stage 2: steps").fill("30"), page.keyboard.press("Enter")));
  await act("earlier", () => press(page, "Student B: stage 2 earlier"));
  await act("away", () => press(page, "Student B: take stage 2 away"));
  await act("short", () => page.locator("[data-key=steps]").selectOption({ index: 0 }));
  await act("long", async () => (await page.getByLabel("Student B, stage 1: steps").fill("700"), page.keyboard.press("Enter")));
  await fast(page);
  await press(page, "Play");
  say("own", { bad, steps, end: await finished(page) });
  const axe = {};
  for (const theme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: theme });
    await page.evaluate((t) => (document.documentElement.dataset.mode = document.documentElement.dataset.theme = t), theme);
    await page.waitForTimeout(600); // colours fade
    const report = await new AxeBuilder({ page }).options({ preload: false }).include("#kd-playground").withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]).analyze();
    axe[theme] = report.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 160)}`);
  }
  say("axe", { axe });
  await context.close();
}
{ // an address that says things it cannot mean, then a good one in the same page
  const { page, bad, context } = await open("#d=99&k=3&a=nothing&b=dense,final&colour=red&seed=-1");
  const wrong = await state(page);
  await page.evaluate(() => (location.hash = "#d=10&k=2&steps=200&a=labels&b=untrained:20,final"));
  say("address", { bad, wrong, right: await told(page, wrong.words) });
  await context.close();
}
{ // less motion: no picture changes while it runs
  const { page, bad, context } = await open("#steps=8000", { still: true });
  const drawn = () => page.evaluate(() => document.querySelector("#kd-playground .kd-chart svg").innerHTML);
  const before = await drawn();
  await press(page, "Play");
  await page.waitForFunction(() => +document.getElementById("kd-playground").dataset.step > 500);
  const [during, step] = [await drawn(), (await state(page)).step];
  await press(page, "Pause");
  await page.waitForTimeout(500);
  say("still", { bad, step, moved: during !== before, rested: (await drawn()) !== before });
  await context.close();
}
{ // a rate at which numbers grow without end is said, not drawn as a result
  const { page, bad, context } = await open("#d=30&k=5&width=64&steps=500&ra=10&rb=1&a=labels&b=dense:50,final");
  await fast(page);
  await press(page, "Play");
  say("rate", { bad, end: await finished(page) });
  await context.close();
}
const links = JSON.parse(process.argv[4] ?? "[]");
say("links", { problems: Object.fromEntries(links.map((hash) => [hash, S.parse(hash).problems]).filter(([, found]) => found.length)) });
await browser.close();
