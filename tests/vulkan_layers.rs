//! Vulkan's validation and synchronization validation over a sample of the cases and those of the mutants: no message. That
//! messages are counted is shown by one that is provoked. Each part runs in a process of its own, since the counter is one per
//! process.
//!
//! Needs the layer `VK_LAYER_KHRONOS_validation` (Debian: `vulkan-validationlayers`); `KEYNORM_SKIP_VALIDATION_LAYERS=1`
//! leaves these tests out. Debug profile only: wgpu-hal counts nothing where debug assertions are off.
#![cfg(all(target_os = "linux", debug_assertions))]

#[path = "mutants/cases.rs"]
#[allow(dead_code, reason = "shared with the mutants")]
mod cases;
#[path = "gpu/external.rs"]
mod external;
#[path = "gpu/rotation.rs"]
mod rotation;
#[path = "gpu/running.rs"]
mod running;
#[path = "gpu/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the GPU")]
mod support;

use std::process::{Command, Output};

use keynorm::{Budget, Direction, Dtype, Options, Order, Policy, Selector, Switch};
use support::{Case, Data, Layout, gpu, run, shape};

const CHILD: &str = "KEYNORM_VALIDATION_CHILD";
const COUNTED: &str = "validation messages: ";

fn sample() -> Vec<Case> {
    let mut cases = Vec::new();
    for selector in [Selector::Radix, Selector::Bitonic] {
        for order in [Order::Fill, Order::Positional] {
            let policy = Policy { selector, order, recent: 5, ..Policy::new(Budget::keep_ratio(0.4)) };
            for (dtype, subgroups) in [(Dtype::F32, Switch::Off), (Dtype::F16, Switch::On), (Dtype::Bf16, Switch::Auto)]
            {
                let mut case = Case::new(shape(2, 2, 300, 64, dtype), policy.clone());
                case.shape.num_layers = 3;
                case.policy.skip_layers = vec![1];
                case.lengths = vec![250, 77];
                case.appended = vec![50, 9];
                case.options = Options::with_subgroups(subgroups);
                case.data = Data::Special;
                cases.push(case.clone());
                case.layout = Layout::Interleaved { words: 5 };
                case.policy.direction = Direction::Random { seed: 5 };
                cases.push(case.clone());
                case.layout = Layout::Offset { words: 3, pad_elements: 2 };
                case.options.max_binding_bytes = Some(1 << 17);
                cases.push(case);
            }
            cases.push(Case::new(shape(2, 1, 20_000, 16, Dtype::F16), policy.clone()));
            // Positional moves by ranges here.
            let policy = Policy { budget: Budget::keep_ratio(0.8), ..policy };
            cases.push(Case::new(shape(1, 1, 20_000, 16, Dtype::F16), policy));
        }
    }
    cases
}

/// Runs a test of this program again under the layers.
fn child(test: &str, debug: &str) -> Output {
    Command::new(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("WGPU_BACKEND", "vulkan")
        .env("WGPU_DEBUG", debug)
        .env("WGPU_VALIDATION", "1")
        .output()
        .expect("a child")
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Whether the tests are left out, by name; fails where the layer is missing.
fn is_left_out() -> bool {
    if std::env::var_os("KEYNORM_SKIP_VALIDATION_LAYERS").is_some_and(|v| v == "1") {
        println!("left out: KEYNORM_SKIP_VALIDATION_LAYERS=1");
        return true;
    }
    let dirs = [
        "/usr/share/vulkan/explicit_layer.d",
        "/usr/local/share/vulkan/explicit_layer.d",
        "/etc/vulkan/explicit_layer.d",
    ];
    let files = dirs.iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
    let found =
        files.into_iter().any(|f| f.file_name().to_string_lossy().to_lowercase().contains("khronos_validation"));
    assert!(
        found,
        "VK_LAYER_KHRONOS_validation is missing: install vulkan-validationlayers, or leave these tests out by \
         KEYNORM_SKIP_VALIDATION_LAYERS=1"
    );
    false
}

/// What the child counted.
fn counted(output: &Output) -> usize {
    let said = String::from_utf8_lossy(&output.stdout);
    let all = format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    let number =
        said.lines().find_map(|l| l.split_once(COUNTED)).unwrap_or_else(|| panic!("nothing counted:\n{all}")).1;
    number.trim().parse().unwrap_or_else(|_| panic!("no number: {number}"))
}

fn print_count() {
    let messages = wgpu_hal::VALIDATION_CANARY.get_and_reset();
    messages.iter().for_each(|m| println!("{m}"));
    println!("{COUNTED}{}", messages.len());
}

#[test]
fn no_message_over_the_sample() {
    if is_child() {
        gpu();
        let cases = sample();
        cases.iter().for_each(run);
        // Those that reach every kernel, variant and branch; of long rows one of each name and order.
        let mut quick = cases::quick();
        let mut seen = std::collections::HashSet::new();
        quick.retain(|q| q.case.shape.capacity <= 2500 || seen.insert((q.name, format!("{:?}", q.case.policy.order))));
        quick.iter().for_each(|quick| cases::run(gpu(), quick, &support::BUILT));
        println!("{} cases, {} quick ones", cases.len(), quick.len());
        return print_count();
    }
    if !is_left_out() {
        let output = child("no_message_over_the_sample", "0");
        assert_eq!(counted(&output), 0, "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// With debug information in shaders: the layer of Debian 12 does not know the language code that naga puts there, and says
/// so for each module, <https://github.com/gfx-rs/wgpu/issues/7375>.
#[test]
fn a_provoked_message_is_counted() {
    if is_child() {
        run(&sample()[0]);
        return print_count();
    }
    if !is_left_out() {
        let output = child("a_provoked_message_is_counted", "1");
        assert!(counted(&output) > 0, "the counter counts nothing:\n{}", String::from_utf8_lossy(&output.stdout));
    }
}
