//! Norm, selection and moves on all cores.

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::*;

pub trait Element: Copy + Default + Send + Sync {
    fn from_f32(value: f32) -> Self;
    fn squared_norm(token: &[Self]) -> f32;
    /// For comparisons.
    fn bits(token: &[Self]) -> Vec<u32>;
}

const LANES: usize = 16;

/// Independent sums, so that the compiler can use vectors.
fn sum_of_squares(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    rest + sums.iter().sum::<f32>()
}

impl Element for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }

    fn squared_norm(token: &[Self]) -> f32 {
        sum_of_squares(token)
    }

    fn bits(token: &[Self]) -> Vec<u32> {
        token.iter().map(|v| v.to_bits()).collect()
    }
}

impl Element for f16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn squared_norm(token: &[Self]) -> f32 {
        let mut wide = [0.0f32; 64];
        let part_norm = |part: &[Self]| {
            part.convert_to_f32_slice(&mut wide[..part.len()]);
            sum_of_squares(&wide[..part.len()])
        };
        token.chunks(64).map(part_norm).sum()
    }

    fn bits(token: &[Self]) -> Vec<u32> {
        token.iter().map(|v| v.to_bits().into()).collect()
    }
}

/// Scratch and result of a selection.
pub struct Selection {
    /// (bits of the squared norm, slot) of every token.
    scored: Vec<u64>,
    /// Slots kept, ascending in each row.
    kept: Vec<u32>,
    n: usize,
    k: usize,
}

/// Tokens that a task scores or moves.
const TASK: usize = 512;

impl Selection {
    pub fn new(rows: usize, n: usize, k: usize) -> Self {
        Self { scored: vec![0; rows * n], kept: vec![0; rows * k], n, k }
    }

    pub fn select<T: Element>(&mut self, keys: &[T], head_dim: usize) {
        let (n, k) = (self.n, self.k);
        self.scored.par_chunks_mut(TASK).zip(keys.par_chunks(TASK * head_dim)).enumerate().for_each(
            |(task, (scored, keys))| {
                for (i, (score, key)) in scored.iter_mut().zip(keys.chunks(head_dim)).enumerate() {
                    let slot = (task * TASK + i) % n;
                    *score = u64::from(T::squared_norm(key).to_bits()) << 32 | slot as u64;
                }
            },
        );
        self.scored.par_chunks_mut(n).zip(self.kept.par_chunks_mut(k)).for_each(|(scored, kept)| {
            scored.select_nth_unstable(k - 1);
            for (slot, score) in kept.iter_mut().zip(&scored[..k]) {
                *slot = *score as u32;
            }
            kept.sort_unstable();
        });
    }

    /// Copies the kept tokens of every row to `target`, in their order.
    pub fn gather<T: Element>(&self, source: &[T], head_dim: usize, target: &mut [T]) {
        let (n, k) = (self.n, self.k);
        target.par_chunks_mut(TASK * head_dim).enumerate().for_each(|(task, target)| {
            for (i, to) in target.chunks_mut(head_dim).enumerate() {
                let at = task * TASK + i;
                let from = (at / k * n + self.kept[at] as usize) * head_dim;
                to.copy_from_slice(&source[from..from + head_dim]);
            }
        });
    }

    /// Moves the kept tokens beyond the budget into the holes below it, row by row.
    pub fn fill<T: Element>(&self, tensor: &mut [T], head_dim: usize) {
        let (n, k) = (self.n, self.k);
        tensor.par_chunks_mut(n * head_dim).zip(self.kept.par_chunks(k)).for_each(|(row, kept)| {
            let num_staying = kept.partition_point(|&slot| (slot as usize) < k);
            let (staying, movers) = kept.split_at(num_staying);
            let mut next = staying.iter().peekable();
            let holes = (0..k as u32).filter(|slot| next.next_if(|&s| s == slot).is_none());
            for (hole, &mover) in holes.zip(movers) {
                let from = mover as usize * head_dim;
                row.copy_within(from..from + head_dim, hole as usize * head_dim);
            }
        });
    }
}
