"use strict";
(() => {
  const missing = (value) => value === null || value === undefined || value === "";

  // Values that are missing come last in either direction; numbers start with the largest, words with the first.
  const compare = (number, down) => (a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = number ? Number(a) - Number(b) : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -order : order;
  };

  // Marks the heading that sorts, and says which direction comes now.
  const turn = (head) => {
    const button = head.querySelector("button.sort");
    const number = button.hasAttribute("data-number");
    const before = head.getAttribute("aria-sort");
    const down = before === null ? number : before === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    return { number, down };
  };

  const sortTable = (head) => {
    const { number, down } = turn(head);
    const column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const by = compare(number, down);
    const rows = [...body.rows].map((row) => ({ row, value: row.cells[column].dataset.v }));
    rows.sort((a, b) => by(a.value, b.value));
    body.append(...rows.map((one) => one.row));
    show(head.closest("table"));
  };

  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const field = (table) => document.querySelector(`input[data-table="${table.id}"]`);

  // The rows that have every word of the table's filter; of a long table only the first of them.
  const show = (table) => {
    const wanted = words(field(table)?.value ?? "");
    const limit = Number(table.dataset.limit ?? Infinity);
    const rows = table.tBodies[0].rows;
    let found = 0;
    for (const row of rows) {
      if (wanted.length) row.found ??= row.textContent.toLowerCase();
      const fits = wanted.every((word) => row.found.includes(word));
      found += fits;
      row.hidden = !fits || found > limit;
    }
    const output = field(table)?.parentElement.querySelector("output");
    if (output) output.value = wanted.length ? `${found} of ${rows.length} rows` : `${rows.length} rows`;
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.sort");
    if (button && !button.closest("#items-table")) sortTable(button.closest("th"));
    const more = event.target.closest("button.more");
    if (more) {
      const table = document.getElementById(more.dataset.table);
      table.removeAttribute("data-limit");
      more.remove();
      show(table);
    }
  });
  for (const input of document.querySelectorAll("input[data-table]")) {
    const table = document.getElementById(input.dataset.table);
    input.addEventListener("input", () => show(table));
    if (input.value) show(table);
  }

  const source = document.getElementById("items-data");
  if (!source) return;

  // Whatever a model wrote becomes text and nothing else.
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  const PAGE = 100;
  let data;
  const state = { suite: null, order: [], limit: PAGE };
  const by = (id) => document.getElementById(id);

  const open = () => {
    data = JSON.parse(source.textContent);
    for (const suite of data.suites) {
      suite.of = new Map();
      for (const output of suite.outputs) {
        if (!suite.of.has(output[0])) suite.of.set(output[0], []);
        suite.of.get(output[0]).push(output);
      }
    }
    data.suites.forEach((suite, place) => by("items-suite").append(make("option", suite.name, { value: place })));
    by("items").hidden = false;
    choose();
  };

  const choose = () => {
    const suite = data.suites[Number(by("items-suite").value)];
    state.suite = suite;
    state.order = suite.items.map((_, place) => place);
    by("items-note").textContent = suite.note;
    const heads = make("tr");
    const add = (name, number) => {
      const head = make("th", null, { scope: "col" });
      if (number) head.className = "number";
      const button = make("button", name, { type: "button", class: "sort" });
      if (number) button.setAttribute("data-number", "");
      head.append(button);
      heads.append(head);
    };
    add("item", false);
    add("level", false);
    add("gold", false);
    suite.rows.forEach((name, place) => add(`${name}, of ${suite.n * suite.seeds[place]}`, true));
    by("items-table").tHead.replaceChildren(heads);
    fill();
  };

  const text = (suite, place) => {
    const item = suite.items[place];
    const outputs = suite.of.get(item[0]) ?? [];
    return [...item, ...outputs.map((output) => output[5] ?? "")].join("\n").toLowerCase();
  };

  const fill = () => {
    const { suite, order, limit } = state;
    const wanted = words(by("items-filter").value);
    suite.texts ??= suite.items.map((_, place) => text(suite, place));
    const found = order.filter((place) => wanted.every((word) => suite.texts[place].includes(word)));
    by("items-count").value = `${found.length} of ${suite.items.length} items`;
    by("items-table").tBodies[0].replaceChildren(...found.slice(0, limit).map((place) => itemRow(suite, place)));
    by("items-more").hidden = found.length <= limit;
  };

  const itemRow = (suite, place) => {
    const [id, level, , gold] = suite.items[place];
    const row = make("tr");
    const head = make("th", null, { scope: "row" });
    head.append(make("button", id, { type: "button", class: "open", "aria-expanded": "false" }));
    row.append(head, make("td", level), make("td", gold, { class: "gold" }));
    suite.right[place].forEach((right, column) => {
      const cell = make("td", right, { class: "number" });
      const share = right / (suite.n * suite.seeds[column]);
      cell.classList.add(share === 1 ? "all" : share === 0 ? "none" : "some");
      row.append(cell);
    });
    row.place = place;
    return row;
  };

  const toggle = (button) => {
    const row = button.closest("tr");
    const opened = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!opened));
    if (opened) row.nextElementSibling.remove();
    else row.after(detail(state.suite, row.place, row.cells.length));
  };

  const detail = (suite, place, width) => {
    const [id, , prompt, gold] = suite.items[place];
    const cell = make("td", null, { colspan: width });
    const box = make("div", null, { class: "detail-box" });
    box.append(make("h3", "Question"), make("pre", prompt || "not on this page"), make("h3", "Gold answer"), make("pre", gold));
    const outputs = suite.of.get(id) ?? [];
    box.append(make("h3", `${outputs.length} outputs on this page`));
    for (const [, column, seed, sample, verdict, answer, output, reason] of outputs) {
      const part = make("details");
      const line = make("summary");
      const name = data.verdicts[verdict];
      line.append(
        make("span", name, { class: `state verdict-${name}` }),
        ` ${suite.rows[column]}, seed ${seed ?? "–"}, sample ${sample}: ` + (answer === null ? "no answer" : `answer ${answer}`),
      );
      part.append(line);
      if (reason) part.append(make("p", reason, { class: "note" }));
      part.append(make("pre", output));
      box.append(part);
    }
    cell.append(box);
    const row = make("tr", null, { class: "detail" });
    row.append(cell);
    return row;
  };

  by("items-suite").addEventListener("change", () => { state.limit = PAGE; choose(); });
  by("items-filter").addEventListener("input", () => { state.limit = PAGE; fill(); });
  by("items-more").addEventListener("click", () => { state.limit += PAGE; fill(); });
  by("items-table").addEventListener("click", (event) => {
    const opener = event.target.closest("button.open");
    if (opener) return toggle(opener);
    const button = event.target.closest("button.sort");
    if (!button) return;
    const head = button.closest("th");
    const { number, down } = turn(head);
    const { suite } = state;
    const value = head.cellIndex < 3
      ? (place) => suite.items[place][[0, 1, 3][head.cellIndex]]
      : (place) => suite.right[place][head.cellIndex - 3] / suite.seeds[head.cellIndex - 3];
    const order = compare(number, down);
    state.order.sort((a, b) => order(value(a), value(b)));
    fill();
  });
  window.addEventListener("load", () => setTimeout(open)); // the rest of the page is there first
})();
