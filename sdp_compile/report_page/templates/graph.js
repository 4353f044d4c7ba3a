
/* ---- graph: lists, folds and searches the rows, module by module ---- */
{
  const data = JSON.parse($("#graph-data").textContent);
  const [NAME, CODE, KIND, MODULE, SHAPE, FULL, DTYPE, SOURCE, INPUTS] = data.rows.length ? data.rows[0].keys() : [];
  const CHANGED = new Set(["sync", "mask", "rescale", "drop", "join", "size", "rewritten", "sliced"]);
  const MOST_FOUND = 400;
  const LONG = 240;
  const MANY = 24;
  const PLAIN = new Set(["input", "state", "sync", "mask"]);
  const listing = $("#listing");
  const search = $("#search");
  const found = $("#found");
  const kinds = $$("input[name=kind]");
  const changes = $("#changes");
  const number = (count) => count.toLocaleString("en");

  const left = data.folds.reduce((sum, [, held, , , rows]) => sum + rows - held, 0);
  const users = data.rows.map(() => []);
  data.rows.forEach((row, at) => row[INPUTS].forEach((input) => users[input].push(at)));
  const texts = data.rows.map((row) =>
    [row[NAME], row[CODE], row[KIND], ...data.modules[row[MODULE]], ...data.sources[row[SOURCE]]].join("\n").toLowerCase());

  /* ---- one row ---- */
  function marked(text, terms) {
    if (!terms.length) return [text];
    const parts = [];
    const low = text.toLowerCase();
    for (let at = 0; at < text.length;) {
      const hits = terms.map((term) => [low.indexOf(term, at), term.length]).filter(([start]) => start >= 0);
      if (!hits.length || low.length !== text.length) { parts.push(text.slice(at)); break; }
      const [start, length] = hits.reduce((first, hit) => (hit[0] < first[0] ? hit : first));
      parts.push(text.slice(at, start), element("mark", {}, text.slice(start, start + length)));
      at = start + length;
    }
    return parts;
  }

  /* The part of long code (an all-reduce names all its parameters) with the most search terms; the facts have all of it. */
  function excerpt(code, terms) {
    if (code.length <= LONG || !terms.length) return code;
    const low = code.toLowerCase();
    let best = 0;
    let most = 0;
    for (const term of terms) {
      for (let at = low.indexOf(term); at >= 0; at = low.indexOf(term, at + term.length)) {
        const start = at < LONG / 4 ? 0 : low.indexOf(" ", at - LONG / 4) + 1;
        const part = low.slice(start, start + LONG);
        const count = terms.filter((one) => part.includes(one)).length;
        if (count > most) [best, most] = [start, count];
      }
    }
    return `${best ? "… " : ""}${code.slice(best, best + LONG)}${best + LONG < code.length ? " …" : ""}`;
  }

  const times = (sizes) => (sizes.length ? sizes.join(" × ") : "scalar");

  function shape(row) {
    if (!row[SHAPE]) return element("span", { class: "shape" });
    if (!row[FULL]) return element("span", { class: "shape" }, times(row[SHAPE]));
    return element("span", { class: "shape", title: "full model → this worker" }, `${times(row[FULL])} → `, element("b", {}, times(row[SHAPE])));
  }

  function line(at, terms) {
    const row = data.rows[at];
    const assigned = ["state", "sliced", "output"].includes(row[KIND]) ? "" : `${row[NAME]} = `;
    const code = assigned + excerpt(row[CODE], terms);
    const details = element("details", { class: `row k-${row[KIND]}`, id: `row-${at}` },
      element("summary", {}, element("span", { class: "kind" }, row[KIND]), element("bdi", { class: "code" }, ...marked(code, terms)), shape(row)));
    details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(facts(at)));
    return details;
  }

  function facts(at) {
    const row = data.rows[at];
    const [module, type] = data.modules[row[MODULE]];
    const [source, code] = data.sources[row[SOURCE]];
    const list = element("dl");
    const add = (name, ...values) => values.length && values[0] !== "" && list.append(element("dt", {}, name), element("dd", {}, ...values));
    const to = (rows) => rows.map((other) => {
      const link = element("a", { href: `#row-${other}` }, data.rows[other][NAME]);
      link.addEventListener("click", (event) => { event.preventDefault(); go(other); });
      return link;
    });
    add("name", row[NAME]);
    if (row[CODE].length > LONG) add("code", row[CODE]);
    add("module", module ? `${module}: ${type}` : type);
    add("dtype", row[DTYPE]);
    add("source", source);
    add("line", code);
    add("reads", ...to(row[INPUTS]));
    add("read by", ...to(users[at]));
    return list;
  }

  /* Shows a row: clears the search and the filters, and opens its group and fold. */
  function go(at) {
    search.value = "";
    changes.checked = false;
    for (const kind of kinds) kind.checked = true;
    list();
    while (!$(`#row-${at}`)) fill($$(".later", listing).find((one) => one.dataset.first <= at && at < one.dataset.end));
    const row = $(`#row-${at}`);
    for (let outer = row.parentElement.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
    row.classList.add("found");
    row.scrollIntoView({ block: "center" });
    $("summary", row).focus({ preventScroll: true });
  }

  /* ---- details elements that are filled when opened ---- */
  const makers = new WeakMap();

  function later(kind, first, rows, summary, make) {
    const details = element("details", { class: `${kind} later`, "data-first": first, "data-end": first + rows }, element("summary", {}, ...summary));
    makers.set(details, make);
    details.addEventListener("toggle", () => details.open && fill(details));
    return details;
  }

  function fill(details) {
    if (!details.matches(".later")) return;
    details.classList.remove("later");
    details.append(...makers.get(details)());
  }

  const range = (first, rows) => Array.from({ length: rows }, (_, offset) => first + offset);
  const counted = (count) => `${number(count)} ${count === 1 ? "row" : "rows"}`;

  /* ---- groups of consecutive rows of one module; long runs of inputs or all-reduces in them are folded unless searched for ---- */
  function groups(rows, terms) {
    return runs(rows, (at) => data.rows[at][MODULE]).map((part) => {
      const [path, type] = data.modules[data.rows[part[0]][MODULE]];
      const lines = runs(part, (at) => data.rows[at][KIND]).flatMap((run) => {
        const make = () => run.map((at) => line(at, terms));
        const kind = data.rows[run[0]][KIND];
        return run.length < MANY || terms.length || !PLAIN.has(kind) ? make() : [later("run", run[0], run.length, [`${counted(run.length)}: ${kind}`], make)];
      });
      return element("details", { class: "group", open: "" },
        element("summary", {}, element("b", {}, element("bdi", {}, ...marked(path || "model", terms))), ` ${type}, ${counted(part.length)}`), ...lines);
    });
  }

  function runs(rows, key) {
    const found = [];
    for (const at of rows) {
      if (found.length && key(found.at(-1)[0]) === key(at)) found.at(-1).push(at);
      else found.push([at]);
    }
    return found;
  }

  /* ---- folds: layers that repeat an earlier layer ---- */
  function folded([first, held, layers, like, rows]) {
    const name = layers.length > 1 ? `${layers[0]} to ${layers.at(-1)}` : layers[0];
    const left = `These layers are left out: ${layers.join(", ")}. They differ from ${like} in names only; sdp-compile inspect graph --module GLOB lists them.`;
    return later("fold", first, held, [element("b", {}, element("bdi", {}, name)), ` × ${layers.length}, alike ${like}, ${counted(rows)}`],
      () => (held ? groups(range(first, held), []) : [element("p", { class: "more" }, left)]));
  }

  function all() {
    const made = [];
    let at = 0;
    for (const fold of data.folds) {
      const [first, held] = fold;
      made.push(...groups(range(at, first - at), []), folded(fold));
      at = first + held;
    }
    return [...made, ...groups(range(at, data.rows.length - at), [])];
  }

  /* ---- search: every word must occur, ignoring case, in a row's name, code, kind, module or source ---- */
  function list() {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = new Set(kinds.filter((kind) => kind.checked && (!changes.checked || CHANGED.has(kind.value))).map((kind) => kind.value));
    if (!terms.length && wanted.size === kinds.length) {
      listing.replaceChildren(...all());
      found.textContent = `${counted(data.rows.length)}${left ? ` and ${number(left)} alike` : ""}`;
      return;
    }
    const rows = range(0, data.rows.length).filter((at) => wanted.has(data.rows[at][KIND]) && terms.every((term) => texts[at].includes(term)));
    const named = data.folds.filter(([, held, layers]) => !held && terms.length && layers.some((layer) => terms.every((term) => layer.toLowerCase().includes(term)))).map(folded);
    listing.replaceChildren(...groups(rows.slice(0, MOST_FOUND), terms), ...named);
    if (rows.length > MOST_FOUND) listing.append(element("p", { class: "more" }, `${number(rows.length - MOST_FOUND)} more rows; narrow the search.`));
    if (!rows.length && !named.length) listing.append(element("p", { class: "more" }, "Nothing matches."));
    found.textContent = `${number(rows.length)} of ${number(data.rows.length)} rows`;
  }

  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(list, 90); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { event.preventDefault(); $("summary", listing)?.focus(); }
  });
  for (const box of [changes, ...kinds]) box.addEventListener("change", list);
  $(".search").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(waiting); list(); });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
    event.preventDefault();
    search.focus();
  });
  $("#unfold").addEventListener("click", () => {
    for (let next = $(".later", listing); next; next = $(".later", listing)) fill(next);
    for (const one of $$(".group, .fold, .run", listing)) one.open = true;
  });
  $("#fold").addEventListener("click", () => $$(".group, .fold, .run", listing).forEach((one) => { one.open = false; }));
  list();
}
