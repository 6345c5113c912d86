"use strict";

const place = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let panels = [];
let asked = null;      // what was asked last, to ask it again for more matches
let pending = null;    // the request on its way
let preview = null;    // the URL of a chosen file

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text, error) {
  place("status").textContent = text;
  place("status").classList.toggle("error", Boolean(error));
}

function milliseconds(value) {
  return (value < 10 ? value.toFixed(2) : value.toFixed(0)) + " ms";
}

// A code as squares, dark where a bit is 1, framed where it differs from the query's.
function strip(code, other) {
  const across = code.length <= 16 ? code.length : code.length <= 64 ? 16 : 32;
  const down = Math.ceil(code.length / across);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${across} ${down}`);
  svg.setAttribute("class", "bits");
  svg.setAttribute("role", "img");
  let differing = 0;
  const paths = { zero: "", one: "", differs: "" };
  for (let i = 0; i < code.length; i++) {
    const x = i % across, y = Math.floor(i / across);
    const square = inset =>
      `M${x + inset} ${y + inset}h${1 - 2 * inset}v${1 - 2 * inset}h${2 * inset - 1}z`;
    paths[code[i] === "1" ? "one" : "zero"] += square(0.06);
    if (other && other[i] !== code[i]) {
      paths.differs += square(0.15);
      differing += 1;
    }
  }
  for (const [name, d] of Object.entries(paths)) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    svg.append(path);
  }
  svg.setAttribute("aria-label", other
    ? `code, ${differing} of ${code.length} bits differ` : `code of ${code.length} bits`);
  return svg;
}

function card(number, match, code) {
  const item = element("li");
  const image = element("img");
  image.alt = match.name;
  image.loading = "lazy";
  image.addEventListener("error", () => image.replaceWith(element("span", "none", "unreadable")));
  image.src = `/gallery/${number}/${match.row}.jpg`;
  const line = element("span");
  line.append(element("strong", "", String(match.rank)),
    `: ${match.distance} bit${match.distance === 1 ? "" : "s"}`);
  item.append(image, line, strip(match.code, code));
  const classes = (match.classes || []).join(", ");
  if (match.right !== null) {
    item.className = match.right ? "is-right" : "is-wrong";
    const mark = element("span", match.right ? "right" : "wrong",
      `${match.right ? "✓" : "✗"} ${classes}`);
    mark.append(element("span", "hidden", match.right ? " (its class)" : " (another class)"));
    item.append(mark);
  } else if (classes) item.append(element("span", "name", classes));
  item.append(element("span", "name soft", match.name));
  return item;
}

function panel(number, answer) {
  const facts = panels[number];
  const box = element("section", "panel");
  box.append(element("h2", "", facts.title));
  box.append(element("p", "soft small", `${facts.network} asks codes of ` +
    `${facts.gallery_network}; ${facts.bits} bits`));
  box.append(element("p", "times", `encoded in ${milliseconds(answer.encode_ms)} ` +
    `(${facts.device}, ${facts.threads} thread${facts.threads === 1 ? "" : "s"}), ` +
    `searched ${facts.gallery.toLocaleString("en")} codes in ` +
    `${milliseconds(answer.search_ms)}`));
  box.append(strip(answer.code, null));
  box.append(element("p", "", within(answer)));
  const list = element("ol", "matches");
  for (const match of answer.matches) list.append(card(number, match, answer.code));
  box.append(list);
  return box;
}

// How much is as near as what is shown: a few matches say little where thousands are tied.
function within(answer) {
  const { distance, items, right } = answer.within, count = n => n.toLocaleString("en");
  const said = `${count(items)} image${items === 1 ? "" : "s"} within ` +
    `${distance} bit${distance === 1 ? "" : "s"}`;
  const share = right === null ? ""
    : `, ${count(right)} of ${items === 1 ? "it" : "them"} of its class ` +
      `(${(100 * right / items).toFixed(0)} %)`;
  const some = items > answer.matches.length
    ? `; ${answer.matches.length} are shown, ties evenly over the gallery` : "";
  return said + share + some;
}

function show(answer, source) {
  place("asked").src = source;
  place("asked-classes").textContent = answer.classes && answer.classes.length
    ? `a test query: ${answer.classes.join(", ")}` : "";
  place("panels").replaceChildren(...answer.panels.map((one, number) => panel(number, one)));
  place("results").hidden = false;
}

// Ask what `asked` says; a newer question replaces one that is on its way.
async function ask() {
  if (!asked) return;
  if (pending) pending.abort();
  const mine = pending = new AbortController();
  place("results").classList.add("busy");
  say("searching …");
  try {
    const response = await fetch(`${asked.url}?k=${place("count").value}`,
      { method: "POST", body: asked.body, headers: asked.headers, signal: mine.signal });
    const answer = await response.json();
    if (mine !== pending) return;
    if (!response.ok) say(answer.error, true);
    else {
      show(answer, asked.source);
      say(`${answer.panels[0].matches.length} matches`);
    }
  } catch (error) {
    if (mine === pending) say(`the server does not answer: ${error.message}`, true);
  } finally {
    if (mine === pending) place("results").classList.remove("busy");
  }
}

function press(button) {
  for (const one of document.querySelectorAll(".queries button"))
    one.setAttribute("aria-pressed", String(one === button));
}

function askFile(file) {
  if (!file) return;
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(file);
  press(null);
  asked = { url: "/api/search", body: file, source: preview,
    headers: { "Content-Type": file.type.startsWith("image/") ? file.type
      : "application/octet-stream" } };
  ask();
}

function askQuery(number, button) {
  press(button);
  asked = { url: `/api/queries/${number}/search`, source: `/queries/${number}.jpg` };
  ask();
}

function offer(queries) {
  place("queries").replaceChildren(...queries.map((classes, number) => {
    const item = element("li"), button = element("button"), image = element("img");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    image.alt = `test query ${number + 1}: ${classes.join(", ") || "no class"}`;
    image.src = `/queries/${number}.jpg`;
    button.append(image);
    button.title = classes.join(", ");
    button.addEventListener("click", () => askQuery(number, button));
    item.append(button);
    return item;
  }));
}

function listen() {
  place("file").addEventListener("change", event => {
    askFile(event.target.files[0]);
    event.target.value = "";  // the same file can be chosen again
  });
  place("count").addEventListener("change", ask);
  addEventListener("dragover", event => {
    event.preventDefault();
    place("drop").classList.add("over");
  });
  addEventListener("dragleave", () => place("drop").classList.remove("over"));
  addEventListener("drop", event => {
    event.preventDefault();
    place("drop").classList.remove("over");
    askFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", event => askFile(event.clipboardData.files[0]));
}

async function begin() {
  listen();
  try {
    const facts = await (await fetch("/api/demo")).json();
    panels = facts.panels;
    const trials = Array.from(new Set(panels.map(one => one.trial)));
    place("about").textContent = trials.join(" next to ");
    document.title = `${trials[0]}: search by image`;
    offer(facts.queries);
  } catch (error) {
    say(`the server does not answer: ${error.message}`, true);
  }
}

begin();
