//! Random tensors, the same in every run.

use rayon::prelude::*;

use crate::kernels::Element;

fn mix(mut h: u64) -> u64 {
    h = h.wrapping_add(0x9e37_79b9_7f4a_7c15);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

/// About normal elements (sums of four 16-bit uniforms), each token at a scale of its own.
pub fn tensor<T: Element>(seed: u64, tokens: usize, head_dim: usize) -> Vec<T> {
    let mut tensor = vec![T::default(); tokens * head_dim];
    tensor.par_chunks_mut(head_dim).enumerate().for_each(|(token, row)| {
        let at = mix(seed ^ mix(token as u64));
        let scale = 0.25 + (at >> 40) as f32 / (1 << 24) as f32;
        for (i, element) in row.iter_mut().enumerate() {
            let h = mix(at ^ i as u64);
            let sum: f32 = (0..4).map(|j| ((h >> (16 * j)) & 0xffff) as f32 / 65536.0 - 0.5).sum();
            *element = T::from_f32(sum * 1.7 * scale);
        }
    });
    tensor
}
