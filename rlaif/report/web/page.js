"use strict";
(() => {
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);

  // ---- light and dark -------------------------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = $("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  const stored = (value) => {
    // From disk there may be no storage at all; then the choice lasts as long as the page.
    try { return value === undefined ? localStorage.getItem("rlaif-theme") : localStorage.setItem("rlaif-theme", value); }
    catch { return null; }
  };
  const before = stored();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; stored(root.dataset.theme); name(); });
  dark.addEventListener("change", name);

  // ---- which section is read ------------------------------------------------------------------------------------
  const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.hash.slice(1), a]));
  const watcher = new IntersectionObserver((seen) => {
    for (const each of seen) if (each.isIntersecting) {
      for (const a of links.values()) a.removeAttribute("aria-current");
      links.get(each.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "0px 0px -70% 0px" });
  for (const id of links.keys()) if ($(id)) watcher.observe($(id));

  // ---- examples: everything is put in as text, never as markup --------------------------------------------------
  const source = $("examples-data");
  if (!source) return;
  const { principles, judges, items } = JSON.parse(source.textContent);
  const PAGE = 10;
  let at = 0, shown = [], jumping = false;

  const make = (tag, given, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(given || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "text") element.textContent = value; else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const percent = (p) => (typeof p === "number" ? (100 * p).toFixed(1) + "%" : p === null || p === undefined ? "–" : p);
  const margins = (item) => item.comparisons.filter((c) => c.p !== null).map((c) => Math.abs(c.p - 0.5));
  const flipsOf = (vote) => typeof vote[2] === "number" && typeof vote[3] === "number" && (vote[2] - 0.5) * (vote[3] - 0.5) < 0;
  const words = (item) => [
    item.id, ...item.messages.map((m) => m[1]),
    ...item.samples.flatMap((s) => [s.text, ...s.critiques.map((c) => c[1]), ...s.revisions.map((r) => r.text)]),
  ].join("\n").toLowerCase();
  const index = items.map((item, place) => {
    const all = margins(item);
    return {
      item, place, words: words(item), widest: all.length ? Math.max(...all) : -1, narrowest: all.length ? Math.min(...all) : 2,
      length: item.samples.reduce((sum, s) => sum + s.text.length, 0), flips: item.comparisons.filter((c) => c.flip).length,
    };
  });
  const places = new Map();
  index.forEach((each) => { places.set(each.item.id, each); each.item.pairs.forEach((pair) => places.set(pair.id, each)); });

  principles.map((text, number) => [text, number]).sort((a, b) => (a[0] < b[0] ? -1 : 1))
    .forEach(([text, number]) => $("principle").append(make("option", { value: number, text })));

  const OUTCOMES = {
    "": () => true,
    pair: (item) => item.pairs.length > 0,
    none: (item) => item.pairs.length === 0,
    flip: (item) => item.comparisons.some((c) => c.flip),
    tie: (item) => item.comparisons.some((c) => c.status === "tie"),
    silent: (item) => item.comparisons.some((c) => c.status === "unparsed" || c.status === "failed"),
  };
  const ORDERS = {
    chosen: (a, b) => a.place - b.place,
    wide: (a, b) => b.widest - a.widest || a.place - b.place,
    narrow: (a, b) => a.narrowest - b.narrowest || a.place - b.place,
    long: (a, b) => b.length - a.length || a.place - b.place,
    flips: (a, b) => b.flips - a.flips || a.place - b.place,
  };
  const asNumber = (id, otherwise) => { const value = parseFloat($(id).value); return Number.isNaN(value) ? otherwise : value; };

  function filtered() {
    const sought = $("q").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const outcome = OUTCOMES[$("outcome").value], principle = $("principle").value, flips = $("flips").checked;
    const low = asNumber("low", 0), high = asNumber("high", 0.5);
    const bounded = $("low").value !== "" || $("high").value !== "";
    return index.filter(({ item, words }) => {
      if (!sought.every((word) => words.includes(word)) || !outcome(item)) return false;
      if (bounded && !margins(item).some((m) => m >= low - 1e-9 && m <= high + 1e-9)) return false;
      if (principle === "" && !flips) return true;
      return item.comparisons.some((c) => (principle === "" && c.flip)
        || (principle !== "" && c.votes.some((v) => String(v[0]) === principle && (!flips || flipsOf(v)))));
    }).sort(ORDERS[$("order").value]);
  }

  const note = (kind, head, text) => make("p", { class: `remark ${kind}` }, make("b", { text: head }), document.createTextNode(` ${text}`));

  function sample(each, number) {
    const place = make("div", { class: "place" }, make("b", { text: `Response ${number + 1}` }));
    place.append(document.createTextNode(each.rank === null ? " not ranked" : ` rank ${each.rank}, ${each.strength >= 0 ? "+" : "−"}${Math.abs(each.strength).toFixed(2)}`));
    const body = make("div", { class: "body" }, make("p", { class: "text", text: each.text === "" ? "(empty)" : each.text }));
    if (each.cutoff) body.append(make("p", { class: "note", text: "cut at the token limit" }));
    const notes = each.critiques.filter((c) => c[2] === 0).map(([principle, text]) => note("critique", `Critique, ${principles[principle]}:`, text));
    if (notes.length > 2) body.append(make("details", { class: "notes" }, make("summary", { text: `${notes.length} critiques` }), ...notes));
    else body.append(...notes);
    for (const revision of each.revisions) {
      const judged = revision.p === null ? "" : `; the judge prefers it to the response at ${percent(revision.p)}`;
      body.append(note("revision", `Revision ${revision.round}, ${principles[revision.principle]}${revision.use ? ` (${revision.use}${judged})` : ""}:`, revision.text));
      for (const [principle, text] of each.critiques.filter((c) => c[2] === revision.round)) body.append(note("critique", `Critique, ${principles[principle]}:`, text));
    }
    return make("li", null, place, body);
  }

  function comparison(each) {
    const [left, right] = each.of.map((number) => (number < 0 ? "?" : number + 1));
    const pair = each.pair ? `, produced pair ${each.pair.slice(0, 8)}` : "";
    const flip = each.flip ? ", the orders disagree" : "";
    const head = `${left} over ${right}: ${percent(each.p)} (${each.status}${flip}${pair})`;
    const details = make("details", null, make("summary", { text: head }));
    const rows = each.votes.map((vote) => make("tr", { class: flipsOf(vote) ? "flip" : null },
      make("th", { scope: "row", text: principles[vote[0]] }), judges.length > 1 ? make("td", { text: judges[vote[1]] }) : null,
      make("td", { class: "n", text: percent(vote[2]) }), make("td", { class: "n", text: percent(vote[3]) }),
      make("td", { text: flipsOf(vote) ? "flips" : "" })));
    const heads = ["Principle", ...(judges.length > 1 ? ["Judge"] : []), `${left} first`, `${right} first`, ""];
    const table = make("table", { class: "votes" },
      make("caption", { text: `Probability that response ${left} is better, by the order in which the two were shown` }),
      make("thead", null, make("tr", null, ...heads.map((text, number) => make("th", { scope: "col", class: number && / first$/.test(text) ? "n" : null, text })))),
      make("tbody", null, ...rows));
    details.append(rows.length ? make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "verdicts" }, table) : make("p", { class: "note", text: "no ordered verdicts here" }));
    return details;
  }

  function card({ item }) {
    const pairs = item.pairs.map((pair) => `${pair.of[0] + 1} over ${pair.of[1] + 1} at ${percent(pair.p)}${pair.flip ? " (flips)" : ""}`);
    const link = make("a", { href: `#p-${item.id}`, text: item.id.slice(0, 12) });
    const article = make("article", { class: "example", id: `p-${item.id}`, tabindex: "-1", "aria-label": `Prompt ${item.id.slice(0, 12)}` },
      make("header", null, make("h3", null, link), make("span", { text: item.why.join(", ") }),
        make("span", { text: pairs.length ? `pairs: ${pairs.slice(0, 4).join("; ")}${pairs.length > 4 ? `; ${pairs.length - 4} more` : ""}` : "no pair" })));
    if (item.earlier) article.append(make("p", { class: "note", text: `${item.earlier} earlier turns are not shown` }));
    for (const [role, text] of item.messages) article.append(make("div", { class: "turn" }, make("div", { class: "who", text: role }), make("p", { class: "text", text })));
    article.append(make("ol", { class: "samples" }, ...item.samples.map(sample)));
    for (const each of item.comparisons) article.append(comparison(each));
    return article;
  }

  function draw() {
    const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
    at = Math.min(Math.max(at, 0), last);
    $("list").replaceChildren(...shown.slice(at * PAGE, (at + 1) * PAGE).map(card));
    $("found").textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} examples`;
    $("at").textContent = `page ${at + 1} of ${last + 1}`;
    $("before").disabled = at === 0;
    $("after").disabled = at === last;
  }
  function update() { at = 0; shown = filtered(); draw(); }
  function turn(by) { at += by; draw(); $("examples").scrollIntoView(); }

  function follow() {
    const wanted = /^#p-([0-9a-f]{32})$/.exec(location.hash);
    const entry = wanted && places.get(wanted[1]);
    if (wanted && !entry) { $("found").textContent = "That prompt is not among the examples on this page."; return; }
    if (!entry) return;
    if (!shown.includes(entry)) { jumping = true; $("filters").reset(); shown = filtered(); }
    at = Math.floor(shown.indexOf(entry) / PAGE);
    draw();
    const target = $(`p-${entry.item.id}`);
    target.classList.add("here");
    target.scrollIntoView();
    target.focus({ preventScroll: true });
  }

  $("filters").hidden = $("pages").hidden = false;
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", update);
  // A form is cleared after its event; a jump to an example clears it too, and then goes there.
  $("filters").addEventListener("reset", () => { if (!jumping) setTimeout(update); jumping = false; });
  $("before").addEventListener("click", () => turn(-1));
  $("after").addEventListener("click", () => turn(1));
  addEventListener("hashchange", follow);
  shown = filtered();
  draw();
  follow();
})();
