"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/* All text is inserted as text nodes, so names from the model never become markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/* ---- theme: the system's unless the reader chooses one; remembered if the browser allows it for files ---- */
const theme = $("#theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  const chosen = document.documentElement.dataset.theme;
  theme.setAttribute("aria-pressed", String(chosen ? chosen === "dark" : dark.matches));
}

theme.addEventListener("click", () => {
  const next = theme.getAttribute("aria-pressed") === "true" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("sdp-compile-theme", next); } catch { /* private windows do not allow it */ }
  showTheme();
});
try {
  const known = localStorage.getItem("sdp-compile-theme");
  if (known === "light" || known === "dark") document.documentElement.dataset.theme = known;
} catch { /* as above */ }
dark.addEventListener("change", showTheme);
showTheme();

/* ---- navigation: highlights the section in view ---- */
const links = new Map($$("nav a").map((link) => [link.hash.slice(1), link]));
const sections = $$("main > section");

function showSection() {
  const above = sections.filter((section) => section.getBoundingClientRect().top < 120);
  const atEnd = scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const current = atEnd ? sections.at(-1) : above.at(-1) ?? sections[0];
  for (const [id, link] of links) {
    if (id === current.id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
addEventListener("scroll", showSection, { passive: true });
showSection();

/* ---- folding: the browser's own details elements, with arrow keys as in a file manager ---- */
for (const button of $$("[data-fold]")) {
  button.addEventListener("click", () => {
    for (const one of $$("details", $(".tree"))) one.open = button.dataset.fold === "open" || one.matches(".tree > li > details");
  });
}

for (const root of $$("[data-moves]")) {
  root.addEventListener("keydown", (event) => {
    const summary = event.target.closest("summary");
    if (!summary || event.altKey || event.ctrlKey || event.metaKey) return;
    const details = summary.parentElement;
    const shown = $$("summary", root).filter((one) => one.checkVisibility());
    const at = shown.indexOf(summary);
    const outer = details.parentElement.closest("details");
    const moves = {
      ArrowDown: () => shown[at + 1],
      ArrowUp: () => shown[at - 1],
      Home: () => shown[0],
      End: () => shown.at(-1),
      ArrowRight: () => (details.open ? shown[at + 1] : void (details.open = true)),
      ArrowLeft: () => (details.open ? void (details.open = false) : outer && root.contains(outer) && $("summary", outer)),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = moves[event.key]();
    if (next) next.focus();
  });
}

/* ---- owner map: one Tab stop per family, arrow keys within and between families ---- */
const facts = $("#facts");
const plans = $$(".owners");
for (const plan of plans.filter((one) => $(".map", one))) {
  const map = $(".map", plan);
  const tell = (button) => {
    const family = $(".family-name > .name", button.closest(".family")).textContent;
    facts.replaceChildren(element("b", {}, family), ...JSON.parse(button.dataset.facts).filter(Boolean).map((text) => element("span", {}, text)));
  };
  const strips = $$(".strip", map);
  map.addEventListener("pointerover", (event) => event.target.matches(".strip button") && tell(event.target));
  map.addEventListener("focusin", (event) => event.target.matches(".strip button") && tell(event.target));
  map.addEventListener("keydown", (event) => {
    if (!event.target.matches(".strip button")) return;
    const strip = event.target.parentElement;
    const buttons = [...strip.children];
    const at = buttons.indexOf(event.target);
    const beside = (step) => {
      const other = strips[strips.indexOf(strip) + step];
      return other && other.children[Math.min(at, other.children.length - 1)];
    };
    const next = {
      ArrowRight: buttons[at + 1], ArrowLeft: buttons[at - 1], Home: buttons[0], End: buttons.at(-1),
      ArrowDown: beside(1), ArrowUp: beside(-1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    for (const one of next.parentElement.children) one.tabIndex = one === next ? 0 : -1;
    next.focus();
  });

  $(".lane", plan).addEventListener("change", (event) => {
    const lane = event.target.value;
    if (lane === "") delete map.dataset.lane;
    else map.dataset.lane = lane;
    map.style.setProperty("--lane", lane || "0");
    for (const family of $$(".family", map)) {
      const owned = family.dataset.owned.split(" ")[Number(lane)];
      $(".mine", family).textContent = lane === "" ? "" : `owns ${Number(owned).toLocaleString("en")} of ${Number(family.dataset.units).toLocaleString("en")}`;
    }
  });
}

/* ---- phases: one map at a time ---- */
if ($("#phase")) {
  $("#phase").addEventListener("change", (event) => {
    plans.forEach((plan, number) => { plan.hidden = number !== Number(event.target.value); });
    if (facts) facts.replaceChildren();
  });
}

/* ---- policy ---- */
$("#copy").addEventListener("click", async (event) => {
  const text = $("#toml");
  getSelection().selectAllChildren(text);
  try {
    await navigator.clipboard.writeText(text.textContent);
    event.target.textContent = "Copied";
  } catch {
    event.target.textContent = "Selected: press Ctrl+C";
  }
});
