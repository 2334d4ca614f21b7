"use strict";

// Columns sort by click or key: first the better end (data-first), then the other way round.
// Cells without a value stay last.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = before === first ? other : first;
      for (const one of heads) one.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const known = rows.filter((row) => value(row) !== undefined);
      const rest = rows.filter((row) => value(row) === undefined);
      const number = head.dataset.sort === "number";
      known.sort((a, b) =>
        sign * (number ? value(a) - value(b) : value(a).localeCompare(value(b))));
      table.tBodies[0].append(...known, ...rest);
    });
  });
}

addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not([open])")) folded.open = true;
});
