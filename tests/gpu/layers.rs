//! Many layers at once, in passes of their own. Not taken on CPUs by themselves, so subgroups are switched by hand.

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Score, Selector, Switch};

use crate::support::{BUILT, Built, Case, Data, Fixture, Layout, bind, gpu, gpu_with, run, shape};

const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
/// Whole rows in a dispatch a layer, and stage by stage.
const SELECTORS: [Selector; 2] = [Selector::Auto, Selector::Radix];

/// 18 layers of which 16 are compressed, two sequences with three heads, and a second round.
fn many(dtype: Dtype, order: Order, subgroups: Switch) -> Case {
    let policy = Policy { order, skip_layers: vec![0, 7], ..Policy::new(Budget::keep_ratio(0.45)) };
    let mut case = Case::new(shape(2, 3, 300, 64, dtype), policy);
    (case.shape.num_layers, case.shape.values.head_dim) = (18, 96);
    (case.policy.sinks, case.policy.recent) = (4, 20);
    (case.lengths, case.appended) = (vec![290, 77], vec![5, 190]);
    case.options = Options::with_subgroups(subgroups);
    case.encoded = true;
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

#[test]
fn dtypes_orders_and_reductions() {
    for order in ORDERS {
        for (subgroups, dtype) in [(Switch::Off, Dtype::F16), (Switch::On, Dtype::F32), (Switch::Off, Dtype::Bf16)] {
            for selector in SELECTORS {
                let mut case = many(dtype, order, subgroups);
                case.policy.selector = selector;
                run(&case);
                (case.data, case.active) = (Data::Special, vec![false, true]);
                run(&case);
                // Keys and values that are bound as one.
                (case.layout, case.active) = (Layout::Interleaved { words: 4 }, vec![]);
                run(&case);
            }
        }
    }
}

/// The state is finished by sixteen layers a dispatch, and by four where a device binds no more buffers.
#[test]
fn more_layers_than_a_dispatch_binds() {
    let few = gpu_with(|limits| limits.max_storage_buffers_per_shader_stage = 8);
    for order in ORDERS {
        for (num_layers, selector) in [19, 20].into_iter().zip(SELECTORS) {
            let mut case = many(Dtype::F16, order, Switch::Off);
            (case.shape.num_layers, case.policy.selector) = (num_layers, selector);
            run(&case);
            let mut fixture = Fixture::built(&few, &case, &Built::default());
            fixture.compress_and_compare(&few, &case, "eight buffers");
            fixture.append(&few, &case);
            fixture.compress_and_compare(&few, &case, "eight buffers, again");
        }
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
            run(&case);
        }
    }
}

#[test]
fn long_rows() {
    for order in ORDERS {
        for data in [Data::Special, Data::Ties, Data::Near { spread: 20 }] {
            let mut case = long(order, 3, 9000);
            case.data = data;
            run(&case);
            // The selector counts first digits itself.
            case.policy.budget = Budget::MaxNorm(4.0);
            run(&case);
        }
        // Positional by ranges, each in a pass with those of the other layers.
        run(&long(order, 2, 30_000));
    }
}

/// A status bit of the score is told once: layers of clean keys in the same workspace do not have it.
#[test]
fn status_is_told_once() {
    let gpu = gpu();
    for (capacity, selector) in [(1100, Selector::Auto), (1100, Selector::Radix), (9000, Selector::Auto)] {
        let mut case = long(Order::Fill, 3, capacity);
        // Enough rows for the first to be taken whole.
        (case.shape.num_layers, case.policy.selector) = (24, selector);
        case.data = Data::Special;
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "special");
        assert!(fixture.host.iter().any(|layer| layer.status != 0), "the keys are special");
        case.data = Data::Random;
        fixture.restart(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "clean");
        assert!(fixture.host.iter().all(|layer| layer.status == 0), "the keys are clean");
    }
}

/// So many rows that the workgroups of the state's update go round: in one pass, and of many layers at once.
#[test]
fn more_slots_than_workgroups() {
    for order in ORDERS {
        for encoded in [false, true] {
            let mut case = many(Dtype::F16, order, Switch::On);
            (case.shape.num_layers, case.shape.batch_size, case.shape.num_kv_heads) = (4, 75, 4);
            (case.shape.keys.head_dim, case.shape.values.head_dim, case.shape.capacity) = (16, 16, 700);
            case.policy = Policy { order, selector: Selector::Radix, ..Policy::new(Budget::keep_ratio(0.9)) };
            (case.lengths, case.appended) = ((0..75).map(|b| 650 - b).collect(), vec![]);
            (case.data, case.encoded) = (Data::Sparse, encoded);
            run(&case);
        }
    }
}

/// By hand also on a CPU; switched off, `encode` does the same with half the scratch.
#[test]
fn switched_by_hand() {
    let gpu = gpu();
    for order in ORDERS {
        for selector in SELECTORS {
            let bytes = [Switch::On, Switch::Off].map(|layers_at_once| {
                let mut case = many(Dtype::F16, order, Switch::Auto);
                (case.policy.selector, case.options.layers_at_once) = (selector, layers_at_once);
                run(&case);
                Fixture::new(gpu, &case).workspace.bytes()
            });
            assert!(bytes[0] > bytes[1] * 3 / 2, "{bytes:?} bytes of scratch");
        }
    }
}

/// Plans that go by stages and by whole rows take turns in one workspace: what one has told the other does not tell again.
#[test]
fn plans_share_a_workspace() {
    let gpu = gpu();
    for order in ORDERS {
        let mut case = many(Dtype::F16, order, Switch::On);
        (case.policy.selector, case.data) = (Selector::Radix, Data::Special);
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "by stages");
        for (selector, data) in [(Selector::Auto, Data::Random), (Selector::Radix, Data::Random)] {
            (case.policy.selector, case.data) = (selector, data);
            let plan = BUILT.compressor(gpu, &case.options).plan(&case.shape, &case.policy).expect("a plan");
            fixture.bound = bind(gpu, &plan, &fixture.host, &fixture.buffers, &fixture.state, &fixture.workspace);
            fixture.restart(gpu, &case);
            fixture.compress_and_compare(gpu, &case, &format!("by {selector:?}"));
        }
    }
}

/// Recorded for no tokens at all, rows are left as they are.
#[test]
fn no_length() {
    let gpu = gpu();
    let case = many(Dtype::F16, Order::Fill, Switch::On);
    let fixture = Fixture::new(gpu, &case);
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    fixture.bound.encode(&mut encoder, 0).expect("a record");
    gpu.queue.submit([encoder.finish()]);
    fixture.compare(gpu, &case, "no length");
}
