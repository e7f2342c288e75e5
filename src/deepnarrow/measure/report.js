// Sorts the table by the column whose heading is pressed; a second press turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const said = document.getElementById(table.dataset.says);
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const was = heading.getAttribute("aria-sort");
      const first = button.dataset.first || "ascending";
      const order = was === null ? first : was === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured stays last
        const difference = button.dataset.text === undefined ? a - b : a.localeCompare(b, "en", { numeric: true });
        return sign * difference;
      });
      body.append(...rows);
      if (said) said.textContent = `Sorted by ${button.textContent.trim()}, ${order}.`;
    });
  });
}
