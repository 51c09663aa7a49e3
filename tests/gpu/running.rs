//! KeyDiff with scores and sums kept in the state: a key is read once.

use keynorm::reference::CacheRow;
use keynorm::reference::key_diff::{Running, sum_tile};
use keynorm::reference::key_norm::Scored;
use keynorm::reference::top_k::Selection;
use keynorm::{Dtype, Score, Stages, wgpu};

use crate::support::{Built, Case, Fixture, Gpu, download, submit};

/// Both sides, the reference's sums and scores beside the fixture's rows.
struct Pair<'a> {
    gpu: &'a Gpu,
    case: &'a Case,
    fixture: Fixture,
    /// One a row of each layer.
    running: Vec<Vec<Running>>,
}

fn positions(row: &CacheRow) -> Vec<u32> {
    (0..row.len).map(|slot| row.position_of(slot)).collect()
}

impl Pair<'_> {
    fn is_active(&self, row: u32) -> bool {
        let sequence = (row / self.case.shape.num_kv_heads) as usize;
        self.case.active.get(sequence).is_none_or(|&active| active)
    }

    /// The scores of at most `max_new` more tokens a row, which are a whole number of tiles.
    fn update(&mut self, layer: usize, max_new: usize) {
        let (shape, host) = (&self.case.shape, &self.fixture.host[layer]);
        let rows: Vec<u32> = (0..shape.rows_per_layer()).filter(|&row| self.is_active(row)).collect();
        for row in rows {
            let keys = host.gather(&host.keys, &shape.keys, shape, row);
            let running = &mut self.running[layer][row as usize];
            let len = (running.cosines.len() + max_new).min(host.rows[row as usize].len as usize);
            running.update(&shape.keys, &keys[..len * shape.keys.row_bytes() as usize]);
        }
    }

    fn compress(&mut self, round: &str) {
        for l in (0..self.case.shape.num_layers).filter(|l| !self.case.policy.skip_layers.contains(l)) {
            self.update(l as usize, usize::MAX >> 1);
            let running = self.running[l as usize].clone();
            let layer = &mut self.fixture.host[l as usize];
            let before: Vec<Vec<u32>> = layer.rows.iter().map(positions).collect();
            layer.compress_by(self.case, l, |row, state, _| -> Scored {
                running[row as usize].order_keys(&self.case.policy, state)
            });
            let after: Vec<Vec<u32>> = layer.rows.iter().map(positions).collect();
            for (row, (before, after)) in (0..).zip(before.iter().zip(&after)) {
                let source = |p: &u32| before.iter().position(|b| b == p).expect("a kept token") as u32;
                let sources = after.iter().map(source).collect();
                if self.is_active(row) {
                    let moved = Selection { budget: 0, threshold: 0, num_ties: 0, raised: false, sources };
                    self.running[l as usize][row as usize].finish(&moved);
                }
            }
        }
        // Sums and scores that the state keeps.
        self.fixture.compare(self.gpu, self.case, round);
        let shape = &self.case.shape;
        let state = &self.fixture.state;
        let [sums, scores] = [state.key_sums(), state.key_norms()].map(|b| download(self.gpu, b.expect("kept")));
        let [sums, scores]: [&[f32]; 2] = [&sums, &scores].map(|bytes| bytemuck::cast_slice(bytes));
        // Products of f32 keys are not exact, so that a compiler that fuses them with their sums rounds each otherwise.
        let fuses = shape.keys.dtype == Dtype::F32 && self.gpu.info.device_type != wgpu::DeviceType::Cpu;
        let slack = if fuses { (shape.keys.head_dim + 8) as f32 / 8_388_608.0 } else { 0.0 };
        let (offset, stride) = state.key_sums_place().expect("a place of the sums");
        for (row, running) in self.running.iter().flatten().enumerate().filter(|(_, r)| !r.sum.is_empty()) {
            // Of as many unit vectors at most.
            let sum_slack = slack * shape.capacity as f32;
            let got = &sums[offset as usize + row * stride as usize..][..running.sum.len()];
            let differs = got.iter().zip(&running.sum).position(|(g, e)| (g - e).abs() > sum_slack || g.is_nan());
            assert_eq!(differs, None, "{round}: sum of row {row}: {got:?}, not {:?}", running.sum);
            for (slot, cosine) in running.cosines.iter().enumerate() {
                let got = scores[row * shape.capacity as usize + slot];
                let is_it = cosine.map_or(got.is_nan(), |c| (got - (1.0 - c).clamp(0.0, 2.0)).abs() <= slack);
                assert!(is_it, "{round}: score {got} of row {row} slot {slot}: {cosine:?}\n{:?}", self.case);
            }
        }
    }
}

/// Two rounds; in the second the new keys are scored in two steps, a tile and the rest, and then none is read.
pub fn run_running(gpu: &Gpu, case: &Case, built: &Built) {
    assert!(case.policy.score == Score::KeyDiff && case.policy.cached_norms, "a case of kept scores");
    let fixture = Fixture::built(gpu, case, built);
    let rows = case.shape.rows_per_layer() as usize;
    let running = vec![vec![Running::default(); rows]; case.shape.num_layers as usize];
    let mut pair = Pair { gpu, case, fixture, running };
    let max_len = pair.fixture.max_len();
    submit(gpu, |pass| pair.fixture.bound.record(pass, max_len).expect("a record"));
    pair.compress("first");
    if case.appended.is_empty() {
        return;
    }
    pair.fixture.append(gpu, case);
    let max_len = pair.fixture.max_len();
    let tile = sum_tile(&case.shape.keys);
    // One tile by itself, then the rest.
    submit(gpu, |pass| pair.fixture.bound.record_norms(pass, 1.min(max_len)).expect("norms"));
    for l in (0..case.shape.num_layers).filter(|l| !case.policy.skip_layers.contains(l)) {
        pair.update(l as usize, tile as usize);
    }
    submit(gpu, |pass| {
        pair.fixture.bound.record_norms(pass, max_len).expect("norms");
        pair.fixture.bound.record_stages(pass, max_len, Stages::FROM_NORMS).expect("a record");
    });
    pair.compress("second");
    // Sums begin anew with the scores.
    pair.fixture.restart(gpu, case);
    pair.running.iter_mut().flatten().for_each(|running| *running = Running::default());
    let max_len = pair.fixture.max_len();
    submit(gpu, |pass| pair.fixture.bound.record(pass, max_len).expect("a record"));
    pair.compress("anew");
}
