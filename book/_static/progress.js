// Which chapters were read is kept in the browser, and shown in the sidebar and on the map. Nothing is sent.
(() => {
  const KEY = "nanogrpo.read";
  const root = new URL(document.documentElement.dataset.content_root ?? "./", location.href).pathname;
  let kept = []; // where the browser keeps nothing, the marks last as long as the page

  function read() {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return Array.isArray(found) ? found.filter((name) => typeof name === "string") : [];
    } catch {
      return kept;
    }
  }
  function write(names) {
    kept = names;
    try {
      if (names.length) localStorage.setItem(KEY, JSON.stringify(names));
      else localStorage.removeItem(KEY);
    } catch { /* a private window */ }
    show();
  }

  const chapterOf = (link) => {
    const { pathname, host } = new URL(link.href, location.href);
    return host === location.host && pathname.startsWith(root) ? pathname.slice(root.length).replace(/\.html$/, "") : "";
  };
  const create = (tag, attributes, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const setters = [];

  function markLink(link, name) {
    const mark = create("span", { className: "read" }, create("span", { ariaHidden: "true" }, " ✓"), create("span", { className: "read-words" }, " (read)"));
    setters.push((names) => (names.includes(name) ? link.append(mark) : mark.remove()));
  }

  function setUpPage(place) {
    const name = place.dataset.chapter;
    const button = create("button", { type: "button" }, "I have read this chapter");
    button.addEventListener("click", () => {
      const names = read();
      write(names.includes(name) ? names.filter((other) => other !== name) : [...names, name]);
    });
    place.append(button, create("span", {}, "Kept in this browser, and shown in the contents; nothing is sent."));
    setters.push((names) => {
      button.setAttribute("aria-pressed", names.includes(name));
      button.textContent = names.includes(name) ? "✓ Read. Take the mark away" : "I have read this chapter";
    });
  }

  function setUpMap(map) {
    const all = [...map.querySelectorAll("[data-chapter]")].map((row) => row.dataset.chapter);
    const words = create("output", { ariaLive: "polite" });
    const clear = create("button", { type: "button" }, "Forget what I have read");
    clear.addEventListener("click", () => write([]));
    map.after(create("div", { className: "read-mark" }, words, clear));
    setters.push((names) => {
      words.textContent = `${all.filter((name) => names.includes(name)).length} of ${all.length} chapters read.`;
      clear.disabled = !names.length;
    });
  }

  const show = () => { const names = read(); setters.forEach((set) => set(names)); };

  for (const link of document.querySelectorAll(".bd-links a.reference.internal, .chapter-map th a")) {
    const name = link.getAttribute("href") === "#" ? document.querySelector(".read-mark")?.dataset.chapter : chapterOf(link);
    if (name) markLink(link, name);
  }
  document.querySelectorAll(".read-mark").forEach(setUpPage);
  document.querySelectorAll(".chapter-map").forEach(setUpMap);
  show();
  addEventListener("storage", show); // another tab
})();
