//! Paged caches: every layout and page size against the reference, pages of others and the sentinel untouched, tables
//! that must not be followed, and the same sets and rows as a contiguous cache.

use std::collections::BTreeSet;

use keynorm::reference::key_norm::Scored;
use keynorm::{
    Budget, BudgetOverride, Dtype, Options, Order, Policy, Pool, Score, Segment, Selector, Stages, Status, Switch,
};

use crate::support::{Case, Data, Fixture, HostLayer, PageLayout, Paged, gpu, run, shape, submit};

const LAYOUTS: [PageLayout; 4] = [PageLayout::Hnd, PageLayout::Nhd, PageLayout::OnePool, PageLayout::Offset];
const ORDERS: [Order; 2] = [Order::Fill, Order::Positional];
const SELECTORS: [Selector; 2] = [Selector::Radix, Selector::Bitonic];

fn policy(keep_ratio: f64, selector: Selector, order: Order) -> Policy {
    Policy { selector, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

/// 3 sequences of 2 heads, 20 pages at most.
fn case(page_size: u32, layout: PageLayout, order: Order) -> Case {
    let mut case = Case::new(shape(3, 2, 20 * page_size, 64, Dtype::F16), policy(0.5, Selector::Auto, order));
    case.lengths = vec![15 * page_size + 3, 0, 11 * page_size];
    case.appended = vec![4 * page_size, 1, 0];
    case.paged = Some(Paged::new(page_size, layout));
    case
}

fn paged(case: &mut Case) -> &mut Paged {
    case.paged.as_mut().expect("a paged case")
}

#[test]
fn every_layout_selector_and_order() {
    for layout in LAYOUTS {
        for selector in SELECTORS {
            for order in ORDERS {
                for subgroups in [Switch::Auto, Switch::Off, Switch::On] {
                    let mut case = case(16, layout, order);
                    case.policy.selector = selector;
                    case.options = Options::with_subgroups(subgroups);
                    run(&case);
                }
            }
        }
    }
}

#[test]
fn page_sizes_and_dtypes() {
    for page_size in [8, 16, 24, 32, 64, 128, 256] {
        for (dtype, order) in [(Dtype::F32, Order::Fill), (Dtype::Bf16, Order::Positional), (Dtype::F16, Order::Fill)] {
            let mut case = case(page_size, PageLayout::Hnd, order);
            case.shape.keys.dtype = dtype;
            case.shape.values.head_dim = 80;
            run(&case);
        }
    }
}

/// Every path by which long rows are selected and moved, more entries than a workgroup, ids beyond one look of the check.
#[test]
fn long_rows() {
    for selector in SELECTORS {
        for order in ORDERS {
            let mut case = Case::new(shape(2, 1, 40_000, 16, Dtype::F16), policy(0.5, selector, order));
            case.lengths = vec![40_000, 17_001];
            case.paged = Some(Paged::new(8, PageLayout::Hnd));
            run(&case);
        }
    }
    let mut case = Case::new(shape(3, 1, 200_000, 16, Dtype::F16), policy(0.3, Selector::Auto, Order::Fill));
    case.lengths = vec![9000, 200_000, 1];
    case.paged = Some(Paged::new(8, PageLayout::Hnd));
    run(&case);
}

#[test]
fn layers_and_what_else_a_policy_says() {
    for order in ORDERS {
        let mut case = case(16, PageLayout::Nhd, order);
        case.shape.num_layers = 4;
        case.policy.skip_layers = vec![1];
        (case.policy.sinks, case.policy.recent) = (3, 40);
        run(&case);
        case.policy.cached_norms = true;
        run(&case);
        case.active = vec![true, true, false];
        run(&case);
        case.policy.budgets = vec![BudgetOverride { layers: 0..4, heads: 1..2, budget: Budget::keep_ratio(0.8) }];
        run(&case);
    }
    let mut case = case(16, PageLayout::Hnd, Order::Fill);
    case.policy.pool = Some(Pool { min_tokens: 4 });
    case.policy.segments = true;
    case.segments =
        vec![vec![Segment::pinned(30..90)], Vec::new(), vec![Segment { positions: 20..160, min_tokens: 99 }]];
    run(&case);
}

/// Scores that look at keys and values in other ways find them in their pages too.
#[test]
fn other_scores() {
    for score in [Score::KeyDiff, Score::Centroid, Score::ValueKeyRatio] {
        for (layout, order) in LAYOUTS.into_iter().zip(ORDERS.into_iter().cycle()) {
            for subgroups in [Switch::Auto, Switch::Off, Switch::On] {
                let mut case = case(16, layout, order);
                case.policy.score = score;
                case.options = Options::with_subgroups(subgroups);
                paged(&mut case).first_writable = vec![2, 0, 1];
                run(&case);
            }
        }
    }
}

/// Pages before the first writable one lie in the tables of all sequences.
#[test]
fn shared_prefixes_stay() {
    for order in ORDERS {
        for selector in SELECTORS {
            for first_writable in [[3, 3, 3], [0, 2, 5], [14, 1, 11], [20, 20, 20]] {
                for keep_ratio in [0.0, 0.5, 1.0] {
                    let mut case = case(16, PageLayout::OnePool, order);
                    case.policy = policy(keep_ratio, selector, order);
                    case.lengths = vec![243, 180, 176];
                    case.appended = vec![40, 9, 0];
                    paged(&mut case).first_writable = first_writable.to_vec();
                    run(&case);
                }
            }
        }
    }
}

/// Nothing is freed twice where a runtime that has reset its sequences records what they hold.
#[test]
fn empty_caches_free_nothing() {
    let gpu = gpu();
    let mut case = case(16, PageLayout::Hnd, Order::Fill);
    case.policy = policy(0.3, Selector::Auto, Order::Fill);
    let mut fixture = Fixture::new(gpu, &case);
    let freed = fixture.bound.freed_pages().expect("a paged cache").clone();
    let count = || {
        let lists = pollster::block_on(freed.read(&gpu.device, &gpu.queue)).expect("a read-back");
        lists.iter().flatten().map(|sequence| sequence.freed.len()).sum::<usize>()
    };
    fixture.compress_and_compare(gpu, &case, "full");
    assert!(count() > 0, "pages are freed");
    for sequence in 0..case.shape.batch_size {
        fixture.state.reset_sequence(&gpu.queue, sequence).expect("a sequence");
    }
    submit(gpu, |pass| fixture.bound.record(pass, 0).expect("a record"));
    assert_eq!(count(), 0, "of empty sequences");
}

/// Layers that share a table are judged together: by an entry that the longer one alone uses, neither is compressed.
#[test]
fn layers_of_one_table_are_judged_together() {
    let gpu = gpu();
    for order in ORDERS {
        let mut case = case(16, PageLayout::Hnd, order);
        case.shape.num_layers = 2;
        case.policy = policy(0.3, Selector::Auto, order);
        case.policy.budgets = vec![BudgetOverride { layers: 1..2, heads: 0..2, budget: Budget::keep_ratio(0.9) }];
        let mut fixture = Fixture::new(gpu, &case);
        fixture.compress_and_compare(gpu, &case, "sound");
        let longest = |fixture: &Fixture, layer: usize| fixture.host[layer].rows[0].len.div_ceil(16);
        let entry = longest(&fixture, 1) - 1;
        assert!(entry >= longest(&fixture, 0), "an entry of layer 1 alone");
        for layer in &mut fixture.host {
            let table: &mut [u32] = bytemuck::cast_slice_mut(layer.buffers.last_mut().expect("a table"));
            table[entry as usize] = u32::MAX;
        }
        fixture.upload_all(gpu);
        let max_len = fixture.max_len();
        submit(gpu, |pass| fixture.bound.record(pass, max_len).expect("a record"));
        // The sequence is left as it is, as if it took no part.
        let mut without = case.clone();
        without.active = vec![false, true, true];
        fixture.compress_host(&without);
        fixture.host.iter_mut().for_each(|layer| layer.status |= Status::BAD_PAGE.0);
        fixture.compare(gpu, &case, "faulty");
    }
}

#[test]
fn no_length_leaves_pages_as_they_are() {
    let gpu = gpu();
    let case = case(16, PageLayout::Hnd, Order::Fill);
    let fixture = Fixture::new(gpu, &case);
    submit(gpu, |pass| fixture.bound.record(pass, 0).expect("a record"));
    fixture.compare(gpu, &case, "no length");
    let freed = fixture.bound.freed_pages().expect("a paged cache");
    let lists = pollster::block_on(freed.read(&gpu.device, &gpu.queue)).expect("a read-back");
    assert!(lists.iter().flatten().all(|sequence| sequence.freed.is_empty()), "{lists:?}");
}

/// What is protected, a prefix too, fills quotas first.
#[test]
fn prefixes_fill_quotas() {
    for order in ORDERS {
        let mut case = case(16, PageLayout::Hnd, order);
        case.policy = Policy { segments: true, ..policy(0.3, Selector::Auto, order) };
        case.lengths = vec![200, 180, 176];
        paged(&mut case).first_writable = vec![2, 0, 7];
        case.segments = vec![vec![Segment { positions: 0..100, min_tokens: 60 }]; 3];
        run(&case);
    }
}

/// A contiguous cache can have a prefix as well, in tokens.
#[test]
fn prefixes_of_contiguous_caches_stay() {
    for order in ORDERS {
        let gpu = gpu();
        let mut case = Case::new(shape(2, 2, 300, 64, Dtype::F16), policy(0.4, Selector::Auto, order));
        case.policy.recent = 9;
        let fixture = Fixture::new(gpu, &case);
        fixture.state.set_first_writable(&gpu.queue, &[77, 250]).expect("a prefix each");
        let kept = pollster::block_on(fixture.bound.compress(&gpu.device, &gpu.queue, 300)).expect("a compression");
        for (row, positions) in kept.layers[0].positions.iter().enumerate() {
            let (prefix, budget) = if row < 2 { (77, 120) } else { (250, 259) };
            assert_eq!(positions.len(), budget, "row {row}");
            assert!(positions[..prefix].iter().copied().eq(0..prefix as u32), "row {row} moved its prefix");
        }
    }
}

/// A selection by the caller's order keys is of the sequences that may take part, and frees pages, as any other.
#[test]
fn order_keys_of_the_caller_by_pages() {
    let apart = [&[Stages::SELECT.and(Stages::COMPACT)][..], &[Stages::SELECT, Stages::COMPACT]];
    for (order, records) in ORDERS.into_iter().flat_map(|order| apart.map(|records| (order, records))) {
        let gpu = gpu();
        let mut case = case(16, PageLayout::Hnd, order);
        case.lengths = vec![243, 170, 176];
        case.active = vec![true, false, true];
        let mut fixture = Fixture::new(gpu, &case);
        let stride = fixture.workspace.order_stride();
        let keys: Vec<u32> = (0..6 * stride).map(|_| 1 + fixture.rng.below(1000) as u32).collect();
        gpu.queue.write_buffer(fixture.workspace.order_keys(), 0, bytemuck::cast_slice(&keys));
        for &stages in records {
            submit(gpu, |pass| fixture.bound.record_stages(pass, 243, stages).expect("a record"));
        }
        fixture.host[0].compress_by(&case, 0, |row_ix, row, _| Scored {
            order_keys: keys[(row_ix * stride) as usize..][..row.len as usize].to_vec(),
            non_finite: false,
        });
        fixture.compare(gpu, &case, "own order keys");
        let freed = fixture.bound.freed_pages().expect("a paged cache");
        let freed = pollster::block_on(freed.read(&gpu.device, &gpu.queue)).expect("a read-back");
        let counts: Vec<usize> = freed[0].iter().map(|sequence| sequence.freed.len()).collect();
        assert_eq!(counts, [8, 0, 5], "122 of 243 tokens and 88 of 176 are kept, by {order:?}");
    }
}

/// So can one whose rows exceed a binding: what must stay may lie beyond the bands that the budget would reach.
#[test]
fn prefixes_of_caches_in_bands_stay() {
    for order in ORDERS {
        let gpu = gpu();
        let mut case = Case::new(shape(1, 2, 3000, 64, Dtype::F16), policy(0.1, Selector::Auto, order));
        case.policy.recent = 64;
        case.options.max_binding_bytes = Some(1 << 16);
        let mut fixture = Fixture::new(gpu, &case);
        fixture.state.set_first_writable(&gpu.queue, &[2000]).expect("a prefix");
        let kept = pollster::block_on(fixture.bound.compress(&gpu.device, &gpu.queue, 3000)).expect("a compression");
        let tensors = [(case.shape.keys, fixture.host[0].keys), (case.shape.values, fixture.host[0].values)];
        let rows = |layer: &HostLayer, row| tensors.map(|(spec, place)| layer.gather(&place, &spec, &case.shape, row));
        let before = [0, 1].map(|row| rows(&fixture.host[0], row));
        fixture.download_all(gpu);
        for (row, positions) in kept.layers[0].positions.iter().enumerate() {
            let expected: BTreeSet<u32> = (0..2000).chain(2936..3000).collect();
            assert_eq!(positions.iter().copied().collect::<BTreeSet<_>>(), expected, "row {row}");
            let after = rows(&fixture.host[0], row as u32);
            for (t, (spec, _)) in tensors.iter().enumerate() {
                let token = |bytes: &[u8], slot: usize| {
                    bytes[slot * spec.row_bytes() as usize..][..spec.row_bytes() as usize].to_vec()
                };
                for (slot, &position) in positions.iter().enumerate() {
                    let (from, to) = (token(&before[row][t], position as usize), token(&after[t], slot));
                    assert!(from == to, "slot {slot} of row {row} by {order:?}");
                }
            }
        }
    }
}

/// What a compression has freed can be read after the norms of later tokens were taken.
#[test]
fn norms_leave_what_was_freed() {
    let gpu = gpu();
    let mut case = case(16, PageLayout::Hnd, Order::Fill);
    case.policy.cached_norms = true;
    let mut fixture = Fixture::new(gpu, &case);
    fixture.compress_and_compare(gpu, &case, "first");
    fixture.append(gpu, &case);
    let read = || {
        let freed = fixture.bound.freed_pages().expect("a paged cache");
        pollster::block_on(freed.read(&gpu.device, &gpu.queue)).expect("a read-back")
    };
    let before = read();
    assert!(before[0].iter().any(|sequence| !sequence.freed.is_empty()), "nothing was freed");
    submit(gpu, |pass| fixture.bound.record_norms(pass, 64).expect("norms"));
    assert_eq!(read(), before, "after the norms");
}

/// A fault makes its sequence, and a writer of the same page, be left as it is; the others are compressed.
#[test]
fn faulty_tables_touch_nothing() {
    let sound = case(16, PageLayout::Hnd, Order::Fill);
    let pages = sound.paged.as_ref().expect("pages").shape(&sound.shape).num_pages;
    let table = |case: &Case, sequence: usize, entry: usize| {
        let fixture = Fixture::new(gpu(), case);
        let words: Vec<u32> = bytemuck::cast_slice(fixture.host[0].buffers.last().expect("a table")).to_vec();
        words[sequence * 20 + entry]
    };
    let (first, other) = (table(&sound, 0, 2), table(&sound, 2, 4));
    let unused = table(&sound, 2, 19);
    let faults: [(&str, Vec<(u32, u32, u32)>, [bool; 3]); 11] = [
        ("none", vec![], [false; 3]),
        ("an id beyond the pool", vec![(0, 3, pages)], [true, false, false]),
        ("the largest id", vec![(2, 10, u32::MAX)], [false, false, true]),
        ("the last entry in use", vec![(0, 15, pages + 7)], [true, false, false]),
        ("an entry not in use", vec![(0, 16, u32::MAX), (2, 11, first), (1, 0, pages)], [false; 3]),
        ("twice side by side", vec![(0, 3, first)], [true, false, false]),
        ("twice far apart", vec![(0, 15, first)], [true, false, false]),
        ("of another sequence", vec![(0, 3, other)], [true, false, true]),
        ("of another's entries not in use", vec![(0, 3, unused)], [false; 3]),
        ("in both sequences", vec![(0, 0, u32::MAX), (2, 0, pages)], [true, false, true]),
        ("all entries the same", (0..20).map(|e| (2, e, first)).collect(), [true, false, true]),
    ];
    for order in ORDERS {
        for layout in LAYOUTS {
            for (name, faults, bad) in &faults {
                let mut case = case(16, layout, order);
                case.appended.clear();
                paged(&mut case).faults = faults.clone();
                let mut fixture = Fixture::new(gpu(), &case);
                assert_eq!(HostLayer::bad_sequences(&[&fixture.host[0]], &case), bad, "{name}");
                fixture.compress_and_compare(gpu(), &case, name);
                // The status bit, and what the caller's shaders can read of each sequence.
                let kept = pollster::block_on(fixture.state.read(&gpu().device, &gpu().queue)).expect("a read-back");
                assert_eq!(kept.layers[0].status.contains(Status::BAD_PAGE), bad.contains(&true), "{name}");
                let skipped = kept_words(&fixture, fixture.state.offsets().skipped, 3);
                assert_eq!(skipped, bad.map(|b| if b { 2 } else { 0 }), "{name}");
            }
        }
    }
}

fn kept_words(fixture: &Fixture, first: u32, count: usize) -> Vec<u32> {
    let bytes = crate::support::download(gpu(), fixture.state.meta());
    bytemuck::cast_slice::<u8, u32>(&bytes)[first as usize..][..count].to_vec()
}

/// A page that one sequence may write and another only reads is not written; two readers do not mind each other.
#[test]
fn readers_keep_writers_away() {
    let mut case = case(16, PageLayout::Hnd, Order::Fill);
    case.appended.clear();
    case.lengths = vec![243, 243, 243];
    paged(&mut case).first_writable = vec![3, 3, 2];
    // Entry 2 is read by the first two and written by the third.
    let shared = {
        let fixture = Fixture::new(gpu(), &case);
        let words: Vec<u32> = bytemuck::cast_slice(fixture.host[0].buffers.last().expect("a table")).to_vec();
        words[2]
    };
    paged(&mut case).faults = vec![(2, 2, shared)];
    let mut fixture = Fixture::new(gpu(), &case);
    assert_eq!(HostLayer::bad_sequences(&[&fixture.host[0]], &case), [false, false, true]);
    fixture.compress_and_compare(gpu(), &case, "a writer among readers");
}

/// Page 0 holds nobody's tokens: its bytes are compared as all others are.
#[test]
fn the_sentinel_is_not_followed() {
    for order in ORDERS {
        let mut case = case(16, PageLayout::OnePool, order);
        paged(&mut case).has_sentinel = true;
        run(&case);
        case.appended.clear();
        paged(&mut case).faults = vec![(2, 10, 0)];
        let mut fixture = Fixture::new(gpu(), &case);
        assert_eq!(HostLayer::bad_sequences(&[&fixture.host[0]], &case), [false, false, true]);
        fixture.compress_and_compare(gpu(), &case, "the sentinel in a table");
    }
}

/// Stages apart, and records whose check has no compaction after it, find the marks as they should be.
#[test]
fn stages_apart() {
    use keynorm::Stages;
    for order in ORDERS {
        let mut case = case(16, PageLayout::Hnd, order);
        case.appended.clear();
        let mut fixture = Fixture::new(gpu(), &case);
        let max_len = fixture.max_len();
        for stages in [Stages::SCORE, Stages::SCORE, Stages::SELECT, Stages::COMPACT] {
            submit(gpu(), |pass| fixture.bound.record_stages(pass, max_len, stages).expect("a record"));
        }
        fixture.compress_host(&case);
        fixture.compare(gpu(), &case, "apart");
    }
}

/// The same tokens in pages and side by side: the same sets, the same rows.
#[test]
fn paged_and_contiguous_caches_agree() {
    for order in ORDERS {
        for (layout, data) in LAYOUTS.into_iter().zip([Data::Random, Data::Ties, Data::Special, Data::Random]) {
            let gpu = gpu();
            let mut in_pages = case(16, layout, order);
            in_pages.data = data;
            let contiguous = Case { paged: None, ..in_pages.clone() };
            let mut fixtures = [Fixture::new(gpu, &contiguous), Fixture::new(gpu, &in_pages)];
            let shape = &in_pages.shape;
            // Tokens of the pages, written over those of the contiguous cache.
            for row in 0..shape.rows_per_layer() {
                for is_keys in [true, false] {
                    let spec = if is_keys { &shape.keys } else { &shape.values };
                    let [to, from] = &mut fixtures;
                    let place = |l: &HostLayer| if is_keys { l.keys } else { l.values };
                    let rows = from.host[0].gather(&place(&from.host[0]), spec, shape, row);
                    let place = place(&to.host[0]);
                    to.host[0].scatter(place, spec, shape, row, &rows);
                }
            }
            fixtures[0].upload_all(gpu);
            let kept = fixtures.each_mut().map(|f| {
                let max_len = f.max_len();
                pollster::block_on(f.bound.compress(&gpu.device, &gpu.queue, max_len)).expect("a compression")
            });
            assert_eq!(kept[0], kept[1], "{layout:?}, {order:?}");
            let rows = fixtures.each_mut().map(|f| {
                f.download_all(gpu);
                let layer = &mut f.host[0];
                for (row, positions) in layer.rows.iter_mut().zip(&kept[0].layers[0].positions) {
                    row.len = positions.len() as u32;
                }
                let layer = &f.host[0];
                let all = 0..shape.rows_per_layer();
                all.map(|row| {
                    [
                        layer.gather(&layer.keys, &shape.keys, shape, row),
                        layer.gather(&layer.values, &shape.values, shape, row),
                    ]
                })
                .collect::<Vec<_>>()
            });
            assert!(rows[0] == rows[1], "rows differ: {layout:?}, {order:?}");
            assert!(rows[0][0][0].len() > 1000, "rows are empty");
        }
    }
}
