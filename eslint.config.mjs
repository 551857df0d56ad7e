// The widgets' scripts. Each is put behind common.js before it runs (nanogrpo/show/widgets/__init__.py), so that
// the names which common.js defines are known in all of them.
import { readFileSync } from "node:fs";
import js from "@eslint/js";

const common = readFileSync(new URL("nanogrpo/show/widgets/common.js", import.meta.url), "utf8");
const shared = [...common.matchAll(/^(?:function|const) (\w+)/gm)].map(([, name]) => [name, "readonly"]);
const browser = ["Blob", "URL", "console", "document", "matchMedia", "performance", "setTimeout"];
browser.push("requestAnimationFrame", "cancelAnimationFrame");

export default [
  { ignores: ["book/_static/vendor/"] },
  js.configs.recommended,
  {
    languageOptions: { globals: Object.fromEntries(browser.map((name) => [name, "readonly"])) },
    rules: { eqeqeq: "error", "no-var": "error", "prefer-const": "error" },
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
