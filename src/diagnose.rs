//! Whether a score suits a model: how much norms vary, and how much attention a choice of tokens loses. For tools and
//! tests on the host, not for a decode loop.

use crate::error::{ArgumentError, ReadError};
use crate::kept::read_words;
use crate::reference::key_norm::squared_norm;
use crate::shape::TensorSpec;
use crate::state::CacheState;

/// Median coefficient of variation of a model's heads below which its norms tell nothing. The heads of SmolLM2-135M have
/// 0.047 to 0.27, with a median of 0.10; the same keys normalised and multiplied by gains that differ by a fifth, as models
/// with QK-norm do, 0.010 to 0.042, with a median of 0.02.
pub const NO_SIGNAL: f64 = 0.05;

/// Whether the norms of these heads, of their coefficients of variation ([`norm_variation`]), tell too little to choose
/// tokens by: the mark of QK-norm. A single head may lie on either side, so give it those of the whole model; NaN, for a row
/// without norms, is passed over. Take
/// [`Score::KeyDiff`](crate::Score::KeyDiff) then, which does not look at norms.
#[must_use]
pub fn flags_qk_norm(variations: &[f64]) -> bool {
    let mut sorted: Vec<f64> = variations.iter().copied().filter(|v| !v.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).is_some_and(|&median| median < NO_SIGNAL)
}

/// Coefficient of variation of numbers: their standard deviation over their mean. 0 for none, or for zeros.
///
/// # Example
/// ```
/// assert_eq!(keynorm::diagnose::variation([1.0, 3.0]), 0.5);
/// ```
#[must_use]
pub fn variation(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for number in numbers {
        // Welford's update, for the squares of large numbers cancel.
        count += 1.0;
        let difference: f64 = number - mean;
        mean += difference / count;
        squares += difference * (number - mean);
    }
    if mean == 0.0 { 0.0 } else { (squares / count).sqrt() / mean.abs() }
}

/// Coefficient of variation of the L2 norms of the keys of one head, densely packed; keys with a NaN or an infinite squared
/// norm are passed over. NaN where no key is left. [`flags_qk_norm`] says what follows.
#[must_use]
pub fn norm_variation(spec: &TensorSpec, keys: &[u8]) -> f64 {
    let row_bytes = spec.row_bytes() as usize;
    // Of a head_dim that holds no block of a quantised dtype; none is refused here.
    let keys = if row_bytes == 0 { &[] } else { keys };
    let squares = keys.chunks_exact(row_bytes.max(1)).filter_map(|key| squared_norm(spec, key));
    norms_variation(squares)
}

/// Of the norms whose squares are finite; NaN for none.
fn norms_variation(squares: impl Iterator<Item = f32>) -> f64 {
    let mut norms = squares.filter(|s| s.is_finite()).map(|s| f64::from(s).sqrt()).peekable();
    if norms.peek().is_none() { f64::NAN } else { variation(norms) }
}

impl CacheState {
    /// As [`norm_variation`], of every head by the norms that a policy with cached norms keeps on the GPU: no key is read.
    /// One list a layer, one entry a row, NaN where it has no norm, as in layers left whole; slots without one are passed over.
    /// `None` for a state without norms, or with scores in their place.
    ///
    /// # Errors
    /// As [`read_words`](crate::kept::read_words).
    pub async fn norm_variation(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
    ) -> Result<Option<Vec<Vec<f64>>>, ReadError> {
        let Some(norms) = self.key_norms().filter(|_| self.key_sums().is_none()) else { return Ok(None) };
        let meta = read_words(device, queue, self.meta()).await?;
        let norms = read_words(device, queue, norms).await?;
        let (shape, offsets) = (&self.shape, self.offsets());
        let row = |ix: u32| {
            let at = |base: u32| meta[(base + ix) as usize].min(shape.capacity) as usize;
            let base = ix as usize * shape.capacity as usize;
            let known = &norms[base..base + at(offsets.lengths).min(at(offsets.scored))];
            norms_variation(known.iter().map(|&bits| f32::from_bits(bits)))
        };
        let rows = shape.rows_per_layer();
        let layer = |layer: u32| (layer * rows..(layer + 1) * rows).map(row).collect();
        Ok(Some((0..shape.num_layers).map(layer).collect()))
    }
}

/// How much attention is lost as tokens are dropped one by one, in the order of a score and in the best order.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionLoss {
    /// `lost[m]`: attention of the m tokens of highest order key, dropped; one more entry than tokens. Equation 5.
    pub lost: Vec<f64>,
    /// `least[m]`: attention of the m least attended tokens. The reference of equation 6.
    pub least: Vec<f64>,
}

impl AttentionLoss {
    /// Of one query: `attention[slot]` is its attention to each token of the row, `order_keys[slot]` the row's order keys,
    /// as a score stage leaves them ([`Workspace::order_keys`](crate::Workspace::order_keys)) or its reference makes them.
    ///
    /// # Ties
    /// Of equal order keys the higher slot is dropped first, as the selectors do.
    ///
    /// # Errors
    /// Slices of different lengths.
    ///
    /// # Source
    /// Devoto et al., <https://arxiv.org/abs/2406.11430>, equations 5 to 7.
    ///
    /// # Example
    /// ```
    /// use keynorm::diagnose::AttentionLoss;
    /// // The token of lowest order key has the most attention: nothing more can be saved.
    /// let loss = AttentionLoss::new(&[0.7, 0.2, 0.1], &[1, 2, 3])?;
    /// assert_eq!(loss.alr(), 0.0);
    /// assert!((loss.lost_at(2) - 0.1).abs() < 1e-6);
    /// # Ok::<(), keynorm::ArgumentError>(())
    /// ```
    pub fn new(attention: &[f32], order_keys: &[u32]) -> Result<Self, ArgumentError> {
        crate::state::check_count("order_keys", order_keys.len(), attention.len())?;
        let mut slots: Vec<usize> = (0..attention.len()).collect();
        slots.sort_by_key(|&slot| std::cmp::Reverse((order_keys[slot], slot)));
        let lost = cumulative(slots.iter().map(|&slot| attention[slot]));
        slots.sort_by(|&a, &b| attention[a].total_cmp(&attention[b]));
        let least = cumulative(slots.iter().map(|&slot| attention[slot]));
        Ok(Self { lost, least })
    }

    /// The paper's ALR: what is lost beyond the least that could be, summed over m = 1 … n. Low where the score agrees with
    /// attention; 0 where no order would do better.
    #[must_use]
    pub fn alr(&self) -> f64 {
        self.lost.iter().zip(&self.least).map(|(lost, least)| lost - least).sum()
    }

    /// Attention lost where `kept` tokens stay; 0 of no row.
    #[must_use]
    pub fn lost_at(&self, kept: usize) -> f64 {
        let dropped = self.lost.len().saturating_sub(1).saturating_sub(kept);
        self.lost.get(dropped).copied().unwrap_or(0.0)
    }
}

fn cumulative(terms: impl Iterator<Item = f32>) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = terms.map(|term| {
        sum += f64::from(term);
        sum
    });
    std::iter::once(0.0).chain(sums).collect()
}
