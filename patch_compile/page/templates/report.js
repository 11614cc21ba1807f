"use strict";

// The page is complete without this script; it adds sorting, filters, details and tile maps.
const facts = JSON.parse(document.getElementById("facts").textContent);
const table = document.querySelector("table.weights");
const filters = document.querySelector("form.filters");
const bodies = facts.weights.map((_, index) => document.getElementById(`w${index}`));

// Sorting

const words = new Intl.Collator("en", { numeric: true });
const keys = {
  index: (weight) => weight.index,
  name: (weight) => weight.label,
  lowering: (weight) => weight.lowering,
  geometry: (weight) => weight.geometry,
  size: (weight) => weight.macs,
  sparsity: (weight) => weight.sparsity,
  share: (weight) => weight.sparse_tile_share,
  pieces: (weight) => weight.pieces.length,
  kept: (weight) => weight.macs_kept / weight.macs,
  reason: (weight) => weight.reason,
};
// One column a number of tokens.
facts.weights[0]?.gains.forEach((_, index) => (keys[`gain${index}`] = (weight) => weight.gains[index]));

function compare(one, two) {
  // What is unknown comes last, in either direction.
  if (one == null || two == null) return 0;
  return typeof one === "string" ? words.compare(one, two) : one - two;
}

function sortBy(name, descending) {
  const key = keys[name];
  const order = facts.weights.map((weight) => weight.index);
  order.sort((a, b) => {
    const [one, two] = [key(facts.weights[a]), key(facts.weights[b])];
    const absent = (one == null) - (two == null);
    return absent || (descending ? -1 : 1) * compare(one, two) || a - b;
  });
  table.append(...order.map((index) => bodies[index]));
  for (const head of table.tHead.querySelectorAll("th")) {
    if (head.className === name) {
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    } else {
      head.removeAttribute("aria-sort");
    }
  }
  filters.elements.sort.value = name;
}

table.tHead.addEventListener("click", (event) => {
  const name = event.target.closest("button")?.dataset.sort;
  if (!name) return;
  const sorted = event.target.closest("th").getAttribute("aria-sort");
  // The third click restores the model's order.
  if (sorted === "descending") sortBy("index", false);
  else sortBy(name, sorted === "ascending");
});

// Filters

function matches(weight, wanted) {
  const name = `${weight.label} ${weight.weight}`.toLowerCase();
  return (
    wanted.words.every((word) => name.includes(word)) &&
    (!wanted.lowering || weight.lowering === wanted.lowering) &&
    (!wanted.geometry || weight.geometry === wanted.geometry) &&
    (!wanted.reason || weight.alike === wanted.reason)
  );
}

function filter() {
  const { name, lowering, geometry, reason, shown } = filters.elements;
  const wanted = {
    words: name.value.toLowerCase().split(/\s+/).filter(Boolean),
    lowering: lowering.value,
    geometry: geometry.value,
    reason: reason.value,
  };
  let count = 0;
  for (const weight of facts.weights) {
    const hit = matches(weight, wanted);
    bodies[weight.index].hidden = !hit;
    count += hit;
  }
  shown.value = `${count} of ${facts.weights.length} weights`;
  document.querySelector(".nothing").hidden = count > 0 || !facts.weights.length;
}

filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("input", (event) => {
  if (event.target.name === "sort") sortBy(event.target.value, false);
  else filter();
});
filters.addEventListener("reset", () => setTimeout(() => (sortBy("index", false), filter())));
document
  .querySelector(".nothing button")
  .addEventListener("click", () => (filters.reset(), filters.elements.name.focus()));

// Tile maps

function sizes(runs) {
  return runs.split(",").flatMap((run) => {
    const [count, size] = run.split("*").map(Number);
    return Array(count).fill(size);
  });
}

function edges(steps) {
  const found = [0];
  for (const step of steps) found.push(found[found.length - 1] + step);
  return found;
}

function bits(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return (index) => (bytes[index >> 3] >> (7 - (index & 7))) & 1;
}

function readMap(map) {
  const [rows, columns] = [edges(sizes(map.rows)), edges(sizes(map.columns))];
  const [sparse, computed] = [bits(map.sparse), bits(map.computed_sparse)];
  const width = columns.length - 1;
  const kind = (r, c) => 2 * sparse(r * width + c) + computed(r * width + c);
  return { rows, columns, kind };
}

// By kind: whether the mask calls a tile 2:4, and whether a 2:4 piece holds it.
const KINDS = ["dense", "split", "lost", "sparse"];
const MEANINGS = [
  "dense",
  "dense, in 2:4 pieces",
  "2:4, computed dense",
  "2:4, in a 2:4 piece",
];

// Tiles finer than pixels are drawn one to a pixel and then shrunk, which blends them.
function draw(canvas, map, colours) {
  const [rows, columns] = [map.rows.length - 1, map.columns.length - 1];
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (rows > canvas.height || columns > canvas.width) {
    const sheet = new OffscreenCanvas(columns, rows);
    paint(sheet.getContext("2d"), map, [...Array(rows + 1).keys()], [...Array(columns + 1).keys()], colours);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(sheet, 0, 0, canvas.width, canvas.height);
    return;
  }
  const [tops, lefts] = [pixels(map.rows, canvas.height), pixels(map.columns, canvas.width)];
  paint(pen, map, tops, lefts, colours);
  grid(pen, tops, lefts, colours[KINDS.length]);
}

function pixels(marks, size) {
  return marks.map((mark) => Math.round((mark * size) / marks[marks.length - 1]));
}

function paint(pen, map, tops, lefts, colours) {
  for (let r = 0; r + 1 < tops.length; r++) {
    for (let c = 0; c + 1 < lefts.length; ) {
      const [kind, left] = [map.kind(r, c), lefts[c]];
      while (c + 1 < lefts.length && map.kind(r, c) === kind) c++;
      pen.fillStyle = colours[kind];
      pen.fillRect(left, tops[r], lefts[c] - left, tops[r + 1] - tops[r]);
    }
  }
}

// Lines between tiles, where there is room for them.
function grid(pen, tops, lefts, colour) {
  pen.fillStyle = colour;
  const { width, height } = pen.canvas;
  if (tops[1] >= 6) for (const top of tops.slice(1, -1)) pen.fillRect(0, top, width, 1);
  if (lefts[1] >= 6) for (const left of lefts.slice(1, -1)) pen.fillRect(left, 0, 1, height);
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return [...KINDS, "paper"].map((name) => style.getPropertyValue(`--${name}`).trim());
}

// Maps are drawn when they come into view, and again when the colours change.
const drawn = new Map();
function show(canvas, weight) {
  drawn.set(canvas, weight);
  draw(canvas, readMap(weight.tile_map), colours());
}
function redraw() {
  for (const [canvas, weight] of drawn) show(canvas, weight);
}

const small = new Map();
for (const weight of facts.weights) {
  const canvas = bodies[weight.index].querySelector("canvas");
  if (canvas) small.set(canvas, weight);
}
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      show(target, small.get(target));
    }
  },
  { rootMargin: "300px" },
);
for (const canvas of small.keys()) sight.observe(canvas);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  // Paper is light; computed colours are still the screen's here.
  document.documentElement.dataset.paper = "";
  for (const [canvas, weight] of small) show(canvas, weight);
  redraw();
});
addEventListener("afterprint", () => {
  delete document.documentElement.dataset.paper;
  redraw();
});

// Details

const percent = (share) => `${(100 * share).toFixed(1)}%`;

function pieceText(piece) {
  const role = piece.role === "sparse24" ? "2:4" : piece.role;
  return `${role} ${piece.shape[0]} × ${piece.shape[1]}`;
}

function described(weight) {
  const planned = weight.pieces.filter((piece) => piece.role === "sparse24").length;
  const built = facts.engines.length;
  return [
    ["planned", `${weight.lowering}, ${planned} of ${weight.pieces.length} pieces 2:4: ${weight.reason}`],
    ["eligible", `${weight.eligible} of ${weight.pieces.length} pieces, by our own check of the stored bytes`],
    ["built", built ? `in ${facts.engines.join(", ")}` : "no engine built"],
    ["chosen", weight.told.join("; ") || "unknown"],
    ["measured", facts.measured],
    ["pieces", weight.pieces.map(pieceText).join("; ")],
    ["multiply-adds", `${weight.macs.toLocaleString("en")} before, ${weight.macs_kept.toLocaleString("en")} after (${percent(weight.macs_kept / weight.macs)})`],
    ["masks", weight.masks.join(", ") || "none"],
    ["initializer", weight.weight],
    ["lowered with", weight.group ? `others, as ${weight.group}` : "no other weight"],
    ["type", weight.dtype],
    ["bound by", weight.bound_by],
    ["digest", weight.digest],
  ];
}

function fill(list, weight) {
  for (const [word, text] of described(weight)) {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    [dt.textContent, dd.textContent] = [word, text];
    if (text === "unknown" || text === "not measured") dd.className = "unknown";
    list.append(dt, dd);
  }
}

// A long side of 360 pixels, drawn sharp on dense screens.
function frame(canvas, shape) {
  const scale = 360 / Math.max(...shape);
  const [height, width] = shape.map((side) => Math.max(12, Math.round(side * scale)));
  const dots = Math.min(3, devicePixelRatio || 1);
  Object.assign(canvas, { width: width * dots, height: height * dots });
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.style.width = `${width}px`;
}

function point(canvas, map, text) {
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const spot = (marks, at) => {
      const value = Math.min(Math.max(at, 0), 0.999999) * marks[marks.length - 1];
      return marks.findIndex((mark) => mark > value) - 1;
    };
    const r = spot(map.rows, (event.clientY - box.top) / box.height);
    const c = spot(map.columns, (event.clientX - box.left) / box.width);
    const range = (marks, i) => `${marks[i]}–${marks[i + 1] - 1}`;
    text.textContent =
      `N ${range(map.rows, r)}, K ${range(map.columns, c)}: ` + MEANINGS[map.kind(r, c)];
  });
  canvas.addEventListener("pointerleave", () => (text.textContent = ""));
}

function summarise(weight, map) {
  const counts = [0, 0, 0, 0];
  for (let r = 0; r + 1 < map.rows.length; r++) {
    for (let c = 0; c + 1 < map.columns.length; c++) counts[map.kind(r, c)]++;
  }
  const parts = counts.map((count, kind) => (count ? `${count} ${MEANINGS[kind]}` : ""));
  return `${weight.label}, tiles: ${parts.filter(Boolean).join("; ")}`;
}

function open(weight) {
  const row = document.querySelector("main template").content.cloneNode(true);
  fill(row.querySelector("dl"), weight);
  const figure = row.querySelector("figure");
  bodies[weight.index].append(row);
  if (!weight.tile_map) {
    figure.textContent = "No tile map: an older report, or too many tiles to look at.";
    return;
  }
  const [canvas, map] = [figure.querySelector("canvas"), readMap(weight.tile_map)];
  canvas.setAttribute("aria-label", summarise(weight, map));
  frame(canvas, weight.shape);
  show(canvas, weight);
  point(canvas, map, figure.querySelector(".where"));
}

function toggle(weight) {
  const detail = bodies[weight.index].querySelector(".detail");
  const button = bodies[weight.index].querySelector(".more");
  button.setAttribute("aria-expanded", String(!detail));
  if (!detail) return open(weight);
  drawn.delete(detail.querySelector("canvas"));
  detail.remove();
}

table.addEventListener("click", (event) => {
  if (!event.target.closest(".more")) return;
  toggle(facts.weights[event.target.closest("tbody").id.slice(1)]);
});

// The chart leads to the table.

document.querySelector(".chart svg")?.addEventListener("click", (event) => {
  const first = event.target.dataset.first;
  if (first === undefined) return;
  filters.reset();
  setTimeout(() => {
    const weight = facts.weights[first];
    if (!bodies[first].querySelector(".detail")) toggle(weight);
    bodies[first].scrollIntoView({ block: "center" });
    bodies[first].querySelector(".more").focus({ preventScroll: true });
  });
});
