//! What the tests of the command lines share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An example's executable, which `cargo test` builds beside the tests (but `cargo test --test NAME` does not).
fn executable(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let path = profile.join("examples").join(format!("{example}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: cargo build --example {example}", path.display());
    path
}

pub fn run(example: &str, args: &[&str]) -> Output {
    Command::new(executable(example)).args(args).output().expect("a run")
}

/// What it prints.
pub fn succeed(example: &str, args: &[&str]) -> String {
    let output = run(example, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example} {args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text")
}
