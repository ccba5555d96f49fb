// Open pages in one headless Chromium and report what a reader would trip over, one JSON line a page.
// node visit.mjs CHROMIUM SCREENSHOTS page.html ...   (SCREENSHOTS: a folder, or "-")
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";
const require = createRequire(path.join(process.env.NODE_HOME, "x.js"));
const { chromium } = require("playwright-core");
const { AxeBuilder } = require("@axe-core/playwright");
const [executablePath, shots, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });

async function visit(file, width, scheme) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme: scheme });
  const page = await context.newPage();
  const found = { outside: [], failed: [], console: [] };
  page.on("request", (r) => { if (!/^(file|data|blob):/.test(r.url())) found.outside.push(r.url()); });
  page.on("requestfailed", (r) => found.failed.push(r.url()));
  page.on("console", (m) => { if (m.type() === "error") found.console.push(m.text()); });
  page.on("pageerror", (e) => found.console.push(e.message));
  await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
  await page.waitForTimeout(1200);
  Object.assign(found, await page.evaluate(() => ({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    alt: [...document.querySelectorAll("main img")].filter((i) => !i.alt || /\.(png|svg)$/.test(i.alt)).map((i) => i.src),
    math: document.querySelectorAll("mjx-container").length,
    raw: [...document.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container")).length,
  })));
  return { context, page, found };
}

for (const file of pages) {
  const name = path.basename(file, ".html");
  const wide = await visit(file, 1280, "light");
  const report = await new AxeBuilder({ page: wide.page }).withTags(["wcag2a", "wcag2aa"]).options({ preload: false }).analyze();
  const axe = report.violations.filter((v) => ["serious", "critical"].includes(v.impact)).flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.target} ${n.html.slice(0, 120)}`));
  const phone = await visit(file, 360, "light");
  if (shots !== "-") {
    await wide.page.screenshot({ path: path.join(shots, `${name}-desktop.png`), fullPage: true });
    await phone.page.screenshot({ path: path.join(shots, `${name}-phone.png`), fullPage: true });
    const dark = await visit(file, 1280, "dark");
    await dark.page.screenshot({ path: path.join(shots, `${name}-dark.png`), fullPage: true });
    await dark.context.close();
  }
  console.log(JSON.stringify({ page: name, ...wide.found, phoneOverflow: phone.found.overflow, axe }));
  await wide.context.close();
  await phone.context.close();
}
await browser.close();
