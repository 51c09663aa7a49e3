//! The cache state, stages recorded apart, and records that follow each other.

use keynorm::reference::key_norm::Scored;
use keynorm::{Budget, Dtype, KvShape, Options, Order, Policy, Score, Selector, Stages, Status, Switch};

use crate::support::{BUILT, Case, Data, Fixture, bind, download, gpu, row_offset, run, shape, submit, upload};

/// As a CPU adapter and as a GPU take them.
fn variants() -> impl Iterator<Item = (Policy, Switch)> {
    let selectors = [
        (Selector::Auto, Switch::Auto),
        (Selector::Auto, Switch::On),
        (Selector::Radix, Switch::On),
        (Selector::Bitonic, Switch::Auto),
    ];
    selectors.into_iter().flat_map(|(selector, subgroups)| {
        let policy = |order| Policy { selector, order, ..Policy::new(Budget::keep_ratio(0.5)) };
        [Order::Fill, Order::Positional].map(|order| (policy(order), subgroups))
    })
}

fn case_of(shape: KvShape, policy: &Policy, subgroups: Switch) -> Case {
    Case { options: Options::with_subgroups(subgroups), ..Case::new(shape, policy.clone()) }
}

#[test]
fn inactive_sequences_are_left_as_they_are() {
    for (policy, subgroups) in variants() {
        for capacity in [300, 20_000] {
            let mut case = case_of(shape(3, 1, capacity, 16, Dtype::F16), &policy, subgroups);
            case.lengths = vec![capacity - 60, 200, 250];
            case.appended = vec![50, 10, 20];
            case.data = Data::Special;
            for active in [[true, false, true], [false, true, false], [false; 3]] {
                case.active = active.to_vec();
                run(&case);
            }
        }
    }
}

#[test]
fn a_sequence_can_be_reset_and_the_mask_lifted() {
    for (policy, subgroups) in variants() {
        let gpu = gpu();
        let mut case = case_of(shape(3, 2, 200, 64, Dtype::F16), &policy, subgroups);
        case.shape.num_layers = 2;
        case.lengths = vec![150, 120, 90];
        case.appended = vec![30, 40, 50];
        case.active = vec![true, false, true];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "masked");
        fixture.state.reset_sequence(&gpu.queue, 2).expect("a sequence");
        for row in fixture.host.iter_mut().flat_map(|l| &mut l.rows[4..6]) {
            *row = Default::default();
        }
        fixture.compare(gpu, &case, "reset");
        case.active = vec![true; 3];
        fixture.state.set_active(&gpu.queue, &case.active).expect("a mask");
        fixture.append(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "unmasked");
    }
}

/// Of more tokens than were appended since the last compression none goes that it has left; of a layer that is whole, and before
/// any compression, they all do. An inactive sequence stays.
#[test]
fn tokens_are_taken_back_as_far_as_they_were_appended_since() {
    for (policy, subgroups) in variants() {
        let gpu = gpu();
        let mut case = case_of(shape(3, 2, 200, 64, Dtype::F16), &policy, subgroups);
        case.shape.num_layers = 2;
        (case.policy.skip_layers, case.policy.cached_norms) = (vec![1], true);
        case.lengths = vec![150, 120, 90];
        case.appended = vec![30, 40, 50];
        case.active = vec![true, true, false];
        let mut fixture = Fixture::new(gpu, &case);
        let take_back = |fixture: &mut Fixture, counts: [u32; 3], round: &str| {
            fixture.truncate(gpu, &case, &counts);
            fixture.compare(gpu, &case, round);
        };
        take_back(&mut fixture, [10, 120, 7], "of a prompt");
        fixture.host.iter().for_each(|layer| assert_eq!((layer.rows[0].len, layer.rows[2].len), (140, 0)));
        fixture.append(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "appended");
        let kept = fixture.host[0].rows[0].len;
        fixture.append(gpu, &case);
        // Norms of tokens that go: other tokens take their slots.
        submit(gpu, |pass| fixture.bound.record_norms(pass, 50).expect("norms"));
        take_back(&mut fixture, [20, 40, 7], "since");
        assert_eq!(fixture.host[0].rows[0].len, kept + 10);
        take_back(&mut fixture, [11, 1, 7], "more than since");
        assert_eq!((fixture.host[0].rows[0].len, fixture.host[1].rows[0].len), (kept, 140 + 30 + 30 - 20 - 11));
        fixture.append(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "again");
    }
}

/// A compression that keeps all of a row leaves it as it was: what was appended before may still go.
#[test]
fn rows_that_keep_all_give_tokens_back() {
    for (policy, subgroups) in variants() {
        for capacity in [200, 9000] {
            let gpu = gpu();
            let mut case = case_of(shape(2, 2, capacity, 32, Dtype::F16), &policy, subgroups);
            (case.policy.min_len, case.policy.cached_norms) = (80, capacity == 200);
            (case.lengths, case.appended) = (vec![capacity - 20, 40], vec![20, 10]);
            let mut fixture = Fixture::new(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "first");
            fixture.append(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "second");
            let before: Vec<u32> = fixture.host[0].rows.iter().map(|row| row.len).collect();
            fixture.truncate(gpu, &case, &[7, 15]);
            let lost = |ix: usize| before[ix] - fixture.host[0].rows[ix].len;
            assert_eq!([lost(0), lost(2)], [0, 15], "of a row that was compressed, and of one that was too short");
            fixture.compare(gpu, &case, "taken back");
            fixture.append(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "third");
        }
    }
}

/// A cache that grows: its state goes on in one of more capacity, in the middle of a run.
#[test]
fn a_state_is_copied_into_one_of_more_capacity() {
    let gpu = gpu();
    for ((policy, subgroups), grown) in variants().flat_map(|v| [200, 333].map(|grown| (v.clone(), grown))) {
        let mut case = case_of(shape(3, 2, 200, 64, Dtype::F16), &policy, subgroups);
        (case.shape.num_layers, case.policy.skip_layers, case.policy.cached_norms) = (3, vec![1], true);
        (case.lengths, case.appended) = (vec![150, 120, 90], vec![20, 1, 9]);
        let mut before = Fixture::new(gpu, &case);
        before.compress_and_compare(gpu, &case, "before");
        before.append(gpu, &case);
        let mut larger = case.clone();
        larger.shape.capacity = grown;
        larger.appended = vec![grown - 200 + 20, 40, 0];
        let mut after = Fixture::new(gpu, &larger);
        let (keys, values) = (case.shape.keys, case.shape.values);
        for (old, new) in before.host.iter().zip(&mut after.host) {
            (new.rows, new.status) = (old.rows.clone(), old.status);
            for row in 0..case.shape.rows_per_layer() {
                for (spec, from, to) in [(&keys, old.keys, new.keys), (&values, old.values, new.values)] {
                    let tokens = old.gather(&from, spec, &case.shape, row);
                    new.scatter(to, spec, &larger.shape, row, &tokens);
                }
            }
        }
        after.upload_all(gpu);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        before.state.copy_into(&mut encoder, &after.state).expect("a larger state");
        gpu.queue.submit([encoder.finish()]);
        after.compare(gpu, &larger, "copied");
        after.compress_and_compare(gpu, &larger, "after");
        after.append(gpu, &larger);
        after.compress_and_compare(gpu, &larger, "later");
    }
}

/// The sums of KeyDiff lie elsewhere where rows are longer.
#[test]
fn sums_are_copied_too() {
    let gpu = gpu();
    let policy = Policy { score: Score::KeyDiff, cached_norms: true, ..Policy::new(Budget::keep_ratio(0.5)) };
    let case = Case::new(shape(2, 2, 300, 64, Dtype::F16), policy);
    let before = Fixture::new(gpu, &case);
    let after = Fixture::new(gpu, &Case::new(shape(2, 2, 2000, 64, Dtype::F16), case.policy.clone()));
    submit(gpu, |pass| before.bound.record(pass, 300).expect("a record"));
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    before.state.copy_into(&mut encoder, &after.state).expect("a larger state");
    gpu.queue.submit([encoder.finish()]);
    let sums = |fixture: &Fixture| -> Vec<Vec<u8>> {
        let (offset, stride) = fixture.state.key_sums_place().expect("a place");
        let bytes = download(gpu, fixture.state.key_sums().expect("sums"));
        (0..4).map(|row| bytes[(offset + row * stride) as usize * 4..][..64 * 4].to_vec()).collect()
    };
    assert_eq!(sums(&after), sums(&before));
    assert!(sums(&before).iter().flatten().any(|&byte| byte != 0), "there are sums");
}

#[test]
fn a_length_over_the_capacity_is_taken_as_the_capacity() {
    for (policy, subgroups) in variants() {
        for capacity in [100, 17_000] {
            let gpu = gpu();
            let mut case = case_of(shape(1, 2, capacity, 16, Dtype::F16), &policy, subgroups);
            let mut fixture = Fixture::new(gpu, &case);
            // Row 1 claims more than there is, as a caller's shader could.
            let word = u64::from(fixture.state.offsets().lengths + 1);
            gpu.queue.write_buffer(fixture.state.meta(), word * 4, &(capacity + 7).to_le_bytes());
            fixture.host[0].status = Status::LENGTH_OVER_CAPACITY.0;
            fixture.compress_and_compare(gpu, &case, "over capacity");
            fixture.state.clear_status(&gpu.queue);
            fixture.host[0].status = 0;
            fixture.compare(gpu, &case, "cleared");
            case.lengths = vec![capacity / 2];
            fixture.restart(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "not set again");
        }
    }
}

/// The runner compares all status bits; these cases make sure that each is seen both set and clear, and stays set.
#[test]
fn status_bits() {
    for (policy, subgroups) in variants() {
        for capacity in [64, 17_000] {
            let gpu = gpu();
            let mut case = case_of(shape(1, 1, capacity, 16, Dtype::F16), &policy, subgroups);
            let status = |fixture: &Fixture| {
                pollster::block_on(fixture.state.read(&gpu.device, &gpu.queue)).expect("a read-back").layers[0].status
            };
            let mut fixture = Fixture::new(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "plain");
            assert_eq!(status(&fixture), Status(0), "nothing to report");

            case.policy.recent = capacity * 3 / 4;
            let mut fixture = Fixture::new(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "raised");
            assert_eq!(status(&fixture), Status::BUDGET_RAISED, "protected tokens exceed the budget");

            case.policy.recent = 0;
            case.data = Data::Special;
            let mut fixture = Fixture::new(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "special");
            assert_eq!(status(&fixture), Status::NON_FINITE_KEY, "NaN and infinite keys");
            let sticky = fixture.host[0].status;
            case.data = Data::Random;
            fixture.restart(gpu, &case);
            fixture.compress_and_compare(gpu, &case, "cleared by the restart");
            assert_eq!((sticky, status(&fixture)), (Status::NON_FINITE_KEY.0, Status(0)), "cleared");
        }
    }
}

#[test]
fn status_bits_are_sticky() {
    let gpu = gpu();
    let policy = Policy { recent: 60, ..Policy::new(Budget::keep_ratio(0.5)) };
    let mut case = Case::new(shape(1, 1, 140, 16, Dtype::F16), policy);
    case.appended = vec![80];
    case.lengths = vec![60];
    let mut fixture = Fixture::new(gpu, &case);
    fixture.compress_and_compare(gpu, &case, "raised");
    assert_eq!(fixture.host[0].status, Status::BUDGET_RAISED.0, "all of 60 tokens are recent");
    fixture.append(gpu, &case);
    // 70 of 140 tokens are more than the recent ones: nothing sets the bit this time.
    assert_eq!(fixture.host[0].rows[0].len, 140, "tokens before the second compression");
    fixture.compress_and_compare(gpu, &case, "not raised");
    assert_eq!(fixture.host[0].status, Status::BUDGET_RAISED.0, "the bit stays");
}

#[test]
fn stages_may_be_recorded_apart() {
    for (policy, subgroups) in variants() {
        for capacity in [300, 20_000] {
            let gpu = gpu();
            let case = case_of(shape(2, 1, capacity, 16, Dtype::Bf16), &policy, subgroups);
            let splits: [&[Stages]; 3] = [
                &[Stages::SCORE, Stages::SELECT, Stages::COMPACT],
                &[Stages::SCORE.and(Stages::SELECT), Stages::COMPACT],
                &[Stages::SCORE, Stages::SELECT.and(Stages::COMPACT)],
            ];
            let mut fixture = Fixture::new(gpu, &case);
            for stages in splits {
                fixture.restart(gpu, &case);
                for &stage in stages {
                    submit(gpu, |pass| fixture.bound.record_stages(pass, capacity, stage).expect("a record"));
                }
                fixture.compress_host(&case);
                fixture.compare(gpu, &case, &format!("{stages:?}"));
            }
        }
    }
}

#[test]
fn passes_of_its_own_do_the_same() {
    for (policy, subgroups) in variants() {
        for cached_norms in [false, true] {
            let policy = Policy { cached_norms, ..policy.clone() };
            let mut case = case_of(shape(2, 2, 300, 16, Dtype::F16), &policy, subgroups);
            case.shape.num_layers = 3;
            case.lengths = vec![290, 77];
            case.encoded = true;
            run(&case);
        }
    }
}

/// A caller's own scores: 0 for what must stay, up to the last key that is not a pad, with ties; few zeros, and far more than the
/// budget has room for.
#[test]
fn order_keys_may_be_the_callers() {
    let capacities = [1, 70, 3000, 20_000].into_iter().flat_map(|capacity| [(capacity, false), (capacity, true)]);
    for (policy, subgroups) in variants() {
        for (capacity, many_stay) in capacities.clone() {
            let gpu = gpu();
            let mut case = case_of(shape(2, 2, capacity, 16, Dtype::F16), &policy, subgroups);
            case.shape.num_layers = 2;
            case.policy.skip_layers = vec![0];
            case.lengths = vec![capacity, capacity / 2];
            if many_stay {
                case.policy.budget = Budget::KeepTokens(5);
            }
            let mut fixture = Fixture::new(gpu, &case);
            let stride = fixture.workspace.order_stride();
            let keys: Vec<u32> = (0..4 * stride)
                .map(|_| match fixture.rng.below(8) {
                    0..=2 if many_stay => 0,
                    0 if fixture.rng.below(4) == 0 => 0,
                    0 => 0xffff_fffe,
                    1..=3 => 1 + fixture.rng.below(5) as u32,
                    _ => fixture.rng.next() as u32 & 0xffff_fffe,
                })
                .collect();
            gpu.queue.write_buffer(fixture.workspace.order_keys(), 0, bytemuck::cast_slice(&keys));
            let stages = Stages::SELECT.and(Stages::COMPACT);
            submit(gpu, |pass| fixture.bound.record_stages(pass, capacity, stages).expect("a record"));
            fixture.host[1].compress_by(&case, 1, |row_ix, row, _| Scored {
                order_keys: keys[(row_ix * stride) as usize..][..row.len as usize].to_vec(),
                non_finite: false,
            });
            fixture.compare(gpu, &case, "own order keys");
        }
    }
}

/// Compression, copies of new tokens, counting and a second compression, in one submission.
#[test]
fn records_follow_each_other_in_one_submission() {
    for (policy, subgroups) in variants() {
        for capacity in [400, 18_000] {
            let gpu = gpu();
            let mut case = case_of(shape(2, 2, capacity, 16, Dtype::F16), &policy, subgroups);
            (case.policy.sinks, case.policy.recent) = (3, 20);
            case.lengths = vec![capacity - 40, capacity / 3];
            case.appended = vec![40, 25];
            let mut fixture = Fixture::new(gpu, &case);
            fixture.state.set_append_counts(&gpu.queue, 0, &case.appended).expect("counts");
            fixture.compress_host(&case);
            let starts: Vec<u32> = fixture.host[0].rows.iter().map(|r| r.len).collect();
            let host = &mut fixture.host[0];
            host.append(&case, &mut fixture.rng);
            let staged: Vec<_> = host.buffers.iter().map(|b| upload(gpu, b)).collect();

            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            fixture.bound.record(&mut encoder.begin_compute_pass(&Default::default()), capacity).expect("a record");
            for (row, start) in (0..).zip(starts) {
                for (place, spec) in [(host.keys, &case.shape.keys), (host.values, &case.shape.values)] {
                    let offset = row_offset(&place, spec, &case.shape, row, start) as u64;
                    let size = u64::from(case.appended[row as usize / 2] * spec.row_bytes());
                    let (from, to) = (&staged[place.buffer], &fixture.buffers[0][place.buffer]);
                    encoder.copy_buffer_to_buffer(from, offset, to, offset, size);
                }
            }
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                fixture.bound.record_append(&mut pass, 0).expect("an append");
                fixture.bound.record(&mut pass, capacity).expect("a record");
            }
            gpu.queue.submit([encoder.finish()]);
            fixture.compress_host(&case);
            fixture.compare(gpu, &case, "two records");
        }
    }
}

/// The state outlives a plan: a second policy goes on from where the first left it, slots no longer being positions.
#[test]
fn two_plans_share_a_state() {
    for (policy, subgroups) in variants() {
        let gpu = gpu();
        let mut case = case_of(shape(2, 2, 300, 16, Dtype::F16), &policy, subgroups);
        case.lengths = vec![250, 100];
        case.appended = vec![50, 60];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "first plan");
        fixture.append(gpu, &case);
        (case.policy.sinks, case.policy.recent) = (40, 30);
        case.policy.order = if case.policy.order == Order::Fill { Order::Positional } else { Order::Fill };
        let plan = BUILT.compressor(gpu, &case.options).plan(&case.shape, &case.policy).expect("a plan");
        fixture.workspace = plan.create_workspace().expect("a workspace");
        fixture.bound = bind(gpu, &plan, &fixture.host, &fixture.buffers, &fixture.state, &fixture.workspace);
        fixture.compress_and_compare(gpu, &case, "second plan");
    }
}

/// A row beyond the recorded `max_len` breaks the contract; its neighbours must not notice.
#[test]
fn a_row_beyond_max_len_harms_no_other() {
    let gpu = gpu();
    for order in [Order::Fill, Order::Positional] {
        let lengths = [(9000, 3000), (9000, 8192), (400, 100), (20_000, 9000), (20_000, 17_000)];
        let hows = [
            (Switch::Auto, Selector::Auto),
            (Switch::On, Selector::Auto),
            (Switch::On, Selector::Radix),
            (Switch::On, Selector::Bitonic),
        ];
        for ((capacity, max_len), (subgroups, selector)) in lengths.into_iter().flat_map(|l| hows.map(|how| (l, how))) {
            let policy = Policy { order, selector, ..Policy::new(Budget::keep_ratio(0.5)) };
            let mut case = case_of(shape(3, 1, capacity, 16, Dtype::F16), &policy, subgroups);
            case.lengths = vec![max_len, capacity, max_len - 1];
            let mut fixture = Fixture::new(gpu, &case);
            let download = |fixture: &Fixture| [0, 1].map(|b| crate::support::download(gpu, &fixture.buffers[0][b]));
            let before = download(&fixture);
            let row_bytes = capacity as usize * 32;
            // What the long row has left in the scratch is not for the others either, the next time.
            for recorded in [max_len, capacity] {
                let kept = pollster::block_on(fixture.bound.compress(&gpu.device, &gpu.queue, recorded));
                let kept = kept.expect("a record");
                fixture.host[0].compress(&case, 0);
                for (tensor, got) in download(&fixture).iter().enumerate() {
                    let expected = &fixture.host[0].buffers[tensor];
                    for row in [0, 2] {
                        let bytes = row * row_bytes..(row + 1) * row_bytes;
                        assert_eq!(got[bytes.clone()], expected[bytes], "row {row} of {order:?} {capacity}");
                        let (positions, expected) =
                            (&kept.layers[0].positions[row], &fixture.host[0].rows[row].positions);
                        assert_eq!(positions, expected, "row {row} of {order:?} {capacity}");
                    }
                    assert_eq!(
                        got[3 * row_bytes..],
                        before[tensor][3 * row_bytes..],
                        "the guard band of {order:?} {capacity}"
                    );
                    // Rows that the dispatches for `max_len` cannot hold are left alone.
                    if recorded < capacity && capacity > 400 {
                        let long = row_bytes..2 * row_bytes;
                        assert_eq!(got[long.clone()], before[tensor][long], "the long row of {order:?} {capacity}");
                        assert_eq!(kept.layers[0].positions[1].len(), capacity as usize, "{order:?} {capacity}");
                    }
                }
            }
        }
    }
}
