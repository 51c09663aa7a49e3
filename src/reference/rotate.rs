//! Twin of `shaders/rotate.wgsl` and `shaders/renumber.wgsl`: keys turned to the positions that follow their slots.

use half::{bf16, f16};

use super::compact::CacheRow;
use crate::rope::{Pairing, Rope};
use crate::shape::{Dtype, TensorSpec};

/// Radians of 2⁻²⁶ turns.
const STEP: f32 = 9.362_675e-8;

/// Coefficients of the powers of x² in sine and cosine, highest first.
const TERMS: [(f32, f32); 5] = [
    (-2.505_210_8e-8, -2.755_732e-7),
    (2.755_731_9e-6, 2.480_158_8e-5),
    (-1.984_127e-4, -1.388_888_9e-3),
    (8.333_333e-3, 4.166_666_7e-2),
    (-0.166_666_67, -0.5),
];

/// Without its last bit, as the shader makes it.
fn materialised(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & !1)
}

/// Sine and cosine of a phase in 2⁻³² turns, within 2⁻²¹·⁹ of the exact ones.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "24 bits")]
pub fn sine_cosine(phase: u32) -> (f32, f32) {
    let quadrant = phase.wrapping_add(0x2000_0000) >> 30;
    let x = materialised((phase.wrapping_sub(quadrant << 30).cast_signed() >> 6) as f32 * STEP);
    let square = materialised(x * x);
    let (mut p, mut q) = TERMS[0];
    for (sine, cosine) in &TERMS[1..] {
        (p, q) = (sine + materialised(p * square), cosine + materialised(q * square));
    }
    let (sine, cosine) = (x + materialised((x * square) * p), 1.0 + materialised(square * q));
    match quadrant {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// A pair of finite elements turned from one position to another.
fn turned((x, y): (f32, f32), frequency: u64, before: u32, after: u32) -> (f32, f32) {
    let phase = (u64::from(before.abs_diff(after)).wrapping_mul(frequency) >> 32) as u32;
    let (sine, cosine) = sine_cosine(if after < before { phase.wrapping_neg() } else { phase });
    (materialised(x * cosine) - materialised(y * sine), materialised(y * cosine) + materialised(x * sine))
}

fn decode(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::Q8_0 | Dtype::Q4_0 | Dtype::I8Scaled => 0.0, // refused
    }
}

/// Rounded to even.
fn encode(dtype: Dtype, value: f32, bytes: &mut [u8]) {
    match dtype {
        Dtype::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
        Dtype::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        Dtype::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::Q8_0 | Dtype::Q4_0 | Dtype::I8Scaled => (), // refused
    }
}

/// Turns one key, `spec.row_bytes()` long, from one position to another. A pair with an element that is not finite keeps its
/// bits; near the end of f16 a turned element may become infinite.
///
/// # Errors
/// As [`Rope::check`].
pub fn rotate_key(
    rope: &Rope,
    spec: &TensorSpec,
    key: &mut [u8],
    before: u32,
    after: u32,
) -> Result<(), crate::ArgumentError> {
    rope.check(spec)?;
    let size = spec.dtype.size_bytes() as usize;
    let half = rope.rotary_dim as usize / 2;
    for (pair, frequency) in rope.turns().into_iter().enumerate().filter(|_| before != after) {
        let [x, y] = match rope.pairing {
            Pairing::HalfSplit => [pair, pair + half],
            Pairing::Interleaved => [2 * pair, 2 * pair + 1],
        };
        let [x, y] = [x, y].map(|i| i * size..(i + 1) * size);
        let elements = (decode(spec.dtype, &key[x.clone()]), decode(spec.dtype, &key[y.clone()]));
        if !elements.0.is_finite() || !elements.1.is_finite() {
            continue;
        }
        let (turned_x, turned_y) = turned(elements, frequency, before, after);
        encode(spec.dtype, turned_x, &mut key[x]);
        encode(spec.dtype, turned_y, &mut key[y]);
    }
    Ok(())
}

/// The positions of the rows of one sequence in one layer become those that follow their slots: the longest row's are its
/// slots, the last tokens of the others are level with its last.
pub fn renumber(rows: &mut [CacheRow]) {
    let longest = rows.iter().map(|row| row.len).max().unwrap_or(0);
    for row in rows {
        row.num_seen = longest;
        row.positions.clear();
    }
}
