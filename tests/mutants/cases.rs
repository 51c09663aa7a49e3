//! Small cases that between them reach every kernel, variant and branch.

use keynorm::{
    Budget, BudgetOverride, Direction, Dtype, ExternalScore, Options, Order, Pairing, Policy, Pool, Rope, Rounding,
    Score, Segment, Selector, Stages, Switch, TensorSpec,
};

use crate::external::run_external;
use crate::rotation::run_rotated;
use crate::running::run_running;
use crate::support::{Built, Case, Data, Fixture, Gpu, HostLayer, Layout, PageLayout, Paged, Rng, shape, submit};

#[derive(Clone)]
pub struct Quick {
    pub name: &'static str,
    pub case: Case,
    /// Record the stages apart, so that the selector counts first digits itself.
    pub apart: bool,
    /// Turn the keys afterwards.
    pub rope: Option<Rope>,
}

fn policy(keep_ratio: f64, selector: Selector, order: Order) -> Policy {
    Policy { selector, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

/// Two layers, three heads, two sequences: every base and stride counts; then tokens are appended, many to one sequence.
fn two_rounds(selector: Selector, order: Order) -> Case {
    let mut case = Case::new(shape(2, 3, 300, 64, Dtype::F16), policy(0.4, selector, order));
    case.shape.num_layers = 2;
    case.shape.values.head_dim = 96;
    case.lengths = vec![290, 40];
    case.appended = vec![10, 240];
    (case.policy.sinks, case.policy.recent) = (3, 9);
    case
}

fn special(selector: Selector, order: Order) -> Case {
    let mut case = Case::new(shape(2, 2, 700, 136, Dtype::Bf16), policy(0.55, selector, order));
    case.shape.values.head_dim = 32;
    case.data = Data::Special;
    case.layout = Layout::Offset { words: 3, pad_elements: 2 };
    case.lengths = vec![700, 1];
    case.appended = vec![0, 50];
    case.policy.direction = Direction::Highest;
    case.policy.budget = Budget::KeepTokens(120);
    case
}

fn ties(selector: Selector, order: Order) -> Case {
    let mut case = special(selector, order);
    case.data = Data::Ties;
    case.shape.keys = TensorSpec::new(Dtype::F32, 136);
    case.active = vec![true, false];
    case.policy.budget = Budget::keep_ratio(0.55);
    case.policy.direction = Direction::Lowest;
    case
}

fn random(selector: Selector, order: Order) -> Case {
    let mut case = special(selector, order);
    case.shape.num_layers = 2;
    case.layout = Layout::Hnd;
    case.policy.direction = Direction::Random { seed: 0x1234_5678_9abc_def0 };
    case.lengths = vec![0, 699];
    case.policy.budget = Budget::KeepRatio { keep_ratio: 0.29, rounding: Rounding::Floor };
    case
}

/// Budgets of one token, raised where zero norms or protected tokens are many.
fn least(selector: Selector, order: Order, recent: u32, direction: Direction) -> Case {
    let mut case = Case::new(shape(3, 8, 40, 16, Dtype::F16), policy(0.0, selector, order));
    case.data = Data::Special;
    case.lengths = vec![40, 33, 2];
    case.policy.direction = direction;
    case.policy.recent = recent;
    case
}

/// Rows for the chain of dispatches, twice: the second round finds the scratch of the first.
fn long(selector: Selector, order: Order) -> Case {
    let keep_ratio = if order == Order::Fill { 0.5 } else { 0.002 };
    let mut case = Case::new(shape(2, 1, 10_000, 16, Dtype::F16), policy(keep_ratio, selector, order));
    case.lengths = vec![9500, 4000];
    case.appended = if order == Order::Fill { vec![5250, 5009] } else { vec![9900, 9000] };
    case.policy.recent = 70;
    case
}

/// Rows of one workgroup of 512, whose first digits hold a threshold in the last bin or a raised budget, twice.
fn one_workgroup(selector: Selector, order: Order) -> Case {
    let mut case = long(selector, order);
    case.shape.capacity = 3000;
    case.policy.budget = Budget::keep_ratio(0.002);
    case.lengths = vec![2900, 70];
    case.appended = vec![100, 2900];
    case
}

/// Rows of so many tiles that one workgroup finds the threshold for all, twice.
fn settled(order: Order, data: Data, subgroups: Switch) -> Case {
    let mut case = Case::new(shape(2, 1, 270_000, 16, Dtype::F16), policy(0.3, Selector::Radix, order));
    case.data = data;
    (case.lengths, case.appended) = (vec![265_000, 3000], vec![186_000, 60]);
    case.options = Options::with_subgroups(subgroups);
    case
}

/// Rows of more tiles than workgroups of the score, beside one of fewer, twice.
fn taken_tiles(subgroups: Switch) -> Case {
    let mut case = Case::new(shape(2, 8, 17_000, 64, Dtype::F16), policy(0.5, Selector::Radix, Order::Fill));
    case.options = Options::with_subgroups(subgroups);
    (case.lengths, case.appended) = (vec![17_000, 300], vec![8500, 13_000]);
    case
}

/// The threshold among thousands of equal keys beyond all bins.
fn beyond(order: Order) -> Case {
    let mut case = Case::new(shape(2, 1, 60_000, 16, Dtype::F16), policy(0.95, Selector::Radix, order));
    case.data = Data::Special;
    case.lengths = vec![60_000, 59_000];
    case
}

/// Norms from zero to NaN, the threshold among the highest.
fn spread(order: Order) -> Case {
    let mut case = Case { data: Data::Special, ..long(Selector::Radix, order) };
    case.policy.budget = Budget::keep_ratio(0.9);
    case.appended.clear();
    case
}

/// Rows enough that a workgroup takes each whole, in ragged lengths, twice.
fn whole_rows(order: Order, subgroups: Switch) -> Case {
    let mut case = Case::new(shape(32, 3, 300, 64, Dtype::F16), policy(0.4, Selector::Auto, order));
    case.shape.values.head_dim = 96;
    case.options = Options::with_subgroups(subgroups);
    case.data = Data::Special;
    case.lengths = (0..32).map(|b| 257 - 8 * b).collect();
    case.appended = (0..32).map(|b| b * 9 % 44).collect();
    case.active = (0..32).map(|b| b % 5 != 2).collect();
    (case.policy.sinks, case.policy.recent) = (3, 9);
    case
}

/// Rows so few that several workgroups take each, in runs of two layers, twice.
fn few_rows(order: Order, subgroups: Switch) -> Case {
    let mut case = layers_at_once(Selector::Auto, order);
    case.options = Options::with_subgroups(subgroups);
    (case.shape.num_layers, case.shape.batch_size, case.shape.capacity) = (5, 3, 1100);
    case.policy.skip_layers = vec![0, 3, 4];
    case.policy.budgets = vec![BudgetOverride { layers: 2..5, heads: 1..2, budget: Budget::keep_ratio(0.8) }];
    (case.lengths, case.appended) = (vec![800, 17, 500], vec![90, 40, 380]);
    case.active = vec![true, false, true];
    case
}

/// Rows of as many tokens as a workgroup holds, in caches with room for more: one takes each, or several do.
fn full_rows(rows: u32, order: Order) -> Case {
    let mut case = Case::new(shape(rows, 1, 2100, 16, Dtype::F16), policy(0.4, Selector::Auto, order));
    case.options = Options::with_subgroups(Switch::On);
    case.lengths = (0..rows).map(|b| 2048 - 300 * b / rows).collect();
    case
}

/// Few rows of more tokens than an invocation's eight, of workgroups of 1024 or, with 32 KiB of workgroup memory, 512; twice.
fn two_eights(order: Order, data: Data, subgroups: Switch) -> Case {
    let capacity = if subgroups == Switch::On { 9000 } else { 6000 };
    let mut case = Case::new(shape(3, 1, capacity, 16, Dtype::F16), policy(0.45, Selector::Auto, order));
    case.options = Options::with_subgroups(subgroups);
    case.data = data;
    // Short rows use what long ones leave.
    (case.lengths, case.appended) = (vec![capacity, 300, 290], vec![capacity / 2, capacity - 800, 70]);
    (case.policy.sinks, case.policy.recent) = (3, 9);
    case
}

/// Rows so many that no workgroup is left for their state.
fn crowded(order: Order) -> Case {
    let mut case = full_rows(60, order);
    // Of more bytes than short rows have, so that parts take them wherever.
    (case.shape.keys.head_dim, case.shape.values.head_dim) = (40, 40);
    (case.shape.capacity, case.lengths) = (4100, (0..60).map(|b| 4100 - 50 * b).collect());
    case
}

/// Rows of 512 invocations without words of their own for keys, where workgroup memory is 32 KiB.
fn rows_of_shared_words() -> Case {
    let mut case = full_rows(132, Order::Fill);
    case.options = Options::with_subgroups(Switch::Off);
    (case.shape.capacity, case.lengths) = (2600, vec![2600; 132]);
    case
}

/// A case's sequences again and again, so that a workgroup takes each row whole: a wide one of up to 128 rows, from 257 on
/// a narrow one.
fn many_rows(mut case: Case, rows: u32) -> Case {
    let times = rows.div_ceil(case.shape.rows_per_layer());
    case.shape.batch_size *= times;
    let times = times as usize;
    (case.lengths, case.appended) = (case.lengths.repeat(times), case.appended.repeat(times));
    case.active = case.active.repeat(times);
    case.options = Options::with_subgroups(Switch::On);
    case
}

/// Many layers of one buffer at once, by whole rows or stage by stage, in runs between those that are left out.
fn layers_at_once(selector: Selector, order: Order) -> Case {
    let mut case = whole_rows(order, Switch::On);
    case.policy.selector = selector;
    // Runs of four layers, with rows enough to be taken whole.
    (case.shape.num_layers, case.shape.batch_size, case.shape.capacity) = (10, 8, 64);
    case.policy.skip_layers = vec![0, 5];
    (case.lengths, case.appended) = (vec![60, 17, 50, 2, 31, 40, 64, 1], vec![3, 40, 9, 1, 0, 24, 0, 5]);
    case.active = vec![];
    case.one_buffer = true;
    case.policy.budgets = vec![BudgetOverride { layers: 3..10, heads: 1..2, budget: Budget::keep_ratio(0.8) }];
    case
}

/// Enough kept rows for every piece of the positional walk, by the workgroups that GPUs take.
fn walk() -> Case {
    let mut case = Case::new(shape(1, 2, 2600, 16, Dtype::F16), policy(0.6, Selector::Radix, Order::Positional));
    case.options = Options::with_subgroups(Switch::Off);
    case
}

/// Keys of one bin: so many that they are held in workgroup memory, or read again for each digit.
fn near(spread: i32, capacity: u32, order: Order) -> Case {
    let mut case = Case::new(shape(2, 1, capacity, 16, Dtype::F16), policy(0.3, Selector::Radix, order));
    case.data = Data::Near { spread };
    case.lengths = vec![capacity, capacity - 700];
    case
}

/// Keys before or after the window of first digits.
fn outside(power: i32, capacity: u32) -> Case {
    Case { data: Data::Scaled { power }, ..near(0, capacity, Order::Fill) }
}

/// Positional by two ranges, on CPUs by themselves eight; the first row moves by few slots, so that the last walk finds
/// much.
fn ranges(subgroups: Switch) -> Case {
    let mut case = Case::new(shape(2, 1, 24_000, 16, Dtype::F16), policy(0.0, Selector::Radix, Order::Positional));
    case.policy.budget = Budget::KeepTokens(16_800);
    case.lengths = vec![16_900, 24_000];
    case.options = Options::with_subgroups(subgroups);
    case
}

/// One of many equals is kept, before protected tokens.
fn one_of_equals(selector: Selector, order: Order) -> Case {
    let mut case = Case::new(shape(1, 1, 50, 16, Dtype::F16), policy(0.0, selector, order));
    case.data = Data::AllEqual;
    case.policy.recent = 20;
    case.policy.budget = Budget::KeepTokens(21);
    case
}

/// Rows beyond workgroup memory, as many as make an unsorted neighbour at some threshold likely.
fn many_sorts() -> Case {
    Case::new(shape(1, 48, 4200, 16, Dtype::F16), policy(0.5, Selector::Bitonic, Order::Fill))
}

/// Scores of two passes over the keys: several tiles, more chunks than lanes, a window by share.
fn two_passes(score: Score, dtype: Dtype, head_dim: u32) -> Case {
    let mut case = Case::new(shape(2, 2, 700, head_dim, dtype), policy(0.4, Selector::Radix, Order::Fill));
    case.shape.num_layers = 2;
    case.data = Data::Special;
    // In the second round whole tiles, and behind them those of the first.
    case.lengths = vec![700, 40];
    case.appended = vec![232, 500];
    case.policy.score = score;
    case.policy.direction = if dtype == Dtype::F16 { Direction::Lowest } else { Direction::Highest };
    (case.policy.sinks, case.policy.recent, case.policy.recent_share) = (3, 40, Some(0.05));
    case
}

fn external(kind: ExternalScore, direction: Direction, capacity: u32) -> Case {
    let policy = Policy { score: Score::External(kind), direction, ..policy(0.4, Selector::Radix, Order::Fill) };
    let mut case = Case::new(shape(2, 3, capacity, 16, Dtype::F16), policy);
    case.shape.num_layers = 2;
    (case.policy.sinks, case.policy.recent) = (3, 9);
    case.lengths = vec![capacity - 3, 40];
    case
}

/// Some layers and sequences, heads of different lengths, twice; halves of pairs in one word and in two.
fn rotated() -> Vec<Quick> {
    let of = |(dtype, pairing, rotary_dim): (Dtype, Pairing, u32)| {
        let mut case = Case::new(shape(3, 2, 300, 64, dtype), policy(0.4, Selector::Radix, Order::Positional));
        case.shape.num_layers = 3;
        case.policy.skip_layers = vec![1];
        // NaN and infinity are kept in the other head.
        case.policy.budget = Budget::keep_ratio(0.97);
        case.policy.budgets = vec![BudgetOverride { layers: 0..3, heads: 1..2, budget: Budget::KeepTokens(30) }];
        case.data = Data::Special;
        case.active = vec![true, false, true];
        (case.lengths, case.appended) = (vec![290, 40, 130], vec![10, 9, 150]);
        let rope = Some(Rope { pairing, ..Rope::new(rotary_dim, 10_000.0) });
        Quick { name: "rotated", case, apart: false, rope }
    };
    let halves = Pairing::HalfSplit;
    [(Dtype::F32, halves, 60), (Dtype::F16, halves, 64), (Dtype::Bf16, Pairing::Interleaved, 30)].map(of).into()
}

/// Norms of tensors that differ.
fn ratios(dtype: Dtype, direction: Direction) -> Case {
    let mut case = two_passes(Score::ValueKeyRatio, dtype, 80);
    case.shape.values = TensorSpec::new(if dtype == Dtype::F16 { Dtype::F32 } else { Dtype::F16 }, 48);
    case.policy.direction = direction;
    case
}

/// Scores and sums that the state keeps; several tiles are new.
fn kept_scores(subgroups: Switch, direction: Direction) -> Case {
    let mut case = Case::new(shape(2, 2, 1400, 64, Dtype::F16), policy(0.4, Selector::Radix, Order::Fill));
    case.shape.num_layers = 3;
    case.policy.skip_layers = vec![1];
    (case.policy.score, case.policy.cached_norms, case.policy.direction) = (Score::KeyDiff, true, direction);
    case.options = Options::with_subgroups(subgroups);
    case.data = Data::Special;
    (case.lengths, case.appended) = (vec![800, 30], vec![500, 600]);
    case
}

/// The threshold lies between bf16 keys that count as zero and the smallest that do not.
fn edge() -> Case {
    let mut case = Case::new(shape(2, 4, 200, 16, Dtype::Bf16), policy(0.37, Selector::Radix, Order::Fill));
    case.data = Data::Special;
    case
}

/// Rows larger than a binding: three bands or more, heads apart or side by side, words or vectors.
fn bands(selector: Selector, order: Order, layout: Layout) -> Case {
    let mut case = Case::new(shape(2, 3, 1300, 64, Dtype::F16), policy(0.7, selector, order));
    case.shape.values.head_dim = 96;
    case.shape.num_layers = 2;
    case.layout = layout;
    case.options.max_binding_bytes = Some(1 << 16);
    case.lengths = vec![1200, 700];
    case.appended = vec![100, 500];
    case.active = vec![true, layout != Layout::Nhd];
    case
}

/// Enough moves for every piece of a walk within a band, and for every token in flight from one to another.
fn bands_of_many(keep_ratio: f64, order: Order) -> Case {
    let mut case = Case::new(shape(1, 2, 5000, 16, Dtype::F16), policy(keep_ratio, Selector::Radix, order));
    case.options.max_binding_bytes = Some(1 << 16);
    case
}

/// The last but one token is dropped, all others are protected.
fn band_with_one_move() -> Case {
    let mut case = bands_of_many(0.0, Order::Positional);
    case.policy.budget = Budget::KeepTokens(4999);
    (case.policy.sinks, case.policy.recent) = (4998, 1);
    case
}

/// Norms in the cache state, of which the second round reads old ones; every kind of budget with them.
fn cached(selector: Selector, order: Order) -> Case {
    let mut case = two_rounds(selector, order);
    case.policy.cached_norms = true;
    case.policy.min_len = 41;
    case.policy.budgets = vec![
        BudgetOverride { layers: 1..2, heads: 1..3, budget: Budget::MaxNorm(3.0) },
        BudgetOverride { layers: 0..1, heads: 2..3, budget: Budget::keep_ratio(0.9) },
    ];
    case
}

/// Likewise rows that one dispatch compresses, of two layers after one that is left out.
fn cached_rows(order: Order, subgroups: Switch) -> Case {
    let mut case = whole_rows(order, subgroups);
    (case.shape.num_layers, case.shape.batch_size, case.one_buffer) = (3, 16, true);
    case.policy.skip_layers = vec![0];
    case.policy.cached_norms = true;
    case.policy.budgets = vec![BudgetOverride { layers: 2..3, heads: 1..2, budget: Budget::keep_ratio(0.8) }];
    (case.lengths, case.appended) = (case.lengths[..16].to_vec(), case.appended[..16].to_vec());
    case.active.truncate(16);
    case
}

/// Likewise of more tokens than an invocation's eight.
fn cached_pairs(order: Order, data: Data, subgroups: Switch) -> Case {
    let mut case = two_eights(order, data, subgroups);
    case.policy.cached_norms = true;
    case.policy.budget = Budget::keep_ratio(0.97);
    (case.lengths, case.appended) = (vec![case.shape.capacity, 300, 290], vec![100, case.shape.capacity - 800, 70]);
    case
}

/// Keys up to a limit, in rows for the chain of dispatches.
fn norm_limit(selector: Selector) -> Case {
    let mut case = long(selector, Order::Fill);
    case.policy.budget = Budget::MaxNorm(2.0);
    case
}

/// Pooled heads and segments of each kind.
fn pooled(data: Data, min_tokens: u32, recent: u32) -> Case {
    let mut case = two_rounds(Selector::Radix, Order::Fill);
    case.data = data;
    case.active = vec![true, min_tokens > 1];
    case.policy.recent = recent;
    case.policy.pool = Some(Pool { min_tokens });
    case
}

fn segments(data: Data) -> Case {
    let mut case = two_rounds(Selector::Radix, Order::Fill);
    case.data = data;
    case.lengths = vec![257, 40];
    case.policy.recent = 0;
    case.policy.segments = true;
    case.segments = vec![
        vec![
            Segment::pinned(10..30),
            Segment { positions: 30..90, min_tokens: 31 },
            Segment { positions: 90..250, min_tokens: 159 },
            Segment::pinned(250..300),
        ],
        vec![Segment { positions: 0..40, min_tokens: 39 }],
    ];
    case
}

/// Quantised rows whose ends lie within a chunk, in one buffer or two, in bands too.
fn quantised(dtype: Dtype, order: Order, layout: Layout) -> Case {
    let mut case = two_rounds(Selector::Radix, order);
    case.data = Data::Special;
    // Of 72, the last block is a short one.
    case.shape.keys = TensorSpec::new(dtype, if dtype == Dtype::I8Scaled { 72 } else { 64 });
    case.shape.values = if layout == Layout::Nhd { TensorSpec::new(Dtype::I8Scaled, 104) } else { case.shape.keys };
    case.layout = layout;
    (case.policy.sinks, case.policy.recent) = (0, 0);
    case
}

/// Rows of 129 words, as lanes of a GPU take them: four apart from each other, of which the last is not every lane's.
fn words_apart(order: Order, layout: Layout) -> Case {
    let mut case = quantised(Dtype::I8Scaled, order, layout);
    case.shape.keys.head_dim = 512;
    case.shape.values = case.shape.keys;
    case.options = Options::with_subgroups(Switch::Off);
    case
}

fn quantised_bands(order: Order) -> Case {
    let mut case = bands(Selector::Radix, order, Layout::Hnd);
    case.shape.keys = TensorSpec::new(Dtype::Q8_0, 64);
    case.shape.values = TensorSpec::new(Dtype::I8Scaled, 72);
    case
}

/// Pages, some shared: words or vectors, one pool or two, two layers with one table.
fn paged(layout: PageLayout, order: Order) -> Case {
    let mut case = two_rounds(Selector::Radix, order);
    case.shape.capacity = 320;
    case.shape.values.head_dim = if layout == PageLayout::OnePool { 64 } else { 96 };
    case.paged = Some(Paged { first_writable: vec![1, 2], has_sentinel: true, ..Paged::new(16, layout) });
    case
}

/// Tables of which some must not be followed, and a fifth sequence that takes no part.
fn faulty_tables(faults: Vec<(u32, u32, u32)>) -> Case {
    let mut case = Case::new(shape(5, 2, 320, 16, Dtype::F16), policy(0.4, Selector::Radix, Order::Fill));
    case.lengths = vec![300, 289, 320, 17, 200];
    case.active = vec![true, true, true, true, false];
    case.paged = Some(Paged {
        first_writable: vec![1, 2, 1, 0, 0],
        has_sentinel: true,
        faults,
        ..Paged::new(16, PageLayout::Hnd)
    });
    case
}

/// A page that one sequence writes and another only reads.
fn reader_and_writer() -> Case {
    let case = faulty_tables(vec![]);
    let table: Vec<u32> =
        bytemuck::pod_collect_to_vec(HostLayer::new(&case, &mut Rng(1)).buffers.last().expect("a table"));
    let (sequence, entry) = (3, 0);
    assert!(table[0] == table[40], "the first two read one page");
    faulty_tables(vec![(sequence, entry, table[0])])
}

/// One page more than the check looks at in one go, more entries than it takes at a time.
fn many_pages(faults: Vec<(u32, u32, u32)>) -> Case {
    let mut case = Case::new(shape(2, 1, 262_128, 16, Dtype::F16), policy(0.2, Selector::Radix, Order::Fill));
    case.data = Data::Sparse;
    case.lengths = vec![260_001, 40_000];
    case.paged = Some(Paged { faults, ..Paged::new(8, PageLayout::Hnd) });
    case
}

pub fn quick() -> Vec<Quick> {
    let mut all = Vec::new();
    let mut add = |name, case, apart| all.push(Quick { name, case, apart, rope: None });
    let pairs = [
        (Selector::Radix, Order::Fill),
        (Selector::Bitonic, Order::Positional),
        (Selector::Radix, Order::Positional),
        (Selector::Bitonic, Order::Fill),
    ];
    for (selector, order) in pairs {
        add("two rounds", two_rounds(selector, order), false);
        add("special", special(selector, order), false);
        add("ties", ties(selector, order), false);
        add("random", random(selector, order), false);
        add("least", least(selector, order, 0, Direction::Lowest), false);
        add("least of highest", least(selector, order, 0, Direction::Highest), false);
        add("raised", least(selector, order, 5, Direction::Lowest), false);
        add("one of equals", one_of_equals(selector, order), false);
    }
    // The norm alone differs.
    for subgroups in [Switch::Off, Switch::On] {
        let with = |mut case: Case| {
            case.options = Options::with_subgroups(subgroups);
            case
        };
        for (selector, order) in [(Selector::Radix, Order::Fill), (Selector::Bitonic, Order::Positional)] {
            add("two rounds", with(two_rounds(selector, order)), false);
            add("special", with(special(selector, order)), false);
            add("ties", with(ties(selector, order)), false);
            add("least", with(least(selector, order, 0, Direction::Lowest)), false);
        }
        let eights = long(Selector::Radix, Order::Fill);
        let mut longer = Case { lengths: vec![17_500, 4000], appended: vec![9250, 9009], ..eights.clone() };
        longer.shape.capacity = 18_000;
        add("long", with(longer), false);
        add("two eights a row", with(eights), false);
        add("taken tiles", taken_tiles(subgroups), false);
    }
    for (selector, order) in pairs {
        add("long", long(selector, order), order == Order::Positional);
        add("one workgroup", one_workgroup(selector, order), false);
    }
    add("long raised", long(Selector::Radix, Order::Positional), false);
    for spread in [0, 2] {
        add("near", near(spread, 1800, Order::Positional), false);
        add("near, wide", near(spread, 5000, Order::Fill), false);
        add("near, long", near(spread, 9000, Order::Positional), false);
    }
    let mut least_near = near(0, 9000, Order::Fill);
    least_near.policy.budget = Budget::KeepTokens(20);
    add("near, long, of the first digit", least_near, false);
    for power in [-6, 9] {
        add("outside", outside(power, 1500), false);
        add("outside, long", outside(power, 9000), false);
    }
    add("equal, long", Case { data: Data::AllEqual, ..near(0, 9000, Order::Fill) }, false);
    for subgroups in [Switch::Auto, Switch::Off, Switch::On] {
        for score in [Score::KeyDiff, Score::Centroid] {
            for (dtype, head_dim) in [(Dtype::F16, 64), (Dtype::F32, 512), (Dtype::Bf16, 264)] {
                let mut case = two_passes(score, dtype, head_dim);
                case.options = Options::with_subgroups(subgroups);
                add("two passes", case, false);
            }
            let mut case = Case { data: Data::Random, ..long(Selector::Radix, Order::Fill) };
            case.policy.score = score;
            case.shape.capacity = 20_000;
            case.lengths = vec![17_000, 4000];
            case.options = Options::with_subgroups(subgroups);
            add("two passes, long", case, false);
        }
    }
    for (subgroups, direction) in
        [(Switch::Auto, Direction::Lowest), (Switch::Off, Direction::Highest), (Switch::On, Direction::Lowest)]
    {
        let mut scores = [
            two_passes(Score::KeyDiff, Dtype::F16, 64),
            ratios(Dtype::F16, direction),
            external(ExternalScore::F32, direction, 300),
        ];
        for case in &mut scores {
            (case.policy.selector, case.shape.num_layers) = (Selector::Auto, 1);
            case.options = Options::with_subgroups(subgroups);
            add("few rows of another score", case.clone(), false);
        }
        let mut case = kept_scores(subgroups, direction);
        add("kept scores", case.clone(), false);
        (case.policy.selector, case.shape.num_layers, case.policy.skip_layers) = (Selector::Auto, 1, vec![]);
        add("kept scores of whole rows", case, false);
    }
    for (dtype, direction) in [(Dtype::F16, Direction::Highest), (Dtype::Bf16, Direction::Lowest)] {
        add("ratios", ratios(dtype, direction), false);
        for kind in [ExternalScore::F32, ExternalScore::OrderKeys] {
            add("external", external(kind, direction, 300), false);
        }
        add("external, long", external(ExternalScore::F32, direction, 9000), false);
        for kind in [ExternalScore::F32, ExternalScore::OrderKeys] {
            // One token, unless more than one has the lowest score there is; and a threshold among zeros of either sign.
            for keep_ratio in [0.0, if direction == Direction::Lowest { 0.15 } else { 0.78 }] {
                let mut case = external(kind, direction, 300);
                (case.policy.sinks, case.policy.recent) = (0, 0);
                case.policy.budget = Budget::keep_ratio(keep_ratio);
                add("external, few", case, false);
            }
        }
        let mut last = external(ExternalScore::F32, direction, 300);
        (last.policy.sinks, last.policy.recent) = (0, 0);
        last.policy.budget = Budget::keep_ratio(0.97);
        add("external, last", last, false);
        let mut raised = external(ExternalScore::F32, direction, 9000);
        raised.policy.budget = Budget::keep_ratio(0.0);
        add("external, raised", raised, false);
    }
    for (selector, order) in pairs {
        add("cached", cached(selector, order), false);
        let mut case = long(selector, order);
        case.policy.cached_norms = true;
        add("cached, long", case, false);
    }
    // So many tokens that a workgroup counts more of them.
    let mut many = settled(Order::Fill, Data::Random, Switch::Auto);
    (many.lengths[1], many.policy.cached_norms) = (265_000, true);
    many.appended.clear();
    add("cached, many", many, false);
    for selector in [Selector::Radix, Selector::Bitonic] {
        add("norm limit", norm_limit(selector), false);
    }
    let mut limit_twice = long(Selector::Radix, Order::Fill);
    limit_twice.policy.budget = Budget::MaxNorm(3.9);
    add("norm limit, long, twice", limit_twice, false);
    for data in [Data::Random, Data::Ties, Data::Special] {
        add("pooled", pooled(data, 1, 9), false);
        add("pooled with least", pooled(data, 60, 9), false);
        add("pooled and raised", pooled(data, 1, 200), false);
        add("segments", segments(data), false);
    }
    let mut tied = segments(Data::Ties);
    tied.shape.capacity = 900;
    tied.lengths = vec![800, 40];
    tied.appended = vec![];
    tied.segments = vec![vec![Segment { positions: 0..800, min_tokens: 400 }]];
    add("segments of many ties", tied, false);
    let mut near = near(0, 2500, Order::Fill);
    near.policy.pool = Some(Pool { min_tokens: 1 });
    near.shape.num_kv_heads = 2;
    add("pooled, near", near, false);
    for order in [Order::Fill, Order::Positional] {
        for subgroups in [Switch::Off, Switch::On] {
            add("whole rows", whole_rows(order, subgroups), false);
            add("few rows", few_rows(order, subgroups), false);
        }
        let mut short = few_rows(order, Switch::On);
        (short.shape.capacity, short.lengths, short.appended) = (100, vec![90, 17, 60], vec![10, 40, 38]);
        (short.shape.num_kv_heads, short.policy.budgets) = (1, vec![]);
        add("few rows of a tile", short, false);
        for subgroups in [Switch::Off, Switch::On] {
            add("cached rows", cached_rows(order, subgroups), false);
        }
        let tied = Case { layout: Layout::Nhd, ..ties(Selector::Auto, order) };
        add("whole rows of ties", many_rows(tied, 260), false);
        add("whole rows in narrow workgroups", many_rows(whole_rows(order, Switch::On), 260), false);
        add("full rows", full_rows(if order == Order::Fill { 260 } else { 8 }, order), false);
        add("few full rows", full_rows(4, order), false);
        add("rows that leave no room for their state", crowded(order), false);
        add("whole rows, random", many_rows(random(Selector::Auto, order), 96), false);
        add("whole rows, least", many_rows(least(Selector::Auto, order, 0, Direction::Lowest), 96), false);
        add("whole rows, raised", many_rows(least(Selector::Auto, order, 5, Direction::Lowest), 96), false);
        add("whole rows of 512", many_rows(one_workgroup(Selector::Auto, order), 260), false);
        add("whole rows of layers at once", layers_at_once(Selector::Auto, order), false);
        add("layers at once", layers_at_once(Selector::Radix, order), false);
    }
    for subgroups in [Switch::Off, Switch::On] {
        add("settled", settled(Order::Fill, Data::Random, subgroups), false);
        add("settled, near", settled(Order::Positional, Data::Near { spread: 2 }, subgroups), false);
        add("settled, alike", settled(Order::Fill, Data::Near { spread: 0 }, subgroups), false);
        add("settled, equal", settled(Order::Positional, Data::AllEqual, subgroups), false);
    }
    // By workgroups that take several tiles.
    add("settled in turn", settled(Order::Positional, Data::Near { spread: 2 }, Switch::Auto), false);
    add("rows of shared words", rows_of_shared_words(), false);
    for (order, data, subgroups) in [
        (Order::Fill, Data::Special, Switch::On),
        (Order::Positional, Data::Ties, Switch::On),
        (Order::Fill, Data::Near { spread: 0 }, Switch::On),
        (Order::Positional, Data::Random, Switch::On),
        (Order::Fill, Data::Random, Switch::Off),
    ] {
        add("rows of two eights", two_eights(order, data, subgroups), false);
        if order == Order::Fill {
            add("cached rows of two eights", cached_pairs(order, data, subgroups), false);
        }
    }
    add("spread", spread(Order::Fill), false);
    add("beyond all bins", beyond(Order::Fill), false);
    add("spread apart", spread(Order::Positional), true);
    add("walk", walk(), false);
    for subgroups in [Switch::Auto, Switch::Off] {
        add("ranges", ranges(subgroups), false);
    }
    add("edge", edge(), false);
    let mut wide = Case::new(shape(1, 2, 40, 320, Dtype::F32), policy(0.5, Selector::Auto, Order::Fill));
    wide.lengths = vec![39];
    add("tokens of more chunks than lanes", wide, false);
    for order in [Order::Fill, Order::Positional] {
        for layout in [Layout::TokenMajor, Layout::Nhd, Layout::Hnd, Layout::Offset { words: 1, pad_elements: 2 }] {
            add("bands", bands(Selector::Radix, order, layout), false);
        }
        for keep_ratio in [0.5, 0.7, 0.9] {
            add("bands of many", bands_of_many(keep_ratio, order), false);
        }
    }
    for (layout, order) in [
        (PageLayout::Hnd, Order::Fill),
        (PageLayout::Offset, Order::Positional),
        (PageLayout::Offset, Order::Fill),
        (PageLayout::OnePool, Order::Positional),
    ] {
        add("paged", paged(layout, order), layout == PageLayout::OnePool);
    }
    for subgroups in [Switch::Off, Switch::On] {
        for cached_norms in [false, true] {
            let mut case = paged(PageLayout::Hnd, Order::Fill);
            case.options = Options::with_subgroups(subgroups);
            case.policy.cached_norms = cached_norms;
            // New tokens begin at a slot from which four in a row meet the ends of pages.
            case.policy.budget = Budget::keep_ratio(0.41);
            add("paged", case, false);
        }
    }
    let all_one = |page| (2..20).map(|entry| (1, entry, page)).collect();
    for faults in
        [vec![], vec![(0, 18, 0)], vec![(1, 3, 105)], vec![(3, 1, 106)], all_one(50), vec![(0, 18, 1000), (0, 19, 7)]]
    {
        add("faulty tables", faulty_tables(faults), false);
    }
    add("reader and writer", reader_and_writer(), false);
    for dtype in [Dtype::F8E4M3, Dtype::F8E5M2] {
        let mut f8 = two_rounds(Selector::Radix, Order::Fill);
        (f8.shape.keys, f8.data) = (TensorSpec::new(dtype, 48), Data::Special);
        // Among the highest a NaN that is taken for infinity would come first.
        for direction in [Direction::Lowest, Direction::Highest] {
            f8.policy.direction = direction;
            add("f8", f8.clone(), false);
        }
        f8.policy.score = Score::KeyDiff;
        add("f8", f8, false);
    }
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::I8Scaled] {
        add("quantised", quantised(dtype, Order::Fill, Layout::Nhd), false);
        add("quantised", quantised(dtype, Order::Positional, Layout::Interleaved { words: 3 }), false);
    }
    for order in [Order::Fill, Order::Positional] {
        let apart = words_apart(order, Layout::Nhd);
        let mut in_bands = apart.clone();
        in_bands.options.max_binding_bytes = Some(1 << 16);
        add("words apart", apart, false);
        add("words apart", words_apart(order, Layout::Interleaved { words: 3 }), false);
        add("words apart in bands", in_bands, false);
    }
    add("quantised bands", quantised_bands(Order::Fill), false);
    add("quantised bands", quantised_bands(Order::Positional), false);
    add("many pages", many_pages(vec![]), false);
    add("the last page twice", many_pages(vec![(0, 1, 65_536), (0, 5, 65_536)]), false);
    add("band with one move", band_with_one_move(), false);
    add("many sorts", many_sorts(), false);
    all.extend(rotated());
    all
}

pub fn run(gpu: &Gpu, quick: &Quick, built: &Built) {
    let case = &quick.case;
    if let Score::External(kind) = case.policy.score {
        return run_external(gpu, case, kind, built);
    }
    if case.policy.score == Score::KeyDiff && case.policy.cached_norms {
        return run_running(gpu, case, built);
    }
    if let Some(rope) = &quick.rope {
        return run_rotated(gpu, case, rope, built);
    }
    let mut fixture = Fixture::built(gpu, case, built);
    if quick.apart {
        let max_len = fixture.max_len();
        for stage in [Stages::SCORE, Stages::SELECT, Stages::COMPACT] {
            submit(gpu, |pass| fixture.bound.record_stages(pass, max_len, stage).expect("a record"));
        }
        fixture.compress_host(case);
        fixture.compare(gpu, case, "apart");
    } else {
        fixture.compress_and_compare(gpu, case, "first");
    }
    if !case.appended.is_empty() {
        fixture.append(gpu, case);
        fixture.compress_and_compare(gpu, case, "second");
    }
}
