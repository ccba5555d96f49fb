// Drive the front page's film and the guesses before figures in headless Chromium; one JSON line a visit.
// node live.mjs CHROMIUM film page.html           node live.mjs CHROMIUM guess page.html ...
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";
const require = createRequire(path.join(process.env.NODE_HOME, "x.js"));
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");
const [executablePath, what, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
const SCREENS = { desktop: [1280, 900], phone: [360, 780] };

/** A page in a context of its own, with what went wrong on it. */
async function open(file, { screen = "desktop", before, ...options } = {}) {
  const [width, height] = SCREENS[screen];
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: "light", reducedMotion: "no-preference", ...options });
  const errors = [];
  await context.route(/^(?!file:|data:|blob:|about:)/, (route) => { errors.push(route.request().url()); return route.abort(); });
  const page = await context.newPage();
  page.setDefaultTimeout(600_000); // ms: only a page that is broken waits so long
  page.on("pageerror", (e) => errors.push(e.message));
  page.on("console", (m) => { if (m.type() === "error") errors.push(m.text()); });
  page.on("requestfailed", (r) => errors.push(r.url()));
  if (before) await context.addInitScript(before);
  if (what === "film") await page.clock.install(); // its frames run when we say so
  await page.goto(file.includes("#") ? file : pathToFileURL(file).href, { waitUntil: "load" });
  return { page, errors, close: () => context.close() };
}

async function axe(page) {
  const report = await new AxeBuilder({ page }).options({ preload: false }).withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]).analyze();
  return report.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 120)}`);
}

// What the film shows: for each canvas the mean brightness of every row of pixels.
const readFilm = () => {
  const rows = (c) => {
    const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height), wide = 4 * c.width;
    return [...Array(c.height).keys()].map((y) => data.slice(y * wide, (y + 1) * wide).filter((_, i) => i % 4 < 3).reduce((a, b) => a + b, 0) / (3 * c.width));
  };
  const live = document.querySelector(".kd-live"), slider = live?.querySelector("input");
  return {
    still: document.querySelector("figure.kd-film img").checkVisibility(), player: !!live?.checkVisibility(),
    ...(live && { at: +slider.value, said: slider.getAttribute("aria-valuetext"), button: live.querySelector("button").textContent,
      maps: [...live.querySelectorAll("canvas")].map(rows), told: [...live.querySelectorAll("canvas")].map((c) => c.getAttribute("aria-label")),
      now: [...live.querySelectorAll(".kd-map-of-weights .kd-now")].map((e) => e.textContent.replaceAll("\u00a0", " ")), words: live.querySelector("[role=status]").textContent.replaceAll("\u00a0", " "),
      fits: [...live.querySelectorAll("*")].every((e) => e.getBoundingClientRect().right <= document.documentElement.clientWidth) && document.documentElement.scrollWidth <= document.documentElement.clientWidth }),
  };
};

async function driveFilm(file, options) {
  const { page, errors, close } = await open(file, options), steps = {};
  const look = async (name, wait = 300) => { await page.clock.runFor(wait); steps[name] = await page.evaluate(readFilm); };
  if (options.javaScriptEnabled === false) {
    console.log(JSON.stringify({ options, errors, still: await page.locator("figure.kd-film img").isVisible() }));
    return close();
  }
  const play = page.locator(".kd-live button"), slider = page.locator(".kd-live input");
  await page.locator(".kd-live").scrollIntoViewIfNeeded();
  await page.locator(".kd-live").evaluate((e) => e.scrollIntoView({ block: "center", behavior: "instant" }));
  await page.evaluate(() => new Promise((done) => { const o = new IntersectionObserver(() => { o.disconnect(); done(); }); o.observe(document.querySelector(".kd-live")); }));
  await look("opened", 500);
  await look("later", 10_000);
  await slider.focus();
  for (const key of ["Home", "ArrowRight", "End"]) { await page.keyboard.press(key); await look(key); }
  await play.focus();
  await page.keyboard.press("Enter");
  await look("playing", 500);
  await page.keyboard.press("Space");
  await look("paused", 2000);
  await play.click();
  await look("clicked", 500);
  const box = await slider.boundingBox();
  await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2);
  await look("dragged", 2000);
  const sizes = await page.locator(".kd-live :is(button, input)").evaluateAll((all) => all.map((e) => e.getBoundingClientRect().height));
  if (options.dark) {
    await page.evaluate(() => { document.documentElement.dataset.mode = document.documentElement.dataset.theme = "dark"; });
    steps.card = await page.evaluate(() => getComputedStyle(document.querySelector(".kd-live")).backgroundColor);
  }
  await page.emulateMedia({ media: "print" });
  steps.printed = await page.evaluate(readFilm);
  console.log(JSON.stringify({ options, errors, sizes, steps }));
  await close();
}

// What a question shows, and whether what it asks about can be seen.
const readGuess = () => {
  const panel = document.querySelector(".kd-guess"), seen = (name) => document.querySelector(name)?.checkVisibility() ?? null;
  return {
    panel: !!panel?.checkVisibility(), words: (panel?.textContent ?? "").replaceAll("\u00a0", " "), result: panel?.querySelector(".kd-result")?.textContent ?? null,
    focus: document.activeElement?.className ?? "", figure: seen("#figure"), rest: seen("#rest"), inner: seen("#inner"), code: seen("#code"), next: seen("#next"),
    fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
  };
};

async function driveGuess(file, options) {
  const { page, errors, close } = await open(file, options), steps = {};
  const look = async (name) => (steps[name] = await page.evaluate(readGuess));
  const findings = [];
  const button = (name) => page.getByRole("button", { name });
  const theme = options.colorScheme === "dark" ? () => page.evaluate(() => { document.documentElement.dataset.theme = "dark"; }) : () => {};
  await theme();
  await look("opened");
  if (options.javaScriptEnabled !== false && steps.opened.panel && !steps.opened.result) {
    findings.push(...(await axe(page)));
    const number = await page.locator(".kd-guess input[type=range]").count();
    if (!number) { await button("Show what happened").click(); await look("empty"); }
    await page.keyboard.press("Tab"); // from the top of the page
    while (!(await page.evaluate(() => document.activeElement.matches(".kd-guess input")))) await page.keyboard.press("Tab");
    await page.keyboard.press(number ? "Home" : "Space");
    await page.keyboard.press("Enter"); // submits the form
    if (await page.locator(".kd-result").count() === 0) await button("Show what happened").press("Enter");
    await look("answered");
    findings.push(...(await axe(page)));
    await page.reload({ waitUntil: "load" });
    await theme();
    await look("again");
    if (!steps.again.result) { await button("Skip").click(); }
    await button("Ask me again").click();
    await look("forgotten");
    await page.emulateMedia({ media: "print" });
    await look("printed");
    await page.emulateMedia({ media: "screen" });
    await button("Skip").focus();
    await page.keyboard.press("Enter");
    await look("skipped");
  }
  console.log(JSON.stringify({ page: path.basename(file).replace(/\.html.*/, ""), options: { ...options, before: !!options.before }, errors, findings, steps }));
  await close();
}

async function visitChapter(file) {
  const { page, errors, close } = await open(file);
  const veiled = await page.locator(".kd-veiled").count(), hidden = await page.locator(".kd-veiled img, img.kd-veiled").count();
  await page.getByRole("button", { name: "Skip" }).first().click();
  console.log(JSON.stringify({ page: path.basename(file, ".html"), errors, veiled, hidden, left: await page.locator(".kd-veiled").count(), words: await page.locator(".kd-guess").first().textContent() }));
  await close();
}

if (what === "film")
  for (const options of [{ screen: "desktop", dark: true }, { screen: "phone" }, { screen: "desktop", reducedMotion: "reduce" }, { javaScriptEnabled: false }]) await driveFilm(pages[0], options);
if (what === "chapter") for (const file of pages) await visitChapter(file);
if (what === "guess")
  for (const file of pages) {
    const closed = () => Object.defineProperty(window, "localStorage", { get() { throw new Error("not here"); } });
    for (const options of [{ screen: "desktop" }, { screen: "phone" }, { colorScheme: "dark" }, { before: closed }, { javaScriptEnabled: false }]) await driveGuess(file, options);
    await driveGuess(`${pathToFileURL(file).href}#inner`, {});
  }
await browser.close();
