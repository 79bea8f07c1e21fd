//! Rotary position embedding of the last channels of a vector.

#[cfg(test)]
mod tests;

use crate::math::sin_cos;

/// What determines the rotation frequencies. They belong to a layer: all its tensors share them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Base of the geometric series.
    pub theta: f32,
    /// Channels that are rotated, an even number.
    pub rotary_dim: usize,
    /// Long-context interpolation; layers without compression have none.
    pub yarn: Option<Yarn>,
}

/// YaRN interpolation, without a magnitude scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// By how much slow frequencies are divided.
    pub factor: f32,
    /// Rotations within the original context above which a frequency is left alone.
    pub beta_fast: f32,
    /// Rotations below which it is divided by the whole factor.
    pub beta_slow: f32,
    /// The original context, in tokens.
    pub original_max_positions: u32,
}

/// Frequencies of one kind of layer: radians per position of each channel pair.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    inv_freq: Vec<f32>,
}

/// The rotation at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeAngles {
    /// (cosine, sine) of each pair.
    pairs: Vec<(f32, f32)>,
}

// === impl RopeTable ===

impl RopeTable {
    /// Computes the frequencies, in `f32` as the reference does.
    pub fn new(params: &RopeParams) -> Self {
        let half = params.rotary_dim / 2;
        let mut inv_freq: Vec<f32> = (0..half)
            .map(|i| 1.0 / power(params.theta, (2 * i) as f32 / params.rotary_dim as f32))
            .collect();
        if let Some(yarn) = params.yarn {
            let (low, high) = yarn.ramp_ends(params);
            for (i, f) in inv_freq.iter_mut().enumerate() {
                let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                *f = *f / yarn.factor * ramp + *f * (1.0 - ramp);
            }
        }
        Self { inv_freq }
    }

    /// Radians per position of each pair, `[rotary_dim / 2]`.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// The rotation at `position` (below `2^20`; beyond that accuracy, not determinism, is lost).
    pub fn angles(&self, position: u32) -> RopeAngles {
        let pairs = self
            .inv_freq
            .iter()
            .map(|f| {
                // The angle is the rounded product: that is what the model was trained with.
                let (sin, cos) = sin_cos(f64::from(position as f32 * f));
                (cos as f32, sin as f32)
            })
            .collect();
        RopeAngles { pairs }
    }
}

impl Yarn {
    /// First and last pair of the ramp from untouched to divided frequencies.
    fn ramp_ends(&self, params: &RopeParams) -> (f32, f32) {
        let dim = params.rotary_dim as f64;
        let pair_of = |rotations: f32| {
            let turns = f64::from(self.original_max_positions)
                / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
            // Only the integer next to it is used, so the platform's logarithm will do.
            dim * turns.ln() / (2.0 * f64::from(params.theta).ln())
        };
        let low = pair_of(self.beta_fast).floor().max(0.0) as f32;
        let high = pair_of(self.beta_slow).ceil().min(dim - 1.0) as f32;
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

/// `base^exponent` for `0 <= exponent < 1`: the product of the square roots that the exponent's bits name. Roots and products are
/// correctly rounded in `f64`, hence the same everywhere.
fn power(base: f32, exponent: f32) -> f32 {
    let mut root = f64::from(base);
    let mut rest = f64::from(exponent);
    let mut result = 1.0;
    while rest > 0.0 {
        root = root.sqrt();
        rest *= 2.0;
        if rest >= 1.0 {
            rest -= 1.0;
            result *= root;
        }
    }
    result as f32
}

/// Rotates the last channels of each row of `x` `[num_rows, row_len]`, in place, by interleaved pairs:
/// `(a, b) -> (a cos - b sin, a sin + b cos)`.
///
/// # Panics
///
/// If `x` does not hold whole rows, or they are shorter than the rotation.
pub fn rope(x: &mut [f32], row_len: usize, angles: &RopeAngles) {
    rotate(x, row_len, angles, |(cos, sin)| (cos, sin));
}

/// Undoes [`rope`]: the rotation by the opposite angles.
///
/// # Panics
///
/// If `x` does not hold whole rows, or they are shorter than the rotation.
pub fn rope_inverse(x: &mut [f32], row_len: usize, angles: &RopeAngles) {
    rotate(x, row_len, angles, |(cos, sin)| (cos, -sin));
}

#[inline]
fn rotate(
    x: &mut [f32],
    row_len: usize,
    angles: &RopeAngles,
    angle: impl Fn((f32, f32)) -> (f32, f32),
) {
    let num_rotated = 2 * angles.pairs.len();
    assert!(num_rotated <= row_len, "{num_rotated} rotated channels of {row_len}");
    assert_eq!(x.len() % row_len, 0, "length of x over rows of {row_len}");
    for row in x.chunks_exact_mut(row_len) {
        let (pairs, _) = row[row_len - num_rotated..].as_chunks_mut::<2>();
        for ([a, b], &pair) in pairs.iter_mut().zip(&angles.pairs) {
            let (cos, sin) = angle(pair);
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}
