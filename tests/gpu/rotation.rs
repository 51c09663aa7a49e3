//! Cases that turn keys to the positions of their slots.

use keynorm::reference::rotate;
use keynorm::{BoundRotation, Rope, TensorView};

use crate::support::{Built, Case, Fixture, Gpu, HostLayer, row_offset, submit};

fn bind(gpu: &Gpu, case: &Case, fixture: &Fixture, rope: &Rope, built: &Built) -> BoundRotation {
    let plan = built.compressor(gpu, &case.options).plan(&case.shape, &case.policy).expect("a plan");
    let places = fixture.host.iter().map(|layer| layer.keys).zip(&fixture.buffers);
    let keys: Vec<_> = places
        .map(|(p, b)| TensorView { buffer: &b[p.buffer], offset_bytes: p.offset_bytes, strides: p.strides })
        .collect();
    plan.bind_rotation(&gpu.device, &keys, &fixture.state, rope).expect("a binding")
}

/// The reference's rotation of every active row of a layer.
fn rotate_host(layer: &mut HostLayer, case: &Case, rope: &Rope) {
    let shape = &case.shape;
    let bytes = shape.keys.row_bytes() as usize;
    for sequence in 0..shape.batch_size {
        if !case.active.is_empty() && !case.active[sequence as usize] {
            continue;
        }
        let rows = sequence * shape.num_kv_heads..(sequence + 1) * shape.num_kv_heads;
        let mut after = layer.rows[rows.start as usize..rows.end as usize].to_vec();
        rotate::renumber(&mut after);
        for (row, after) in rows.clone().zip(&after) {
            for slot in 0..after.len {
                let offset = row_offset(&layer.keys, &shape.keys, shape, row, slot);
                let key = &mut layer.buffers[layer.keys.buffer][offset..][..bytes];
                let before = layer.rows[row as usize].position_of(slot);
                rotate::rotate_key(rope, &shape.keys, key, before, after.position_of(slot)).expect("a sound rope");
            }
        }
        layer.rows[rows.start as usize..rows.end as usize].clone_from_slice(&after);
    }
}

/// Compression and rotation; with `appended` tokens it goes on to a second of both.
pub fn run_rotated(gpu: &Gpu, case: &Case, rope: &Rope, built: &Built) {
    let mut fixture = Fixture::built(gpu, case, built);
    let rotation = bind(gpu, case, &fixture, rope, built);
    for round in ["first", "second"] {
        fixture.compress_and_compare(gpu, case, round);
        let max_len = fixture.max_len();
        submit(gpu, |pass| rotation.record(pass, max_len).expect("a record"));
        for (l, layer) in (0..).zip(&mut fixture.host) {
            if !case.policy.skip_layers.contains(&l) {
                rotate_host(layer, case, rope);
            }
        }
        fixture.compare(gpu, case, &format!("{round}, rotated"));
        if case.appended.is_empty() || round == "second" {
            return;
        }
        fixture.append(gpu, case);
    }
}
