"use strict";
// Niceties only: every figure is on the page without this script.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      const order = (a, b) => (a === "") - (b === "") || (down ? -1 : 1) * compare(a, b);
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
    });
  });
}
function compare(a, b) {
  return Number(a) - Number(b) || String(a).localeCompare(String(b), undefined, { numeric: true });
}
for (const filters of document.querySelectorAll(".filters")) {
  filters.hidden = false;
  const gallery = document.getElementById(filters.dataset.for);
  filters.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    for (const button of filters.children) button.setAttribute("aria-pressed", button === chosen);
    const wanted = chosen.dataset.only;
    for (const item of gallery.querySelectorAll("[data-is]"))
      item.hidden = wanted !== "" && !item.dataset.is.split(" ").includes(wanted);
  });
}
