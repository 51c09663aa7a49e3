//! Whole rows in workgroup memory: in one dispatch where they are short or many, in two where they are few. A GPU takes them so
//! by itself, a CPU adapter with subgroups switched by hand.

use keynorm::{
    Budget, BudgetOverride, CacheState, Direction, Dtype, KvShape, Options, Order, Policy, Score, Selector, Status,
    Switch,
};

use crate::support::{Built, Case, Data, Fixture, Gpu, Layout, gpu, gpu_of_small_workgroups, run, shape, submit};

const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
const SWITCHES: [Switch; 3] = [Switch::Auto, Switch::Off, Switch::On];

/// Every order without subgroups and with them: as GPUs take rows, wherever this runs.
fn by_hand() -> impl Iterator<Item = (Order, Switch)> {
    ORDERS.into_iter().flat_map(|order| [(order, Switch::Off), (order, Switch::On)])
}

/// 96 rows of 32 sequences, whose lengths are all different, with a second round.
fn many(dtype: Dtype, order: Order, subgroups: Switch) -> Case {
    let policy = Policy { order, ..Policy::new(Budget::keep_ratio(0.45)) };
    let mut case = Case::new(shape(32, 3, 300, 64, dtype), policy);
    case.options = Options::with_subgroups(subgroups);
    case.shape.values.head_dim = 96;
    case.lengths = (0..32).map(|b| 257 - 8 * b).collect();
    case.appended = (0..32).map(|b| b * 9 % 44).collect();
    case
}

/// The first sequences of them, 6 rows.
fn few(case: Case) -> Case {
    let shape = KvShape { batch_size: 2, ..case.shape };
    let (lengths, appended) = (case.lengths[..2].to_vec(), case.appended[..2].to_vec());
    let active = case.active.iter().copied().take(2).collect();
    Case { shape, lengths, appended, active, ..case }
}

/// Each of them three times, 288 rows, whose workgroups are narrow.
fn crowd(case: Case) -> Case {
    let shape = KvShape { batch_size: 96, ..case.shape };
    let (lengths, appended) = (case.lengths.repeat(3), case.appended.repeat(3));
    let active = case.active.repeat(3);
    Case { shape, lengths, appended, active, ..case }
}

#[test]
fn every_dtype_order_and_reduction() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3] {
        for order in ORDERS {
            for subgroups in SWITCHES {
                let mut case = many(dtype, order, subgroups);
                (case.policy.sinks, case.policy.recent) = (4, 20);
                run(&case);
                run(&few(case.clone()));
                case.data = Data::Special;
                case.active = (0..32).map(|b| b % 5 != 2).collect();
                run(&case);
                run(&few(case.clone()));
                if subgroups != Switch::Auto {
                    run(&crowd(case));
                }
            }
        }
    }
}

#[test]
fn data_kinds_directions_and_layouts() {
    let directions = [Direction::Lowest, Direction::Highest, Direction::Random { seed: 0x1234_5678_9abc_def0 }];
    for (data, direction) in [Data::Ties, Data::AllEqual, Data::Near { spread: 20 }].into_iter().zip(directions) {
        for (order, layout) in ORDERS.into_iter().zip([Layout::Nhd, Layout::Offset { words: 36, pad_elements: 8 }]) {
            let mut case = many(Dtype::F16, order, Switch::On);
            (case.data, case.policy.direction, case.layout) = (data, direction, layout);
            run(&case);
            run(&few(case.clone()));
            run(&crowd(case));
        }
    }
}

#[test]
fn budgets_of_every_kind() {
    for order in ORDERS {
        let mut case = many(Dtype::Bf16, order, Switch::Off);
        case.policy.min_len = 90;
        for budget in [Budget::KeepTokens(1), Budget::KeepTokens(70), Budget::MaxNorm(7.5), Budget::keep_ratio(1.0)] {
            case.policy.budget = budget;
            run(&case);
            run(&few(case.clone()));
        }
        let budget = Budget::keep_ratio(0.2);
        case.policy.budgets = vec![BudgetOverride { layers: 1..2, heads: 1..3, budget }];
        case.shape.num_layers = 3;
        case.policy.skip_layers = vec![0];
        run(&case);
        // Two layers by one dispatch, 6 rows.
        case.one_buffer = true;
        case = few(case);
        case.shape.batch_size = 1;
        (case.lengths, case.appended) = (vec![257], vec![43]);
        run(&case);
    }
}

/// Workgroups of 256, 512 and 1024 where the device has room for them, for few rows and for ever more, and windows of rows. With
/// 32 KiB of workgroup memory many rows of more than 4096 tokens go in parts too.
#[test]
fn every_workgroup() {
    for capacity in [1025, 2049, 4097] {
        for order in ORDERS {
            for (sequences, subgroups) in [
                (32, Switch::On),
                (33, Switch::On),
                (65, Switch::On),
                (32, Switch::Off),
                (1, Switch::On),
                (1, Switch::Off),
            ] {
                let mut case = many(Dtype::F16, order, subgroups);
                (case.shape.batch_size, case.shape.num_kv_heads, case.shape.capacity) = (sequences, 4, capacity);
                (case.shape.keys.head_dim, case.shape.values.head_dim) = (16, 24);
                case.lengths = (0..sequences).map(|b| capacity - 37 * b % 1000).collect();
                case.appended.clear();
                run(&case);
            }
        }
    }
    // Windows of rows too few to be taken whole, which go stage by stage.
    let mut case = many(Dtype::F16, Order::Fill, Switch::Off);
    case.options.max_binding_bytes = Some(96 * 300 * 64);
    run(&case);
    // And of 48, which are taken whole.
    case.options.max_binding_bytes = Some(48 * 300 * 192);
    run(&case);
}

/// 96 rows of 32 sequences, or 4 of 4, of up to so many tokens in caches with room for more.
fn short(capacity: u32, longest: u32, sequences: u32, (order, subgroups): (Order, Switch)) -> Case {
    let mut case = many(Dtype::F16, order, subgroups);
    (case.shape.batch_size, case.shape.capacity) = (sequences, capacity);
    case.shape.num_kv_heads = if sequences == 32 { 3 } else { 1 };
    (case.shape.keys.head_dim, case.shape.values.head_dim) = (16, 24);
    case.lengths = (0..sequences).map(|b| longest - 41 * b % longest.min(1000)).collect();
    case.appended.clear();
    case
}

/// Kernels go by the recorded length, not by the capacity: what a workgroup of each size holds, and one more.
#[test]
fn rows_far_shorter_than_the_capacity() {
    let lengths = [(300, 1025), (2048, 2049), (2049, 9000), (4096, 9000), (4097, 9000), (8192, 9000), (8193, 9000)];
    // Two eights an invocation, as many as 32 KiB hold, and as 48 KiB.
    let lengths_of_pairs = [(9000, 9000), (14_208, 17_000), (14_209, 17_000), (16_384, 17_000), (16_385, 17_000)];
    for (longest, capacity) in lengths.into_iter().chain(lengths_of_pairs) {
        for how in ORDERS.into_iter().flat_map(|order| SWITCHES.map(|subgroups| (order, subgroups))) {
            run(&short(capacity, longest, 4, how));
        }
    }
    for (longest, capacity) in [(2048, 2049), (4096, 9000), (8192, 9000)] {
        for order in ORDERS {
            run(&short(capacity, longest, 32, (order, Switch::On)));
        }
    }
}

/// One binding whose rows go whole, then in parts, and stage by stage, each after what the one before has left as scratch.
#[test]
fn rows_that_grow() {
    for (how, (first, appended)) in
        by_hand().flat_map(|how| [(how, (400, 2900)), (how, (3000, 7000)), (how, (8300, 0)), (how, (500, 8500))])
    {
        let mut case = short(9000, first, 4, how);
        case.shape.num_kv_heads = 3;
        case.appended = (0..4).map(|b| appended - appended / 10 * b).collect();
        run(&case);
    }
}

/// A row that is longer than was said when the kernel was chosen stays as it is; one that the kernel holds all the same is
/// compressed where it is taken whole.
#[test]
fn rows_longer_than_said() {
    let built = Built::default();
    for (capacity, said, held_and_longer) in [(3000, 1500, [2048, 2049]), (9000, 4000, [4096, 4097])] {
        for (order, sequences) in ORDERS.into_iter().flat_map(|order| [(order, 32), (order, 4)]) {
            for subgroups in [Switch::Off, Switch::On] {
                let case = short(capacity, said, sequences, (order, subgroups));
                leaves_longer((gpu(), &built), case, said, held_and_longer);
            }
        }
    }
}

fn leaves_longer((gpu, built): (&Gpu, &Built), mut case: Case, said: u32, [held, longer]: [u32; 2]) {
    let sequences = case.shape.batch_size;
    case.lengths[1] = if sequences == 32 { held } else { said };
    case.lengths[2] = longer;
    let mut fixture = Fixture::built(gpu, &case, built);
    submit(gpu, |pass| fixture.bound.record(pass, said).expect("a record"));
    let mut without = case.clone();
    without.active = (0..sequences).map(|b| b != 2).collect();
    fixture.compress_host(&without);
    fixture.compare(gpu, &case, &format!("{sequences} of {said} in {}", case.shape.capacity));
}

/// A row that claims more than its capacity stays as it is where the kernel is one for shorter rows, and is reported.
#[test]
fn rows_over_the_capacity_and_longer_than_said() {
    let gpu = gpu();
    let kinds = ORDERS.into_iter().flat_map(|order| [(order, 32), (order, 4)]);
    let by_norm = [Selector::Auto, Selector::Radix, Selector::Bitonic].map(|s| (s, Score::KeyNorm, false));
    let scores = [Score::KeyDiff, Score::Centroid, Score::ValueKeyRatio].map(|score| (Selector::Auto, score, false));
    let cached = [Score::KeyNorm, Score::KeyDiff].map(|score| (Selector::Auto, score, true));
    let all: Vec<_> = by_norm.into_iter().chain(scores).chain(cached).collect();
    for ((order, sequences), (selector, score, cached)) in
        kinds.flat_map(|kind| all.iter().map(move |&how| (kind, how)))
    {
        let mut case = short(3000, 1500, sequences, (order, Switch::On));
        (case.policy.selector, case.policy.score, case.policy.cached_norms) = (selector, score, cached);
        let mut fixture = Fixture::new(gpu, &case);
        let row = 1;
        let claim = |state: &CacheState| {
            let word = u64::from(state.offsets().lengths + row);
            gpu.queue.write_buffer(state.meta(), word * 4, &3007u32.to_le_bytes());
        };
        claim(&fixture.state);
        submit(gpu, |pass| fixture.bound.record(pass, 1500).expect("a record"));
        let kept = pollster::block_on(fixture.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
        let reported = kept.layers[0].status.0 & Status::LENGTH_OVER_CAPACITY.0;
        assert_eq!(reported, Status::LENGTH_OVER_CAPACITY.0, "{sequences} sequences, {:?}", case.policy);
        // Of inactive sequences nothing is reported.
        fixture.restart(gpu, &case);
        fixture.state.clear_status(&gpu.queue);
        fixture.state.set_active(&gpu.queue, &vec![false; sequences as usize]).expect("a mask");
        claim(&fixture.state);
        submit(gpu, |pass| fixture.bound.record(pass, 1500).expect("a record"));
        let kept = pollster::block_on(fixture.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
        assert_eq!(kept.layers[0].status, Status(0), "{sequences} inactive sequences, {:?}", case.policy);
    }
}

/// Workgroups of 256 hold rows of 2048 tokens, or of 4096 where rows are few; longer ones of the same cache go stage by stage.
#[test]
fn a_device_of_small_workgroups() {
    let small = gpu_of_small_workgroups();
    let built = Built::default();
    for (order, sequences) in ORDERS.into_iter().flat_map(|order| [(order, 32), (order, 4)]) {
        for longest in [2048, 2049, 4096, 4097] {
            let case = short(5000, longest, sequences, (order, Switch::On));
            Fixture::built(&small, &case, &built).compress_and_compare(&small, &case, "256 invocations");
        }
    }
}

/// Rows so many that a workgroup of their parts updates their state, in one eight an invocation and in two, of workgroups of 512
/// and of 1024; of 80 bytes a token, so that up to 63 are not taken whole.
#[test]
fn parts_without_room_for_the_state() {
    for how in by_hand() {
        for (longest, sequences, head_dim) in [
            (4000, 60, 40),
            (4100, 28, 40),
            (4100, 50, 40),
            (4100, 88, 16),
            (4100, 132, 16),
            (8193, 33, 16),
            (8193, 44, 16),
            (8193, 66, 16),
            (8193, 67, 16),
        ] {
            let mut case = short(longest, longest, sequences, how);
            (case.shape.keys.head_dim, case.shape.values.head_dim) = (head_dim, head_dim);
            case.active = (0..sequences).map(|b| b % 7 != 3).collect();
            case.appended = vec![2000; sequences as usize];
            run(&case);
        }
    }
}

/// Two eights an invocation, with ties and bins over both, budgets of every kind, more tokens later, inactive rows, and rows
/// longer than said.
#[test]
fn rows_of_two_eights() {
    let small = gpu_of_small_workgroups();
    let built = Built::default();
    let budgets = [Budget::keep_ratio(0.3), Budget::KeepTokens(1), Budget::MaxNorm(4.0), Budget::keep_ratio(1.0)];
    for how in by_hand() {
        for data in [Data::Special, Data::Ties, Data::AllEqual, Data::Near { spread: 0 }, Data::Near { spread: 2 }] {
            let mut case = short(4096, 3900, 4, how);
            (case.data, case.policy.sinks, case.policy.recent) = (data, 5, 30);
            case.policy.budget = Budget::keep_ratio(0.52);
            case.active = vec![true, true, true, data == Data::Ties];
            case.appended = vec![1800, 2000, 90, 0];
            Fixture::built(&small, &case, &built).compress_and_compare(&small, &case, "two rounds");
        }
        for budget in budgets {
            let mut case = short(4000, 3999, 4, how);
            case.policy.budget = budget;
            Fixture::built(&small, &case, &built).compress_and_compare(&small, &case, "a budget");
        }
        // Two parts each of keys and values beside a workgroup for the state, and without it; then one each; more rows go stage
        // by stage.
        for sequences in [105, 132, 176, 264, 265] {
            let case = short(2100, 2100, sequences, how);
            Fixture::built(&small, &case, &built).compress_and_compare(&small, &case, "many");
        }
        leaves_longer((&small, &built), short(5000, 3000, 4, how), 3000, [3000, 4097]);
        if how.1 == Switch::On {
            leaves_longer((gpu(), &Built::default()), short(17_000, 9000, 4, how), 9000, [9000, 16_385]);
        }
    }
}
