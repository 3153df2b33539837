"use strict";
// The page of the feature explorer. All text goes in as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, edges, layers, kinds, words } = data;
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8C510A"];
const GREY = "#9a9a9a", FAINT = "#e3e3e3";
const byId = (id) => document.getElementById(id);
const name = (n) => `${layers[nodes.layer[n]]}/${nodes.feature[n]}`;

function make(tag, text, properties = {}) {
  const found = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) found.textContent = text;
  return found;
}

// --- State ---------------------------------------------------------------------------------------

const state = { selected: null, least: data.least[0], kinds: new Set(kinds.map((_, k) => k)), others: true, colour: "community", community: null, path: new Set() };

// Edges of each node, strongest first by the chosen statistic; an edge goes to a later layer.
const before = nodes.layer.map(() => []), after = nodes.layer.map(() => []);
let weight = edges.weights[0];

function rank() {
  before.forEach((list) => { list.length = 0; });
  after.forEach((list) => { list.length = 0; });
  weight.map((_, e) => e).sort((a, b) => weight[b] - weight[a]).forEach((e) => {
    after[edges.source[e]].push(e);
    before[edges.target[e]].push(e);
  });
}

const visible = (n) => (nodes.kinds[n] ? kinds.some((_, k) => nodes.kinds[n] & (1 << k) && state.kinds.has(k)) : state.others);
const kept = (e) => weight[e] >= state.least && visible(edges.source[e]) && visible(edges.target[e]);
const strongest = (list) => list.find(kept);

function chain(n) {
  const found = [n];
  for (let e; (e = strongest(before[found[0]])) !== undefined; ) found.unshift(edges.source[e]);
  for (let e; (e = strongest(after[found[found.length - 1]])) !== undefined; ) found.push(edges.target[e]);
  return found;
}

// --- Graph ---------------------------------------------------------------------------------------

function colourOf(n) {
  if (state.colour === "kind") {
    const first = kinds.findIndex((_, k) => nodes.kinds[n] & (1 << k));
    return first < 0 ? GREY : COLOURS[first % COLOURS.length];
  }
  const c = nodes.community[n];
  return c < 0 ? GREY : COLOURS[c % COLOURS.length];
}

const shrink = Math.max(0.35, Math.min(1, Math.sqrt(1200 / nodes.layer.length)));
const pale = `rgba(0, 0, 0, ${Math.max(0.03, Math.min(0.25, 500 / (1 + weight.length))).toFixed(3)})`;
const graph = new graphology.MultiDirectedGraph();
nodes.layer.forEach((_, n) => graph.addNode(n, { x: nodes.x[n], y: nodes.y[n], size: shrink * nodes.size[n], label: `${name(n)} ${nodes.word[n]}` }));
weight.forEach((_, e) => graph.addEdgeWithKey(e, edges.source[e], edges.target[e]));

let renderer = null;
const near = new Set();

function drawNode(key, attributes) {
  const n = Number(key), found = { ...attributes, color: colourOf(n) };
  if (!visible(n)) return { ...found, hidden: true };
  if (state.selected !== null && !near.has(n)) return { ...found, color: FAINT, size: 0.6 * attributes.size, label: "", zIndex: 0 };
  if (state.community !== null && nodes.community[n] !== state.community) return { ...found, color: FAINT, label: "", zIndex: 0 };
  if (n === state.selected) return { ...found, size: 2 + 1.6 * attributes.size, highlighted: true, zIndex: 3 };
  return { ...found, zIndex: 1, forceLabel: state.selected !== null && state.path.has(n) };
}

function drawEdge(key, attributes) {
  const e = Number(key), a = edges.source[e], b = edges.target[e];
  if (!kept(e)) return { ...attributes, hidden: true };
  if (state.selected !== null) {
    if (state.path.has(a) && state.path.has(b)) return { ...attributes, color: "#222", size: 3, type: "thick", zIndex: 2 };
    const touches = a === state.selected || b === state.selected;
    return touches ? { ...attributes, color: "#666", zIndex: 1 } : { ...attributes, hidden: true };
  }
  if (state.community !== null && (nodes.community[a] !== state.community || nodes.community[b] !== state.community)) return { ...attributes, hidden: true };
  return { ...attributes, color: pale };
}

function draw() {
  const shown = weight.reduce((sum, _, e) => sum + kept(e), 0);
  const features = nodes.layer.reduce((sum, _, n) => sum + visible(n), 0);
  byId("count").textContent = `${features} features, ${shown} edges`;
  byId("shown").textContent = state.least.toFixed(2);
  near.clear();
  if (state.selected !== null) {
    state.path = new Set(chain(state.selected));
    state.path.forEach((n) => near.add(n));
    before[state.selected].filter(kept).forEach((e) => near.add(edges.source[e]));
    after[state.selected].filter(kept).forEach((e) => near.add(edges.target[e]));
  }
  if (renderer) renderer.refresh();
}

function nameLayers() {
  byId("layers").replaceChildren(...layers.map((layer, k) => {
    const at = renderer.graphToViewport({ x: data.columns[k], y: 0 });
    const label = make("span", `layer ${layer}`);
    label.style.left = `${at.x}px`;
    return label;
  }));
}

function start() {
  try {
    // Points and lines: without a graphics card, the library's usual programs draw every node and
    // edge as an instance of its own and take twenty times as long.
    const { NodePointProgram, EdgeLineProgram, EdgeRectangleProgram } = Sigma.rendering;
    renderer = new Sigma(graph, byId("graph"), {
      nodeProgramClasses: { point: NodePointProgram }, defaultNodeType: "point",
      edgeProgramClasses: { thin: EdgeLineProgram, thick: EdgeRectangleProgram }, defaultEdgeType: "thin",
      nodeReducer: drawNode, edgeReducer: drawEdge, zIndex: true, hideEdgesOnMove: weight.length > 20000,
      hideLabelsOnMove: true, labelRenderedSizeThreshold: 7, labelSize: 12, minCameraRatio: 0.01, maxCameraRatio: 3, itemSizesReference: "screen",
      autoRescale: true, stagePadding: 30,
    });
  } catch (error) {
    byId("graph").append(make("p", "This browser draws no WebGL, so there is no picture. Search and the panel work.", { className: "note" }));
    return;
  }
  renderer.on("clickNode", ({ node }) => select(Number(node)));
  renderer.on("clickStage", () => select(null));
  renderer.on("afterRender", nameLayers);
}

// --- Panel ---------------------------------------------------------------------------------------

function go(n, text) {
  const button = make("button", text === undefined ? name(n) : text, { type: "button", title: `show feature ${name(n)}` });
  button.dataset.node = n;
  button.onclick = () => select(n, true);
  return button;
}

function context({ t, a }) {
  const line = make("p", undefined, { className: "context" });
  t.forEach((w, i) => {
    const span = make("span", words[w].replaceAll("·", " "));
    if (a[i]) {
      span.style.background = `rgba(213, 94, 0, ${0.1 + 0.08 * a[i]})`;
      span.title = `${a[i]}0 % of its maximum`;
      span.dataset.level = a[i];
    }
    line.append(span);
  });
  return line;
}

function list(title, which, other) {
  const found = make("section");
  const some = which.filter(kept);
  found.append(make("h3", `${title} (${some.length})`));
  some.slice(0, 12).forEach((e) => found.append(go(other[e], `${weight[e].toFixed(2)}  ${name(other[e])} ${nodes.word[other[e]]}`)));
  if (!some.length) found.append(make("p", "none as similar as that", { className: "note" }));
  return found;
}

function wordList(title, list, className) {
  const box = make("div", undefined, { className: `words ${className}` });
  list.forEach((w) => box.append(make("span", words[w])));
  return [make("h3", title), box];
}

function panel() {
  const box = byId("panel"), n = state.selected;
  if (n === null) {
    const about = make("p", data.about, { className: "note" });
    const help = make("p", "Click a feature, or search. Arrow keys: left and right follow the strongest edge, up and down go to the neighbours in the column; Escape clears; / searches.", { className: "note" });
    box.replaceChildren(make("h2", "No feature chosen"), about, help);
    if (state.community !== null) box.append(everything());
    return;
  }
  const card = data.cards[n], fires = (100 * nodes.fires[n]).toPrecision(2);
  const facts = make("p", `fires on ${fires} % of tokens `);
  kinds.forEach((kind, k) => { if (nodes.kinds[n] & (1 << k)) facts.append(make("span", kind, { className: "kind" })); });
  const group = make("p");
  if (nodes.community[n] >= 0) {
    const size = nodes.community.reduce((sum, c) => sum + (c === nodes.community[n]), 0);
    const button = make("button", `community ${nodes.community[n]}: ${size} features`, { type: "button", id: "community" });
    button.onclick = () => { state.community = nodes.community[n]; state.selected = null; update(); };
    group.append(button);
  }
  const path = make("p", undefined, { id: "path" });
  path.append("chain: ", ...chain(n).flatMap((m, i) => {
    const button = go(m);
    if (m === n) button.setAttribute("aria-current", "true");
    return i ? [" → ", button] : [button];
  }));
  const contexts = make("section", undefined, { id: "contexts" });
  contexts.append(make("h3", "Fires most on"), ...card.c.map(context));
  if (!card.c.length) contexts.append(make("p", "nothing in this text", { className: "note" }));
  const two = make("div", undefined, { className: "two" });
  two.append(list("Before", before[n], edges.source), list("After", after[n], edges.target));
  box.replaceChildren(make("h2", `Layer ${layers[nodes.layer[n]]}, feature ${nodes.feature[n]}`), facts, group, path, contexts,
    ...wordList("Promotes", card.p, ""), ...wordList("Suppresses", card.s, "less"), two);
  box.scrollTop = 0;
}

function everything() {
  const button = make("button", "show all communities", { type: "button" });
  button.onclick = () => { state.community = null; update(); };
  return button;
}

function update() { draw(); panel(); }

function select(n, look = false) {
  state.selected = n;
  if (n !== null) state.community = null;
  else state.path = new Set();
  update();
  if (look && renderer && n !== null) {
    const { x, y } = renderer.getNodeDisplayData(n), camera = renderer.getCamera();
    camera.animate({ x: camera.ratio < 0.9 ? x : camera.x, y: camera.ratio < 0.9 ? y : camera.y }, { duration: 200 });
  }
}

// --- Search and filters --------------------------------------------------------------------------

let texts = null;
function search(query) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return [];
  texts ??= data.cards.map((card, n) => `${name(n)} ${[...card.p, ...card.c.flatMap((c) => c.t)].map((w) => words[w].replaceAll("·", " ")).join("")}`.toLowerCase());
  const exact = [], starts = [], inside = [];
  texts.forEach((text, n) => {
    if (!visible(n)) return;
    if (name(n) === wanted) exact.push(n);
    else if (nodes.word[n].replaceAll("·", "").toLowerCase() === wanted) starts.push(n);
    else if (text.includes(wanted)) inside.push(n);
  });
  return [...exact, ...starts, ...inside].slice(0, 60);
}

function showFound() {
  const found = search(byId("query").value), box = byId("found");
  box.style.display = byId("query").value.trim() ? "block" : "none";
  box.replaceChildren(...found.map((n) => {
    const button = go(n, `${name(n)}  ${nodes.word[n]}`);
    button.onclick = () => { box.style.display = "none"; select(n, true); byId("graph").focus(); };
    return button;
  }));
  if (!found.length) box.append(make("p", "no feature has it", { className: "note" }));
}

function step(key) {
  const n = state.selected;
  if (n === null) return select(nodes.layer.findIndex((_, m) => visible(m)), true);
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const e = strongest(key === "ArrowLeft" ? before[n] : after[n]);
    if (e !== undefined) select(key === "ArrowLeft" ? edges.source[e] : edges.target[e], true);
    return;
  }
  const column = nodes.layer.map((l, m) => m).filter((m) => nodes.layer[m] === nodes.layer[n] && visible(m)).sort((a, b) => nodes.y[b] - nodes.y[a]);
  const at = column.indexOf(n) + (key === "ArrowDown" ? 1 : -1);
  if (column[at] !== undefined) select(column[at], true);
}

function wire() {
  const least = byId("least");
  const choose = (k) => {
    weight = edges.weights[k];
    state.least = data.least[k];
    Object.assign(least, { min: data.least[k], value: data.least[k] });
    rank();
  };
  byId("statistic").append(...data.statistics.map((text, k) => make("option", text, { value: k })));
  byId("statistic").onchange = (event) => { choose(Number(event.target.value)); update(); };
  choose(0);
  least.oninput = () => { state.least = Number(least.value); update(); };
  kinds.forEach((kind, k) => addBox(kind, (on) => (on ? state.kinds.add(k) : state.kinds.delete(k))));
  addBox("others", (on) => { state.others = on; });
  byId("colour").onchange = (event) => { state.colour = event.target.value; draw(); };
  byId("query").oninput = showFound;
  byId("query").onkeydown = (event) => {
    const first = byId("found").querySelector("button");
    if (event.key === "Enter" && first) first.click();
    if (event.key === "ArrowDown" && first) { first.focus(); event.preventDefault(); }
  };
  byId("found").onkeydown = (event) => {
    const to = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (to) { (document.activeElement[to] ?? byId("query")).focus(); event.preventDefault(); }
  };
  byId("graph").onkeydown = (event) => { if (event.key.startsWith("Arrow")) { step(event.key); event.preventDefault(); } };
  document.onkeydown = (event) => {
    if (event.key === "Escape") { byId("found").style.display = "none"; state.community = null; select(null); }
    if (event.key === "/" && event.target.tagName !== "INPUT") { byId("query").focus(); byId("query").select(); event.preventDefault(); }
  };
}

function addBox(text, change) {
  const label = make("label"), box = make("input", undefined, { type: "checkbox", checked: true });
  box.dataset.kind = text;
  box.onchange = () => { change(box.checked); update(); };
  label.append(box, ` ${text}`);
  byId("kinds").append(label);
}

wire();
start();
update();
