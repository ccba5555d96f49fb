// Open pages in one headless Chromium and report what a reader would trip over, one JSON line a page.
// node visit.mjs CHROMIUM SCREENSHOTS page.html ...   (SCREENSHOTS: a folder, or "-")
// Each page is loaded once, then looked at wide and light, wide and dark, at a tablet's 768 px, and at a phone's 360 px.
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";
import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
const require = createRequire(path.join(process.env.NODE_HOME, "x.js"));
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");
const [executablePath, shots, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });

const GIVE_UP = 600_000; // ms: only a page that is broken waits so long

// Math is typeset and every widget is drawn.
const settled = () =>
  document.readyState === "complete" &&
  [...document.querySelectorAll(".math")].every((e) => e.querySelector("mjx-container")) &&
  document.querySelectorAll(".jupyter-widgets, .kd-explorer").length >= document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']").length;

// Fonts are there, what fades or moves is at its end, and a frame has been drawn. A page that nobody sees may stop drawing
// frames, so that neither would ever come by itself: fades are brought to their end, and frames waited for a while.
const atRest = async () => {
  await document.fonts.ready;
  for (const a of document.getAnimations()) if (a.effect.getComputedTiming().endTime !== Infinity) a.finish();
  const drawn = new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  await Promise.race([drawn, new Promise((done) => setTimeout(done, 2000))]);
};

const look = () => {
  const prose = [...document.querySelectorAll("main p, main li, main td, main th, main h1, main h2, main h3")].filter((e) => !e.closest("pre, code, .highlight"));
  const said = (e) => [...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.textContent).join(" ");
  return {
    alt: [...document.querySelectorAll("img")].filter((i) => !i.alt.trim() || /\.(png|svg|jpe?g|gif|webp)$/i.test(i.alt)).map((i) => i.src),
    math: document.querySelectorAll("mjx-container").length,
    raw: [
      ...[...document.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container")).map((e) => e.textContent),
      ...prose.map(said).filter((text) => /\\[([]|\$\$|\$[^\s$][^$]*\$/.test(text)),
      ...[...document.querySelectorAll("mjx-merror")].map((e) => `TeX error: ${e.dataset.mjxError ?? e.textContent}`),
    ],
    widgets: {
      stored: document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']").length,
      drawn: [...document.querySelectorAll(".jupyter-widgets, .kd-explorer")].filter((e) => e.id !== "kd-playground" && !e.parentElement.closest(".jupyter-widgets")).length,
    },
  };
};

// What sticks out of the page, the innermost elements first; [] when the page does not scroll sideways.
const sideways = () => {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth) return [];
  const inside = (e) => { for (let p = e.parentElement; p; p = p.parentElement) if (p !== document.body && p !== root && getComputedStyle(p).overflowX !== "visible") return true; return false; };
  const out = [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !inside(e));
  return [`page is ${root.scrollWidth} px wide`, ...out.slice(-3).map((e) => e.outerHTML.slice(0, 120))];
};

// Lines of code or output that end at the edge with nothing to show that they go on, and, where `fits` is given, lines
// of no more characters than that which do not fit.
const cut = (fits) => [...document.querySelectorAll("main pre")].filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).flatMap((e) => {
  const style = getComputedStyle(e), longest = Math.max(...e.textContent.split("\n").map((line) => line.length));
  const shown = ["auto", "scroll"].includes(style.overflowX) && style.backgroundAttachment.includes("local");
  return [...(shown ? [] : [`not shown to go on: ${e.textContent.slice(0, 60)}`]), ...(longest <= fits ? [`${longest} characters do not fit: ${e.textContent.slice(0, 60)}`] : [])];
});

// Anything else in the text that goes on to the right, such as a table, with nothing to show it.
const hidden = () => [...document.querySelectorAll("main :is(table, div, section, article)")].filter((e) => {
  const style = getComputedStyle(e);
  return style.overflowX !== "visible" && !style.backgroundAttachment.includes("local") && e.checkVisibility() && e.scrollWidth > e.clientWidth + 1;
}).map((e) => `not shown to go on: ${e.className} ${e.textContent.trim().slice(0, 60)}`);

// Equations that reach below their number.
const covered = () => [...document.querySelectorAll("main .math > .eqno")].filter((number) => {
  const box = number.parentElement.querySelector("mjx-container")?.getBoundingClientRect(), mine = number.getBoundingClientRect();
  return box && number.checkVisibility() && box.right > mine.left + 1 && mine.right > box.left && box.bottom > mine.top && mine.bottom > box.top;
}).map((number) => number.parentElement.id || number.textContent);

// Images that nobody scrolled to come when the page rests: a picture of the whole page, and paper, show them.
const rested = () => !document.querySelector("img[loading=lazy]");
const loadAll = () => Promise.allSettled([...document.images].map((i) => i.decode()));

// Bytes of files as a server sends them: text is compressed, pictures and fonts are so already.
const sent = (files) => [...files].reduce((sum, file) => {
  const bytes = fs.readFileSync(file);
  return sum + (/\.(html|css|m?js|svg|json|txt)$/.test(file) ? zlib.gzipSync(bytes).length : bytes.length);
}, 0);

// What paper would show and should not, or should and does not.
const printed = () => [
  ...[...document.querySelectorAll(".bd-sidebar, .bd-header-article, .prev-next-footer, footer, button")].filter((e) => e.checkVisibility()).map((e) => `shown: ${e.className}`),
  ...[...document.querySelectorAll("main pre")].filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map((e) => `cut: ${e.textContent.slice(0, 60)}`),
  ...[...document.querySelectorAll("main details:not([class], [open])")].map((e) => `folded: ${e.textContent.slice(0, 60)}`),
  ...[...document.querySelectorAll("main :is(table.table, table.kd-claims)")].filter((e) => getComputedStyle(e).breakInside !== "auto").map((e) => `in one piece: ${e.textContent.slice(0, 60)}`),
  ...(document.querySelector("article h1")?.checkVisibility() ? [] : ["no title"]),
];

async function axe(page, builder) {
  // preload would fetch the style sheets again, which file:// forbids. (options() must come before the choice of rules.)
  const report = await builder(new AxeBuilder({ page }).options({ preload: false })).analyze();
  return report.violations
    .filter((v) => ["serious", "critical"].includes(v.impact))
    .flatMap((v) => v.nodes.map((n) => ({ rule: v.id, target: n.target.join(" "), html: n.html.slice(0, 200) })));
}

for (const file of pages) {
  const name = path.basename(file, ".html");
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
  const found = { page: name, outside: [], failed: [], console: [], sideways: {}, cut: {}, covered: {}, axe: {} };
  const files = new Set();
  await context.route(/^(?!file:|data:|blob:|about:)/, (route) => { found.outside.push(route.request().url()); return route.abort(); });
  const page = await context.newPage();
  page.setDefaultTimeout(GIVE_UP);
  page.on("requestfailed", (r) => { if (/^(file|data|blob):/.test(r.url())) found.failed.push(r.url()); });
  page.on("request", (r) => { if (r.url().startsWith("file:")) files.add(fileURLToPath(r.url().split(/[?#]/)[0])); });
  page.on("console", (m) => { if (m.type() === "error") found.console.push(m.text()); });
  page.on("pageerror", (e) => found.console.push(e.message));
  const shoot = (kind) => shots === "-" ? null : page.screenshot({ path: path.join(shots, `${name}-${kind}.png`), fullPage: true });

  await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
  await page.waitForFunction(settled, null, { timeout: GIVE_UP }).catch(() => {}); // what never settles shows in the report
  // What waits for a reader's guess is looked at as well.
  await page.evaluate(() => [...document.querySelectorAll(".kd-guess button")].filter((b) => b.textContent === "Skip").forEach((b) => b.click()));
  await page.evaluate(atRest);
  Object.assign(found, await page.evaluate(look));
  const needed = await page.evaluate(() => [...document.querySelectorAll("link[rel=stylesheet], script[src]:not([defer]):not([async])")].map((e) => e.href ?? e.src));
  found.weight = { before: sent(new Set([file, ...needed.filter((u) => u.startsWith("file:")).map((u) => fileURLToPath(u.split(/[?#]/)[0]))])) };
  await page.waitForFunction(rested, null, { timeout: GIVE_UP });
  await page.evaluate(loadAll);
  found.weight.all = sent([...files].filter((f) => fs.existsSync(f)));
  const measure = async (width, fits) => {
    found.sideways[width] = await page.evaluate(sideways);
    found.cut[width] = [...(await page.evaluate(cut, fits)), ...(await page.evaluate(hidden))];
    found.covered[width] = await page.evaluate(covered);
  };
  await measure("desktop", 88);
  found.axe.light = await axe(page, (b) => b.withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]));
  await shoot("desktop");

  await page.emulateMedia({ colorScheme: "dark" });
  await page.evaluate(() => { document.documentElement.dataset.mode = document.documentElement.dataset.theme = "dark"; });
  await page.evaluate(atRest); // colours fade
  found.axe.dark = await axe(page, (b) => b.withRules(["color-contrast"]));
  found.dark = await page.evaluate(() => [...document.querySelectorAll("div.cell_output img, .bd-article figure img")].map((i) => getComputedStyle(i).filter)[0] ?? "");
  await shoot("dark");

  await page.emulateMedia({ colorScheme: "light" });
  await page.evaluate(() => { document.documentElement.dataset.mode = document.documentElement.dataset.theme = "light"; });
  for (const [kind, width, height] of [["tablet", 768, 1024], ["phone", 360, 780]]) {
    await page.setViewportSize({ width, height });
    await page.evaluate(atRest);
    await measure(kind, 0);
    await shoot(kind);
  }

  await page.emulateMedia({ media: "print" });
  await page.setViewportSize({ width: 700, height: 990 });
  await page.evaluate(atRest);
  await page.evaluate(() => dispatchEvent(new Event("beforeprint")));
  found.print = await page.evaluate(printed);

  console.log(JSON.stringify(found));
  await context.close();
}
await browser.close();
