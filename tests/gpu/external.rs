//! Cases of the caller's scores.

use keynorm::{ExternalScore, Policy, Strides, TensorView};

use crate::support::{Built, Case, Fixture, Gpu, HostLayer, Rng, bind_with_scores, submit, upload};

/// One score, with what is special among them.
fn score_word(kind: ExternalScore, rng: &mut Rng) -> u32 {
    match (rng.below(30), kind) {
        (0, _) => f32::NAN.to_bits(),
        (1, _) => f32::NEG_INFINITY.to_bits(),
        (2, _) => f32::INFINITY.to_bits(),
        (3, _) => 0,
        (4, ExternalScore::F32) => (-0.0_f32).to_bits(),
        (5, ExternalScore::OrderKeys) => 0xffff_fffe,
        (6, _) => 0xffc0_0000, // a negative NaN
        (7..12, ExternalScore::F32) => (-rng.normal()).to_bits(),
        (_, ExternalScore::F32) => (rng.normal().abs() * 0.01).to_bits(),
        _ => rng.next() as u32,
    }
}

/// The caller's scores: of two layers in one buffer, tokens two words apart, heads beside each other; and one score a token for
/// all heads.
pub fn run_external(gpu: &Gpu, case: &Case, kind: ExternalScore, built: &Built) {
    let s = &case.shape;
    let batch = u64::from(s.num_kv_heads * s.capacity) * 2 + 5;
    run_by(gpu, case, kind, Strides { batch, head: 1, token: u64::from(s.num_kv_heads) * 2 }, built);
    run_by(gpu, case, kind, Strides { batch: u64::from(s.capacity) * 3, head: 0, token: 3 }, built);
}

fn run_by(gpu: &Gpu, case: &Case, kind: ExternalScore, strides: Strides, built: &Built) {
    let s = &case.shape;
    let layer_words = (strides.batch * u64::from(s.batch_size) + 3) as usize;
    let mut rng = Rng(case.seed + 77);
    let words: Vec<u32> = (0..layer_words * s.num_layers as usize + 64).map(|_| score_word(kind, &mut rng)).collect();
    let scores_buffer = upload(gpu, bytemuck::cast_slice(&words));
    let host: Vec<HostLayer> = (0..s.num_layers).map(|_| HostLayer::new(case, &mut rng)).collect();
    let mut fixture =
        Fixture::of(gpu, &Case { policy: Policy::new(case.policy.budget), ..case.clone() }, host, rng, built);
    let plan = built.compressor(gpu, &case.options).plan(s, &case.policy).expect("a plan");
    let workspace = plan.create_workspace().expect("a workspace");
    let score = |layer: usize| TensorView {
        buffer: &scores_buffer,
        offset_bytes: (layer * layer_words * 4) as u64 + 8,
        strides,
    };
    let scores: Vec<_> = (0..s.num_layers as usize).map(score).collect();
    fixture.bound =
        bind_with_scores(gpu, &plan, (&fixture.host, &fixture.buffers), &scores, &fixture.state, &workspace);
    fixture.workspace = workspace;
    let max_len = fixture.max_len();
    submit(gpu, |pass| fixture.bound.record(pass, max_len).expect("a record"));
    for (l, layer) in
        fixture.host.iter_mut().enumerate().filter(|(l, _)| !case.policy.skip_layers.contains(&(*l as u32)))
    {
        let at = |row: u32, slot: u32| {
            let (b, h) = (u64::from(row / s.num_kv_heads), u64::from(row % s.num_kv_heads));
            words[l * layer_words
                + 2
                + (b * strides.batch + h * strides.head + u64::from(slot) * strides.token) as usize]
        };
        let rows: Vec<Vec<u32>> =
            (0..s.rows_per_layer()).map(|r| (0..s.capacity).map(|slot| at(r, slot)).collect()).collect();
        layer.compress_scored(case, l as u32, &rows);
    }
    fixture.compare(gpu, case, "scored");
}
