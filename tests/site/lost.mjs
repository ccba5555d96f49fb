// Open addresses that do not exist in headless Chromium; one JSON line each: where the links lead, and whether the theme's style sheet was found.
// node lost.mjs CHROMIUM http://...
import { createRequire } from "node:module";
import path from "node:path";
const require = createRequire(path.join(process.env.NODE_HOME, "x.js"));
const { chromium } = require("playwright-core");
const [executablePath, ...addresses] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
for (const address of addresses) {
  const page = await browser.newPage();
  page.setDefaultTimeout(600_000); // ms: only a page that is broken waits so long
  await page.goto(address, { waitUntil: "load" });
  // Which requests were made says little: a browser asks for style sheets ahead, before the page knows where it is.
  const styled = await page.evaluate(() => getComputedStyle(document.documentElement).getPropertyValue("--pst-color-text-base") !== "");
  const links = await page.locator("article a[href]").evaluateAll((all) => all.map((a) => a.href));
  console.log(JSON.stringify({ address, styled, links }));
  await page.close();
}
await browser.close();
