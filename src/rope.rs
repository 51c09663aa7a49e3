//! Rotary position embeddings, as far as keys have to be turned. No GPU here.

use crate::error::ArgumentError;
use crate::shape::{Dtype, TensorSpec};

/// Which elements of a key are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Pairing {
    /// Element i and element i + `rotary_dim` / 2, as in GPT-NeoX and Llama in Hugging Face's form.
    #[default]
    HalfSplit,
    /// Elements 2 i and 2 i + 1, as in GPT-J and Llama's original form.
    Interleaved,
}

/// How far a pair turns from one position to the next.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Frequencies {
    /// Pair i turns by `base^(-2 i / rotary_dim) / linear_factor` radians.
    Base {
        /// 10,000 in RoFormer, 500,000 in Llama 3.
        base: f64,
        /// Factor by which positions are divided; 1 without scaling.
        linear_factor: f64,
    },
    /// Radians of each pair, `rotary_dim` / 2 of them: for scalings that treat frequencies differently (Llama 3.1, YaRN;
    /// what such a scaling multiplies scores by does not matter here).
    Table(Vec<f64>),
}

/// The rotary position embedding that the keys of a cache carry.
///
/// # Example
/// ```
/// use keynorm::{Dtype, Rope, TensorSpec};
/// let rope = Rope::new(128, 500_000.0);
/// rope.check(&TensorSpec::new(Dtype::F16, 128))?;
/// # Ok::<(), keynorm::ArgumentError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The first elements of a key, which are rotated; the others are not. Even; with [`Pairing::HalfSplit`] and 16-bit
    /// elements a multiple of 4.
    pub rotary_dim: u32,
    /// Which elements are rotated together.
    pub pairing: Pairing,
    /// How far they turn.
    pub frequencies: Frequencies,
}

impl Rope {
    /// Half-split pairs without scaling.
    #[must_use]
    pub const fn new(rotary_dim: u32, base: f64) -> Self {
        let frequencies = Frequencies::Base { base, linear_factor: 1.0 };
        Self { rotary_dim, pairing: Pairing::HalfSplit, frequencies }
    }

    /// Checks it against the keys.
    ///
    /// # Errors
    /// A `rotary_dim` of 0, above the keys' `head_dim` or not a multiple of what it must be; a base, factor or entry of the
    /// table that is not a positive number; a table of the wrong length; quantised or f8 keys.
    pub fn check(&self, keys: &TensorSpec) -> Result<(), ArgumentError> {
        if keys.dtype.is_quantised() || keys.dtype.is_f8() {
            return Err(ArgumentError::Unsupported { what: "a rotation of quantised or f8 keys" });
        }
        let multiple = if self.pairing == Pairing::HalfSplit && keys.dtype != Dtype::F32 { 4 } else { 2 };
        if self.rotary_dim == 0 || self.rotary_dim > keys.head_dim || !self.rotary_dim.is_multiple_of(multiple) {
            return Err(ArgumentError::RotaryDim { got: self.rotary_dim, multiple, limit: keys.head_dim });
        }
        let positive = |argument, got: f64| {
            if got.is_finite() && got > 0.0 { Ok(()) } else { Err(ArgumentError::Frequency { argument, got }) }
        };
        match &self.frequencies {
            Frequencies::Base { base, linear_factor } => {
                positive("base", *base)?;
                positive("linear_factor", *linear_factor)
            }
            Frequencies::Table(table) => {
                crate::state::check_count("frequencies", table.len(), self.rotary_dim as usize / 2)?;
                table.iter().try_for_each(|&f| positive("frequencies", f))
            }
        }
    }

    /// Turns a position of each pair, times 2⁶⁴ and modulo a turn.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number from 0 to 2^64")]
    pub(crate) fn turns(&self) -> Vec<u64> {
        let pairs = 0..self.rotary_dim / 2;
        let radians: Vec<f64> = match &self.frequencies {
            Frequencies::Base { base, linear_factor } => {
                let exponent = |pair: u32| -2.0 * f64::from(pair) / f64::from(self.rotary_dim);
                pairs.map(|pair| base.powf(exponent(pair)) / linear_factor).collect()
            }
            Frequencies::Table(table) => table.clone(),
        };
        let turns = |radians: f64| (radians / std::f64::consts::TAU).fract() * 2.0_f64.powi(64);
        radians.into_iter().map(|r| turns(r) as u128 as u64).collect()
    }
}
