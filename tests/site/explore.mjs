// Drive the explorers on the pages in headless Chromium by keys and lists; one JSON line an explorer and width.
// node explore.mjs CHROMIUM page.html ...
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";
const require = createRequire(path.join(process.env.NODE_HOME, "x.js"));
const { chromium } = require("playwright-core");
const [executablePath, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });

// What the explorer shows: its words, its drawings, the heights of its bars (an array a chart), and whether it fits.
const read = (e, plain = (part) => part.textContent.replaceAll("\u00a0", " ")) => ({
  words: plain(e.querySelector("[role=status]")),
  drawn: [...e.querySelectorAll(".kd-chart svg")].map((svg) => svg.innerHTML).join("\n"),
  headings: [...e.querySelectorAll(".kd-heading")].map(plain),
  bars: [...e.querySelectorAll(".kd-chart svg")].map((svg) => [...svg.querySelectorAll(".kd-bar")].map((b) => +b.getAttribute("height"))),
  keys: [...e.querySelectorAll(".kd-key")].map(plain), tall: e.offsetHeight,
  said: [...e.querySelectorAll("input")].map((i) => i.getAttribute("aria-valuetext")),
  fits: e.scrollWidth <= e.clientWidth + 1 && [...e.querySelectorAll("select, input, button, svg")].every((c) => c.getBoundingClientRect().right <= e.getBoundingClientRect().right),
});

for (const file of pages) {
  for (const [width, height] of [[1280, 900], [360, 780]]) {
    const page = await browser.newPage({ viewport: { width, height } });
    page.setDefaultTimeout(600_000); // ms: only a page that is broken waits so long
    await page.clock.install(); // the page's timers run when we say so, however busy the machine is
    const errors = [];
    page.on("pageerror", (e) => errors.push(e.message));
    await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
    await page.waitForSelector(".kd-explorer").catch(() => {}); // none at all shows in the report
    await page.clock.pauseAt(await page.evaluate(() => Date.now() + 1000));
    for (const found of await page.locator(".kd-explorer").all()) {
      const look = async () => (await page.clock.runFor(400), found.evaluate(read)); // the words wait for the controls to rest
      const report = { page: path.basename(file, ".html"), width, errors, kind: await found.getAttribute("aria-label"), start: await look(), steps: [] };
      const step = async (control, action, act, wait = 0) => {
        await act();
        if (wait) await page.clock.runFor(wait);
        report.steps.push({ control, action, ...(await look()) });
      };
      for (const control of await found.locator("input, select, button").all()) {
        const tag = await control.evaluate((e) => e.tagName.toLowerCase());
        const label = await control.evaluate((e) => (e.labels?.[0]?.firstChild.firstChild ?? e).textContent.trim());
        await control.focus();
        if (tag === "input") for (const key of ["Home", "ArrowRight", "End"]) await step(label, key, () => page.keyboard.press(key));
        if (tag === "select") {
          const names = await control.locator("option").allTextContents(), before = await control.inputValue();
          for (const [i, name] of names.entries()) if (String(i) !== before) await step(label, name, () => control.selectOption({ index: i }));
        }
        if (tag === "button") for (const action of ["start", "stop"]) await step(label, action, () => page.keyboard.press("Enter"), 600);
      }
      console.log(JSON.stringify(report));
    }
    await page.close();
  }
}
await browser.close();
