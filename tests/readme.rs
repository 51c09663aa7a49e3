//! What the README says, against what is so: versions, limits, names of files and of shader entry points.

use std::path::Path;

const README: &str = include_str!("../README.md");
const MANIFEST: &str = include_str!("../Cargo.toml");

/// The first screen of a terminal or a web page.
const FIRST_SCREEN_LINES: usize = 16;

fn manifest_value(key: &str) -> &'static str {
    let line = MANIFEST.lines().find(|l| l.starts_with(key)).expect(key);
    line.split('"').nth(1).expect("a string")
}

#[test]
fn versions() {
    let version = manifest_value("version = ").rsplit_once('.').expect("major.minor.patch").0;
    let wgpu = manifest_value("wgpu = ").split('.').next().expect("a major version");
    let row = format!("| {version} | {wgpu} | {} |", manifest_value("rust-version = "));
    assert!(README.contains(&row), "the table of versions lacks {row}");
    let clippy = include_str!("../clippy.toml");
    assert!(clippy.contains(manifest_value("rust-version = ")), "clippy.toml has another Rust version");
}

#[test]
fn limits() {
    for limit in [keynorm::MAX_CAPACITY, keynorm::MAX_HEAD_DIM] {
        assert!(README.contains(&format!(" to {limit}")), "{limit} is not named");
    }
    let policy = keynorm::Policy::safe(0.5);
    let row = format!("first {}, last {} tokens", policy.sinks, policy.recent);
    assert!(README.contains(&row), "the row of `safe` lacks {row}");
}

#[test]
fn commands_on_the_first_screen() {
    let screen: String = README.lines().take(FIRST_SCREEN_LINES).collect::<Vec<_>>().join("\n");
    let ci = include_str!("../.ci/run");
    for command in ["scripts/with-adapter cargo run --release --example compress", "scripts/with-adapter cargo test"] {
        assert!(screen.contains(command), "{command} is not on the first screen");
        assert!(ci.contains(&format!("step {command}\n")), ".ci/run does not run {command}");
    }
}

#[test]
fn named_files_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = ["src", "shaders", "tests", "examples", "scripts", "benches", ".ci", "CHANGELOG.md", "LICENSE"];
    let mut found = 0;
    for code in README.split('`').skip(1).step_by(2) {
        let name = code.split_whitespace().next().unwrap_or_default();
        if top.iter().any(|t| name == *t || name.starts_with(&format!("{t}/")) || name.starts_with(&format!("{t}-"))) {
            assert!(root.join(name).exists(), "{name} does not exist");
            found += 1;
        }
    }
    assert!(found > 5, "only {found} names of files found: has the README changed its form?");
}

#[test]
fn named_entry_points_exist() {
    let table = README.lines().filter(|l| l.contains("| ") && l.contains(" rw"));
    let sources: String = keynorm::Module::all().iter().map(keynorm::Module::source).collect();
    let mut found = 0;
    for row in table {
        let Some(cell) = row.split('|').nth(2) else { continue };
        // The first name is the shader's file.
        for entry in cell.split('`').skip(1).step_by(2).skip(1) {
            let name = entry.strip_prefix('_').map_or(entry.to_owned(), |rest| format!("bitonic_{rest}"));
            assert!(sources.contains(&format!("fn {name}(")), "no entry point {name}");
            found += 1;
        }
    }
    assert!(found > 10, "only {found} entry points found: has the table changed its form?");
}

/// Cells of the Markdown table rows whose first cell begins with a digit.
fn table_rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit()))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.replace('*', "").trim().to_owned()).collect())
        .collect()
}

/// Layers × rows × tokens across, orders and their floors down.
#[test]
fn layers_are_those_of_the_record() {
    let record = include_str!("../benches/record/nvidia-h100-80gb-hbm3/2026-11-27-layers.md");
    let of_record = |order: &str, cell: usize| -> Vec<String> {
        table_rows(record).into_iter().filter(|row| row[3] == order).map(|row| row[cell].clone()).collect()
    };
    let line = |name: &str| -> Vec<String> {
        let line = README.lines().find(|l| l.starts_with(&format!("| {name} |"))).expect(name);
        line.trim_matches('|').split('|').skip(1).map(|cell| cell.trim().to_owned()).collect()
    };
    for (name, order, cell) in [
        ("fill", "fill", 6),
        ("fill, floor", "fill", 13),
        ("positional", "positional", 6),
        ("positional, floor", "positional", 13),
    ] {
        assert_eq!(line(name), of_record(order, cell), "{name}: README.md and the record differ");
    }
}

#[test]
fn benchmarks_are_those_of_the_record() {
    let record = include_str!("../benches/record/nvidia-h100-80gb-hbm3/2026-11-27-table.md");
    let section = README.split_once("## Benchmarks").expect("a section of benchmarks").1;
    let section = section.split_once("\n## ").expect("a section after it").0;
    let of_record: Vec<Vec<String>> = table_rows(record)
        .into_iter()
        .map(|row| {
            let shape = row[0].rsplit_once(" × ").expect("rows × tokens × head_dim").0.to_owned();
            [vec![shape], [2, 3, 5, 7, 10, 11].map(|cell| row[cell].clone()).to_vec()].concat()
        })
        .collect();
    assert!(of_record.len() > 10, "the record has a table");
    assert_eq!(table_rows(section), of_record, "README.md and the record differ");
}
