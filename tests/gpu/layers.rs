//! Many layers in one dispatch: of one buffer, or of buffers that are bound as arrays where the device can. Whole rows are
//! not taken on CPUs by themselves, so subgroups are switched by hand.

use std::sync::{Arc, Mutex};

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Score, Selector, ShaderPatch, Switch};

use crate::support::{Built, Case, Data, Fixture, Gpu, Layout, gpu, gpu_with, run, shape};

const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
/// Whole rows, and stage by stage.
const SELECTORS: [Selector; 2] = [Selector::Auto, Selector::Radix];

/// 18 layers of which 16 are compressed in two runs, rows enough of each to be taken whole, and a second round.
fn many(dtype: Dtype, order: Order, subgroups: Switch) -> Case {
    let policy = Policy { order, skip_layers: vec![0, 7], ..Policy::new(Budget::keep_ratio(0.45)) };
    let mut case = Case::new(shape(6, 3, 130, 64, dtype), policy);
    (case.shape.num_layers, case.shape.values.head_dim) = (18, 96);
    (case.policy.sinks, case.policy.recent) = (4, 20);
    (case.lengths, case.appended) = (vec![120, 77, 100, 1, 130, 64], vec![5, 50, 0, 30, 0, 66]);
    case.options = Options::with_subgroups(subgroups);
    case
}

/// Rows of several workgroups, in few layers.
fn long(order: Order, num_layers: u32, capacity: u32) -> Case {
    let mut case = many(Dtype::F16, order, Switch::On);
    (case.shape.num_layers, case.shape.batch_size, case.shape.num_kv_heads) = (num_layers, 2, 1);
    (case.shape.capacity, case.policy.skip_layers) = (capacity, vec![]);
    (case.shape.keys.head_dim, case.shape.values.head_dim) = (16, 16);
    (case.lengths, case.appended) = (vec![capacity - 60, capacity - 999], vec![60, 500]);
    case
}

fn has_arrays(gpu: &Gpu) -> bool {
    let has_arrays = gpu.device.features().contains(wgpu::Features::BUFFER_BINDING_ARRAY);
    assert!(has_arrays || std::env::var_os("KEYNORM_EXPECT_ARRAYS").is_none(), "{} has no arrays", gpu.info.name);
    has_arrays
}

/// In one buffer, and in buffers of their own. `On` asks for arrays on CPUs too.
fn run_together(case: &Case) {
    let at_once = if has_arrays(gpu()) { Switch::On } else { Switch::Auto };
    for (one_buffer, layers_at_once) in [(true, Switch::Auto), (false, at_once)] {
        let mut case = Case { one_buffer, encoded: !one_buffer, ..case.clone() };
        case.options.layers_at_once = layers_at_once;
        run(&case);
    }
}

/// Each way to take layers together, in short.
#[test]
fn arrays() {
    for order in ORDERS {
        for selector in SELECTORS {
            let mut case = many(Dtype::F16, order, Switch::On);
            case.policy.selector = selector;
            run_together(&case);
            // Layer by layer, in one pass and in two.
            case.options.layers_at_once = Switch::Off;
            for encoded in [false, true] {
                run(&Case { encoded, ..case.clone() });
            }
        }
    }
}

/// Workgroups whose keys have words of their own; of sequences that are not active those hold what was there before.
#[test]
fn arrays_of_wide_rows() {
    for order in ORDERS {
        let mut case = many(Dtype::F16, order, Switch::On);
        (case.shape.num_layers, case.policy.skip_layers) = (2, vec![]);
        (case.shape.batch_size, case.shape.num_kv_heads, case.shape.capacity) = (16, 3, 2100);
        (case.shape.keys.head_dim, case.shape.values.head_dim) = (16, 24);
        case.lengths = (0..16).map(|b| 2100 - 37 * b).collect();
        case.active = (0..16).map(|b| b % 3 != 1).collect();
        case.appended.clear();
        run_together(&case);
    }
}

/// Results do not tell that layers go together, but the shaders that are built do.
#[test]
fn arrays_are_taken_where_there_are_any() {
    let gpu = gpu();
    for (layers_at_once, expected) in [(Switch::On, true), (Switch::Off, false)] {
        if layers_at_once == Switch::On && !has_arrays(gpu) {
            continue; // refused: validation::devices::forced_arrays_on_a_device_without
        }
        for selector in SELECTORS {
            let sources: Arc<Mutex<Vec<String>>> = Arc::default();
            let seen = Arc::clone(&sources);
            let mut case = many(Dtype::F16, Order::Fill, Switch::On);
            (case.policy.selector, case.options.layers_at_once) = (selector, layers_at_once);
            case.options.shader_patch = Some(ShaderPatch(Arc::new(move |source: &str| {
                seen.lock().expect("a lock").push(source.to_owned());
                source.to_owned()
            })));
            Fixture::built(gpu, &case, &Built::default()).compress_and_compare(gpu, &case, "patched");
            let bound = sources.lock().expect("a lock").iter().any(|s| s.contains("binding_array<"));
            assert_eq!(bound, expected, "{layers_at_once:?}, {selector:?}");
        }
    }
}

/// Some devices look up an array's buffer in invocations that a branch has left out, too: there the layer may be any number.
/// The faults make it one that is far away, and nothing else.
#[test]
fn arrays_are_indexed_in_range_where_nothing_is_loaded() {
    let gpu = gpu();
    let layers_at_once = if has_arrays(gpu) { Switch::On } else { Switch::Auto };
    let far = |module: &'static str, subgroups, dtype, cached_norms, from: &'static str, to: &'static str| {
        let was_planted = Arc::new(Mutex::new(false));
        let planted = Arc::clone(&was_planted);
        let mut case = many(dtype, Order::Fill, subgroups);
        (case.policy.cached_norms, case.policy.selector) = (cached_norms, Selector::Radix);
        case.options.layers_at_once = layers_at_once;
        case.options.shader_patch = Some(ShaderPatch(Arc::new(move |source: &str| {
            *planted.lock().expect("a lock") |= source.contains(from) && source.contains(module);
            if source.contains(module) { source.replace(from, to) } else { source.to_owned() }
        })));
        Fixture::built(gpu, &case, &Built::default()).compress_and_compare(gpu, &case, "patched");
        assert!(*was_planted.lock().expect("a lock"), "{module} has no {from}");
    };
    let scout = "if is_scout(grid.yxz) { r.layer = 0x2000000u; } let place = place_of_row(r);";
    far("//! key_norm:", Switch::On, Dtype::Bf16, true, "let place = place_of_row(r);", scout);
    far("//! key_norm:", Switch::On, Dtype::F16, false, "let place = place_of_row(r);", scout);
    // Parameters read as zeros where no invocation is left.
    let dividend = "divided(params.first_row + local_row, params.rows_per_layer)";
    let masked = "divided(params.first_row + local_row + select(0u, 0x2000000u, params.rows_per_layer == 0u), \
                  params.rows_per_layer)";
    far("//! compact:", Switch::Auto, Dtype::F16, false, dividend, masked);
}

#[test]
fn dtypes_orders_and_reductions() {
    for order in ORDERS {
        for (subgroups, dtype) in [(Switch::Off, Dtype::F16), (Switch::On, Dtype::F32), (Switch::Off, Dtype::Bf16)] {
            for selector in SELECTORS {
                let mut case = many(dtype, order, subgroups);
                case.policy.selector = selector;
                run_together(&case);
                (case.data, case.active) = (Data::Special, vec![false, true, true, true, false, true]);
                run_together(&case);
            }
        }
    }
}

/// Keys and values that are bound as one, at odd words, rows padded apart; and heads beside each other.
#[test]
fn layouts() {
    let layouts = [
        Layout::Interleaved { words: 4 },
        Layout::Interleaved { words: 3 },
        Layout::Offset { words: 1, pad_elements: 2 },
        Layout::Offset { words: 64, pad_elements: 8 },
        Layout::TokenMajor,
        Layout::Touching,
    ];
    for order in ORDERS {
        for layout in layouts {
            for selector in SELECTORS {
                let mut case = many(Dtype::F16, order, Switch::On);
                (case.layout, case.policy.selector) = (layout, selector);
                run_together(&case);
            }
        }
    }
}

/// As on a CPU: a token to an invocation, norms kept for the next compression, blocks of integers.
#[test]
fn serial_cached_and_quantised() {
    for order in ORDERS {
        run_together(&many(Dtype::F16, order, Switch::Auto));
        let mut cached = many(Dtype::Bf16, order, Switch::On);
        cached.policy.cached_norms = true;
        run_together(&cached);
        let mut quantised = many(Dtype::Q8_0, order, Switch::Off);
        (quantised.shape.keys.head_dim, quantised.shape.values.head_dim) = (64, 64);
        run_together(&quantised);
    }
}

#[test]
fn scores_directions_and_budgets() {
    let kinds = [
        (Score::ValueKeyRatio, Direction::Highest, Budget::keep_ratio(1.0)),
        (Score::KeyNorm, Direction::Lowest, Budget::MaxNorm(7.5)),
        (Score::KeyNorm, Direction::Random { seed: 7 }, Budget::keep_ratio(0.3)),
        (Score::KeyDiff, Direction::Lowest, Budget::KeepTokens(50)),
    ];
    for order in ORDERS {
        for (score, direction, budget) in kinds {
            let mut case = many(Dtype::F32, order, Switch::On);
            case.shape.values = case.shape.keys;
            case.policy.score = score;
            (case.policy.direction, case.policy.budget) = (direction, budget);
            run_together(&case);
        }
    }
}

#[test]
fn long_rows() {
    for order in ORDERS {
        for data in [Data::Special, Data::Ties, Data::Near { spread: 20 }] {
            let mut case = long(order, 3, 17_000);
            case.data = data;
            run_together(&case);
            // The selector counts first digits itself.
            case.policy.budget = Budget::MaxNorm(4.0);
            run_together(&case);
        }
        // The second round, whose rows are short, goes stage by stage too.
        let mut case = long(order, 3, 9000);
        case.policy.selector = Selector::Radix;
        run_together(&case);
        // Positional by ranges.
        run_together(&long(order, 2, 30_000));
    }
}

/// Runs end where a binding does: of a buffer, of scratch, and of the state's positions.
#[test]
fn more_than_a_binding_holds() {
    for order in ORDERS {
        for (capacity, max_binding_bytes) in [(130, 1 << 20), (130, 400_000), (130, 70_000), (1000, 1 << 16)] {
            let mut case = many(Dtype::F16, order, Switch::On);
            case.shape.capacity = capacity;
            case.options.max_binding_bytes = Some(max_binding_bytes);
            run_together(&case);
        }
    }
}

/// A status bit of the score is that of its layer, and told once.
#[test]
fn status_is_of_a_layer() {
    let gpu = gpu();
    for (capacity, selector) in [(1100, Selector::Auto), (1100, Selector::Radix), (17_000, Selector::Auto)] {
        let mut case = long(Order::Fill, 3, capacity);
        // Enough rows for the first to be taken whole.
        (case.shape.num_layers, case.policy.selector, case.one_buffer) = (24, selector, true);
        let mut fixture = Fixture::new(gpu, &case);
        // A NaN in one key of one layer.
        let at = fixture.host[17].keys.offset_bytes as usize;
        fixture.host[17].buffers[0][at..at + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
        fixture.upload_all(gpu);
        fixture.compress_and_compare(gpu, &case, "one NaN");
        let told: Vec<_> = fixture.host.iter().map(|layer| layer.status != 0).collect();
        assert_eq!(told.iter().position(|&t| t), Some(17), "the layer with the NaN");
        assert_eq!(told.iter().filter(|&&t| t).count(), 1, "no other layer");
        fixture.restart(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "clean");
        assert!(fixture.host.iter().all(|layer| layer.status == 0), "the keys are clean");
    }
}

/// So many rows that the workgroups of the state's update go round.
#[test]
fn more_slots_than_workgroups() {
    for order in ORDERS {
        let mut case = many(Dtype::F16, order, Switch::On);
        (case.shape.num_layers, case.shape.batch_size, case.shape.num_kv_heads) = (4, 75, 4);
        (case.shape.keys.head_dim, case.shape.values.head_dim, case.shape.capacity) = (16, 16, 700);
        case.policy = Policy { order, selector: Selector::Radix, ..Policy::new(Budget::keep_ratio(0.9)) };
        (case.lengths, case.appended) = ((0..75).map(|b| 650 - b).collect(), vec![]);
        (case.data, case.one_buffer) = (Data::Sparse, true);
        run(&case);
    }
}

/// Recorded for no tokens at all, rows are left as they are.
#[test]
fn no_length() {
    let gpu = gpu();
    for one_buffer in [false, true] {
        let case = Case { one_buffer, ..many(Dtype::F16, Order::Fill, Switch::On) };
        let fixture = Fixture::new(gpu, &case);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        fixture.bound.encode(&mut encoder, 0).expect("a record");
        gpu.queue.submit([encoder.finish()]);
        fixture.compare(gpu, &case, "no length");
    }
}

/// Arrays have a limit beside their features, which is 0 unless it is asked for.
#[test]
fn arrays_that_are_asked_for_without_their_limit() {
    let limited = gpu_with(|limits| limits.max_binding_array_elements_per_shader_stage = 0);
    let compressor = |switch| {
        let mut options = Options::default();
        options.layers_at_once = switch;
        keynorm::Compressor::new(&limited.device, options)
    };
    compressor(Switch::Auto).expect("layers by one buffer");
    match compressor(Switch::On) {
        Err(keynorm::BuildError::Limit { limit, needed: 4, available: 0 }) => {
            assert_eq!(limit, "max_binding_array_elements_per_shader_stage");
        }
        Err(keynorm::BuildError::MissingFeature { .. }) => assert!(!has_arrays(&limited), "a device with arrays"),
        other => panic!("{other:?}"),
    }
}
