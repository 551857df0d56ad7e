// Ranks the sections of the book for a search, in place of Sphinx's own ranking; see sections.py.
(() => {
  // Another name of a thing finds it, too.
  const ALSO = { overoptimization: ["overoptimizing"], tokenise: ["tokenizer"], sft: ["supervised"], hacking: ["overoptimizing"] };
  const WEIGHTS = [[/^book\/api/, 0.08], [/^book\/(bibliography|cheat-sheet|identities|defaults|speed)/, 0.3], [/^book\/glossary/, 0.1], [/^book\/labs/, 0.15], [/^book\/explorers/, 0.35], [/^book\/bug-museum/, 0.6]];
  const LATE = /^(Exercises|Further reading|What goes wrong)$/; // these have a word of everything

  // Words in lower case without the s of a plural; a name of code or a word with a hyphen is found whole, and by its parts.
  const stem = (word) => (word.length > 3 && word.endsWith("s") && !word.endsWith("ss") && !word.endsWith("ias") ? word.slice(0, -1) : word);
  const words = (text) => (text.toLowerCase().match(/[\p{L}\p{N}_]+(?:-[\p{L}\p{N}_]+)*/gu) ?? [])
    .flatMap((word) => [word.replaceAll("-", ""), ...(/[_-]/.test(word) ? word.split(/[_-]/) : [])]).filter(Boolean).map(stem);
  const count = (list, table = new Map(), by = 1) => (list.forEach((word) => table.set(word, (table.get(word) ?? 0) + by)), table);

  const rows = SECTIONS.map(([page, anchor, chapter, title, text]) => {
    const body = words(text);
    const table = count(body);
    count(words(title), table, 6);
    if (title !== chapter) count(words(chapter), table, 2);
    const weight = (WEIGHTS.find(([where]) => where.test(page))?.[1] ?? 1) * (LATE.test(title) ? 0.5 : 1);
    return { page, anchor, chapter, title, text, table, length: body.length, weight, heading: words(title), above: words(chapter) };
  });
  const pages = new Map(); // the words of a whole page: a section may leave to its neighbors what all of them are about
  for (const { page, table } of rows) pages.set(page, new Set([...(pages.get(page) ?? []), ...table.keys()]));
  const usual = rows.reduce((sum, row) => sum + row.length, 0) / rows.length;
  const rarity = (found) => Math.log(1 + (rows.length - found + 0.5) / (found + 0.5));

  // BM25 over sections: rare words weigh more, a title more than the text, and a section that lacks a word far less.
  function rank(query) {
    const asked = words(query).map((word) => [word, ...(ALSO[word] ?? [])]);
    const vocabulary = asked.map((group) => {
      const exact = rows.filter(({ table }) => group.some((word) => table.has(word))).length;
      return { group, begins: exact === 0, idf: rarity(exact) };
    });
    const often = ({ table }, { group, begins }) => group.reduce((sum, word) => sum + (table.get(word) ?? 0), 0)
      + (begins ? [...table].reduce((sum, [word, n]) => sum + (word.startsWith(group[0]) ? n : 0), 0) : 0);
    return rows.map((row) => {
      let [score, met] = [0, 0];
      for (const term of vocabulary) {
        const tf = often(row, term);
        met += tf ? 1 : term.group.some((word) => pages.get(row.page).has(word)) ? 0.6 : 0;
        score += (term.idf * tf * 2.2) / (tf + 1.2 * (0.4 + 0.6 * (row.length / usual)));
      }
      const share = (title) => title.filter((word) => asked.flat().includes(word)).length / (title.length || 1);
      const named = 1 + 0.6 * share(row.heading) + 0.8 * share(row.above);
      return { ...row, score: score * row.weight * named * (met / asked.length) ** 2 };
    }).filter(({ score }) => score > 0).sort((a, b) => b.score - a.score);
  }

  function excerpt({ text }, query) {
    const first = words(query).map((word) => text.toLowerCase().indexOf(word)).filter((i) => i >= 0).sort((a, b) => a - b)[0] ?? 0;
    const from = first < 80 ? 0 : text.indexOf(" ", first - 70) + 1;
    return `${from ? "… " : ""}${text.slice(from, from + 220)}${text.length > from + 220 ? " …" : ""}`;
  }

  function show(query) {
    const place = document.getElementById("search-results");
    if (!place) return;
    const found = rank(query);
    const shown = found.slice(0, 30);
    const title = document.createElement("p");
    title.setAttribute("role", "status");
    title.textContent = !query.trim() ? "Search" : found.length ? `${found.length} sections, the best ${shown.length} first` : "Nothing was found; try fewer or other words";
    const list = document.createElement("ul");
    list.className = "search";
    list.append(...shown.map((row) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = `${DOCUMENTATION_OPTIONS.content_root ?? document.documentElement.dataset.content_root ?? ""}${row.page}.html${row.anchor && `#${row.anchor}`}`;
      link.textContent = row.title === row.chapter ? row.title : `${row.chapter}: ${row.title}`;
      const text = document.createElement("p");
      text.className = "context";
      text.textContent = excerpt(row, query);
      item.append(link, text);
      return item;
    }));
    place.replaceChildren(title, list);
    document.title = query.trim() ? `${query}: search` : document.title;
  }

  const start = () => {
    const query = new URLSearchParams(location.search).get("q") ?? "";
    document.querySelectorAll('input[name="q"]').forEach((input) => (input.value = query));
    show(query);
  };
  window.Search = { performSearch: show };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
