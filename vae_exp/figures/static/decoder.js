// Runs a decoder: operations in turn on images { data [height, width, channels], height, width, channels }. A code is
// an image of one pixel, and a linear layer a transposed convolution of it with a kernel of 1x1.

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const floatsOf = base64 => new Float32Array(bytesOf(base64).buffer);

// Not every browser has a Float16Array.
function halvesOf(base64) {
  const values = Float32Array.from({ length: 65536 }, (_, bits) => {
    const [exponent, fraction] = [(bits >> 10) & 31, (bits & 1023) / 1024];
    return (bits >> 15 ? -1 : 1) * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
  });
  return Float32Array.from(new Uint16Array(bytesOf(base64).buffer), bits => values[bits]);
}

const sigmoid = x => 1 / (1 + Math.exp(-x));

// Abramowitz & Stegun 7.1.26: to 1.5e-7.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

// The mean of the continuous Bernoulli of an output, as in vae_exp.likelihoods.
function continuousBernoulli(output) {
  const u = 8 * Math.tanh(output / 16);
  return u * u < 0.01 ? 0.5 + u / 6 - u ** 3 / 90 : 0.5 + (1 / Math.tanh(u) - 1 / u) / 2;
}

const FUNCTIONS = {
  linear: () => x => x,
  relu: () => x => (x > 0 ? x : 0),
  leaky_relu: ({ slope }) => x => (x > 0 ? x : slope * x),
  elu: ({ alpha }) => x => (x > 0 ? x : alpha * Math.expm1(x)),
  gelu: () => x => (x * (1 + erf(x * Math.SQRT1_2))) / 2,
  silu: () => x => x * sigmoid(x),
  tanh: () => Math.tanh,
  sigmoid: () => sigmoid,
  continuous_bernoulli: () => continuousBernoulli,
};

const OPERATIONS = { spread, glu, group_norm: normalise, scale, upsample, reshape, flatten, residual, first };

function run(operations, x) {
  for (const each of operations) {
    if (each.name in OPERATIONS) x = OPERATIONS[each.name](x, each);
    else x = { ...x, data: x.data.map(FUNCTIONS[each.name](each)) };
  }
  return x;
}

// A transposed convolution: each pixel adds its numbers times the kernel [height, width, numbers, channels] around its
// place. Zeros are passed over, as half of the numbers are after a ReLU; the others go four at a time, for speed.
function spread(x, { weight, bias, kernel, stride, padding, extra }) {
  const channels = bias.length;
  const sizeOf = (n, i) => (n - 1) * stride[i] - 2 * padding[i] + kernel[i] + extra[i];
  const [height, width] = [x.height, x.width].map(sizeOf);
  const data = new Float32Array(height * width * channels);
  for (let i = 0; i < data.length; i += channels) data.set(bias, i);
  const [values, rows] = [new Float32Array(x.channels + 3), new Int32Array(x.channels + 3)];
  for (let place = 0; place < x.height * x.width; place++) {
    let count = 0;
    for (let i = 0; i < x.channels; i++) {
      const value = x.data[place * x.channels + i];
      if (value === 0) continue;
      values[count] = value;
      rows[count++] = i * channels;
    }
    values.fill(0, count);
    const top = Math.floor(place / x.width) * stride[0] - padding[0];
    const left = (place % x.width) * stride[1] - padding[1];
    for (let ky = Math.max(0, -top); ky < Math.min(kernel[0], height - top); ky++) {
      for (let kx = Math.max(0, -left); kx < Math.min(kernel[1], width - left); kx++) {
        const from = (ky * kernel[1] + kx) * x.channels * channels;
        const to = ((top + ky) * width + left + kx) * channels;
        for (let k = 0; k < count; k += 4) addRows(data, to, channels, weight, from, values, rows, k);
      }
    }
  }
  return { data, height, width, channels };
}

function addRows(data, to, channels, weight, from, values, rows, k) {
  const [u, v, w, x] = [values[k], values[k + 1], values[k + 2], values[k + 3]];
  const [a, b, c, d] = [from + rows[k], from + rows[k + 1], from + rows[k + 2], from + rows[k + 3]];
  for (let i = 0; i < channels; i++) {
    data[to + i] += u * weight[a + i] + v * weight[b + i] + w * weight[c + i] + x * weight[d + i];
  }
}

function glu({ data, height, width, channels }) {
  const half = channels / 2;
  const at = i => Math.floor(i / half) * channels + (i % half);
  const gated = Float32Array.from({ length: data.length / 2 }, (_, i) => data[at(i)] * sigmoid(data[at(i) + half]));
  return { data: gated, height, width, channels: half };
}

function normalise(x, { groups, eps, weight, bias }) {
  const size = x.channels / groups;
  const [sum, squares] = [new Float64Array(groups), new Float64Array(groups)];
  const groupOf = i => Math.floor((i % x.channels) / size);
  x.data.forEach((value, i) => (sum[groupOf(i)] += value));
  const mean = sum.map(all => (all * groups) / x.data.length);
  x.data.forEach((value, i) => (squares[groupOf(i)] += (value - mean[groupOf(i)]) ** 2));
  const factor = squares.map(all => 1 / Math.sqrt((all * groups) / x.data.length + eps));
  const data = x.data.map((value, i) => (value - mean[groupOf(i)]) * factor[groupOf(i)]);
  return scale({ ...x, data }, { weight, bias });
}

function scale(x, { weight, bias }) {
  return { ...x, data: x.data.map((value, i) => value * weight[i % x.channels] + bias[i % x.channels]) };
}

function upsample(x, { factor }) {
  const [height, width, channels] = [x.height * factor[0], x.width * factor[1], x.channels];
  const data = new Float32Array(height * width * channels);
  for (let place = 0; place < height * width; place++) {
    const row = Math.floor(Math.floor(place / width) / factor[0]);
    const from = (row * x.width + Math.floor((place % width) / factor[1])) * channels;
    data.set(x.data.subarray(from, from + channels), place * channels);
  }
  return { data, height, width, channels };
}

// PyTorch's order is [channels, height, width].
function reshape({ data }, { shape: [channels, height, width] }) {
  const from = i => (i % channels) * height * width + Math.floor(i / channels);
  return { data: data.map((_, i) => data[from(i)]), height, width, channels };
}

function flatten({ data, height, width, channels }) {
  const from = i => (i % (height * width)) * channels + Math.floor(i / (height * width));
  return { data: data.map((_, i) => data[from(i)]), height: 1, width: 1, channels: data.length };
}

// The means, where a decoder gives more than one number of a pixel.
function first({ data, height, width, channels }, { channels: kept }) {
  const at = i => Math.floor(i / kept) * channels + (i % kept);
  return { data: Float32Array.from({ length: height * width * kept }, (_, i) => data[at(i)]), height, width, channels: kept };
}

function residual(x, { operations }) {
  const more = run(operations, x).data;
  return { ...x, data: x.data.map((value, i) => value + more[i]) };
}

// Put weights in the place of the numbers that say where they begin and end.
function withWeights(operations, weights) {
  return operations.map(each => {
    const found = { ...each };
    for (const name of ["weight", "bias"]) if (name in each) found[name] = weights.subarray(...each[name]);
    if (each.operations) found.operations = withWeights(each.operations, weights);
    return found;
  });
}
