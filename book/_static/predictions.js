// A prediction is kept in the browser, and opens what answers it. Nothing is sent; without storage nothing is kept.
(() => {
  const ALL = "nanogrpo.answers";
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const write = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a private window */ } };
  const forms = [...document.querySelectorAll("form.predict")];
  const answers = [...document.querySelectorAll("details.answer")];

  function setUp(form) {
    const answer = document.getElementById(`${form.id}-answer`);
    const key = `nanogrpo.${form.id}`;
    const { words } = form.elements;
    const picked = () => Object.fromEntries([...form.querySelectorAll("input:checked")].map((i) => [i.name, i.value]));
    const kept = JSON.parse(read(key) ?? "{}");

    const show = () => {
      words.style.height = "";
      words.style.height = `${words.scrollHeight + 2}px`;
      const said = [Object.values(picked()).join(", "), words.value.trim()].filter(Boolean).join("; ");
      const yours = answer?.querySelector(".yours");
      if (!yours) return;
      yours.hidden = !said;
      yours.textContent = `You said: ${said}`;
    };
    const keep = () => {
      write(key, JSON.stringify({ words: words.value, choices: picked(), open: answer?.open ?? false }));
      show();
    };
    words.value = kept.words ?? "";
    for (const input of form.querySelectorAll("input")) input.checked = kept.choices?.[input.name] === input.value;
    if (answer && kept.open) answer.open = true;
    show();
    form.addEventListener("input", keep);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!answer) return;
      answer.open = true;
      const summary = answer.querySelector("summary");
      summary.focus({ preventScroll: true });
      summary.scrollIntoView({ block: "nearest" });
    });
    words.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    answer?.addEventListener("toggle", () => { if (read(ALL) !== "shown") keep(); });
  }

  function showAll(box) {
    box.checked = read(ALL) === "shown";
    if (box.checked) answers.forEach((answer) => (answer.open = true));
    box.addEventListener("change", () => {
      write(ALL, box.checked ? "shown" : "");
      answers.forEach((answer) => (answer.open = box.checked));
    });
  }

  // Browsers that do not open a fold for a link to what is inside.
  function follow() {
    const fold = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details.answer");
    if (!fold || fold.open) return;
    fold.open = true;
    document.getElementById(decodeURIComponent(location.hash.slice(1))).scrollIntoView();
  }

  forms.forEach(setUp);
  document.querySelectorAll(".predict-all").forEach(showAll);
  follow();
  addEventListener("hashchange", follow);
})();
