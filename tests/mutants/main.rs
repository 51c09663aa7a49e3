//! One-line faults planted in the shaders, caught by the quick cases. Each barrier is dropped, each comparison is made
//! off by one or, where that changes nothing, negated, each stride is lengthened ([`generate`]); [`list::BY_HAND`] adds
//! faults of other kinds. A place none of whose faults can be seen is listed with the reason; a list that no longer fits
//! the shaders fails.
//!
//! By default a part of the places is tried: every barrier and every fault by hand, and the first comparison and the first
//! stride of each file. `KEYNORM_MUTANTS=all` tries all, for minutes; any other text only the places whose
//! description holds it. It prints what catches each fault, and the time that took.

#[path = "../gpu/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the GPU")]
mod support;

#[path = "../gpu/external.rs"]
mod external;
#[path = "../gpu/rotation.rs"]
mod rotation;
#[path = "../gpu/running.rs"]
mod running;

mod cases;
mod list;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use keynorm::ShaderPatch;
use support::{Built, Gpu, gpu, gpu_with};

/// A line of a file before and after.
#[derive(Clone)]
struct Mutant {
    file: String,
    line: usize,
    before: String,
    after: String,
    text: String,
    mutated: String,
    /// The comparison or stride; nothing where each place counts.
    kind: String,
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}  →  {}", self.file, self.line, self.before.trim(), self.after.trim())
    }
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every file, by its path below `shaders`.
fn files() -> Vec<String> {
    let mut files = Vec::new();
    for (dir, prefix) in [("shaders", ""), ("shaders/shared", "shared/")] {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).expect("the shaders") {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            if name.ends_with(".wgsl") {
                files.push(format!("{prefix}{name}"));
            }
        }
    }
    files.sort();
    files
}

fn mutant(file: &str, text: &str, at: usize, before: &str, after: &str) -> Mutant {
    let mutated = format!("{}{after}{}", &text[..at], &text[at + before.len()..]);
    let line = text[..at].matches('\n').count();
    let nth = |text: &str| text.lines().nth(line).unwrap_or_default().to_owned();
    let (before, after) = (nth(text), nth(&mutated));
    let (file, text) = (file.to_owned(), text.to_owned());
    Mutant { file, line: line + 1, before, after, text, mutated, kind: String::new() }
}

impl Mutant {
    fn of_kind(self, kind: &str) -> Self {
        Self { kind: kind.to_owned(), ..self }
    }
}

/// The faults of one place, weakest first: one of them must be caught.
type Place = Vec<Mutant>;

/// What a comparison becomes, weakest fault first. In the header of a loop nothing that may never end.
fn comparisons(code: &str, at: usize, find: &str) -> Vec<&'static str> {
    let code_of_loop = code.trim_start();
    if code_of_loop.starts_with("while ") {
        return vec![" + 1u < "];
    }
    match (find, code_of_loop.starts_with("for ")) {
        (" < ", true) => vec![" <= ", " + 1u < "],
        (" <= ", true) => vec![" < "],
        (" > ", true) => vec![" > 1u + "],
        (" < ", false) => vec![" <= ", " >= "],
        (" <= ", false) => vec![" < ", " > "],
        (" > ", false) => vec![" >= ", " <= "],
        (" >= ", false) => vec![" > ", " < "],
        // One invocation writes for all: none does.
        (" == ", _) if ["index", "lane", " j"].iter().any(|i| code[..at].ends_with(i)) => vec![" == 0xffffu + "],
        (" == ", _) => vec![" != "],
        (" != ", _) => vec![" == "],
        other => panic!("no fault for {other:?} in {code}"),
    }
}

/// What the names of strides end with.
const STRIDE: &str = "_stride";

/// Where one invocation writes for its workgroup.
const FIRST_WRITES: &str = "if index == 0u";

/// With the last invocation for the first, which some devices, lavapipe among them, run before the others, whatever the
/// barriers.
fn last_writes(text: &str) -> String {
    text.replace(FIRST_WRITES, "if index == WG_SIZE - 1u")
}

/// A uniform load, which is two barriers, and the name of what it loads.
fn loaded(code: &str) -> (&str, &str) {
    let whole = &code[..=code.find(')').expect("a bracket")];
    (whole, whole.split(['&', ')']).nth(1).expect("a name"))
}

/// Every barrier, comparison and stride of a file.
fn generate(file: &str) -> Vec<Place> {
    const BARRIERS: [&str; 2] = ["storageBarrier();", "workgroupBarrier();"];
    const UNIFORM_LOAD: &str = "workgroupUniformLoad(&";
    const COMPARISONS: [&str; 6] = [" < ", " <= ", " > ", " >= ", " == ", " != "];
    let text = read(file);
    let mut places = Vec::new();
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        let code = &line[..line.find("//").unwrap_or(line.len())];
        let mut barrier = |at: usize, before: &str, after: &str| {
            let dropped = mutant(file, &text, line_start + at, before, after);
            let last = Mutant { mutated: last_writes(&dropped.mutated), ..dropped.clone() };
            places.push(if text.contains(FIRST_WRITES) { vec![dropped, last] } else { vec![dropped] });
        };
        for find in BARRIERS {
            code.match_indices(find).for_each(|(at, _)| barrier(at, find, ";"));
        }
        for (at, _) in code.match_indices(UNIFORM_LOAD) {
            let (whole, name) = loaded(&code[at..]);
            barrier(at, whole, name);
        }
        for find in COMPARISONS {
            for (at, _) in code.match_indices(find) {
                let faults = comparisons(code, at, find);
                places
                    .push(faults.iter().map(|f| mutant(file, &text, line_start + at, find, f).of_kind(find)).collect());
            }
        }
        // Uses, not the declarations of a struct.
        for (at, _) in code.match_indices(STRIDE).filter(|&(at, _)| !code[at + STRIDE.len()..].starts_with(':')) {
            let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
            let start = code[..at].rfind(|c| !is_part(c)).map_or(0, |c| c + 1);
            let whole = &code[start..at + STRIDE.len()];
            // By one vector where strides are words and are divided by four.
            let faults = ["* 2u", "/ 2u", "+ 4u"];
            let fault = |f| mutant(file, &text, line_start + start, whole, &format!("({whole} {f})")).of_kind(whole);
            places.push(faults.map(fault).into());
        }
        line_start += line.len();
    }
    places
}

/// The faults of the list, each at the one place that it names.
fn by_hand() -> Vec<Place> {
    let of = |&(file, find, replacement): &(&str, &str, &str)| {
        let text = read(file);
        let places: Vec<usize> = text.match_indices(find).map(|m| m.0).collect();
        assert_eq!(places.len(), 1, "mutants/list.rs: {file} holds `{find}` {} times, expected once", places.len());
        vec![mutant(file, &text, places[0], find, replacement)]
    };
    list::BY_HAND.iter().map(of).collect()
}

/// All places but those that are excused, each excuse being needed.
fn places() -> Vec<Place> {
    let mut places: Vec<Place> = files().iter().flat_map(|f| generate(f)).chain(by_hand()).collect();
    for &(file, line, nth, reason) in list::EXCUSED {
        assert!(!reason.is_empty(), "mutants/list.rs: {file} `{line}` has no reason");
        let is_it = |p: &Place| p.iter().any(|m| m.file == file && m.after.trim().split(" //").next() == Some(line));
        let at = (0..places.len()).filter(|&ix| is_it(&places[ix])).nth(nth);
        // Removed below, so that the numbers of others do not change.
        places[at.unwrap_or_else(|| panic!("mutants/list.rs: no fault {nth} of {file} makes the line `{line}`"))]
            .iter_mut()
            .for_each(|m| m.mutated.clear());
    }
    places.retain(|p| p.iter().all(|m| !m.mutated.is_empty()));
    places
}

/// The places that are chosen: those with a fault whose description holds the filter; without one every barrier and
/// every fault by hand, and of the comparisons and of the strides of a file the first.
fn choose<'a>(places: &'a [Place], filter: &str) -> Vec<&'a Place> {
    let mut seen = std::collections::BTreeSet::new();
    let is_chosen = |p: &&'a Place| match filter {
        "" => p[0].kind.is_empty() || seen.insert((&p[0].file, p[0].kind.ends_with(STRIDE))),
        "all" => true,
        text => p.iter().any(|m| m.to_string().contains(text)),
    };
    places.iter().filter(is_chosen).collect()
}

/// A quick case, the sources that it builds, and the files in which it has caught a fault, as often as it has.
struct Reach(cases::Quick, Vec<String>, Mutex<Vec<String>>);

/// Runs the quick cases on the sources as they are. Those that took least come first.
fn reaches() -> Vec<Reach> {
    let reach = |gpu: &Gpu, mut quick: cases::Quick| {
        let sources: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&sources);
        quick.case.options.shader_patch = Some(ShaderPatch(Arc::new(move |source: &str| {
            seen.lock().expect("a lock").push(source.to_owned());
            source.to_owned()
        })));
        let start = Instant::now();
        cases::run(gpu, &quick, &Built::default());
        let sources = sources.lock().expect("a lock").clone();
        (start.elapsed(), Reach(quick, sources, Mutex::default()))
    };
    let cases = Mutex::new(cases::quick().into_iter());
    let reaches = Mutex::new(Vec::new());
    on_all_threads(|gpu| {
        let next = || cases.lock().expect("a lock").next();
        while let Some(quick) = next() {
            let reached = reach(gpu, quick);
            reaches.lock().expect("a lock").push(reached);
        }
    });
    let mut reaches = reaches.into_inner().expect("a lock");
    reaches.sort_by_key(|r| r.0);
    reaches.into_iter().map(|r| r.1).collect()
}

/// Each with a device of its own: the shaders of one device are compiled one after the other.
fn on_all_threads(work: impl Fn(&Gpu) + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| work(&gpu_with(|_| ())));
        }
    });
}

/// What caught the fault: the first case that differs, or the refusal to build. Cases that have caught faults of the file
/// are tried first.
fn caught_by(gpu: &Gpu, mutant: &Mutant, reaches: &[Reach]) -> Option<&'static str> {
    let (text, mutated) = (mutant.text.clone(), mutant.mutated.clone());
    let patch = ShaderPatch(Arc::new(move |source: &str| source.replace(&text, &mutated)));
    let built = Built::default();
    let mut in_use: Vec<_> = reaches.iter().filter(|r| r.1.iter().any(|s| s.contains(&mutant.text))).collect();
    assert!(!in_use.is_empty(), "no quick case builds {}", mutant.file);
    let caught = |r: &Reach| r.2.lock().expect("a lock").iter().filter(|f| **f == mutant.file).count();
    in_use.sort_by_cached_key(|r| std::cmp::Reverse(caught(r)));
    in_use.into_iter().find_map(|Reach(quick, _, caught)| {
        let mut quick = quick.clone();
        quick.case.options.shader_patch = Some(patch.clone());
        let result = catch_unwind(AssertUnwindSafe(|| cases::run(gpu, &quick, &built)));
        result.is_err().then(|| {
            caught.lock().expect("a lock").push(mutant.file.clone());
            quick.name
        })
    })
}

/// What the second fault of a barrier supposes: that it does not matter which invocation writes for its workgroup.
fn last_invocation_may_write(reaches: &[Reach]) {
    let next = AtomicUsize::new(0);
    on_all_threads(|gpu| {
        let built = Built::default();
        while let Some(Reach(quick, ..)) = reaches.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut quick = quick.clone();
            quick.case.options.shader_patch = Some(ShaderPatch(Arc::new(last_writes)));
            cases::run(gpu, &quick, &built);
        }
    });
}

#[test]
fn every_mutant_is_caught() {
    let places = places();
    assert!(places.len() >= 100, "{} places", places.len());
    let reaches = reaches();
    let filter = std::env::var("KEYNORM_MUTANTS").unwrap_or_default();
    last_invocation_may_write(&reaches);
    let chosen = choose(&places, &filter);
    assert!(!chosen.is_empty(), "no fault holds {filter}");
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    // The failures of cases are what is looked for, and so are not printed.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    on_all_threads(|gpu| {
        while let Some(place) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let caught_of = |m| Some((m, caught_by(gpu, m, &reaches)?));
            // The strongest is found soonest, the weakest tells more.
            let caught = if filter.is_empty() {
                place.iter().rev().find_map(caught_of)
            } else {
                place.iter().find_map(caught_of)
            };
            match caught {
                Some((mutant, by)) => println!("{mutant}: {by}, {:.1} s", start.elapsed().as_secs_f64()),
                None => survivors.lock().expect("a lock").push(place[0].to_string()),
            }
        }
    });
    std::panic::set_hook(hook);
    println!("{} of {} places on {}", chosen.len(), places.len(), gpu().info.name);
    let survivors = survivors.into_inner().expect("a lock");
    assert!(survivors.is_empty(), "{} survive:\n{}", survivors.len(), survivors.join("\n"));
}
