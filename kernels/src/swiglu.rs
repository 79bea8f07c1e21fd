//! The experts' activation.

#[cfg(test)]
mod tests;

use crate::Cpu;
use crate::math::sigmoid_v;
use crate::simd::{Kernel, LANES, Wide};

/// Inputs of [`swiglu`].
#[derive(Clone, Copy, Debug)]
pub struct Swiglu<'a> {
    /// `w1 x`, `[num_tokens, width]`.
    pub gate: &'a [f32],
    /// `w3 x`, `[num_tokens, width]`.
    pub up: &'a [f32],
    /// Clamp of both; 0 for none.
    pub limit: f32,
    /// `[num_tokens]`; `None` for a shared expert.
    pub routing_weights: Option<&'a [f32]>,
}

/// `silu(min(gate, limit)) * clamp(up, -limit, limit) * routing weight`, into `out` `[num_tokens, width]`.
///
/// # Panics
///
/// If the lengths do not fit.
pub fn swiglu(cpu: &Cpu, args: &Swiglu<'_>, out: &mut [f32]) {
    assert_eq!(args.gate.len(), out.len(), "length of the gate projection");
    assert_eq!(args.up.len(), out.len(), "length of the up projection");
    let num_tokens = args.routing_weights.map_or(1, <[f32]>::len);
    if out.is_empty() {
        return;
    }
    assert_eq!(out.len() % num_tokens, 0, "channels over {num_tokens} routing weights");
    cpu.run(SwigluKernel { args, width: out.len() / num_tokens, out });
}

struct SwigluKernel<'a> {
    args: &'a Swiglu<'a>,
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for SwigluKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let Self { args, width, out } = self;
        let limit = if args.limit > 0.0 { args.limit } else { f32::INFINITY };
        let rows = args.gate.chunks_exact(width).zip(args.up.chunks_exact(width));
        for (token, ((gate, up), out)) in rows.zip(out.chunks_exact_mut(width)).enumerate() {
            let weight = args.routing_weights.map_or(1.0, |weights| weights[token]);
            row(s, [gate, up], limit, weight, out);
        }
    }
}

#[inline(always)]
fn row<S: Wide>(s: S, [gate, up]: [&[f32]; 2], limit: f32, weight: f32, out: &mut [f32]) {
    let (low, high, weight) = (s.splat(-limit), s.splat(limit), s.splat(weight));
    for ((gate, up), out) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        // Limits come first, so that NaN passes through.
        let gate = s.min(high, s.load_any(gate));
        let up = s.max(low, s.min(high, s.load_any(up)));
        let silu = s.mul(gate, sigmoid_v(s, gate));
        s.store_any(s.mul(s.mul(silu, up), weight), out);
    }
}
