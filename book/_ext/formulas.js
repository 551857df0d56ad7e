// Typesets formulas for formulas.py: node formulas.js FOLDER-OF-MATHJAX. Reads a page's formulas as one line of
// JSON, [[tex, display], ...], and answers with one line, {"html": [...], "css": "..."}: the rules that these
// formulas need, where FONTS stands for the folder of the fonts.
const path = require("path");
const readline = require("readline");

const extensions = ["ams", "newcommand", "boldsymbol"];
const folder = path.resolve(process.argv[2]);

async function main() {
  const MathJax = await require(path.join(folder, "node-main.js")).init({
    loader: {
      versionWarnings: false,
      load: [
        "input/tex-base",
        ...extensions.map((name) => `[tex]/${name}`),
        ...["output/chtml", "adaptors/liteDOM", "a11y/assistive-mml"],
      ],
    },
    tex: { packages: ["base", ...extensions] }, // what they do not know is an error
    chtml: { fontURL: "FONTS" },
  });
  const { adaptor, output } = MathJax.startup;
  // In the theme's fonts an x is about half an em high; in MathJax's it is lower, so they are set larger.
  const sizes = { em: 16, ex: 8, containerWidth: 80 * 16, scale: 1.18 };
  for await (const line of readline.createInterface({ input: process.stdin })) {
    output.clearCache();
    const html = [];
    for (const [tex, display] of JSON.parse(line)) {
      html.push(adaptor.outerHTML(await MathJax.tex2chtmlPromise(tex, { ...sizes, display })));
    }
    const css = adaptor.textContent(MathJax.chtmlStylesheet());
    process.stdout.write(JSON.stringify({ html, css }) + "\n");
  }
}

main().catch((error) => {
  console.error(String(error?.stack ?? error));
  process.exit(1);
});
