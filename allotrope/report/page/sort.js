// Tables that can be sorted: a button in each head, numbers by value, words by alphabet.
(() => {
  const order = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.order === undefined ? null : Number(cell.dataset.order);
  };
  const compare = (column, direction) => (a, b) => {
    const [x, y] = [order(a, column), order(b, column)];
    if (x !== null && y !== null) return direction * (x - y);
    if (x !== null || y !== null) return x === null ? 1 : -1;  // what has no figure comes last
    return direction * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
  };
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "descending" : "ascending");
        body.append(...[...body.rows].sort(compare(column, up ? -1 : 1)));
      });
    });
  }
})();
