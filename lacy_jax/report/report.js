// Filters the texts of the page. Without scripts all texts are shown and the form stays hidden.
(() => {
  "use strict";
  const section = document.getElementById("samples");
  if (!section) return;
  const form = section.querySelector("form");
  const status = section.querySelector("[role=status]");
  const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const groups = [...section.querySelectorAll("details.prompt")].map((node) => ({
    node,
    cards: [...node.querySelectorAll(".card")].map((card) => ({
      node: card,
      data: card.dataset,
      facts: card.dataset.facts.split(" "),
      words: plain(card.dataset.entity + " " + card.querySelector(".text").textContent),
    })),
  }));
  const total = groups.reduce((sum, group) => sum + group.cards.length, 0);

  function apply() {
    const wanted = {};
    for (const box of form.querySelectorAll("input[type=checkbox]")) {
      wanted[box.name] ??= new Set();
      if (box.checked) wanted[box.name].add(box.value);
    }
    const { origin, truth } = form.elements;
    const words = plain(form.elements.words.value).split(/\s+/).filter(Boolean);
    const isFact = (fact) => (!truth.value || fact.startsWith(truth.value + "-")) && (!origin.value || fact.endsWith("-" + origin.value));
    let shown = 0;
    for (const group of groups) {
      let here = 0;
      for (const card of group.cards) {
        const fits =
          Object.entries(wanted).every(([facet, values]) => values.has(card.data[facet])) &&
          words.every((word) => card.words.includes(word)) &&
          card.facts.some(isFact);
        card.node.hidden = !fits;
        here += fits;
      }
      group.node.hidden = !here;
      shown += here;
    }
    if (words.length) for (const group of groups) group.node.open = true;
    status.textContent = `${shown} of ${total} texts shown` + (shown ? "" : ": nothing fits; widen the filter");
  }

  form.hidden = false;
  form.addEventListener("input", apply);
  for (const button of form.querySelectorAll("fieldset button"))
    button.addEventListener("click", () => {
      const boxes = [...button.closest("fieldset").querySelectorAll("input")];
      const all = boxes.every((box) => box.checked);
      for (const box of boxes) box.checked = !all;
      apply();
    });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
})();
