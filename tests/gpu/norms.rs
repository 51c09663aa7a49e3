//! Cached norms: the same sets without reading keys again, path independence, and what is done about missing norms.

use keynorm::reference::key_norm;
use keynorm::{
    Budget, Direction, Dtype, KvShape, Options, Order, Policy, Selector, Stages, Status, Switch, TensorSpec,
};

use crate::support::{Case, Data, Fixture, Layout, download, gpu, run, shape, submit};

/// Selectors, and what takes rows whole where a device is no CPU.
fn variants() -> impl Iterator<Item = (Policy, Options)> {
    let ways = [
        (Selector::Radix, Switch::Auto),
        (Selector::Bitonic, Switch::Auto),
        (Selector::Auto, Switch::On),
        (Selector::Auto, Switch::Off),
    ];
    ways.into_iter().flat_map(|(selector, subgroups)| {
        [Order::Fill, Order::Positional].map(|order| {
            let budget = Budget::keep_ratio(0.5);
            let policy = Policy { selector, order, cached_norms: true, ..Policy::new(budget) };
            (policy, Options::with_subgroups(subgroups))
        })
    })
}

fn case_of(shape: KvShape, (policy, options): &(Policy, Options)) -> Case {
    let mut case = Case::new(shape, policy.clone());
    case.options = options.clone();
    case
}

#[test]
fn cached_norms_give_the_same_as_reading_the_keys() {
    for variant in variants() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for direction in [Direction::Lowest, Direction::Highest, Direction::Random { seed: 3 }] {
                let mut case = case_of(shape(2, 3, 300, 64, dtype), &variant);
                case.shape.num_layers = 3;
                case.policy.skip_layers = vec![1];
                case.policy.direction = direction;
                (case.policy.sinks, case.policy.recent) = (2, 17);
                case.data = Data::Special;
                case.lengths = vec![250, 33];
                case.appended = vec![50, 21];
                run(&case);
            }
        }
    }
}

/// More than a workgroup of any size selects from by itself, and several times what one counts.
#[test]
fn cached_norms_of_long_rows() {
    for (policy, options) in variants() {
        for subgroups in [Switch::Auto, Switch::On].into_iter().filter(|_| policy.selector != Selector::Auto) {
            let mut case = case_of(shape(2, 1, 18_000, 16, Dtype::F16), &(policy.clone(), options.clone()));
            case.options.subgroups = subgroups;
            (case.policy.sinks, case.policy.recent) = (2, 17);
            case.lengths = vec![17_500, 9_000];
            case.appended = vec![8750, 1];
            run(&case);
        }
    }
}

/// By workgroups of each size, with one eight an invocation and with two, and with rows enough that they are walked too.
#[test]
fn rows_whose_norms_are_cached_in_one_dispatch() {
    for subgroups in [Switch::On, Switch::Off] {
        for (batch_size, capacity, order, keep_ratio) in [
            (2, 200, Order::Fill, 0.4),
            (70, 300, Order::Fill, 0.6),
            (32, 250, Order::Positional, 0.7),
            (2, 2500, Order::Fill, 0.8),
            (1, 5000, Order::Fill, 0.97),
            (32, 2200, Order::Positional, 0.3),
            (1, 9000, Order::Fill, 0.99),
            (16, 8500, Order::Fill, 0.5),
            (32, 8300, Order::Positional, 0.9),
        ] {
            let policy = Policy { order, cached_norms: true, ..Policy::new(Budget::keep_ratio(keep_ratio)) };
            let options = Options::with_subgroups(subgroups);
            let mut case = case_of(shape(batch_size, 3, capacity, 16, Dtype::F16), &(policy, options));
            case.lengths = (0..batch_size).map(|b| capacity - 13 * b % capacity).collect();
            case.appended = (0..batch_size).map(|b| if b % 3 == 0 { 4 } else { 0 }).collect();
            case.active = (0..batch_size).map(|b| b % 7 != 1).collect();
            (case.policy.sinks, case.policy.recent) = (3, 20);
            run(&case);
        }
    }
}

/// A workgroup counts the first digits of 2048 tokens where there are so many in all, and of 4096.
#[test]
fn many_cached_norms() {
    for (rows, capacity, order) in [(3, 180_000, Order::Positional), (9, 240_000, Order::Fill)] {
        let policy = Policy { order, cached_norms: true, ..Policy::new(Budget::keep_ratio(0.5)) };
        let mut case = Case::new(shape(rows, 1, capacity, 16, Dtype::F16), policy);
        case.lengths = (0..rows).map(|row| capacity - 1000 * row).collect();
        run(&case);
    }
}

/// Only new keys are read: old ones are overwritten with NaN after their norms were taken, and nothing changes.
#[test]
fn a_later_compression_reads_no_old_keys() {
    for variant in variants() {
        let gpu = gpu();
        let mut case = case_of(shape(2, 2, 400, 64, Dtype::F16), &variant);
        case.lengths = vec![300, 200];
        case.appended = vec![60, 40];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "first");
        fixture.append(gpu, &case);
        submit(gpu, |pass| fixture.bound.record_norms(pass, 60).expect("norms"));
        let before = fixture.host[0].buffers[0].clone();
        gpu.queue.write_buffer(&fixture.buffers[0][0], 0, &vec![0xff; before.len()]);
        let max_len = fixture.max_len();
        submit(gpu, |pass| fixture.bound.record_stages(pass, max_len, Stages::FROM_NORMS).expect("a record"));
        fixture.compress_host(&case);
        // The keys are gone; values and state tell what was kept.
        let got = download(gpu, &fixture.buffers[0][1]);
        assert_eq!(got, fixture.host[0].buffers[1], "values of {case:?}");
        fixture.host[0].buffers[0] = download(gpu, &fixture.buffers[0][0]);
        let kept = pollster::block_on(fixture.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
        for (got, row) in kept.layers[0].positions.iter().zip(&fixture.host[0].rows) {
            assert_eq!(*got, (0..row.len).map(|s| row.position_of(s)).collect::<Vec<_>>(), "positions of {case:?}");
        }
    }
}

/// A token whose norm was never taken is kept, and told.
#[test]
fn tokens_without_a_norm_are_kept_and_told() {
    for variant in variants() {
        let gpu = gpu();
        let mut case = case_of(shape(1, 2, 400, 16, Dtype::F16), &variant);
        case.lengths = vec![300];
        case.appended = vec![80];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "first");
        let known = fixture.max_len();
        fixture.append(gpu, &case);
        // A later round sees the marks where the tokens have moved to; `max_new` too small leaves the rest out.
        for round in ["none new", "again"] {
            let max_len = fixture.max_len();
            submit(gpu, |pass| fixture.bound.record_stages(pass, max_len, Stages::FROM_NORMS).expect("a record"));
            let first_unknown = if round == "again" { u32::MAX } else { known };
            let unknown: Vec<Vec<u32>> = fixture.host[0].rows.iter().map(|r| r.positions.clone()).collect();
            fixture.host[0].compress_by(&case, 0, |row_ix, row, keys| {
                let mut scored = key_norm::score_row(&case.policy, 0, row_ix, row, &case.shape.keys, keys);
                for (slot, key) in (0..).zip(&mut scored.order_keys) {
                    if slot >= first_unknown || row.position_of(slot) >= 300 {
                        *key = 0;
                    }
                }
                scored
            });
            assert!(!unknown.is_empty(), "there are rows");
            fixture.host[0].status |= Status::NORM_MISSING.0;
            fixture.compare(gpu, &case, round);
        }
    }
}

#[test]
fn norms_of_more_tokens_than_max_new_are_taken_in_turns() {
    let gpu = gpu();
    for variant in variants() {
        let mut case = case_of(shape(2, 2, 500, 64, Dtype::F16), &variant);
        case.lengths = vec![500, 131];
        let mut fixture = Fixture::new(gpu, &case);
        // A turn takes a tile of 128 tokens at least.
        for _ in 0..4 {
            submit(gpu, |pass| fixture.bound.record_norms(pass, 1).expect("norms"));
        }
        submit(gpu, |pass| fixture.bound.record_stages(pass, 500, Stages::FROM_NORMS).expect("a record"));
        fixture.compress_host(&case);
        fixture.compare(gpu, &case, "in turns");
    }
}

/// One big prefill and many small steps leave the same set, where nothing recent is protected.
#[test]
fn path_independence() {
    let gpu = gpu();
    for order in [Order::Positional, Order::Fill] {
        for cached_norms in [true, false] {
            for keep_tokens in [1, 40, 130] {
                let policy = Policy { order, cached_norms, sinks: 1, ..Policy::new(Budget::KeepTokens(keep_tokens)) };
                let mut case = Case::new(shape(1, 3, 300, 64, Dtype::F32), policy);
                let mut fixture = Fixture::new(gpu, &case);
                let tokens = fixture.host[0].buffers.clone();
                fixture.compress_and_compare(gpu, &case, "at once");
                let mut whole: Vec<Vec<u32>> = fixture.host[0].rows.iter().map(|r| r.positions.clone()).collect();

                case.lengths = vec![20];
                let mut steps = Fixture::new(gpu, &case);
                steps.host[0].buffers.clone_from(&tokens);
                let mut seen = 20;
                let mut step = 1;
                while seen < 300 {
                    let count = step.min(300 - seen);
                    case.appended = vec![count];
                    // The same tokens as before: copied from where the whole cache has them.
                    let copies = |host: &mut crate::support::HostLayer| {
                        for row in 0..3 {
                            let len = host.rows[row as usize].len;
                            for (place, spec) in [(host.keys, &case.shape.keys), (host.values, &case.shape.values)] {
                                let at = |slot| crate::support::row_offset(&place, spec, &case.shape, row, slot);
                                let bytes = (count * spec.row_bytes()) as usize;
                                let from = tokens[place.buffer][at(seen)..][..bytes].to_vec();
                                host.buffers[place.buffer][at(len)..][..bytes].copy_from_slice(&from);
                            }
                            host.rows[row as usize].append(count);
                        }
                    };
                    steps.append_by(gpu, &case, copies);
                    steps.compress_and_compare(gpu, &case, "in steps");
                    seen += count;
                    step = step * 2 % 37 + 1;
                }
                let mut stepped: Vec<Vec<u32>> = steps.host[0].rows.iter().map(|r| r.positions.clone()).collect();
                for positions in whole.iter_mut().chain(&mut stepped) {
                    if order == Order::Fill {
                        positions.sort_unstable();
                    }
                }
                assert_eq!(whole, stepped, "{order:?} {cached_norms} {keep_tokens}");
            }
        }
    }
}

/// A caller that shortens rows (speculative decoding) and appends again by `record_append` has its norms taken anew.
#[test]
fn shortened_rows_forget_norms_and_positions() {
    let gpu = gpu();
    for variant in variants().filter(|(policy, _)| policy.order == Order::Positional) {
        let mut case = case_of(shape(1, 2, 200, 16, Dtype::F16), &variant);
        case.lengths = vec![100];
        case.appended = vec![30];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "first");
        let o = fixture.state.offsets();
        for row in 0..2_u32 {
            let state = &mut fixture.host[0].rows[row as usize];
            state.len -= 8;
            state.positions.truncate(state.len as usize);
            gpu.queue.write_buffer(fixture.state.meta(), u64::from(o.lengths + row) * 4, &state.len.to_le_bytes());
        }
        fixture.append(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "shortened");
    }
}

/// A row of more tokens than the kernel holds that was chosen for shorter ones stays as it is.
#[test]
fn cached_rows_longer_than_said() {
    let gpu = gpu();
    for (policy, options) in variants().filter(|(policy, _)| policy.selector == Selector::Auto) {
        // Few rows go stage by stage where they are walked.
        let few = (policy.order == Order::Fill).then_some((3, 1500, 4097));
        for (batch_size, said, longer) in few.into_iter().chain([(100, 300, 4500)]) {
            let mut case = case_of(shape(batch_size, 1, 4600, 16, Dtype::F16), &(policy.clone(), options.clone()));
            case.policy.budget = Budget::keep_ratio(0.9);
            case.lengths = (0..batch_size).map(|b| said - b).collect();
            case.lengths[1] = longer;
            let mut fixture = Fixture::new(gpu, &case);
            submit(gpu, |pass| fixture.bound.record(pass, said).expect("a record"));
            let mut without = case.clone();
            without.active = (0..batch_size).map(|b| b != 1).collect();
            fixture.compress_host(&without);
            fixture.compare(gpu, &case, "longer than said");
        }
    }
}

/// Nor is one of which `collect` holds more tokens than were counted.
#[test]
fn long_cached_rows_longer_than_said() {
    let gpu = gpu();
    for (policy, options) in variants().filter(|(policy, _)| policy.selector == Selector::Radix) {
        for subgroups in [Switch::Auto, Switch::On, Switch::Off] {
            let mut case = case_of(shape(3, 1, 30_000, 16, Dtype::F16), &(policy.clone(), options.clone()));
            (case.options.subgroups, case.policy.budget) = (subgroups, Budget::keep_ratio(0.98));
            case.lengths = vec![20_000, 22_500, 300];
            let mut fixture = Fixture::new(gpu, &case);
            submit(gpu, |pass| fixture.bound.record(pass, 20_481).expect("a record"));
            let kept = pollster::block_on(fixture.state.read(&gpu.device, &gpu.queue)).expect("a read-back");
            let before = fixture.host[0].buffers.clone();
            fixture.compress_host(&case);
            for (tensor, before) in before.iter().enumerate() {
                let got = download(gpu, &fixture.buffers[0][tensor]);
                let rows = |row: usize| row * 30_000 * 32..(row + 1) * 30_000 * 32;
                assert!(got[rows(1)] == before[rows(1)], "the long row of {case:?}");
                for row in [0, 2] {
                    assert!(got[rows(row)] == fixture.host[0].buffers[tensor][rows(row)], "row {row} of {case:?}");
                }
            }
            assert_eq!(kept.layers[0].positions[1].len(), 22_500, "the long row of {case:?}");
        }
    }
}

/// Quantised rows, those on other boundaries than of 16 bytes, and keys and values of which one is, by words.
#[test]
fn cached_rows_moved_by_words() {
    use Dtype::{Bf16, F16, F32, I8Scaled, Q4_0, Q8_0};
    let unaligned = Layout::Offset { words: 3, pad_elements: 2 };
    for subgroups in [Switch::On, Switch::Off] {
        for (keys, values, layout) in [
            (Q8_0, Q8_0, Layout::Hnd),
            (Q4_0, I8Scaled, Layout::Nhd),
            (F16, Q8_0, Layout::Hnd),
            (I8Scaled, F32, Layout::Hnd),
            (F16, Bf16, unaligned),
        ] {
            for (batch_size, capacity, keep_ratio) in [(2, 300, 0.9), (30, 250, 0.5), (2, 3000, 0.97), (1, 9000, 0.99)]
            {
                let policy = Policy { cached_norms: true, ..Policy::new(Budget::keep_ratio(keep_ratio)) };
                let options = Options::with_subgroups(subgroups);
                let mut case = case_of(shape(batch_size, 2, capacity, 64, keys), &(policy, options));
                (case.shape.values, case.layout) = (TensorSpec::new(values, 64), layout);
                case.lengths = (0..batch_size).map(|b| capacity - 7 * b).collect();
                case.appended = vec![5; batch_size as usize];
                case.active = (0..batch_size).map(|b| b % 4 != 1).collect();
                (case.policy.sinks, case.policy.recent) = (2, 9);
                case.lengths.iter_mut().zip(&case.active).for_each(|(len, active)| *len -= u32::from(!active) * 5);
                run(&case);
            }
        }
    }
}
