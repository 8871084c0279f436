// The page of `ccreid review`. Every text from outside is set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const WORDS = { same: "same", different: "different", unsure: "cannot tell" };
const NEXT = { same: "different", different: "unsure", unsure: "same" };
const state = { revision: -1, view: "questions", identity: null, place: 0, order: "doubt", search: "", question: null };
const selected = new Map(); // image -> path
let list = null; // the virtual list that is shown, if any
let drawing = 0; // counts the drawings of a view: an answer to an older one is dropped

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const plural = (count, one, many = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function say(text) {
  $("message").textContent = text;
}

// The server

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch {
    throw new Error("The server does not answer. What was answered before is safe; start `ccreid review` again.");
  }
  const value = await answer.json();
  if (answer.ok) return value;
  const error = new Error([value.message, value.hint].filter(Boolean).join(" "));
  error.status = answer.status;
  throw error;
}

const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

let busy = false;
async function act(action) {
  if (busy) return false;
  busy = true;
  try {
    show(await post("act", { revision: state.revision, action }));
    clearSelection();
    say("");
    await draw();
    return true;
  } catch (error) {
    say(error.message);
    if (error.status === 409) await refresh();
    return false;
  } finally {
    busy = false;
  }
}

async function refresh() {
  show(await ask("data/summary"));
  await draw();
}

function show(summary) {
  state.revision = summary.revision;
  const left = summary.left;
  $("file").textContent = summary.file + (summary.written ? "" : " · not yet written");
  $("counts").replaceChildren(
    `${plural(summary.images, "image")} · ${plural(summary.identities, "identity", "identities")} · ` +
      `${summary.outliers.toLocaleString("en")} in none · ${summary.checked.toLocaleString("en")} checked`,
  );
  if (summary.inconsistent) {
    const text = ` · ${plural(summary.inconsistent, "identity contradicts", "identities contradict")} an answer`;
    $("counts").append(make("span", { className: "bad" }, text));
  }
  $("left").textContent = left.questions
    ? `Left: ${plural(left.questions, "question")}, with about ${plural(left.wrong, "group")} on the wrong side ` +
      `(answered ${left.answered.toLocaleString("en")}, ${left.found_wrong.toLocaleString("en")} were wrong)`
    : "No question is left.";
  $("undo").disabled = !summary.can_undo;
  $("redo").disabled = !summary.can_redo;
  $("write").disabled = summary.written;
}

// Pictures

function tile(image) {
  const small = make("img", { src: `image/${image.image}/small`, alt: "", loading: "lazy", decoding: "async" });
  const where = image.camera ? `${image.path}, camera ${image.camera}` : image.path;
  return make(
    "button",
    {
      className: image.checked ? "tile checked" : "tile",
      type: "button",
      title: where,
      "aria-label": where,
      "aria-pressed": String(selected.has(image.image)),
      data: { image: image.image, path: image.path },
      onclick: (event) => choose(event.currentTarget),
      ondblclick: (event) => enlarge(event.currentTarget),
    },
    small,
  );
}

function choose(element) {
  const image = Number(element.dataset.image);
  if (!selected.delete(image)) selected.set(image, element.dataset.path);
  markSelected();
}

function markSelected() {
  for (const element of document.querySelectorAll(".tile")) {
    element.setAttribute("aria-pressed", String(selected.has(Number(element.dataset.image))));
  }
  $("selection").hidden = selected.size === 0;
  $("selected").textContent = plural(selected.size, "picture");
  document.querySelector('[data-do="restore"]').hidden = state.view !== "junk";
}

function clearSelection() {
  selected.clear();
  markSelected();
}

function enlarge(element) {
  if (!element) return;
  $("whole").src = `image/${element.dataset.image}/large`;
  $("whole-name").textContent = element.title;
  $("large").showModal();
}

// Views

async function draw() {
  const turn = ++drawing;
  if (list) list.close();
  list = null;
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === state.view && state.identity === null));
  }
  if (state.identity !== null) await drawMembers(String(state.identity), turn);
  else if (state.view === "questions") await drawQuestion(turn);
  else if (state.view === "identities") await drawIdentities(turn);
  else await drawMembers(state.view, turn);
}

function open(view, identity = null) {
  state.view = view;
  state.identity = identity;
  clearSelection();
  say("");
  window.scrollTo(0, 0);
  draw().catch((error) => say(error.message));
}

async function drawQuestion(turn) {
  const question = await ask(`data/question?place=${state.place}`);
  if (turn !== drawing) return;
  state.place = question.place;
  state.question = question;
  const [anchor, ...groups] = question.groups;
  if (!anchor) {
    $("main").replaceChildren(make("p", {}, "Nothing is doubtful any more. The identities can still be looked at."));
    return;
  }
  question.relations = groups.map((group) => (group.inside ? "same" : "different"));
  const rows = groups.map((group, number) => groupRow(group, number));
  const inside = rows.filter((_, number) => groups[number].inside);
  const outside = rows.filter((_, number) => !groups[number].inside);
  const parts = [
    make("h2", {}, `Who is the same as in the first row? `, nameButton(anchor), ` (${question.place + 1} of ${plural(question.count, "question")})`),
    make("div", { className: "row" }, make("div", { className: "head" }, make("b", {}, "the first row"), plural(anchor.size, "picture")), strip(anchor)),
  ];
  if (inside.length) parts.push(make("h2", {}, "In this identity now"), make("div", { className: "groups" }, ...inside));
  if (outside.length) parts.push(make("h2", {}, "Nearest others"), make("div", { className: "groups" }, ...outside));
  parts.push(
    make(
      "div",
      { className: "bar answer" },
      make("button", { className: "main", id: "send", onclick: sendAnswer }, "Answer as marked"),
      make("button", { onclick: () => markAll("same") }, "All same"),
      make("button", { onclick: () => markAll("different") }, "All different"),
      make("button", { onclick: () => skip(-1) }, "←"),
      make("button", { id: "skip", onclick: () => skip(1) }, "Skip →"),
    ),
  );
  $("main").replaceChildren(...parts);
}

function nameButton(group) {
  return make("button", { className: "small", onclick: () => open("identities", group.identity) }, group.name || "no name");
}

function strip(group) {
  const tiles = make("div", { className: "strip" }, ...group.shown.map(tile));
  if (group.size > group.shown.length) tiles.append(make("span", {}, `and ${group.size - group.shown.length} more`));
  return tiles;
}

function groupRow(group, number) {
  const key = number < 10 ? `${(number + 1) % 10} ` : "";
  const relation = state.question.relations[number];
  const button = make("button", { className: "state", onclick: () => turnRow(number) }, key + WORDS[relation]);
  const head = make("div", { className: "head" }, button, plural(group.size, "picture"));
  if (!group.inside) head.append(group.identity < 0 ? "in none" : nameButton(group));
  return make("div", { className: "row", data: { relation, row: number, key } }, head, strip(group));
}

function setRow(number, relation) {
  const row = document.querySelector(`[data-row="${number}"]`);
  if (!row) return;
  state.question.relations[number] = relation;
  row.dataset.relation = relation;
  row.querySelector(".state").textContent = row.dataset.key + WORDS[relation];
}

function turnRow(number) {
  const now = state.question?.relations?.[number];
  if (now) setRow(number, state.question.groups[number + 1].inside || now !== "different" ? NEXT[now] : "same");
}

function markAll(relation) {
  (state.question?.relations || []).forEach((_, number) => setRow(number, relation));
}

function sendAnswer() {
  const question = state.question;
  if (!question?.relations) return;
  const groups = question.groups.map((group) => ({ images: group.images, whole: group.whole }));
  const bands = question.groups.slice(1).map((group) => group.band);
  return act({ do: "answer", groups, relations: question.relations, bands });
}

function skip(step) {
  state.place = Math.max(0, state.place + step);
  window.scrollTo(0, 0);
  draw().catch((error) => say(error.message));
}

// Long lists: only the rows in sight are in the page

class RowList {
  constructor(place, height, total, pageSize, load, render) {
    Object.assign(this, { place, height, total, pageSize, load, render, pages: new Map(), rows: new Map() });
    place.className = "list";
    place.style.height = `${total * height}px`;
    this.look = () => this.fill();
    window.addEventListener("scroll", this.look, { passive: true });
    this.fill();
  }

  close() {
    window.removeEventListener("scroll", this.look);
    this.closed = true;
  }

  fill() {
    const top = -this.place.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / this.height) - 4);
    const last = Math.min(this.total, Math.ceil((top + window.innerHeight) / this.height) + 4);
    for (const [row, element] of this.rows) {
      if (row < first || row >= last) {
        element.remove();
        this.rows.delete(row);
      }
    }
    for (let row = first; row < last; row++) if (!this.rows.has(row)) this.put(row);
  }

  put(row) {
    const page = Math.floor(row / this.pageSize);
    const values = this.pages.get(page);
    if (values === undefined) {
      this.pages.set(page, null);
      this.load(page * this.pageSize, this.pageSize)
        .then((found) => {
          this.pages.set(page, found);
          if (!this.closed) this.fill();
        })
        .catch((error) => say(error.message));
    }
    if (!values || row - page * this.pageSize >= values.length) return;
    const element = this.render(values[row - page * this.pageSize], row);
    element.style.top = `${row * this.height}px`;
    element.style.height = `${this.height}px`;
    this.rows.set(row, element);
    this.place.append(element);
  }
}

async function drawIdentities(turn) {
  const address = (first, count) =>
    `data/identities?first=${first}&count=${count}&order=${state.order}&search=${encodeURIComponent(state.search)}`;
  const start = await ask(address(0, 50));
  if (turn !== drawing) return;
  const order = make("select", { id: "order", "aria-label": "order", onchange: () => { state.order = order.value; redraw(); } });
  for (const [value, text] of [["doubt", "most doubtful first"], ["size", "largest first"], ["name", "by name"]]) {
    order.append(make("option", { value, selected: value === state.order }, text));
  }
  const search = make("input", { id: "search", type: "search", placeholder: "name", value: state.search, "aria-label": "name" });
  search.addEventListener("change", () => { state.search = search.value; redraw(); });
  const place = make("div");
  $("main").replaceChildren(make("div", { className: "bar" }, order, search, plural(start.total, "identity", "identities")), place);
  const load = async (first, count) => (first ? (await ask(address(first, count))).rows : start.rows);
  list = new RowList(place, 100, start.total, 50, load, identityRow);
}

const redraw = () => draw().catch((error) => say(error.message));

function identityRow(identity) {
  const facts = make("small", {}, `${plural(identity.size, "picture")}, ${identity.checked} checked`);
  const button = make(
    "button",
    { className: "open", data: { identity: identity.identity }, onclick: () => open("identities", identity.identity) },
    identity.name,
    facts,
  );
  if (identity.inconsistent) button.append(make("small", { className: "bad" }, "contradicts an answer"));
  return make("div", { className: "identity" }, button, make("div", { className: "tiles" }, ...identity.shown.map(tile)));
}

async function drawMembers(group, turn) {
  const per = Math.max(1, Math.floor($("main").clientWidth / 72));
  const size = per * Math.max(1, Math.floor(200 / per));
  const start = await ask(`data/members/${group}?first=0&count=${size}`);
  if (turn !== drawing) return;
  if (state.identity !== null && !start.total) return open("identities");
  const place = make("div");
  $("main").replaceChildren(...membersHead(group, start), place);
  const load = async (first, count) => {
    const found = first ? await ask(`data/members/${group}?first=${first * per}&count=${count * per}`) : start;
    return Array.from({ length: Math.ceil(found.images.length / per) }, (_, row) => found.images.slice(row * per, (row + 1) * per));
  };
  const height = window.innerWidth <= 560 ? 92 : 108;
  list = new RowList(place, height, Math.ceil(start.total / per), size / per, load, (images) =>
    make("div", { className: "tiles" }, ...images.map(tile)),
  );
}

function membersHead(group, start) {
  if (state.identity === null) {
    const text = group === "junk" ? "put aside: of nobody" : "in no identity";
    return [make("h2", {}, `${plural(start.total, "picture")} ${text}`)];
  }
  const bar = make(
    "div",
    { className: "bar" },
    make("button", { onclick: () => open("identities") }, "← Identities"),
    make("button", { id: "name", onclick: rename }, "Name"),
    make("button", { id: "merge", onclick: mergeInto }, "Merge with …"),
    make("button", { id: "right", onclick: confirm_ }, "All right"),
    make("button", { onclick: selectAll }, "Select what is in sight"),
  );
  const parts = [make("h2", { id: "who" }, `${start.name} · ${plural(start.total, "picture")}`), bar];
  for (const [first, second] of start.contradictions) {
    const text = "These two were called different, and are in this identity:";
    parts.push(make("p", { className: "bad" }, text), make("div", { className: "tiles" }, tile(first), tile(second)));
  }
  return parts;
}

function selectAll() {
  for (const element of document.querySelectorAll(".list .tile")) selected.set(Number(element.dataset.image), element.dataset.path);
  markSelected();
}

const confirm_ = () => state.identity !== null && act({ do: "right", identity: state.identity });

// Dialogs

function askText(question, value, choices) {
  const dialog = $("ask");
  $("asked").textContent = question;
  $("answer").value = value;
  $("choices").replaceChildren();
  return new Promise((resolve) => {
    let chosen = null;
    const offer = async () => {
      if (!choices) return;
      const found = (await choices($("answer").value)).slice(0, 20);
      $("choices").replaceChildren(
        ...found.map((choice) =>
          make("li", {}, make("button", { type: "button", onclick: () => { chosen = choice; dialog.close("ok"); } }, choice.label)),
        ),
      );
    };
    $("answer").oninput = () => offer().catch((error) => say(error.message));
    $("cancel").onclick = () => dialog.close("");
    dialog.returnValue = "";
    dialog.onclose = async () => {
      if (dialog.returnValue !== "ok") return resolve(null);
      if (!choices || chosen) return resolve(chosen || $("answer").value);
      const found = await choices($("answer").value);
      const exact = found.filter((choice) => choice.name === $("answer").value.trim());
      const best = exact.length ? exact : found;
      if (best.length !== 1) say(best.length ? "Several are called so: choose one of the list." : "No identity is called so.");
      resolve(best.length === 1 ? best[0] : null);
    };
    dialog.showModal();
    $("answer").select();
    offer().catch((error) => say(error.message));
  });
}

async function identitiesCalled(text) {
  const found = await ask(`data/identities?order=name&count=50&search=${encodeURIComponent(text.trim())}`);
  return found.rows
    .filter((row) => row.identity !== state.identity)
    .map((row) => ({ ...row, label: `${row.name} (${plural(row.size, "picture")})` }));
}

async function rename() {
  const identity = state.identity ?? state.question?.groups?.[0]?.identity;
  if (identity === undefined || (state.identity === null && state.view !== "questions")) return;
  const before = (await ask(`data/members/${identity}?count=1`)).name;
  const name = await askText("What is this identity called?", before);
  if (name !== null && name !== before) await act({ do: "name", identity, name });
}

async function mergeInto() {
  const own = state.identity;
  if (own === null) return;
  const other = await askText("Merge with which identity?", "", identitiesCalled);
  if (!other) return;
  const [mine, theirs] = await Promise.all([own, other.identity].map((key) => ask(`data/members/${key}?count=1`)));
  const groups = [mine, theirs].map((found) => ({ images: [found.images[0].image], whole: true }));
  if (await act({ do: "answer", groups, relations: ["same"] })) {
    const left = await ask(`data/members/${own}?count=1`);
    if (!left.total) open("identities", other.identity);
  }
}

async function move() {
  if (!selected.size) return;
  const goal = await askText(`Move ${plural(selected.size, "picture")} to which identity?`, "", identitiesCalled);
  if (goal) await act({ do: "move", images: [...selected.keys()], to: goal.identity });
}

function onSelection(what) {
  const images = [...selected.keys()];
  if (what === "none") return clearSelection();
  if (!images.length) return;
  if (what === "split") return act({ do: "move", images, to: null });
  if (what === "move") return move();
  return act({ do: what, images });
}

async function write() {
  try {
    show(await post("write", {}));
    say("");
  } catch (error) {
    say(error.message);
  }
}

// Keys

function step(element, by) {
  const tiles = [...document.querySelectorAll(".tile")];
  const next = tiles[tiles.indexOf(element) + by];
  if (next) next.focus();
}

const KEYS = {
  u: () => act({ do: "undo" }),
  r: () => act({ do: "redo" }),
  w: write,
  n: () => onSelection("split"),
  m: move,
  j: () => onSelection("junk"),
  e: rename,
  c: confirm_,
  a: () => state.view === "questions" && markAll("same"),
  d: () => state.view === "questions" && markAll("different"),
  l: () => enlarge(document.activeElement.closest(".tile")),
  "?": () => $("keys").showModal(),
  Escape: clearSelection,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.target.matches("input, select")) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    act({ do: event.shiftKey ? "redo" : "undo" });
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onTile = event.target.closest?.(".tile");
  const asking = state.view === "questions" && state.identity === null;
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const by = event.key === "ArrowRight" ? 1 : -1;
    if (onTile) step(onTile, by);
    else if (asking) skip(by);
    else return;
  } else if (event.key === "Enter" && asking && (onTile || !event.target.closest("button"))) sendAnswer();
  else if (/^[0-9]$/.test(event.key) && asking) turnRow((Number(event.key) + 9) % 10);
  else if (KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]) {
    KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]();
  } else return;
  event.preventDefault();
});

$("undo").onclick = KEYS.u;
$("redo").onclick = KEYS.r;
$("write").onclick = write;
$("help").onclick = KEYS["?"];
for (const button of document.querySelectorAll("nav button")) button.onclick = () => open(button.dataset.view);
for (const button of document.querySelectorAll("#selection button")) button.onclick = () => onSelection(button.dataset.do);
let resized;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => list && redraw(), 200);
});

// Another window's changes

async function poll() {
  try {
    const summary = await ask("data/summary");
    const stale = state.revision !== -1 && summary.revision !== state.revision && !busy;
    if (stale && !document.querySelector("dialog[open]")) {
      show(summary);
      await draw();
      say("Another window changed something: this one shows it now.");
    } else if (!stale && !busy) show(summary);
    document.body.dataset.offline = "";
  } catch (error) {
    document.body.dataset.offline = "1";
    say(error.message);
  }
  setTimeout(poll, document.hidden ? 10000 : 2000);
}

refresh().catch((error) => say(error.message)).finally(() => setTimeout(poll, 2000));
