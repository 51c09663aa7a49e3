//! Other subgroup sizes. lavapipe takes its own from the environment, so the cases run in processes of their own; its
//! shader cache must be off, since it would hand out shaders of another width.

use std::process::Command;

use crate::support::gpu;

/// Runs some of this program's tests with lavapipe's vectors `bits` wide.
fn run_with_vectors_of(bits: u32) {
    let info = &gpu().info;
    if !info.name.contains("llvmpipe") {
        println!("{} has one subgroup size, and every case runs with it", info.name);
        return;
    }
    let size = bits / 32;
    // Every kernel that has shuffles; most cases of others take none on a CPU.
    let filters =
        ["cases::every_dtype", "cases::subgroups_", "long::rows_of_two", "norms::rows_whose", "f8::head_dims"];
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(filters)
        .arg("--nocapture")
        .env("LP_NATIVE_VECTOR_WIDTH", bits.to_string())
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .env("KEYNORM_EXPECT_SUBGROUP_SIZE", size.to_string())
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&child.stdout);
    let told = format!("subgroups {size}..{size}");
    assert!(child.status.success(), "{said}\n{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains(&told) && said.contains("5 passed"), "expected {told} and 5 tests:\n{said}");
}

#[test]
fn subgroups_of_4() {
    run_with_vectors_of(128);
}

#[test]
fn subgroups_of_16() {
    run_with_vectors_of(512);
}
