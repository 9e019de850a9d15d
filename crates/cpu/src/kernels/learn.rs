//! What is done to rows of activations and of their gradients while a model learns.
//!
//! Written as [`super::rows`]: the sets for particular processors are the same functions, compiled
//! with their instructions. All of it is in 32 bits, but for what meets weights of 16 bits.

use super::{
    LANES, STEP_BYTES,
    rows::{exp, exponentials, total},
};
use crate::format::{bf16_bits, bf16_value};

/// The functions of one set that only learning needs.
#[derive(Clone, Copy)]
pub(crate) struct LearnOps {
    pub(crate) norm_back: unsafe fn(&NormBackArgs<'_>, &mut [f32]),
    pub(crate) gated: unsafe fn(bool, [&[f32]; 2], &mut [f32]),
    pub(crate) gate_back: unsafe fn(bool, [&mut [f32]; 2], &mut [f32]),
    pub(crate) softmax: unsafe fn(&SoftmaxArgs, &mut [f32], &mut [f32]),
    pub(crate) softmax_back: unsafe fn(f32, &[f32], &[f32], &mut [f32]),
    pub(crate) turn: unsafe fn(&TurnArgs<'_>, &mut [f32]),
    pub(crate) likelihood: unsafe fn(&[f32]) -> Likelihood,
    pub(crate) likelihood_back: unsafe fn(&Likelihood, f32, f32, &mut [f32]),
    pub(crate) widen: unsafe fn(*const u8, usize, *mut f32),
    pub(crate) turn_panel: unsafe fn(*const u8, usize, bool, *mut f32),
    pub(crate) turn_halves: unsafe fn(*const u8, usize, *mut f32),
    pub(crate) round: unsafe fn(&[f32], &mut [f32]),
    pub(crate) copy_panel: unsafe fn(*const f32, usize, usize, *mut f32),
}

/// The norm whose derivative is taken: see [`super::NormArgs`].
pub(crate) struct NormBackArgs<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    /// The derivative by what the norm gave.
    pub(crate) dy: &'a [f32],
}

/// Adds the derivative by `x` to `dx`. With `f = 1 / sqrt(mean(x^2) + eps)` and `g = weight * dy` it
/// is `f g - x f^3 mean(g x)`.
///
/// # Safety
/// None of its own: the pointer type of a set's functions is unsafe.
#[inline(always)]
pub(crate) unsafe fn norm_back(args: &NormBackArgs<'_>, dx: &mut [f32]) {
    let NormBackArgs { x, weight, eps, dy } = *args;
    let len = x.len();
    let (weight, dy, dx) = (&weight[..len], &dy[..len], &mut dx[..len]);
    let (mut squares, mut products) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for from in (0..len).step_by(LANES) {
        for lane in 0..LANES.min(len - from) {
            let i = from + lane;
            squares[lane] += x[i] * x[i];
            products[lane] += weight[i] * dy[i] * x[i];
        }
    }
    let mean = total(squares) / len as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    let along = factor * factor * factor * (total(products) / len as f32);
    for i in 0..len {
        dx[i] += factor * (weight[i] * dy[i]) - along * x[i];
    }
}

/// `x sigmoid(z)` is the activation; `z` as in [`super::GateArgs`].
#[inline(always)]
fn exponent(gelu: bool, x: f32) -> f32 {
    if gelu {
        2.0 * 0.797_884_6 * (x + 0.044_715 * x * x * x)
    } else {
        x
    }
}

/// `out = act(gate) * up`.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn gated(gelu: bool, [gate, up]: [&[f32]; 2], out: &mut [f32]) {
    let len = out.len();
    let (gate, up) = (&gate[..len], &up[..len]);
    if gelu {
        for i in 0..len {
            out[i] = gate[i] / (1.0 + exp(-exponent(true, gate[i]))) * up[i];
        }
    } else {
        for i in 0..len {
            out[i] = gate[i] / (1.0 + exp(-exponent(false, gate[i]))) * up[i];
        }
    }
}

/// Takes the derivative by `act(gate) * up` in `inner`. Leaves the derivatives by gate and up in their
/// places, and the product itself in `inner`.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn gate_back(gelu: bool, both: [&mut [f32]; 2], inner: &mut [f32]) {
    if gelu {
        gate_back_with::<true>(both, inner);
    } else {
        gate_back_with::<false>(both, inner);
    }
}

#[inline(always)]
fn gate_back_with<const GELU: bool>([gate, up]: [&mut [f32]; 2], inner: &mut [f32]) {
    let len = inner.len();
    let (gate, up) = (&mut gate[..len], &mut up[..len]);
    for i in 0..len {
        let (x, u, d) = (gate[i], up[i], inner[i]);
        let sigmoid = 1.0 / (1.0 + exp(-exponent(GELU, x)));
        let slope = if GELU {
            2.0 * 0.797_884_6 * (1.0 + 3.0 * 0.044_715 * x * x)
        } else {
            1.0
        };
        let act = x * sigmoid;
        gate[i] = d * u * (sigmoid + act * (1.0 - sigmoid) * slope);
        up[i] = d * act;
        inner[i] = act * u;
    }
}

/// How scores become weights.
pub(crate) struct SoftmaxArgs {
    pub(crate) scale: f32,
    /// 0 for none.
    pub(crate) softcap: f32,
    /// The keys that are seen, from the first on up to without the second.
    pub(crate) seen: (usize, usize),
}

/// Turns scores into weights whose sum is 1, and what is not seen into 0. With a cap its slope at
/// each of the scores goes to `slopes`.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn softmax(args: &SoftmaxArgs, row: &mut [f32], slopes: &mut [f32]) {
    let (from, to) = args.seen;
    row[..from].fill(0.0);
    row[to..].fill(0.0);
    let row = &mut row[from..to];
    for score in row.iter_mut() {
        *score *= args.scale;
    }
    let cap = args.softcap;
    if cap > 0.0 {
        let slopes = &mut slopes[from..to];
        for (score, slope) in row.iter_mut().zip(slopes) {
            let tanh = 1.0 - 2.0 / (1.0 + exp(2.0 * *score / cap));
            *score = cap * tanh + *score * 0.0;
            *slope = 1.0 - tanh * tanh;
        }
    }
    let (_, sum) = exponentials(row);
    let factor = 1.0 / sum;
    for weight in row {
        *weight *= factor;
    }
}

/// Turns the derivative by weights into that by scores before they were scaled, with the `slopes` of
/// a cap if there are any.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn softmax_back(scale: f32, weights: &[f32], slopes: &[f32], d: &mut [f32]) {
    let len = d.len();
    let weights = &weights[..len];
    let mut lanes = [0.0_f32; LANES];
    for from in (0..len).step_by(LANES) {
        for lane in 0..LANES.min(len - from) {
            lanes[lane] += weights[from + lane] * d[from + lane];
        }
    }
    let mean = total(lanes);
    for i in 0..len {
        d[i] = weights[i] * (d[i] - mean) * scale;
    }
    for (d, slope) in d.iter_mut().zip(slopes) {
        *d *= slope;
    }
}

/// The angles of one position.
pub(crate) struct TurnArgs<'a> {
    pub(crate) cosines: &'a [f32],
    pub(crate) sines: &'a [f32],
    /// Turns the other way: what takes a derivative back.
    pub(crate) back: bool,
}

/// Turns a head as [`hyprstream_models::Rope`] says.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn turn(args: &TurnArgs<'_>, head: &mut [f32]) {
    let half = args.cosines.len();
    let (first, second) = head[..2 * half].split_at_mut(half);
    let (cosines, sines) = (&args.cosines[..half], &args.sines[..half]);
    let sign = if args.back { -1.0 } else { 1.0 };
    for i in 0..half {
        let (a, b) = (first[i], second[i]);
        let sine = sign * sines[i];
        first[i] = a * cosines[i] - b * sine;
        second[i] = b * cosines[i] + a * sine;
    }
}

/// What a row of logits says of all its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Likelihood {
    pub(crate) greatest: f32,
    /// Sum of `e^(logit - greatest)`.
    pub(crate) sum: f64,
}

/// The greatest of `logits`, and the sum that a softmax divides by.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn likelihood(logits: &[f32]) -> Likelihood {
    /// Summed in 32 bits.
    const FEW: usize = 64 * LANES;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in logits.chunks(LANES) {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*logit);
        }
    }
    let greatest = lanes.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sum = 0.0;
    for few in logits.chunks(FEW) {
        let mut lanes = [0.0_f32; LANES];
        let chunks = few.chunks_exact(LANES);
        for (lane, logit) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += exp(*logit - greatest);
        }
        for chunk in chunks {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                *lane += exp(*logit - greatest);
            }
        }
        sum += f64::from(total(lanes));
    }
    Likelihood { greatest, sum }
}

/// Turns logits into `weight` times the derivative of the negative log-likelihood by each of them, but
/// for the 1 of the target. With a `cap` (0 for none) the derivative is by what was capped.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn likelihood_back(
    likelihood: &Likelihood,
    weight: f32,
    cap: f32,
    logits: &mut [f32],
) {
    let factor = (f64::from(weight) / likelihood.sum) as f32;
    if cap > 0.0 {
        for logit in logits {
            let tanh = *logit / cap;
            *logit = exp(*logit - likelihood.greatest) * factor * (1.0 - tanh * tanh);
        }
    } else {
        for logit in logits {
            *logit = exp(*logit - likelihood.greatest) * factor;
        }
    }
}

/// Writes `steps` steps of a panel of bf16 as f32: twice as many steps of one input each.
///
/// # Safety
/// Both lie in memory.
#[inline(always)]
pub(crate) unsafe fn widen(panel: *const u8, steps: usize, out: *mut f32) {
    for s in 0..steps {
        // SAFETY: the caller's promise.
        unsafe {
            let words = panel.add(s * STEP_BYTES).cast::<[u32; LANES]>();
            let words = words.read_unaligned();
            let out = out.add(2 * s * LANES).cast::<[f32; LANES]>();
            out.write_unaligned(words.map(|word| f32::from_bits(word << 16)));
            out.add(1)
                .write_unaligned(words.map(|word| f32::from_bits(word & 0xffff_0000)));
        }
    }
}

/// Turns `inputs` inputs (at most 16) of a panel into columns: `out` is 16 steps of f32, one for each
/// of the panel's outputs. `half` says that the panel is bf16.
///
/// # Safety
/// Both lie in memory.
#[inline(always)]
pub(crate) unsafe fn turn_panel(panel: *const u8, inputs: usize, half: bool, out: *mut f32) {
    let mut rows = [[0.0_f32; LANES]; LANES];
    // SAFETY: the caller's promise.
    unsafe {
        if half {
            let mut pairs = [[0_u32; LANES]; LANES / 2];
            for s in 0..inputs.div_ceil(2) {
                let words = panel.add(s * STEP_BYTES).cast::<[u32; LANES]>();
                pairs[s] = words.read_unaligned();
            }
            for lane in 0..LANES {
                for s in 0..LANES / 2 {
                    let pair = pairs[s][lane];
                    rows[lane][2 * s] = f32::from_bits(pair << 16);
                    rows[lane][2 * s + 1] = f32::from_bits(pair & 0xffff_0000);
                }
            }
        } else {
            for i in 0..inputs {
                let step = panel.add(i * STEP_BYTES).cast::<[f32; LANES]>();
                let step = step.read_unaligned();
                for lane in 0..LANES {
                    rows[lane][i] = step[lane];
                }
            }
        }
        out.cast::<[[f32; LANES]; LANES]>().write_unaligned(rows);
    }
}

/// Turns `inputs` inputs (at most 16) of a panel of bf16 into columns: `out` is 8 steps of bf16, one
/// for each pair of the panel's outputs.
///
/// # Safety
/// Both lie in memory.
#[inline(always)]
pub(crate) unsafe fn turn_halves(panel: *const u8, inputs: usize, out: *mut f32) {
    // Two words at a time: two outputs' pairs of inputs become two inputs' pairs of outputs.
    const PAIRS: usize = LANES / 2;
    let mut steps = [[0_u64; PAIRS]; PAIRS];
    let mut turned = [[0_u64; PAIRS]; PAIRS];
    // SAFETY: the caller's promise.
    unsafe {
        for s in 0..inputs.div_ceil(2) {
            let step = panel.add(s * STEP_BYTES).cast::<[u64; PAIRS]>();
            steps[s] = step.read_unaligned();
        }
        for s in 0..PAIRS {
            for p in 0..PAIRS {
                let four = steps[s][p];
                turned[p][s] = (four & 0xffff_0000_0000_ffff)
                    | (four & 0x0000_ffff_0000_0000) >> 16
                    | (four & 0x0000_0000_ffff_0000) << 16;
            }
        }
        out.cast::<[[u64; PAIRS]; PAIRS]>().write_unaligned(turned);
    }
}

/// Rounds to what bf16 has.
///
/// # Safety
/// As for [`norm_back`].
#[inline(always)]
pub(crate) unsafe fn round(values: &[f32], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = bf16_value(bf16_bits(*value));
    }
}

/// Makes a panel of 16 columns of `count` rows that are `stride` values apart.
///
/// # Safety
/// Both lie in memory.
#[inline(always)]
pub(crate) unsafe fn copy_panel(from: *const f32, stride: usize, count: usize, out: *mut f32) {
    for r in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let row = from.add(r * stride).cast::<[f32; LANES]>();
            let out = out.add(r * LANES).cast::<[f32; LANES]>();
            out.write_unaligned(row.read_unaligned());
        }
    }
}
