//! Small cases that between them reach every kernel, variant and branch.

use keynorm::{Budget, Direction, Dtype, Module, Options, Order, Policy, Rounding, Selector, Stages, Switch};

use crate::support::{Built, Case, Data, Fixture, Layout, gpu, shape, submit};

pub struct Quick {
    pub name: &'static str,
    pub case: Case,
    /// Record the stages apart, so that the selector counts first digits itself.
    pub apart: bool,
    /// Whether the case runs one of these modules.
    pub reaches: fn(&[Module]) -> bool,
}

fn any(_: &[Module]) -> bool {
    true
}

fn policy(keep_ratio: f64, selector: Selector, order: Order) -> Policy {
    Policy { selector, order, ..Policy::new(Budget::keep_ratio(keep_ratio)) }
}

pub fn quick() -> Vec<Quick> {
    use Order::{Fill, Positional};
    use Selector::{Bitonic, Radix};
    let mut all = Vec::new();
    let mut add = |name, case, apart| all.push(Quick { name, case, apart, reaches: any });
    for (selector, order) in [(Radix, Fill), (Bitonic, Positional), (Radix, Positional), (Bitonic, Fill)] {
        for subgroups in [Switch::Off, Switch::On] {
            // Two layers, two sequences, two heads: every base and stride counts; a round after appending.
            let mut case = Case::new(shape(2, 2, 300, 64, Dtype::F16), policy(0.4, selector, order));
            case.shape.num_layers = 2;
            case.shape.values.head_dim = 96;
            case.lengths = vec![290, 131];
            case.appended = vec![10, 37];
            case.options = Options::with_subgroups(subgroups);
            (case.policy.sinks, case.policy.recent) = (3, 9);
            add("two rounds", case.clone(), false);

            let mut ties = Case::new(shape(2, 2, 700, 32, Dtype::Bf16), policy(0.55, selector, order));
            ties.options = Options::with_subgroups(subgroups);
            ties.data = Data::Special;
            ties.layout = Layout::Offset { words: 3, pad_elements: 2 };
            ties.lengths = vec![700, 1];
            ties.policy.direction = Direction::Highest;
            add("special", ties.clone(), false);
            ties.data = Data::Ties;
            ties.shape.keys.dtype = Dtype::F32;
            ties.active = vec![true, false];
            ties.policy.direction = Direction::Lowest;
            add("ties", ties.clone(), false);
            ties.data = Data::Special;
            ties.layout = Layout::Hnd;
            ties.policy.direction = Direction::Random { seed: 0x1234_5678_9abc_def0 };
            ties.lengths = vec![0, 699];
            ties.active = vec![];
            ties.policy.budget = Budget::KeepRatio { keep_ratio: 0.29, rounding: Rounding::Floor };
            add("random", ties, false);
        }
        // Long rows: the chain of dispatches, with and without the histogram of the score stage.
        for (subgroups, apart) in [(Switch::Off, false), (Switch::On, true), (Switch::Off, true), (Switch::On, false)] {
            let mut long = Case::new(shape(2, 1, 18_000, 16, Dtype::F16), policy(0.5, selector, order));
            long.lengths = vec![18_000, 9000];
            long.data = Data::Special;
            long.policy.recent = 70;
            long.options = Options::with_subgroups(subgroups);
            add("long", long, apart);
        }
    }
    all
}

pub fn run(quick: &Quick, built: &Built) {
    let (gpu, case) = (gpu(), &quick.case);
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
