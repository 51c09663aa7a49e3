//! The example `bench` as a user runs it: a run on the adapter that is there, and reports side by side.

mod common;

use std::process::Output;

use serde_json::Value;

const RECORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record");

fn bench(args: &[&str]) -> Output {
    common::run("bench", args)
}

fn succeed(args: &[&str]) -> String {
    common::succeed("bench", args)
}

/// Exit code 2 and one line.
fn fail(args: &[&str]) -> String {
    let output = bench(args);
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "bench {args:?}: {stderr}");
    stderr
}

fn record(name: &str) -> String {
    format!("{RECORDS}/{name}")
}

fn read(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect("a report")
}

#[test]
fn tables_are_those_of_the_records() {
    for (folder, date) in
        [("nvidia-h100-80gb-hbm3", "2026-11-27"), ("nvidia-h200", "2026-11-30"), ("nvidia-h200", "2026-12-01")]
    {
        let table = succeed(&["table", "--json", &record(&format!("{folder}/{date}-design.json"))]);
        let recorded = std::fs::read_to_string(record(&format!("{folder}/{date}-table.md"))).expect("a record");
        assert_eq!(table, recorded, "{folder}");
    }
    let scaling = succeed(&["table", "--json", &record("nvidia-h100-80gb-hbm3/2026-11-27-scaling.json")]);
    assert!(scaling.contains("0.1910 to 0.2337 ns/token from 65536 to 1048576 tokens a row, 22 % apart"), "{scaling}");
    let floor = succeed(&["table", "--json", &record("nvidia-h100-80gb-hbm3/2026-11-27-floor.json")]);
    assert!(floor.contains("32 of 81 rows by fill from 256 MiB of keys on take 88 % of their floor"), "{floor}");
    assert!(floor.contains("54 of 81 rows by positional from 256 MiB of keys on take 80 % of their floor"), "{floor}");
}

/// The floor is what DESIGN has for it: the sum is made here from what a row says of itself.
#[test]
fn floors_are_bytes_over_the_best_rate() {
    let path = record("nvidia-h100-80gb-hbm3/2026-11-27-design.json");
    let (report, table) = (read(&path), succeed(&["table", "--json", &path]));
    let rate = ["copy_kernel_gb_s", "copy_buffer_gb_s", "torch_copy_gb_s"]
        .map(|name| report["rates"][name].as_f64().unwrap_or(0.0))
        .into_iter()
        .fold(0.0, f64::max);
    let lines: Vec<&str> = table.lines().filter(|l| l.contains("| f16 ")).collect();
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(lines.len(), rows.len());
    for (row, line) in rows.iter().zip(lines) {
        let number = |name: &str| row[name].as_f64().expect(name);
        let keys =
            if row["mode"] == "decode" { 0.0 } else { number("layers") * number("batch_rows") * number("seq_len") };
        let bytes = (keys + 4.0 * number("num_moved")) * number("head_dim") * 2.0;
        let percent = 100.0 * bytes / rate / 1e3 / number("us_median");
        let cell = line.trim_matches('|').split('|').nth(11).expect("% floor").trim();
        assert_eq!(cell, format!("{percent:.1}"), "{line}");
    }
}

#[test]
fn reports_of_other_bits_fail() {
    let path = record("nvidia-h200/2026-11-30-design.json");
    let same = succeed(&["compare", &path, &path]);
    assert!(same.contains("equal") && !same.contains("differs"), "{same}");
    assert!(same.contains("In one report alone: 0 rows of a, 0 of b."), "{same}");
    let dir = tempfile::tempdir().expect("a folder");
    let changed = dir.path().join("changed.json");
    let mut report = read(&path);
    report["rows"][1]["hash"] = "0123456789abcdef".into();
    report["rows"].as_array_mut().expect("rows").pop();
    std::fs::write(&changed, report.to_string()).expect("a file");
    let output = bench(&["compare", &path, changed.to_str().expect("a path")]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{stdout}");
    assert_eq!(stdout.matches("**differs**").count(), 1, "{stdout}");
    assert!(stdout.contains("In one report alone: 1 rows of a, 0 of b."), "{stdout}");
    // A case that is there twice is not counted against the other report.
    let twice = dir.path().join("twice.json");
    let mut report = read(&path);
    let first = report["rows"][0].clone();
    report["rows"].as_array_mut().expect("rows").push(first);
    std::fs::write(&twice, report.to_string()).expect("a file");
    let text = succeed(&["compare", twice.to_str().expect("a path"), &path]);
    assert!(text.contains("In one report alone: 0 rows of a, 0 of b."), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 rows left other bits"));
}

#[test]
fn void_reports_fail() {
    let path = record("nvidia-h200/2026-11-30-design.json");
    let dir = tempfile::tempdir().expect("a folder");
    let void = dir.path().join("void.json").to_str().expect("a path").to_owned();
    let mut report = read(&path);
    report["void"] = "the card was slow".into();
    std::fs::write(&void, report.to_string()).expect("a file");
    assert!(fail(&["compare", &path, &void]).contains("b is void: the card was slow"));
}

/// Neither a row without bits nor one whose bits were void is equal to another.
#[test]
fn reports_of_failed_rows_fail() {
    let path = record("nvidia-h200/2026-11-30-design.json");
    let dir = tempfile::tempdir().expect("a folder");
    for (name, hash) in [("wrong", Some("")), ("void", None)] {
        let failed = dir.path().join(name);
        let mut report = read(&path);
        report["rows"][1]["error"] = name.into();
        if let Some(hash) = hash {
            report["rows"][1]["hash"] = hash.into();
        }
        std::fs::write(&failed, report.to_string()).expect("a file");
        let output = bench(&["compare", &path, failed.to_str().expect("a path")]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{name}: {stdout}");
        assert_eq!(stdout.matches("**failed**").count(), 1, "{name}: {stdout}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("1 rows failed in one of the reports"), "{name}");
    }
}

/// A row whose goal is of its floor, which it has none of where it failed.
#[test]
fn failed_rows_count_among_those_with_a_goal() {
    let path = record("nvidia-h100-80gb-hbm3/2026-11-27-keydiff.json");
    let verdict = |path: &str| {
        let table = succeed(&["table", "--json", path]);
        let line = table.lines().find(|l| l.contains("rows with a goal in time")).expect("a verdict");
        line.split_whitespace().nth(2).and_then(|count| count.parse::<u32>().ok()).expect("a count")
    };
    let mut report = read(&path);
    let row = report["rows"].as_array_mut().expect("rows").iter_mut().find(|r| r["score"] == "keydiff");
    let row = row.expect("a row of KeyDiff");
    (row["error"], row["us_median"], row["floor_us"], row["num_moved"]) =
        ("void".into(), Value::Null, Value::Null, 0.into());
    let dir = tempfile::tempdir().expect("a folder");
    let failed = dir.path().join("failed.json");
    std::fs::write(&failed, report.to_string()).expect("a file");
    assert_eq!(verdict(failed.to_str().expect("a path")), verdict(&path));
}

#[test]
fn arguments_that_lack_are_named() {
    assert!(fail(&["compare", "a.json"]).contains("not provided: <B>"));
    assert!(fail(&["run", "--preset", "foo"]).contains("[possible values: "));
}

/// A rate or a time of another device makes no floor and no speed-up.
#[test]
fn peers_of_another_device_are_refused() {
    let ours = record("nvidia-h200/2026-11-30-design.json");
    let theirs = record("nvidia-h100-80gb-hbm3/2026-11-27-torch.json");
    let refused = fail(&["table", "--json", &ours, "--torch", &theirs]);
    assert!(refused.contains("of NVIDIA H100 80GB HBM3, the adapter is NVIDIA H200"), "{refused}");
    succeed(&["ratio", "--json", &ours, "--torch", &record("nvidia-h200/2026-11-30-torch.json")]);
}

#[test]
fn plots_are_of_one_kind_of_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let plot = dir.path().join("plot.svg");
    let ours = record("nvidia-h100-80gb-hbm3/2026-11-27-design.json");
    let output = plot.to_str().expect("a path");
    succeed(&["plot", "--json", &ours, "--rows", "8", "--keep", "0.5", "--output", output]);
    let svg = std::fs::read_to_string(&plot).expect("a plot");
    assert!(svg.contains("PyTorch tuned") && svg.contains("keynorm fill"), "lines of both");
    assert!(!svg.contains("keydiff") && !svg.contains("decode"), "peers that did other work");
    let keydiff = record("nvidia-h100-80gb-hbm3/2026-11-27-keydiff.json");
    succeed(&["plot", "--json", &keydiff, "--score", "keydiff", "--output", output]);
    let svg = std::fs::read_to_string(&plot).expect("a plot");
    assert!(svg.contains(", keydiff\n"), "the title says what was timed");
    assert!(svg.contains("PyTorch keydiff") && !svg.contains("PyTorch tuned"), "peers that did the same work");
}

#[test]
fn what_cannot_be_run_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let torch = record("nvidia-h200/2026-12-01-torch.json");
    let design = record("nvidia-h200/2026-12-01-design.json");
    let (json, other_spelling) = (path("r.json"), path("./r.json"));
    for (args, expected) in [
        (&["run", "--rows", "8", "--shape", "2x128"][..], "--rows and --len go together"),
        (&["run", "--shape", "2x128", "--capacity", "100"], "--capacity 100 has no room for 128 tokens"),
        (&["run", "--preset", "design", "--dtype", "f32"], "cannot be used with"),
        (&["run", "--shape", "2x128", "--output-json", &json, "--plot", &other_spelling], "given for two outputs"),
        (&["table", "--json", &torch], "a report of torch_knorm, not of keynorm-bench"),
        (&["table", "--json", &design, "--torch", &design], "a report of keynorm-bench, not of a peer"),
    ] {
        let said = fail(args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let output = bench(&["run", "--shape", "2x128", "--adapter", "no such adapter", "--output-json", &json]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no adapter matches --adapter no such adapter; there are\n0: "), "{said}");
    assert!(!std::path::Path::new(&json).exists(), "a report of nothing");
}

/// Of 8 TB of keys, beside one that fits.
#[test]
fn rows_that_have_no_room_are_in_the_report() {
    let dir = tempfile::tempdir().expect("a folder");
    let json = dir.path().join("r.json").to_str().expect("a path").to_owned();
    let small = ["--repetitions", "1", "--warmup", "0", "--flush-mb", "1", "--order", "fill"];
    let cases = ["run", "--shape", "4095x1048576,2x100", "--head-dim", "512", "--dtype", "f32", "--output-json", &json];
    let output = bench(&[&cases[..], &small].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 cases failed"), "{said}");
    let report = read(&json);
    let errors: Vec<_> =
        report["rows"].as_array().expect("rows").iter().map(|r| (&r["seq_len"], &r["error"])).collect();
    assert_eq!(errors.len(), 2);
    assert!(errors[0].1.as_str().is_some_and(|e| e.contains("buffer limit")), "{errors:?}");
    assert_eq!(errors[1], (&100.into(), &Value::Null));
}

/// Goals and speed-ups are of the work that they were set and measured for.
#[test]
fn other_work_has_no_goals() {
    let path = record("nvidia-h200/2026-12-01-design.json");
    let dir = tempfile::tempdir().expect("a folder");
    let other = dir.path().join("other.json").to_str().expect("a path").to_owned();
    let num_goals = |table: &str| table.matches(" yes |").count() + table.matches("**no** |").count();
    assert!(num_goals(&succeed(&["table", "--json", &path])) > 20);
    let others =
        [("norms", "equal"), ("mode", "pages of 16"), ("norms", "close"), ("score", "centroid"), ("dtype", "f8e4m3")];
    for (field, value) in others {
        let mut report = read(&path);
        for row in report["rows"].as_array_mut().expect("rows") {
            row[field] = value.into();
        }
        std::fs::write(&other, report.to_string()).expect("a file");
        let table = succeed(&["table", "--json", &other]);
        assert_eq!(num_goals(&table), 0, "{field} {value}: {table}");
        assert_eq!(table.contains("× |"), ["close", "pages of 16"].contains(&value), "{field} {value}: {table}");
    }
}

/// A whole run, of few tokens: its files, and that what it says of itself adds up.
#[test]
fn a_run_writes_what_it_measured() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let (json, csv, md) = (path("r.json"), path("r.csv"), path("r.md"));
    let files = ["--output-json", &json, "--output-csv", &csv, "--output-md", &md];
    let small = ["--repetitions", "2", "--warmup", "0", "--flush-mb", "1", "--head-dim", "16", "--dtype", "f16,f32"];
    let cases = ["--shape", "3x700", "--keep", "0.3", "--order", "fill,positional"];
    succeed(&[&["run"][..], &cases, &small, &files].concat());
    let report = read(&json);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(
            (&row["kept"], &row["rows_checked"], &row["error"]),
            (&210.into(), &3.into(), &Value::Null),
            "{row}"
        );
        let (moved, expected) =
            (row["num_moved"].as_f64().expect("moved"), row["num_moved_expected"].as_f64().expect("expected"));
        assert!((moved / expected - 1.0).abs() < 0.2, "{moved} rows moved of {expected}");
        assert!(row["us_median"].as_f64().expect("a time") > 0.0, "{row}");
    }
    let text = std::fs::read_to_string(&csv).expect("a file");
    let head: Vec<&str> = text.lines().next().expect("names").split(',').collect();
    assert_eq!(text.lines().count(), 5);
    for name in ["us_median", "hash", "adapter", "driver", "wgpu", "commit", "command", "floor_rate_gb_s", "void"] {
        assert!(head.contains(&name), "{name} of {head:?}");
    }
    assert!(std::fs::read_to_string(&md).expect("a file").contains("| 3 × 700 × 16 |"));
    // Rows of which almost all or all is kept move far less than their share would make one expect.
    let few = ["--shape", "300x16,400x40", "--keep", "0.9,0.99", "--order", "fill,positional"];
    succeed(&[&["run"][..], &few, &small].concat());
    let again = path("again.json");
    succeed(&[&["run"][..], &cases, &small, &["--output-json", &again]].concat());
    assert!(!succeed(&["compare", &json, &again]).contains("differs"));
}
