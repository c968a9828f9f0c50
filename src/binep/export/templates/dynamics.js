// A packed network, its dynamics and how it learns: what binep computes, in plain JavaScript.
//
//   p_l = W_l ⋆ r_{l-1} + b_l + W_{l+1}ᵀ ⋆ r_{l+1}                step
//   s_l = clip(p_l, 0, 1); of bits clip((1-f)·s_l + f·p_l, 0, 1)   update
//   nudge of the output: β·(-∂C/∂s_L) = β·(y - s_L)                force
//   g_W = (r^β ⊗ r_below^β - r* ⊗ r_below*) / β                    compare, correlate
//   m = (1-γ)·m + γ·g; a sign w flips where -w·m > τ               flip
//
// Functions have the names that they have in binep's Python. It runs in a worker; the page asks for
// the commands at the end. Sums are of double precision and rounded to float32 where binep rounds.
"use strict";

const f32 = Math.fround;
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const clip = (p) => (p < 0 ? 0 : p > 1 ? 1 : p);

// ---- the packed file (docs/packed.md) ----------------------------------------------------------

/** The network in a packed file, an ArrayBuffer. */
function read(file) {
  const size = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, size)));
  const about = JSON.parse(header.__metadata__.binep.slice(64));
  const kinds = { U8: Uint8Array, F32: Float32Array, F64: Float64Array };
  const tensor = (name) => {
    const [start, end] = header[name].data_offsets.map((at) => at + 8 + size);
    return new kinds[header[name].dtype](file.slice(start, end));
  };
  const { synapses, neurons, cost, free_steps, tolerance } = about.network;
  return {
    layers: synapses.map((each, k) => readLayer(each, `synapses.${k}`, tensor)),
    readout: cost.readout ? readLayer(cost.readout, "cost.readout", tensor) : null,
    neurons,
    cost,
    freeSteps: free_steps,
    tolerance,
    mean: about.mean,
    std: about.std,
    power: about.power ?? 1,
  };
}

/** Synapses: weights ±1 or real, (outputs, inputs) or (channels, channels below, rows, columns). */
function readLayer(about, name, tensor) {
  const below = about.input_shape;
  const conv = about.kind === "conv";
  const inputs = conv ? below[0] * about.kernel ** 2 : product(below); // of an output
  const outputs = conv ? about.channels : about.outputs;
  const layer = { ...about, conv, inputs, outputs, binary: about.weights === "binary" };
  const values = tensor(`${name}.values`);
  layer.weights = layer.binary ? unpacked(values, outputs * inputs) : Float32Array.from(values);
  layer.scale = layer.binary ? Float32Array.from(tensor(`${name}.scale`)) : new Float32Array([1]);
  layer.bias = Float32Array.from(tensor(`${name}.bias`));
  layer.output_shape = [outputs];
  if (conv) {
    layer.map = below.slice(1).map((side) => side + 2 * about.padding - about.kernel + 1);
    layer.output_shape.push(...layer.map.map((side) => Math.floor(side / about.pool)));
  }
  layer.size = product(layer.output_shape);
  return layer;
}

/** Signs, eight to a byte, the first in the highest bit. */
function unpacked(bytes, count) {
  const signs = new Int8Array(count);
  for (let i = 0; i < count; i++) signs[i] = (bytes[i >> 3] >> (7 - (i & 7))) & 1 ? 1 : -1;
  return signs;
}

const alpha = (layer, channel) => layer.scale[layer.scale.length > 1 ? channel : 0];

// ---- synapses ----------------------------------------------------------------------------------

/** W ⋆ below·unit + b, and of max-pooling where each maximum is. */
function up(layer, below, unit = 1) {
  return layer.conv ? upConv(layer, below) : { drive: upDense(layer, below, unit), route: null };
}

/** Wᵀ ⋆ above. */
function down(layer, above, route) {
  return layer.conv ? downConv(layer, above, route) : downDense(layer, above);
}

const active = (values) => Array.from(values.keys()).filter((i) => values[i] !== 0);

function upDense({ weights, inputs, outputs, scale, bias }, below, unit) {
  const drive = new Float32Array(outputs);
  const from = Int32Array.from(active(below));
  for (let i = 0; i < outputs; i++) {
    const row = i * inputs;
    let sum = 0;
    for (let n = 0; n < from.length; n++) sum += weights[row + from[n]] * below[from[n]];
    drive[i] = f32(f32(f32(sum) * unit) * scale[0]) + bias[i];
  }
  return drive;
}

function downDense({ weights, inputs, scale }, above) {
  const sums = new Float64Array(inputs);
  for (const i of active(above)) {
    const row = i * inputs;
    for (let j = 0; j < inputs; j++) sums[j] += weights[row + j] * above[i];
  }
  return Float32Array.from(sums, (sum) => f32(sum) * scale[0]);
}

/** What a kernel joins, between one map above and one below: weight, first places, columns. */
function rowsOf({ kernel, padding, map: [mapRows, mapColumns], input_shape: [, rows, columns] }) {
  const found = [];
  for (let weight = 0; weight < kernel ** 2; weight++) {
    const [dy, dx] = [Math.floor(weight / kernel) - padding, (weight % kernel) - padding];
    const left = Math.max(0, -dx);
    const count = Math.min(mapColumns, columns - dx) - left;
    for (let y = Math.max(0, -dy); y < Math.min(mapRows, rows - dy) && count > 0; y++) {
      found.push(weight, y * mapColumns + left, (y + dy) * columns + left + dx, count);
    }
  }
  return Int32Array.from(found);
}

/** The maps of a convolution before pooling. */
function convolve(layer, below) {
  const { weights, outputs, kernel, input_shape: [channelsBelow, height, width] } = layer;
  const table = (layer.rows ??= rowsOf(layer));
  const size = product(layer.map);
  const sums = new Float64Array(outputs * size);
  for (let c = 0; c < outputs; c++)
    for (let k = 0; k < channelsBelow; k++) {
      const first = (c * channelsBelow + k) * kernel ** 2;
      for (let r = 0; r < table.length; r += 4) {
        const w = weights[first + table[r]];
        const [to, from, count] = [c * size + table[r + 1], k * height * width + table[r + 2], table[r + 3]];
        for (let x = 0; x < count; x++) sums[to + x] += w * below[from + x];
      }
    }
  return Float32Array.from(sums);
}

/**
 * For each place of the maps that is not 0 and each weight that joins it to a place below, what
 * tap(value, weight, place below) does.
 */
function tapped(layer, maps, tap) {
  const { kernel, padding, map: [mapRows, mapColumns] } = layer;
  const [channelsBelow, rows, columns] = layer.input_shape;
  for (let i = 0; i < maps.length; i++) {
    const value = maps[i];
    if (value === 0) continue;
    const c = Math.floor(i / (mapRows * mapColumns));
    const top = (Math.floor(i / mapColumns) % mapRows) - padding;
    const left = (i % mapColumns) - padding;
    const [y0, y1] = [Math.max(0, -top), Math.min(kernel, rows - top)];
    const [x0, x1] = [Math.max(0, -left), Math.min(kernel, columns - left)];
    for (let k = 0; k < channelsBelow; k++)
      for (let y = y0; y < y1; y++) {
        const weight = ((c * channelsBelow + k) * kernel + y) * kernel;
        const below = (k * rows + top + y) * columns + left;
        for (let x = x0; x < x1; x++) tap(value, weight + x, below + x);
      }
  }
}

function upConv(layer, below) {
  const { drive, route } = pooled(layer, convolve(layer, below));
  const size = drive.length / layer.outputs;
  for (let i = 0; i < drive.length; i++) {
    const channel = Math.floor(i / size);
    drive[i] = f32(drive[i] * alpha(layer, channel)) + layer.bias[channel];
  }
  return { drive, route };
}

/** Calls visit(place above, first place of its window in the maps). */
function eachWindow({ output_shape: [channels, rows, columns], map, pool }, visit) {
  let place = 0;
  for (let c = 0; c < channels; c++)
    for (let y = 0; y < rows; y++)
      for (let x = 0; x < columns; x++, place++)
        visit(place, (c * map[0] + y * pool) * map[1] + x * pool);
}

/** Maxima, the first of equals, or means, and the places of the maxima. */
function pooled(layer, maps) {
  const { pool, pooling, size } = layer;
  if (pool === 1) return { drive: maps, route: null };
  const drive = new Float32Array(size);
  const route = pooling === "max" ? new Int32Array(size) : null;
  eachWindow(layer, (place, first) => {
    let sum = 0;
    let best = first;
    for (let y = 0; y < pool; y++)
      for (let x = 0; x < pool; x++) {
        const at = first + y * layer.map[1] + x;
        sum += maps[at];
        if (maps[at] > maps[best]) best = at;
      }
    drive[place] = route ? maps[best] : sum / pool ** 2;
    if (route) route[place] = best;
  });
  return { drive, route };
}

/** The transpose of pooling: to the places of the maxima, or in equal shares to all. */
function unpooled(layer, above, route) {
  const { pool } = layer;
  if (pool === 1) return above;
  const maps = new Float32Array(layer.outputs * product(layer.map));
  eachWindow(layer, (place, first) => {
    if (route) {
      maps[route[place]] = above[place];
      return;
    }
    for (let y = 0; y < pool; y++)
      for (let x = 0; x < pool; x++) maps[first + y * layer.map[1] + x] = above[place] / pool ** 2;
  });
  return maps;
}

function downConv(layer, above, route) {
  const size = layer.size / layer.outputs;
  const scaled = above.map((value, i) => value * alpha(layer, Math.floor(i / size)));
  const sums = new Float64Array(product(layer.input_shape));
  const { weights } = layer;
  tapped(layer, unpooled(layer, scaled, route), (value, weight, below) => {
    sums[below] += weights[weight] * value;
  });
  return Float32Array.from(sums);
}

// ---- neurons and cost --------------------------------------------------------------------------

/** What neurons send, r: a bit from the threshold on, or the state itself. */
function fire(kind, state) {
  return kind.kind === "real" ? state : state.map((s) => (s >= f32(kind.threshold) ? 1 : 0));
}

/** The next states from the drive p. */
function update(kind, state, drive, nudge) {
  const nudged = (i) => (nudge ? nudge[i] : 0);
  if (kind.kind === "binary") {
    const [kept, moved] = [f32(1 - kind.filter), f32(kind.filter)];
    return state.map((s, i) =>
      clip(f32(f32(kept * s) + f32(moved * f32(drive[i] + nudged(i))))));
  }
  if (kind.nudge === "inside") return drive.map((p, i) => clip(f32(p + nudged(i))));
  if (!nudge) return drive.map(clip);
  return drive.map((p, i) => {
    const s = f32(clip(p) + nudge[i]);
    return kind.clip_nudged ? clip(s) : s;
  });
}

/** A score per class: the highest is what the network reads. */
function scores(network, output) {
  const { cost, readout } = network;
  if (readout) return upDense(readout, output, 1);
  const { classes, copies } = cost;
  return Float32Array.from({ length: classes }, (_, c) =>
    output.subarray(c * copies, (c + 1) * copies).reduce((a, b) => a + b, 0) / copies);
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (v) => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return Float32Array.from(powers, (v) => v / sum);
}

/** y - y^, with y^ = softmax(W·s_L + b), of the readout that cross-entropy has. */
function residualOfReadout(network, output, label) {
  const given = softmax(scores(network, output));
  return given.map((value, c) => (c === label ? 1 : 0) - value);
}

/** -∂C/∂s_L: y - s_L, or Wᵀ(y - y^). */
function force(network, output, label) {
  if (network.readout) {
    return downDense(network.readout, residualOfReadout(network, output, label));
  }
  const { copies } = network.cost;
  return output.map((s, i) => (Math.floor(i / copies) === label ? 1 : 0) - s);
}

// ---- the free and the nudged phase -------------------------------------------------------------

/** W_1 ⋆ x + b_1 of pixels from 0 to 255, and x itself. */
function inputDrive(network, pixels) {
  const { layers: [first], mean, std, power } = network;
  const size = pixels.length / (mean ? mean.length : 1);
  const x = Float32Array.from(pixels, (pixel, j) => {
    const level = f32(pixel / 255);
    const value = power === 1 ? level : f32(level ** power);
    const channel = Math.floor(j / size);
    return mean ? f32(f32(value - f32(mean[channel])) / f32(std[channel])) : value;
  });
  // Grey levels and signs have exact sums, which are scaled afterwards, as in binep.
  const whole = !mean && power === 1 && !first.conv && first.binary;
  return { x, ...(whole ? up(first, Float32Array.from(pixels), f32(1 / 255)) : up(first, x)) };
}

/** States with what follows from them: r, and the drives from below. */
function look(network, clamped, states) {
  const sent = network.neurons.map((kind, k) => fire(kind, states[k]));
  const arrived = [clamped, ...network.layers.slice(1).map((layer, k) => up(layer, sent[k]))];
  return { states, sent, arrived };
}

/** The states at the start. */
function initialStates(network) {
  return network.layers.map((layer, k) =>
    new Float32Array(layer.size).fill(network.neurons[k].initial));
}

/** The states after a time step: all layers move at once. */
function step(network, now, nudge) {
  const { layers, neurons } = network;
  return layers.map((_, k) => {
    let drive = now.arrived[k].drive;
    if (k + 1 < layers.length) {
      const feedback = down(layers[k + 1], now.sent[k + 1], now.arrived[k + 1].route);
      drive = drive.map((p, i) => p + feedback[i]);
    }
    return update(neurons[k], now.states[k], drive, k + 1 === layers.length ? nudge : null);
  });
}

/** E = Σ_l r_l·(alone - drive from below), with alone = r/2, or the threshold of bits. */
function energy(network, now) {
  let sum = 0;
  network.neurons.forEach((kind, k) => {
    const [r, { drive }] = [now.sent[k], now.arrived[k]];
    for (let i = 0; i < r.length; i++) {
      sum += r[i] * ((kind.kind === "binary" ? kind.threshold : r[i] / 2) - drive[i]);
    }
  });
  return sum;
}

/** Per layer the largest |Δs|. */
function change(states, before) {
  return states.map((state, k) =>
    state.reduce((most, s, i) => Math.max(most, Math.abs(s - before[k][i])), 0));
}

/** A phase at its start; of the nudged phase with the free one's end, a label and β. */
function begin(network, clamped, states, steps, nudge = null) {
  const now = look(network, clamped, states);
  const { neurons } = network;
  const held = nudge && neurons.at(-1).hold_nudge && force(network, states.at(-1), nudge.label);
  return { network, clamped, now, steps, nudge, held, taken: 0, ended: false, residual: null };
}

/** Takes a step of a phase, unless it has ended. */
function advance(phase) {
  if (phase.ended) return;
  const { network, clamped, now, nudge } = phase;
  const output = now.states.at(-1);
  const pull = nudge && (phase.held || force(network, output, nudge.label));
  const states = step(network, now, pull && pull.map((value) => f32(nudge.beta) * value));
  phase.residual = change(states, now.states);
  phase.now = look(network, clamped, states);
  phase.taken += 1;
  const { tolerance, neurons } = network;
  const settled = phase.residual.every((moved, k) =>
    moved <= (neurons[k].kind === "binary" ? 0 : tolerance));
  phase.ended = phase.taken >= phase.steps || (tolerance > 0 && settled);
}

/** The end of a phase. */
function settle(phase) {
  while (!phase.ended) advance(phase);
  return phase;
}

// ---- learning ----------------------------------------------------------------------------------

/** Adds factor·(above ⊗ below) to a gradient by the weights. */
function correlate(layer, above, below, factor, gradient) {
  if (layer.conv) {
    const maps = unpooled(layer, above, layer.pool > 1 ? up(layer, below).route : null);
    tapped(layer, maps, (value, weight, at) => { gradient[weight] += factor * value * below[at]; });
    return;
  }
  const from = active(below);
  for (const i of active(above)) {
    const row = i * layer.inputs;
    const strength = f32(factor * above[i]);
    for (const j of from) gradient[row + j] += strength * below[j];
  }
}

/** Adds factor·Σ above to a gradient by the biases: over the places of each channel. */
function correlateBias(layer, above, factor, gradient) {
  const size = above.length / layer.outputs;
  above.forEach((value, i) => { gradient[Math.floor(i / size)] += factor * value; });
}

const emptyGradient = (layer) => ({
  weights: new Float32Array(layer.weights.length),
  bias: new Float32Array(layer.bias.length),
});

/** Per layer the direction to go against, from two equilibria whose nudges differ by β. */
function compare(network, first, second, beta) {
  const { x } = first.clamped;
  return network.layers.map((layer, k) => {
    const gradient = emptyGradient(layer);
    const pairs = [[second, -1], [first, 1]].map(([phase, sign]) => ({
      above: phase.now.sent[k],
      below: k ? phase.now.sent[k - 1] : x,
      factor: sign / beta,
    }));
    const [after, before] = pairs;
    if (k === 0) { // the input is the same in both: one product of the difference serves
      const moved = after.above.map((r, i) => r - before.above[i]);
      correlate(layer, moved, x, after.factor, gradient.weights);
    } else {
      for (const { above, below, factor } of pairs) {
        correlate(layer, above, below, factor, gradient.weights);
      }
    }
    for (const { above, factor } of pairs) correlateBias(layer, above, factor, gradient.bias);
    return gradient;
  });
}

/** Of the readout: the gradient of the cost at the free equilibrium. */
function differentiateCost(network, output, label) {
  const gradient = emptyGradient(network.readout);
  const residual = residualOfReadout(network, output, label);
  correlate(network.readout, residual, output, -1, gradient.weights);
  correlateBias(network.readout, residual, -1, gradient.bias);
  return gradient;
}

/** ∂/∂α from ∂/∂W: Σ sign·∂/∂W over the weights that share α. */
function perScale(layer, gradient) {
  const sums = new Float64Array(layer.scale.length);
  const share = gradient.length / sums.length;
  gradient.forEach((g, i) => { sums[Math.floor(i / share)] += layer.weights[i] * g; });
  return sums;
}

/**
 * m = (1-γ)·m + γ·g, then a sign flips where sign·m > τ (m is minus the paper's). As in binep
 * m / decay is kept, of which decay alone changes nothing.
 */
function flip(layer, gradient, { gamma, threshold }) {
  layer.momentum ??= new Float32Array(gradient.length);
  layer.decay = (layer.decay ?? 1) * (1 - gamma);
  if (layer.decay < SMALLEST_DECAY) {
    layer.momentum.forEach((m, i) => { layer.momentum[i] = m * layer.decay; });
    layer.decay = 1;
  }
  const { weights, momentum, decay } = layer;
  const [rate, most] = [f32(gamma / decay), f32(threshold / decay)];
  const perInput = new Int32Array(layer.inputs);
  let flips = 0;
  for (let i = 0; i < weights.length; i++) {
    momentum[i] += f32(gradient[i] * rate);
    if (weights[i] * momentum[i] > most) {
      weights[i] = -weights[i];
      flips += 1;
      perInput[i % layer.inputs] += 1;
    }
  }
  return { flips, perInput };
}

/** The largest batch, of 64 to 1, as one image of which a gradient flips any weight. */
function gentlest(layers, gradients) {
  const ratios = layers.map((layer, k) => {
    if (!layer.binary) return 0;
    const { gamma, threshold } = learning.layers[k];
    const decay = (layer.decay ?? 1) * (1 - gamma);
    let most = 0; // batch sizes below it flip a weight: sign·(m + γ·g / batch) > τ
    layer.weights.forEach((w, i) => {
      const left = threshold - w * decay * (layer.momentum?.[i] ?? 0);
      most = Math.max(most, left > 0 ? (gamma * w * gradients[k].weights[i]) / left : 64);
    });
    return most;
  });
  const most = Math.min(64, Math.max(...ratios));
  return 2 ** Math.max(0, Math.ceil(Math.log2(Math.max(1, most))) - 1 + (most === 64 ? 1 : 0));
}

/** As the mean over a batch of which the other images are learnt already. */
function divide({ weights, bias }, batch) {
  for (let i = 0; i < weights.length; i++) weights[i] /= batch;
  for (let i = 0; i < bias.length; i++) bias[i] /= batch;
}

const SCALE_FLOOR = 1e-6;
const SMALLEST_DECAY = 2 ** -10; // momenta are multiplied by their decay before it gets smaller

/** An update: flips, then biases, real weights and scaling factors. */
function learn(layer, gradient, rates) {
  const scaleGradient = layer.binary && rates.scale_lr > 0 && perScale(layer, gradient.weights);
  const result = { weights: layer.weights.length, flips: null, perInput: null };
  if (layer.binary) Object.assign(result, flip(layer, gradient.weights, rates));
  else descend(layer.weights, gradient.weights, rates.weight_lr ?? rates.bias_lr);
  descend(layer.bias, gradient.bias, rates.bias_lr);
  if (scaleGradient) {
    layer.scale.forEach((a, c) => {
      layer.scale[c] = Math.max(a - rates.scale_lr * a * scaleGradient[c], SCALE_FLOOR);
    });
  }
  return result;
}

function descend(parameter, gradient, rate) {
  for (let i = 0; i < parameter.length; i++) parameter[i] -= rate * gradient[i];
}

// ---- what the page asks for --------------------------------------------------------------------

let file, learning, network, clamped, free, phase;

/** What is measured of where the phase stands. */
function measured() {
  const { now, taken, ended, steps, residual, nudge } = phase;
  const output = scores(network, now.states.at(-1));
  return {
    nudged: nudge !== null,
    taken,
    ended,
    steps,
    scores: network.readout ? softmax(output) : output,
    energy: energy(network, now),
    residual: residual && Math.max(...residual),
  };
}

/** The same with the states, and by how much the nudge has moved them. */
function standing() {
  const { states } = phase.now;
  const before = free.now.states;
  const moved = phase.nudge && states.map((state, k) => state.map((s, i) => s - before[k][i]));
  return { ...measured(), states, moved };
}

function must(fits, what) {
  if (!fits) throw new RangeError(what);
}

const commands = {
  /** Reads the file; what it learnt since is forgotten. */
  load(given, rates) {
    file = given;
    learning = rates;
    network = read(file);
    return network.layers.map((layer) => layer.output_shape);
  },

  /** As it was loaded. */
  reset() {
    network = read(file);
  },

  /** Begins the free phase of pixels from 0 to 255. */
  show(pixels) {
    const size = product(network.layers[0].input_shape);
    const fit = pixels?.length === size && Array.from(pixels).every((p) => p >= 0 && p <= 255);
    must(fit, `show: must be ${size} numbers from 0 to 255`);
    clamped = inputDrive(network, pixels);
    free = phase = begin(network, clamped, initialStates(network), network.freeSteps);
    return standing();
  },

  /** Takes up to so many steps: what was measured after each, and where the last one led. */
  step(count) {
    must(phase, "step: show comes first");
    const path = [];
    while (path.length < count && !phase.ended) {
      advance(phase);
      path.push(measured());
    }
    return { path, ...standing() };
  },

  /** Begins the nudged phase at the end of the free one. */
  nudge(label, beta) {
    must(free, "nudge: show comes first");
    const last = scores(network, free.now.states.at(-1)).length - 1;
    must(Number.isInteger(label) && label >= 0 && label <= last, `nudge: must be a class, 0 to ${last}`);
    must(Number.isFinite(beta) && beta !== 0, "nudge: β must be a number, and not 0");
    settle(free);
    phase = begin(network, clamped, free.now.states, learning.nudged_steps, { label, beta });
    return standing();
  },

  /** Learns from the two equilibria, as of one image of a batch, or as gently as flips a weight. */
  teach(size) {
    must(phase?.nudge, "teach: nudge comes first");
    const { label, beta } = settle(phase).nudge;
    let [first, second, difference] = [free, phase, beta];
    if (learning.nudging === "centred") { // between +β and -β
      const nudge = { label, beta: -beta };
      first = settle(begin(network, clamped, free.now.states, learning.nudged_steps, nudge));
      difference = 2 * beta;
    }
    const gradients = compare(network, first, second, difference);
    if (network.readout) gradients.push(differentiateCost(network, free.now.states.at(-1), label));
    const layers = [...network.layers, ...(network.readout ? [network.readout] : [])];
    const batch = size || gentlest(layers, gradients);
    gradients.forEach((gradient) => divide(gradient, batch));
    const learnt = layers.map((layer, k) => learn(layer, gradients[k], learning.layers[k]));
    return { label, batch, layers: learnt };
  },
};

self.onmessage = ({ data: { id, name, args } }) => {
  try {
    must(Object.hasOwn(commands, name), `must be one of ${Object.keys(commands).join(", ")}`);
    self.postMessage({ id, result: commands[name](...args) });
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
