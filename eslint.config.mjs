// The widgets' scripts. Each is put behind common.js before it runs (nanogrpo/show/widgets/__init__.py), so that
// the names which common.js defines are known in all of them.
import { readFileSync } from "node:fs";
import js from "@eslint/js";

const common = readFileSync(new URL("nanogrpo/show/widgets/common.js", import.meta.url), "utf8");
const shared = [...common.matchAll(/^(?:function|const) (\w+)/gm)].map(([, name]) => [name, "readonly"]);
const browser = ["Blob", "URL", "console", "document", "matchMedia", "performance", "setTimeout"];
browser.push("requestAnimationFrame", "cancelAnimationFrame");
// The playground: page.js and worker.js are put behind the engine, and page.js behind common.js, too.
const engine = readFileSync(new URL("nanogrpo/show/playground/nanogrpo.js", import.meta.url), "utf8");
const exported = [...engine.matchAll(/^export (?:class|const|function) (\w+)/gm)].map(([, name]) => [name, "readonly"]);
const page = ["ENGINE", "OFF_THE_PAGE", "POLICY", "PRESETS", "LOOK", "URLSearchParams", "Worker", "history", "location", "navigator", "window"];
const globals = (names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

export default [
  { ignores: ["book/_static/vendor/"] },
  js.configs.recommended,
  {
    languageOptions: { globals: Object.fromEntries(browser.map((name) => [name, "readonly"])) },
    rules: { eqeqeq: "error", "no-var": "error", "prefer-const": "error" },
  },
  {
    files: ["book/_static/book-search.js"],
    languageOptions: { globals: globals(["SECTIONS", "DOCUMENTATION_OPTIONS", "URLSearchParams", "location", "window"]) },
  },
  {
    files: ["book/_static/predictions.js", "book/_static/progress.js"],
    languageOptions: { globals: globals(["addEventListener", "localStorage", "location"]) },
  },
  {
    files: ["nanogrpo/show/playground/page.js"],
    languageOptions: { globals: { ...Object.fromEntries(shared), ...globals(page) } },
  },
  {
    files: ["nanogrpo/show/playground/worker.js"],
    languageOptions: { globals: { ...Object.fromEntries(exported), EOS: "readonly", ...globals(["atob", "postMessage"]), onmessage: "writable" } },
  },
  {
    files: ["nanogrpo/show/widgets/*.js"],
    ignores: ["nanogrpo/show/widgets/common.js"],
    languageOptions: { globals: Object.fromEntries(shared) },
  },
  {
    files: ["nanogrpo/show/widgets/common.js"],
    languageOptions: { sourceType: "script" },
    rules: { "no-unused-vars": ["error", { vars: "local" }] },
  },
];
