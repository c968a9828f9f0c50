// What one sees and touches. All arithmetic is in the script above, which runs in a worker.
"use strict";

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const [channels, rows, columns] = facts.shape;
const drawable = channels === 1;

// ---- the worker --------------------------------------------------------------------------------

const worker = new Worker(
  URL.createObjectURL(new Blob([$("dynamics").textContent], { type: "text/javascript" })));
const waiting = new Map();
let asked = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
};

/** What a command of the worker answers: ask("show", pixels), ask("step", 10), … */
function ask(name, ...args) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, name, args });
  });
}

/** Bytes from base64. */
const decoded = (text) => Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));

// ---- colours and maps --------------------------------------------------------------------------

/** A colour of the page's style, as red, green and blue. */
function colour(name) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
}

let palette = {};

function readPalette() {
  palette = Object.fromEntries(["rest", "free", "up", "down"].map((n) => [n, colour(`--${n}`)]));
}

const mixed = (a, b, share) => a.map((value, i) => value + (b[i] - value) * share);

/** The colour of a state from 0 to 1. */
const ofState = (s) => mixed(palette.rest, palette.free, Math.min(1, Math.max(0, s)));

/** The colour of a change from -1 to 1. */
const ofChange = (d) => mixed(palette.rest, d > 0 ? palette.up : palette.down, Math.abs(d));

/** Where the neurons of a layer stand in a picture: a square, or its maps side by side. */
function arrangement(shape) {
  const [count, height = 1, width = 1] = shape;
  const gap = shape.length > 1 ? 1 : 0;
  const across = Math.ceil(Math.sqrt(count * (height / width)));
  const down = Math.ceil(count / across);
  return {
    width: across * (width + gap) - gap,
    height: down * (height + gap) - gap,
    place: (i) => {
      const [map, inside] = [Math.floor(i / (height * width)), i % (height * width)];
      const x = (map % across) * (width + gap) + (inside % width);
      const y = Math.floor(map / across) * (height + gap) + Math.floor(inside / width);
      return [x, y];
    },
  };
}

/** Paints a value for each neuron. */
function paint(canvas, shape, values, colourOf) {
  const { width, height, place } = arrangement(shape);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  values.forEach((value, i) => {
    const [x, y] = place(i);
    image.data.set([...colourOf(value), 255], 4 * (y * width + x));
  });
  context.putImageData(image, 0, 0);
}

/** Paints pixels from 0 to 255, grey or in colour. */
function paintPixels(canvas, pixels) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const size = rows * columns;
  for (let i = 0; i < size; i++) {
    const rgb = [0, 1, 2].map((c) => pixels[(channels === 3 ? c : 0) * size + i]);
    image.data.set([...rgb, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

// ---- layers, output, curves --------------------------------------------------------------------

let shapes = []; // of the layers that are shown as maps
let history = []; // what was measured after each step
let now = null; // where the phase stands
let before = null; // the scores at the end of the free phase

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.append(...children);
  return made;
}

const EMPTY = $("status").textContent; // as the page begins
const UNMOVED = "What the nudge changes: nothing yet";

const nameOf = (k) => (shapes.length > 1 ? `Layer ${k + 1}` : "Hidden layer");

function makeLayers() {
  const shown = shapes.map((shape, k) => {
    const name = nameOf(k);
    const neurons = shape.reduce((a, b) => a * b, 1).toLocaleString("en");
    const words = shape.length > 1 ? `${shape[0]} maps of ${shape[1]} × ${shape[2]}` : `${neurons} neurons`;
    const figure = (kind, text) => element("figure", { class: kind },
      element("canvas", { role: "img", "aria-label": `${name}: ${text}` }),
      element("figcaption", {}, text));
    return element("div", { class: "layer" },
      figure("state", `${name}, ${words}`), figure("moved", UNMOVED));
  });
  $("layers").replaceChildren(...shown);
  const size = [16, 16, 11][shapes.length] ?? 8;
  $("layers").style.setProperty("--map", `${size}rem`);
}

function drawLayers() {
  shapes.forEach((shape, k) => {
    const figure = $("layers").children[k];
    paint(figure.querySelector(".state canvas"), shape, now.states[k], ofState);
    const moved = now.moved ? now.moved[k] : now.states[k].map(() => 0);
    const most = moved.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    paint(figure.querySelector(".moved canvas"), shape, moved, (d) => ofChange(most && d / most));
    const said = now.moved
      ? `Changed by the nudge: orange up, blue down, at most ${most.toFixed(2)}`
      : UNMOVED;
    figure.querySelector(".moved figcaption").textContent = said;
    figure.querySelector(".moved canvas").setAttribute("aria-label", `${nameOf(k)}: ${said}`);
  });
}

function makeBars() {
  $("bars").setAttribute("aria-label", "Scores: none yet");
  $("bars").replaceChildren(...facts.classes.map((name) =>
    element("div", { class: "score" },
      element("span", { class: "name", title: name }, name),
      element("div", { class: "track" },
        element("div", { class: "fill" }), element("div", { class: "was", hidden: "" })),
      element("span", { class: "value" }))));
}

const highest = (scores) => scores.indexOf(Math.max(...scores));

function drawBars() {
  const best = highest(now.scores);
  [...$("bars").children].forEach((bar, c) => {
    const share = (value) => `${100 * Math.min(1, Math.max(0, value))}%`;
    bar.querySelector(".fill").style.width = share(now.scores[c]);
    bar.querySelector(".value").textContent = now.scores[c].toFixed(2);
    bar.querySelector(".was").hidden = !before;
    if (before) bar.querySelector(".was").style.left = `calc(${share(before[c])} - 1px)`;
    bar.classList.toggle("best", c === best && now.taken > 0);
  });
  $("bars").setAttribute("aria-label",
    `Scores: ${facts.classes.map((name, c) => `${name} ${now.scores[c].toFixed(2)}`).join(", ")}`);
}

const chart = { left: 44, right: 312, top: 8, bottom: 112 };

function svg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.textContent = text;
  return made;
}

/** A curve over the steps, of both phases, with marks [[value, text], …] at its axis. */
function drawCurve(id, points, low, high, marks) {
  const { left, right, top, bottom } = chart;
  const last = Math.max(10, history.length - 1);
  const x = (t) => left + ((right - left) * t) / last;
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
  const parts = marks.flatMap(([value, text]) => [
    svg("line", { class: "axis", x1: left, x2: right, y1: y(value), y2: y(value) }),
    svg("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, text),
  ]);
  const end = svg("text", { x: right, y: bottom + 14, "text-anchor": "end" }, `step ${last}`);
  parts.push(svg("text", { x: left, y: bottom + 14 }, "0"), end);
  for (const kind of ["free", "nudged"]) {
    const own = points.filter((p) => p.nudged === (kind === "nudged"));
    const first = kind === "nudged" && own.length ? points.filter((p) => !p.nudged).slice(-1) : [];
    const line = [...first, ...own].map((p) => `${x(p.t).toFixed(1)},${y(p.value).toFixed(1)}`);
    parts.push(svg("polyline", { class: `line ${kind}`, points: line.join(" ") }));
  }
  const tip = points.at(-1);
  if (tip) {
    const kind = tip.nudged ? "nudged" : "free";
    parts.push(svg("circle", { class: kind, cx: x(tip.t), cy: y(tip.value), r: 3 }));
  }
  $(id).replaceChildren(...parts);
}

function drawCurves() {
  // From the first step on: before it all neurons are at their start, where it is far off.
  const energies = history.map(({ energy, nudged }, t) => ({ t, value: energy, nudged })).slice(1);
  const values = energies.map((p) => p.value);
  const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  const digits = Math.min(4, Math.max(0, Math.ceil(1.5 - Math.log10(high - low || 1))));
  const text = (value) => value.toFixed(digits).replace("-", "−");
  drawCurve("energy", energies, low, high, values.length ? [[low, text(low)], [high, text(high)]] : []);
  const floor = 1e-7;
  const residuals = history.flatMap(({ residual, nudged }, t) =>
    (residual === null ? [] : [{ t, value: Math.log10(Math.max(residual, floor)), nudged }]));
  const powers = [[0, "1"], [-2, "0.01"], [-4, "10⁻⁴"], [-6, "10⁻⁶"]];
  drawCurve("residual", residuals, -7, 0, powers);
}

function say(text, phase = "") {
  $("status").replaceChildren(...(phase ? [element("span", { class: "phase" }, phase), " "] : []), ...text);
  document.querySelector(".settle").classList.toggle("nudged", Boolean(now && now.nudged));
  $("status").classList.toggle("nudged", Boolean(now && now.nudged));
}

function describe() {
  const steps = `${now.taken} step${now.taken === 1 ? "" : "s"}`;
  const settled = now.taken < now.steps || now.residual <= facts.tolerance;
  const text = now.ended ? `${settled ? "settled in" : "at its end after"} ${steps}` : `step ${now.taken}`;
  const reads = now.taken ? [", reads ", element("b", {}, facts.classes[highest(now.scores)])] : [];
  say([text, ...reads, "."], now.nudged ? "Nudged phase:" : "Free phase:");
}

let planned = false;

/** Draws where the phase stands, at most once a frame. */
function draw() {
  if (planned || !now) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    if (!now) return; // cleared since
    drawLayers();
    drawBars();
    drawCurves();
    describe();
    enable();
  });
}

// ---- steps and play ----------------------------------------------------------------------------

const SPEEDS = [1, 2, 5, 10, 20, 30, 60]; // steps a second
let playing = false;
let pixels = null; // what the network gets

/** One command after another: what was asked for later begins later. */
let queue = Promise.resolve();
function inTurn(action) {
  queue = queue.then(action).catch((error) => say([`Something went wrong: ${error.message}`]));
  return queue;
}

/** What a button does, in its turn, unless what was asked for before has disabled the button. */
function pressed(id, action) {
  return inTurn(() => {
    enable();
    return $(id).disabled ? undefined : action();
  });
}

function enable() {
  const nudged = now && now.nudged;
  for (const id of ["play", "step", "restart", "nudge"]) $(id).disabled = !now;
  for (const id of ["play", "step"]) $(id).disabled ||= now.ended;
  $("nudge").disabled ||= chosenClass() < 0 || beta() === 0;
  $("teach").disabled = !nudged;
  $("play").textContent = playing && !(now && now.ended) ? "Pause" : "Play";
}

async function takeSteps(count) {
  if (!now || now.ended) return;
  const { path, ...end } = await ask("step", count);
  history.push(...path);
  now = end;
  draw();
}

function setPlaying(on) {
  playing = on;
  enable();
}

/** At once, and again once all has ended that was asked for before: it would play on. */
function wantPlaying(on) {
  setPlaying(on);
  inTurn(() => setPlaying(on));
}

let last = 0;
let busy = false;

/** Takes the steps that are due, frame by frame. */
function tick(time) {
  requestAnimationFrame(tick);
  if (!playing || busy || !now) {
    last = playing && busy ? last : time;
    return;
  }
  const due = Math.floor(((time - last) / 1000) * SPEEDS[$("speed").value]);
  if (due < 1) return;
  last = time;
  busy = true;
  inTurn(() => takeSteps(Math.min(due, 5))).then(() => {
    busy = false;
    if (now?.ended) setPlaying(false);
  });
}

/** Begins the free phase of an image. */
async function show(image) {
  pixels = image;
  paintPixels($("seen"), pixels);
  before = null;
  now = await ask("show", pixels);
  history = [now];
  setPlaying(true);
  draw();
}

// ---- nudge and teach ---------------------------------------------------------------------------

const taught = { images: 0, flips: 0 };

const chosenClass = () => Number(document.querySelector("#classes :checked")?.value ?? -1);
/** β, of which rounding may leave a little where the slider stands at 0. */
const beta = () => {
  const { value, step } = $("beta");
  return Math.abs(value) < step / 2 ? 0 : Number(value);
};

function makeClasses() {
  const longest = Math.max(...facts.classes.map((name) => name.length));
  $("classes").style.setProperty("--chip", longest > 2 ? `${Math.min(6.5, 0.62 * longest + 1)}rem` : "2.1rem");
  $("classes").replaceChildren(...facts.classes.map((name, c) =>
    element("label", {}, element("input", { type: "radio", name: "class", value: c }), name)));
}

function choose(label) {
  document.querySelector(`#classes [value="${label}"]`).checked = true;
  enable();
}

function makeBeta() {
  const { beta: own } = facts.learning;
  const about = Math.max(1, 2 * Math.abs(own));
  const step = Math.abs(own) / Math.ceil(Math.abs(own) / (about / 20)); // own is a whole number of them
  const most = step * Math.round(about / step);
  const set = { min: -most, max: most, step, value: own };
  Object.entries(set).forEach(([name, value]) => $("beta").setAttribute(name, value));
  showBeta();
}

function makeBatch() {
  const sizes = [1, 2, 4, 8, 16, 32, 64].map((size) => [size, String(size)]);
  const gentle = facts.binary ? [[0, "gentle"]] : []; // what flips a weight
  $("batch").replaceChildren(...[...gentle, ...sizes].map(([value, text]) =>
    element("option", { value }, text)));
  $("batch").value = facts.binary ? 0 : 64;
}

function showBeta() {
  const digits = Math.max(2, Math.ceil(-Math.log10($("beta").step)));
  $("beta-value").textContent = `${beta() < 0 ? "−" : ""}${Math.abs(beta()).toFixed(digits)}`;
}

async function nudge(label, strength) {
  if (!now.nudged) {
    await takeSteps(Infinity);
    before = now.scores;
  }
  history = history.filter((each) => !each.nudged);
  now = await ask("nudge", label, strength);
  setPlaying(true);
  draw();
}

async function teach(size) {
  await takeSteps(Infinity);
  const score = before;
  const { label, batch, layers } = await ask("teach", size);
  taught.images += 1;
  taught.flips += layers.reduce((sum, layer) => sum + (layer.flips ?? 0), 0);
  now = await ask("show", pixels);
  history = [now];
  before = score;
  await takeSteps(Infinity);
  describeTeaching(layers, batch, label, score);
  $("reset").disabled = false;
  now = await ask("show", pixels);
  history = [now];
  setPlaying(true);
  draw();
}

const counted = (count) => count.toLocaleString("en");

function describeTeaching(layers, batch, label, score) {
  const binary = layers.filter((layer) => layer.flips !== null);
  const flips = binary.reduce((sum, layer) => sum + layer.flips, 0);
  const of = binary.reduce((sum, layer) => sum + layer.weights, 0);
  const parts = binary.length
    ? [element("div", {}, element("div", { class: "big" }, counted(flips)),
      `of ${counted(of)} weights flipped, as of one image in a batch of ${batch}.`)]
    : [element("div", {}, "All weights have moved a little.")];
  if (binary.length > 1) {
    parts.push(element("ul", {}, ...binary.map((layer, k) =>
      element("li", {}, `layer ${k + 1}: ${counted(layer.flips)}`))));
  }
  const [{ perInput, flips: first }] = layers;
  if (first && channels === 1 && perInput.length === rows * columns) parts.push(flipMap(perInput));
  parts.push(element("p", {}, `Score of ${facts.classes[label]}: `,
    element("b", {}, `${score[label].toFixed(2)} → ${now.scores[label].toFixed(2)}`)));
  if (taught.images > 1) {
    const all = binary.length ? `, ${counted(taught.flips)} flips` : "";
    parts.push(element("p", { class: "note" }, `In all: ${taught.images} lessons${all}.`));
  }
  $("taught").replaceChildren(...parts);
}

/** How many weights of each pixel have flipped. */
function flipMap(perInput) {
  const most = Math.max(1, ...perInput);
  const canvas = element("canvas", { role: "img", "aria-label": "Flips by pixel" });
  const shares = Array.from(perInput, (count) => count / most);
  paint(canvas, [1, rows, columns], shares, (share) => mixed(palette.rest, palette.up, share));
  return element("figure", {}, canvas,
    element("figcaption", {}, `Flips by pixel, up to ${counted(most)}`));
}

async function reset() {
  await ask("reset");
  Object.assign(taught, { images: 0, flips: 0 });
  $("taught").replaceChildren();
  $("reset").disabled = true;
  if (pixels) await show(pixels);
}

// ---- drawing -----------------------------------------------------------------------------------

const pad = $("pad");
const SIDE = 280; // of the pad's own pixels
const pen = { down: false, x: SIDE / 2, y: SIDE / 2, byKey: false };
let blank = true; // nothing has been drawn

/** The pad in its own pixels, black; an image of the test set is left behind. */
function clearPad() {
  pad.width = SIDE;
  pad.height = SIDE;
  blank = true;
  document.querySelectorAll("#samples [aria-pressed=true]")
    .forEach((button) => button.setAttribute("aria-pressed", "false"));
}

function clear() {
  clearPad();
  return inTurn(forget);
}

/** Without an image, as the page begins. */
function forget() {
  [pixels, now, history, before] = [null, null, [], null];
  setPlaying(false);
  paintPixels($("seen"), new Uint8Array(rows * columns));
  drawCurves();
  makeBars();
  makeLayers();
  shapes.forEach((shape, k) => $("layers").children[k].querySelectorAll("canvas").forEach((canvas) =>
    paint(canvas, shape, new Float32Array(shape.reduce((a, b) => a * b)), ofState)));
  say([EMPTY]);
}

/** A line of the pen to a place. */
function lineTo(x, y) {
  if (blank) clearPad();
  const context = pad.getContext("2d");
  context.strokeStyle = "#fff";
  context.lineWidth = 22;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(pen.x, pen.y);
  context.lineTo(x + 0.01, y);
  context.stroke();
  [pen.x, pen.y, blank] = [x, y, false];
}

function placeOf(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

/** The drawing as pixels from 0 to 255; of 28 × 28 fitted into 20 × 20 and centred, as MNIST is. */
function drawnPixels() {
  const whole = { left: 0, top: 0, width: SIDE, height: SIDE };
  if (rows !== 28 || columns !== 28) return shrunk(whole, 0, 0, columns, rows);
  const box = inked();
  const scale = 20 / Math.max(box.width, box.height);
  const [width, height] = [box.width * scale, box.height * scale];
  const placed = shrunk(box, (28 - width) / 2, (28 - height) / 2, width, height);
  const [x, y] = centre(placed);
  const [dx, dy] = [Math.round(13.5 - x), Math.round(13.5 - y)];
  return shrunk(box, (28 - width) / 2 + dx, (28 - height) / 2 + dy, width, height);
}

/** A part of the pad, shrunk into a place of the image. */
function shrunk(part, x, y, width, height) {
  const small = new OffscreenCanvas(columns, rows);
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(pad, part.left, part.top, part.width, part.height, x, y, width, height);
  const { data } = context.getImageData(0, 0, columns, rows);
  return Uint8Array.from({ length: rows * columns }, (_, i) => (data[4 * i] * data[4 * i + 3]) / 255);
}

/** The smallest rectangle of the pad with all that is drawn. */
function inked() {
  const { data } = pad.getContext("2d").getImageData(0, 0, SIDE, SIDE);
  let [left, top, right, bottom] = [SIDE, SIDE, 0, 0];
  for (let i = 0; i < SIDE * SIDE; i++) {
    if (data[4 * i + 3] < 32) continue;
    const [x, y] = [i % SIDE, Math.floor(i / SIDE)];
    [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
  }
  return { left, top, width: right - left, height: bottom - top };
}

/** The centre of mass of pixels. */
function centre(values) {
  let [sum, x, y] = [0, 0, 0];
  values.forEach((value, i) => {
    sum += value;
    x += value * (i % columns);
    y += value * Math.floor(i / columns);
  });
  return [x / sum, y / sum];
}

function drawn() {
  if (!blank) inTurn(() => show(drawnPixels()));
}

function startStroke(event) {
  pad.setPointerCapture(event.pointerId);
  [pen.x, pen.y] = placeOf(event);
  pen.down = true;
  lineTo(pen.x, pen.y);
}

function endStroke() {
  if (pen.down) drawn();
  pen.down = false;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Arrow keys move the pen, the space bar sets it down and lifts it. */
function drawByKey(event) {
  const arrow = ARROWS[event.key];
  if (!arrow && event.key !== " ") return;
  event.preventDefault();
  if (arrow) {
    const [x, y] = [pen.x + 10 * arrow[0], pen.y + 10 * arrow[1]].map((at) => Math.min(SIDE, Math.max(0, at)));
    if (pen.byKey) lineTo(x, y);
    else [pen.x, pen.y] = [x, y];
  } else {
    pen.byKey = !pen.byKey;
    if (pen.byKey) lineTo(pen.x, pen.y);
    else drawn();
  }
  $("pen").style.setProperty("--x", `${(100 * pen.x) / SIDE}%`);
  $("pen").style.setProperty("--y", `${(100 * pen.y) / SIDE}%`);
  $("pen").classList.toggle("down", pen.byKey);
}

// ---- samples -----------------------------------------------------------------------------------

function makeSamples() {
  $("sample-box").hidden = facts.samples.length === 0;
  const buttons = facts.samples.map(({ label, read, image }) => {
    const canvas = element("canvas");
    paintPixels(canvas, decoded(image));
    const name = facts.classes[label];
    const text = read === label ? `A ${name}` : `A ${name} that it reads as ${facts.classes[read]}`;
    const button = element("button", {
      type: "button", title: text, "aria-label": text, "aria-pressed": "false",
      class: read === label ? "" : "wrong",
    }, canvas);
    button.addEventListener("click", () => take(button, label, decoded(image)));
    return button;
  });
  $("samples").replaceChildren(...buttons);
}

function take(button, label, image) {
  clearPad();
  button.setAttribute("aria-pressed", "true");
  paintPixels(pad, image);
  choose(label);
  inTurn(() => show(image));
}

// ---- events ------------------------------------------------------------------------------------

const actions = {
  play: () => wantPlaying(!playing),
  step: () => { wantPlaying(false); pressed("step", () => takeSteps(1)); },
  restart: () => pressed("restart", () => show(pixels)),
  nudge: () => {
    const [label, strength] = [chosenClass(), beta()]; // as they are when it is pressed
    pressed("nudge", () => nudge(label, strength));
  },
  teach: () => {
    const size = Number($("batch").value);
    pressed("teach", () => teach(size));
  },
  reset: () => pressed("reset", reset),
  clear,
  explain: () => $("about").showModal(),
};

const KEYS = { k: "play", ".": "step", r: "restart", n: "nudge", t: "teach" };
if (drawable) KEYS.c = "clear";

function onKey(event) {
  const typing = event.target.matches("input[type=range], select") || $("about").open;
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = $(KEYS[event.key.toLowerCase()]);
  if (button && !button.disabled) button.click();
}

function showSpeed() {
  const steps = SPEEDS[$("speed").value];
  $("speed-value").textContent = `${steps} step${steps > 1 ? "s" : ""}/s`;
}

function listen() {
  Object.entries(actions).forEach(([id, action]) => $(id).addEventListener("click", action));
  $("speed").addEventListener("input", showSpeed);
  $("beta").addEventListener("input", () => { showBeta(); enable(); });
  $("classes").addEventListener("change", enable);
  document.addEventListener("keydown", onKey);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readPalette(); draw(); });
  if (!drawable) return;
  pad.addEventListener("pointerdown", startStroke);
  pad.addEventListener("pointermove", (event) => { if (pen.down) lineTo(...placeOf(event)); });
  pad.addEventListener("pointerup", endStroke);
  pad.addEventListener("pointercancel", endStroke);
  pad.addEventListener("keydown", drawByKey);
}

async function start() {
  readPalette();
  makeClasses();
  makeBars();
  makeBeta();
  makeBatch();
  makeSamples();
  showSpeed();
  const all = await ask("load", decoded($("network").textContent).buffer, facts.learning);
  shapes = facts.readout ? all : all.slice(0, -1);
  listen();
  clear();
  requestAnimationFrame(tick);
  // Best an image that it misreads, from which it can learn something.
  const samples = $("samples");
  (samples.querySelector(".wrong") ?? samples.firstElementChild)?.click();
}

start().catch((error) => say([`This page needs a newer browser: ${error.message}`]));
