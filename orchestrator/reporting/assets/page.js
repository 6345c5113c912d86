"use strict";
(function () {
  const root = document.documentElement, each = (text, here) =>
    Array.from((here || document).querySelectorAll(text));
  root.classList.add("js");

  // ---- theme: the reader's own, else what the system prefers ------------------------------
  const prefers = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function kept(value) {  // a page from a disk may not be allowed to keep anything
    try {
      if (value === undefined) return window.localStorage.getItem("theme");
      window.localStorage.setItem("theme", value);
    } catch (refused) { /* then the choice lasts as long as the page */ }
    return null;
  }
  function paint() {
    const dark = chosen ? chosen === "dark" : prefers.matches;
    root.dataset.theme = dark ? "dark" : "light";
    for (const button of each("[data-theme-toggle]"))
      button.setAttribute("aria-pressed", String(dark));
  }
  chosen = kept();
  paint();
  prefers.addEventListener("change", paint);

  document.addEventListener("DOMContentLoaded", () => {
    paint();
    for (const button of each("[data-theme-toggle]")) button.addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      kept(chosen);
      paint();
    });
    contents();
    panels();
    tables();
    filters();
    charts();
    grids();
    copies();
    paper();
    stops();
  });

  // ---- contents: where the reader is ------------------------------------------------------
  function contents() {
    const links = new Map(each(".contents a").map(a => [a.getAttribute("href").slice(1), a]));
    const seen = new Set();
    const watch = new IntersectionObserver(changes => {
      for (const { target, isIntersecting } of changes)
        isIntersecting ? seen.add(target.id) : seen.delete(target.id);
      const first = each("section").find(section => seen.has(section.id));
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = first && links.get(first.id);
      if (!link) return;
      link.setAttribute("aria-current", "true");
      const list = link.closest("nav");
      if (list.scrollWidth > list.clientWidth)
        list.scrollLeft = link.offsetLeft - list.clientWidth / 2 + link.offsetWidth / 2;
    }, { rootMargin: "-10% 0px -60% 0px" });
    for (const section of each("section")) watch.observe(section);
  }

  // ---- panels: one dataset, pair and code length at a time --------------------------------
  function panels() {
    function show(number) {
      for (const select of each("select[data-panels]"))
        if (Array.from(select.options).some(o => o.value === number)) select.value = number;
      for (const section of each("section")) {
        const own = each("[data-panel]", section);
        const shown = own.some(p => p.dataset.panel === number) ? number
          : (own.find(p => p.classList.contains("shown")) || own[0] || { dataset: {} })
            .dataset.panel;
        for (const panel of own) panel.classList.toggle("shown", panel.dataset.panel === shown);
      }
      fill(document);
    }
    for (const select of each("select[data-panels]"))
      select.addEventListener("change", () => {
        const before = select.getBoundingClientRect().top;
        show(select.value);  // sections above change their height: stay where the reader is
        window.scrollBy({ top: select.getBoundingClientRect().top - before, behavior: "instant" });
      });
    const first = document.querySelector("[data-panel]");
    if (first) show(first.dataset.panel);
  }

  // ---- tables: sorted by a column ---------------------------------------------------------
  const NUMBER = /^(?:\([^)]*\) *)?([+\-\u2212]?[0-9][0-9,]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)/;
  function key(cell) {
    const text = cell.textContent.trim(), number = text.match(NUMBER);
    return number ? Number(number[1].replace(/,/g, "").replace("\u2212", "-")) : text;
  }
  function compare(one, other, sign) {
    const first = typeof one === "number", second = typeof other === "number";
    if (first !== second) return first ? -1 : 1;  // what is not there is last in both directions
    return sign * (first ? one - other : one.localeCompare(other));
  }
  function tables() {
    for (const button of each("table.sortable th button")) button.addEventListener("click", () => {
      const head = button.parentElement, body = head.closest("table").tBodies[0];
      const column = head.cellIndex, before = head.getAttribute("aria-sort");
      // Of numbers the highest first, of names the first.
      const number = head.classList.contains("number");
      const down = before ? before === "ascending" : number;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows, row => [key(row.cells[column]), row]);
      rows.sort((a, b) => compare(a[0], b[0], down ? -1 : 1));
      body.append(...rows.map(row => row[1]));
    });
  }

  // ---- filters of the leaderboards --------------------------------------------------------
  function filters() {
    const form = document.querySelector("[data-filters]");
    if (!form) return;
    const boxes = each("[data-filter]", form), find = form.querySelector("[data-find]");
    function wanted(name, value) {
      const own = boxes.filter(box => box.dataset.filter === name);
      return !own.length || own.some(box => box.checked && box.value === value);
    }
    function apply() {
      const text = find.value.trim().toLowerCase();
      let count = 0;
      for (const board of each(".board")) {
        const pair = wanted("pair", board.dataset.pair);
        const heads = each("thead tr:last-child th[data-bits]", board);
        const shown = heads.map(h => wanted("dataset", h.dataset.dataset) &&
          wanted("bits", h.dataset.bits));
        heads.forEach((head, i) => { head.hidden = !shown[i]; });
        for (const group of each("thead [scope=colgroup]", board)) {
          const span = heads.filter(h => h.dataset.group === group.dataset.group && !h.hidden);
          group.hidden = !span.length;
          if (span.length) group.colSpan = span.length;
        }
        let lines = 0;
        for (const row of each("tbody tr", board)) {
          row.hidden = !wanted("method", row.dataset.method) ||
            !row.dataset.method.toLowerCase().includes(text);
          lines += !row.hidden;
          each("td", row).forEach((cell, i) => { cell.hidden = !shown[i]; });
        }
        board.hidden = !pair || !lines || !shown.some(Boolean);
        if (!board.hidden) count += lines;
      }
      form.querySelector("[data-found]").value = `${count} ${count === 1 ? "line" : "lines"}`;
      for (const pick of each(".pick", form)) {
        const own = each("[data-filter]", pick), on = own.filter(box => box.checked).length;
        pick.querySelector(".count").textContent = on < own.length ? `(${on} of ${own.length})` : "";
      }
    }
    form.addEventListener("input", apply);
    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("reset", () => window.setTimeout(apply));
    document.addEventListener("click", event => {
      for (const pick of each(".pick[open]", form))
        if (!pick.contains(event.target)) pick.open = false;
    });
    form.addEventListener("keydown", event => {
      const pick = event.target.closest(".pick[open]");
      if (event.key !== "Escape" || !pick) return;
      pick.open = false;
      pick.querySelector("summary").focus();
    });
    apply();
  }

  // ---- charts: nearest value, legend, numbers ---------------------------------------------
  function values(series) {
    const notes = series.dataset.n ? series.dataset.n.split("\n") : [];
    return (series.dataset.v || "").split(" ").filter(Boolean).map((pair, i) =>
      [...pair.split(",").map(Number), notes[i] || ""]);
  }
  function scale(text) {
    const [low, high, from, to, kind] = text.split(" ");
    const f = kind === "log" ? Math.log : x => x;
    return x => Number(from) + (Number(to) - Number(from)) * (f(x) - f(Number(low))) /
      (f(Number(high)) - f(Number(low)));
  }
  function nearest(chart, event) {
    const at = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(chart.getScreenCTM().inverse());
    const across = scale(chart.dataset.x), up = scale(chart.dataset.y);
    let best = null;
    for (const series of each(".series:not(.off)", chart)) for (const [x, y, note] of values(series)) {
      const px = across(x), py = up(y), far = Math.hypot(px - at.x, py - at.y);
      if (!best || far < best.far) best = { far, px, py, x, y, note, series };
    }
    return best && best.far < 40 ? best : null;
  }
  const shown = value => String(Number(value.toPrecision(4)));
  function charts() {
    const tip = document.querySelector(".tip");
    function leave(chart) {
      tip.hidden = true;
      chart.classList.remove("dimmed");
      for (const one of each(".hover-dot", chart)) one.remove();
      for (const one of each(".series.on", chart)) one.classList.remove("on");
    }
    for (const chart of each(".chart[data-x]")) {
      chart.addEventListener("pointermove", event => {
        leave(chart);
        const found = nearest(chart, event);
        if (!found) return;
        const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
        for (const [name, value] of [["class", "hover-dot"], ["cx", found.px], ["cy", found.py],
          ["r", 6]]) dot.setAttribute(name, value);
        chart.append(dot);
        found.series.classList.add("on");
        if (each(".series", chart).length > 2) chart.classList.add("dimmed");
        tip.textContent = [found.series.dataset.name, found.note,
          `${chart.dataset.xTitle}: ${shown(found.x)}`,
          `${chart.dataset.yTitle}: ${shown(found.y)}`].filter(Boolean).join("\n");
        tip.hidden = false;
        const box = tip.getBoundingClientRect();
        const left = event.clientX + 14 + box.width > window.innerWidth
          ? event.clientX - box.width - 14 : event.clientX + 14;
        tip.style.left = `${Math.max(4, left)}px`;
        tip.style.top = `${Math.max(4, Math.min(event.clientY + 14,
          window.innerHeight - box.height - 4))}px`;
      });
      chart.addEventListener("pointerleave", () => leave(chart));
      // The browser's own tooltips would come on top of these.
      for (const title of each(".series > title", chart)) title.remove();
    }
    for (const group of each("[data-legend-group]")) {
      const buttons = each(".legend button", group), all = each(".series", group);
      const own = button => all.filter(one => one.dataset.name === button.dataset.series);
      const mark = button => {
        for (const chart of each(".chart", group)) chart.classList.toggle("dimmed", !!button);
        for (const one of all) one.classList.remove("on");
        if (button) for (const one of own(button)) one.classList.add("on");
      };
      for (const button of buttons) {
        button.addEventListener("click", () => {
          const on = button.getAttribute("aria-pressed") !== "true";
          button.setAttribute("aria-pressed", String(on));
          for (const one of own(button)) one.classList.toggle("off", !on);
        });
        for (const name of ["pointerenter", "focus"])
          button.addEventListener(name, () => mark(button));
        for (const name of ["pointerleave", "blur"])
          button.addEventListener(name, () => mark(null));
      }
    }
    for (const numbers of each("details.numbers")) numbers.addEventListener("toggle", () => {
      const box = numbers.querySelector(".scroll");
      if (box.firstChild) return;
      const chart = numbers.parentElement.querySelector(".chart");
      const table = document.createElement("table"), body = table.createTBody();
      const head = table.createTHead().insertRow();
      for (const text of ["series", chart.dataset.xTitle, chart.dataset.yTitle]) {
        const cell = document.createElement("th");
        cell.scope = "col";
        cell.textContent = text;
        head.append(cell);
      }
      for (const series of each(".series", chart)) for (const [x, y, note] of values(series)) {
        const row = body.insertRow();
        for (const text of [[series.dataset.name, note].filter(Boolean).join(" · "), shown(x),
          shown(y)]) row.insertCell().textContent = text;
      }
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", `Numbers of the chart: ${chart.dataset.yTitle}`);
      box.append(table);
    });
  }

  // ---- retrieval grids --------------------------------------------------------------------
  let images = null;
  function fill(part) {
    images = images || JSON.parse(document.getElementById("images").textContent);
    for (const image of each("img[data-image]:not([src])", part))
      if (!image.closest("[data-panel]:not(.shown)") || part !== document)
        image.src = `data:image/jpeg;base64,${images[Number(image.dataset.image)]}`;
  }
  function grids() {
    fill(document);
    const dialog = document.querySelector(".enlarged"), body = dialog.querySelector(".body");
    let opener = null;
    function open(card) {
      opener = card.querySelector("[data-enlarge]");
      body.replaceChildren(card.querySelector(".shots").cloneNode(true));
      fill(body);
      const panel = card.closest("[data-panel]").querySelector("h3").textContent.trim();
      dialog.querySelector("h2").textContent = `${card.dataset.method} · ${panel}`;
      dialog.showModal();
      dialog.scrollTop = 0;
    }
    for (const button of each("[data-enlarge]"))
      button.addEventListener("click", () => open(button.closest(".card")));
    for (const shots of each(".card .shots"))
      shots.addEventListener("click", () => open(shots.closest(".card")));
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => { if (opener) opener.focus(); });
    for (const select of each("select[data-grids]")) select.addEventListener("change", () => {
      for (const other of each("select[data-grids]")) {
        const has = Array.from(other.options).some(o => o.value === select.value);
        other.value = has ? select.value : "";
        for (const card of each(".card.grid", other.closest("[data-panel]")))
          card.hidden = other.value !== "" && card.dataset.method !== other.value;
      }
    });
  }

  // ---- commands ---------------------------------------------------------------------------
  function copies() {
    for (const button of each("[data-copy]")) button.addEventListener("click", async () => {
      const source = button.parentElement.querySelector("pre");
      const told = button.parentElement.querySelector("[role=status]");
      try {
        await navigator.clipboard.writeText(source.textContent);
        told.textContent = "Copied";
      } catch (refused) {
        window.getSelection().selectAllChildren(source);
        told.textContent = "Selected: press Ctrl+C";
      }
    });
  }

  // ---- paper: everything open, in light colours -------------------------------------------
  function paper() {
    const closed = [];
    window.addEventListener("beforeprint", () => {
      for (const part of each("section details:not([open]):not(.numbers):not(.pick)")) {
        closed.push(part);
        part.open = true;
      }
      for (const image of each("img[data-image]:not([src])")) fill(image.parentElement);
      root.dataset.theme = "light";
    });
    window.addEventListener("afterprint", () => {
      for (const part of closed.splice(0)) part.open = false;
      paint();
    });
  }

  // ---- the keyboard stops at what scrolls, and only there ---------------------------------
  function stops() {
    const watch = new ResizeObserver(changes => {
      for (const { target } of changes) {
        const box = target.closest(".scroll, pre");
        if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1)
          box.tabIndex = 0;
        else box.removeAttribute("tabindex");
      }
    });
    for (const box of each("section > .scroll, .board > .scroll, .panel > .scroll, pre")) {
      watch.observe(box);
      if (box.firstElementChild) watch.observe(box.firstElementChild);
    }
  }
})();
