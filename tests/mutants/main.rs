//! One-line faults planted in the shaders: each must be caught by the quick cases below. Every barrier is dropped, every
//! comparison loosened or turned, every stride lengthened ([`generate`]); [`list::BY_HAND`] adds faults of other kinds.
//! A fault that changes nothing, or that cannot be run, is listed with the reason; a list that no longer fits fails.

#[path = "../gpu/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the GPU")]
mod support;

mod cases;
mod list;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use keynorm::{Module, ShaderPatch};

/// A line of a file before and after.
struct Mutant {
    file: String,
    line: usize,
    before: String,
    after: String,
    text: String,
    mutated: String,
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
    Mutant { file: file.to_owned(), line: line + 1, before, after, text: text.to_owned(), mutated }
}

/// Drops each barrier, loosens or turns each comparison, lengthens each stride.
fn generate(file: &str) -> Vec<Mutant> {
    const BARRIERS: [(&str, &str); 1] = [("workgroupBarrier();", ";")];
    const COMPARISONS: [(&str, &str); 6] =
        [(" < ", " <= "), (" <= ", " < "), (" > ", " >= "), (" >= ", " > "), (" == ", " != "), (" != ", " == ")];
    const STRIDES: [&str; 2] = ["_stride", "_STRIDE"];
    let text = read(file);
    let mut mutants = Vec::new();
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        let code = &line[..line.find("//").unwrap_or(line.len())];
        for (find, replacement) in BARRIERS.into_iter().chain(COMPARISONS) {
            let found = code.match_indices(find);
            mutants.extend(found.map(|(at, _)| mutant(file, &text, line_start + at, find, replacement)));
        }
        for find in STRIDES {
            // Uses, not the declarations of a struct.
            for (at, _) in code.match_indices(find).filter(|&(at, _)| !code[at + find.len()..].starts_with(':')) {
                let word =
                    code[..at].rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')).map_or(0, |c| c + 1);
                let whole = &code[word..at + find.len()];
                mutants.push(mutant(file, &text, line_start + word, whole, &format!("({whole} + 1u)")));
            }
        }
        line_start += line.len();
    }
    mutants
}

/// The faults of the list, each at the one place that it names.
fn by_hand() -> Vec<Mutant> {
    let of = |&(file, find, replacement): &(&str, &str, &str)| {
        let text = read(file);
        let places: Vec<usize> = text.match_indices(find).map(|m| m.0).collect();
        assert_eq!(places.len(), 1, "mutants/list.rs: {file} holds `{find}` {} times, expected once", places.len());
        mutant(file, &text, places[0], find, replacement)
    };
    list::BY_HAND.iter().map(of).collect()
}

/// All faults but those that are excused, each excuse being needed.
fn mutants() -> Vec<Mutant> {
    let mut mutants: Vec<Mutant> = files().iter().flat_map(|f| generate(f)).chain(by_hand()).collect();
    let mut used = vec![false; list::EXCUSED.len()];
    mutants.retain(|m| {
        let mut excused = false;
        for (used, &(file, line, reason)) in used.iter_mut().zip(list::EXCUSED) {
            assert!(!reason.is_empty(), "mutants/list.rs: {file} `{line}` has no reason");
            if m.file == file && m.after.trim() == line {
                (*used, excused) = (true, true);
            }
        }
        !excused
    });
    for (used, (file, line, _)) in used.iter().zip(list::EXCUSED) {
        assert!(used, "mutants/list.rs: no fault of {file} makes the line `{line}`");
    }
    mutants
}

/// What caught the fault: the first case that differs, or the refusal to build.
fn caught_by(mutant: &Mutant) -> Option<&'static str> {
    let (text, mutated) = (mutant.text.clone(), mutant.mutated.clone());
    let patch = ShaderPatch(Arc::new(move |source: &str| source.replace(&text, &mutated)));
    let built = support::Built::default();
    let in_use = Module::all().into_iter().filter(|m| m.source().contains(&mutant.text)).collect::<Vec<_>>();
    assert!(!in_use.is_empty(), "{} is in no module", mutant.file);
    cases::quick().into_iter().filter(|c| (c.reaches)(&in_use)).find_map(|mut quick| {
        quick.case.options.shader_patch = Some(patch.clone());
        let result = catch_unwind(AssertUnwindSafe(|| cases::run(&quick, &built)));
        result.is_err().then_some(quick.name)
    })
}

/// The quick cases pass on the sources as they are, with a patch that changes nothing.
#[test]
fn sound_shaders_pass() {
    let built = support::Built::default();
    for mut quick in cases::quick() {
        quick.case.options.shader_patch = Some(ShaderPatch(Arc::new(str::to_owned)));
        cases::run(&quick, &built);
    }
}

#[test]
fn every_mutant_is_caught() {
    let mutants = mutants();
    assert!(mutants.len() >= 100, "{} mutants", mutants.len());
    let filter = std::env::var("KEYNORM_MUTANTS").unwrap_or_default();
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    // The failures of cases are what is looked for, and so are not printed.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let gpu = catch_unwind(|| support::gpu().info.name.clone());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !mutant.to_string().contains(&filter) {
                        continue;
                    }
                    let caught = caught_by(mutant);
                    if !filter.is_empty() {
                        println!("{mutant}: {}", caught.unwrap_or("survives"));
                    }
                    if caught.is_none() {
                        survivors.lock().expect("a lock").push(mutant.to_string());
                    }
                }
            });
        }
    });
    std::panic::set_hook(hook);
    println!("{} mutants on {}", mutants.len(), gpu.expect("an adapter"));
    let survivors = survivors.into_inner().expect("a lock");
    assert!(survivors.is_empty(), "{} survive:\n{}", survivors.len(), survivors.join("\n"));
}
