//! The command itself.

use std::path::Path;
use std::process::{Command, Output};

use keynorm_smollm2::calibrate::WHOLE;
use keynorm_smollm2::strategy::Calibrated;

use super::{PROMPTS, lab};

fn tool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keynorm-smollm2")).args(arguments).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    format!("{}{stderr}", String::from_utf8_lossy(&output.stdout))
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_missing_model_gives_one_line_that_says_how_to_get_it() {
    let output = tool(&["generate", "--prompt", "x", "--model", "no-such-file.gguf"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("no-such-file.gguf") && stderr.contains("fetch-model"), "{stderr}");
}

/// Options that are refused before the model is looked for, by a message that names them.
#[test]
fn options_out_of_range_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = tool(&[arguments, &["--model", "no-such-file.gguf", "--output", out]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (arguments, expected) in [
        (&["generate", "--prompt", "x", "--keep-ratio", "2"][..], "--keep-ratio is from 0 to 1, not 2"),
        (&["perplexity", "--keep", "0.5,1.5"], "--keep is from 0 to 1, not 1.5"),
        (&["perplexity", "--offsets", "NaN"], "--offsets is from 0 to 1, not NaN"),
        (
            &["perplexity", "--quick", "--budgets", "96,160"],
            "--budgets is above 0 and below --length, which is 160, not 160",
        ),
        (&["passkey", "--keep=-0.1"], "--keep is from 0 to 1, not -0.1"),
        (&["needle", "--keep", "inf"], "--keep is from 0 to 1, not inf"),
        (&["calibrate", "--keep", "0.01"], "--keep is from 0.02 to 1, not 0.01"),
        (&["calibrate", "--offsets", "2"], "--offsets is from 0 to 1, not 2"),
        (&["alr", "--offsets=-1"], "--offsets is from 0 to 1, not -1"),
        (&["speed", "--keep", "1.1"], "--keep is from 0 to 1, not 1.1"),
    ] {
        let stderr = run(arguments);
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
    // Budgets are the stream's: here it is the model that is missed.
    let stderr = run(&["perplexity", "--quick", "--protocol", "prefill", "--budgets", "0"]);
    assert!(stderr.contains("no-such-file.gguf"), "{stderr}");
}

#[test]
fn generate_writes_text_over_a_compressed_cache() {
    let _turn = lab();
    let prompt = PROMPTS[0];
    let arguments = ["generate", "--prompt", prompt, "--tokens", "20", "--keep-ratio", "0.5", "--cap", "12"];
    let shown = succeeded(&tool(&arguments));
    assert!(shown.contains(" Rome"), "{shown}");
    assert!(shown.contains("where Burn allocated them"), "{shown}");
    assert!(shown.contains("cache 19 -> 10 tokens") && shown.contains("cuts to the cap"), "{shown}");
    let failed = tool(&["generate", "--prompt", prompt, "--cap", "4294967295"]);
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(2) && stderr.contains("--cap is from 1 to"), "{stderr}");
}

#[test]
fn perplexity_writes_whole_results() {
    let _turn = lab();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    let novel = keynorm_smollm2::text::load(None).unwrap();
    std::fs::write(&text, novel.chars().skip(100_000).take(4_000).collect::<String>()).unwrap();
    let out = dir.path().join("out");
    let (text, out_name) = (text.to_str().unwrap(), out.to_str().unwrap());
    let run = |more: &[&str]| {
        let fixed = ["perplexity", "--quick", "--output", out_name, "--offsets", "0.1", "--text", text];
        tool(&[&fixed, more].concat())
    };
    let failed = run(&["--prefill", "100000"]);
    assert_eq!(failed.status.code(), Some(2));
    assert!(files(&out).is_empty(), "a failed run leaves {:?}", files(&out));

    succeeded(&run(&["--prefill", "128", "--score", "48", "--length", "128", "--strategies", "lowest,highest"]));
    assert_eq!(files(&out), ["perplexity.json", "perplexity.svg", "stream-96.svg"]);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("perplexity.json")).unwrap()).unwrap();
    let rows = json["after_prefill"].as_array().unwrap();
    let of = |name: &str| {
        let row = rows.iter().find(|r| r["strategy"] == name).unwrap();
        assert_eq!(row["tokens"], 48);
        row["perplexity"].as_f64().unwrap()
    };
    let (full, lowest, highest) = (of("uncompressed"), of("lowest"), of("highest"));
    assert!(5.0 < full && full < lowest && lowest < highest && highest < 1e4, "{full} {lowest} {highest}");
    assert_eq!(json["stream"].as_array().unwrap().len(), 3);
}

#[test]
fn a_calibration_is_written_and_taken() {
    let _turn = lab();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let small = ["--prefill", "96", "--score", "4", "--lengths", "128", "--trials", "1", "--keep", "0.25"];
    succeeded(&tool(&[&["calibrate", "--quick", "--output", dir][..], &small].concat()));
    let file = Path::new(dir).join("calibration.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let calibrated: Calibrated = serde_json::from_value(json["calibrations"][0].clone()).unwrap();
    let ratios: Vec<f64> = calibrated.calibration.layers.iter().map(|l| l.keep_ratio).collect();
    let mean = ratios[WHOLE..].iter().sum::<f64>() / 28.0;
    assert!(ratios[..WHOLE] == [1.0, 1.0] && (0.24..=0.25 + 1e-9).contains(&mean), "{ratios:?}");
    assert!(ratios[WHOLE..].iter().any(|&r| r != ratios[WHOLE]), "a budget by layer: {ratios:?}");

    let file = file.to_str().unwrap();
    let run = |keep| {
        let fixed = ["perplexity", "--quick", "--output", dir, "--protocol", "prefill", "--prefill", "128"];
        let fixed =
            [&fixed[..], &["--score", "48", "--strategies", "random,calibrated", "--calibration", file]].concat();
        tool(&[&fixed[..], &["--keep", keep]].concat())
    };
    succeeded(&run("0.25"));
    let json = std::fs::read(Path::new(dir).join("perplexity.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let of = |ix: usize| json["after_prefill"][ix]["perplexity"].as_f64().unwrap();
    assert!(of(0) < of(2) && of(2) < of(1), "whole {}, random {}, calibrated {}", of(0), of(1), of(2));
    let failed = run("0.5");
    let stderr = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(2) && stderr.contains("no calibration for keep ratio 0.5"), "{stderr}");
}
