//! The example `compress` as a user runs it: its output against the reference, its messages, its exit codes.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Output;

use keynorm::reference::{self, CacheRow};
use keynorm::{Budget, Direction, Dtype, Order, Policy, TensorSpec};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, TensorView};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2_kv_512_f16.safetensors");

fn compress(args: &[&str]) -> Output {
    common::run("compress", args)
}

fn succeed(args: &[&str]) -> String {
    common::succeed("compress", args)
}

/// A tensor: element type, shape, bytes.
#[derive(Debug, Clone, PartialEq)]
struct Tensor(FileDtype, Vec<usize>, Vec<u8>);

type Cache = HashMap<String, Tensor>;

fn write(path: &Path, cache: &Cache) {
    let views = cache.iter().map(|(name, Tensor(dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
    });
    let metadata = HashMap::from([("model".to_owned(), "none".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).expect("a file");
}

fn read(path: &Path) -> Cache {
    let bytes = std::fs::read(path).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("a cache").tensors();
    tensors.into_iter().map(|(name, t)| (name, Tensor(t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F32 => FileDtype::F32,
        Dtype::F16 => FileDtype::F16,
        Dtype::Bf16 => FileDtype::BF16,
        Dtype::F8E4M3 => FileDtype::F8_E4M3,
        Dtype::F8E5M2 => FileDtype::F8_E5M2,
        other => panic!("no file holds {other:?}"),
    }
}

fn spec_of(tensor: &Tensor) -> TensorSpec {
    let dtype = match tensor.0 {
        FileDtype::F32 => Dtype::F32,
        FileDtype::F16 => Dtype::F16,
        FileDtype::F8_E4M3 => Dtype::F8E4M3,
        FileDtype::F8_E5M2 => Dtype::F8E5M2,
        _ => Dtype::Bf16,
    };
    TensorSpec::new(dtype, tensor.1[3] as u32)
}

/// Elements between -2 and 2, from a seed.
fn random(dtype: Dtype, shape: [usize; 4], seed: &mut u64) -> Tensor {
    let mut bytes = Vec::new();
    let mut scale = 1.0;
    for i in 0..shape.iter().product() {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (*seed >> 40) as f32 / (1u64 << 24) as f32;
        if i % shape[3] == 0 {
            scale = 0.2 + unit; // so that norms differ
        }
        let value = (unit - 0.5) * 4.0 * scale;
        match dtype {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
            Dtype::F8E4M3 => bytes.push(float8::F8E4M3::from_f32(value).to_bits()),
            Dtype::F8E5M2 => bytes.push(float8::F8E5M2::from_f32(value).to_bits()),
            other => panic!("no file holds {other:?}"),
        }
    }
    Tensor(file_dtype(dtype), shape.to_vec(), bytes)
}

/// Layers 0 and 3 of different shape; the keys and values of layer 3 differ in dtype and head_dim.
fn random_cache(dtype: Dtype) -> Cache {
    let seed = &mut 7;
    let other = if dtype == Dtype::F16 { Dtype::F32 } else { Dtype::F16 };
    HashMap::from([
        ("layers.0.keys".to_owned(), random(dtype, [2, 2, 150, 64], seed)),
        ("layers.0.values".to_owned(), random(dtype, [2, 2, 150, 64], seed)),
        ("layers.3.keys".to_owned(), random(dtype, [1, 3, 97, 80], seed)),
        ("layers.3.values".to_owned(), random(other, [1, 3, 97, 32], seed)),
        ("layers.x.keys".to_owned(), Tensor(FileDtype::I64, vec![1], vec![1, 2, 3, 4, 5, 6, 7, 8])),
        ("logits".to_owned(), Tensor(FileDtype::U8, vec![3], vec![1, 2, 3])),
    ])
}

fn words(tensor: &Tensor) -> Vec<u32> {
    tensor.2.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The whole job by the reference.
fn expected(cache: &Cache, policy: &Policy, skip_layers: &[u32]) -> Cache {
    let mut result = cache.clone();
    for layer in (0..32).filter(|l| cache.contains_key(&format!("layers.{l}.keys"))) {
        let name = |part| format!("layers.{layer}.{part}");
        let (keys, values) = (&cache[&name("keys")], &cache[&name("values")]);
        let (keys_spec, values_spec) = (spec_of(keys), spec_of(values));
        let [batch, heads, len] = [0, 1, 2].map(|d| keys.1[d]);
        let given = cache.get(&name("positions")).map(words);
        let mut out = [Vec::new(), Vec::new(), Vec::new()];
        let mut kept = len;
        for row in 0..batch * heads {
            let bytes = |t: &Tensor, spec: &TensorSpec| {
                let row_bytes = len * spec.row_bytes() as usize;
                t.2[row * row_bytes..][..row_bytes].to_vec()
            };
            let (mut k, mut v) = (bytes(keys, &keys_spec), bytes(values, &values_spec));
            let mut state = CacheRow::new(len as u32);
            if let Some(given) = &given {
                let sequence = &given[row / heads * heads * len..][..heads * len];
                state.num_seen = sequence.iter().max().expect("a token") + 1;
                state.positions = given[row * len..][..len].to_vec();
            }
            if !skip_layers.contains(&layer) {
                reference::compress_row(
                    policy,
                    layer,
                    row as u32,
                    &mut state,
                    &keys_spec,
                    &mut k,
                    &values_spec,
                    &mut v,
                )
                .expect("a valid policy");
            }
            kept = state.len as usize;
            out[0].extend_from_slice(&k[..kept * keys_spec.row_bytes() as usize]);
            out[1].extend_from_slice(&v[..kept * values_spec.row_bytes() as usize]);
            out[2].extend((0..state.len).flat_map(|s| state.position_of(s).to_le_bytes()));
        }
        let [k, v, positions] = out;
        result.insert(name("keys"), Tensor(keys.0, vec![batch, heads, kept, keys.1[3]], k));
        result.insert(name("values"), Tensor(values.0, vec![batch, heads, kept, values.1[3]], v));
        result.insert(name("positions"), Tensor(FileDtype::U32, vec![batch, heads, kept], positions));
    }
    result
}

/// Compresses a cache and compares every tensor of the output.
fn check(input: &Path, args: &[&str], policy: &Policy, skip_layers: &[u32]) -> Cache {
    let output = input.with_extension("out");
    let mut all = vec!["--input", input.to_str().expect("text"), "--output", output.to_str().expect("text")];
    all.extend(args);
    succeed(&all);
    let (got, expected) = (read(&output), expected(&read(input), policy, skip_layers));
    let mut names: Vec<_> = expected.keys().chain(got.keys()).collect();
    names.sort_unstable();
    for name in names {
        assert!(got.get(name) == expected.get(name), "{args:?}: tensor {name} differs from the reference");
    }
    got
}

#[test]
fn output_equals_the_reference() {
    let dir = tempfile::tempdir().expect("a folder");
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2] {
        let input = dir.path().join(format!("{dtype:?}.safetensors"));
        write(&input, &random_cache(dtype));
        for (order_name, order) in [("fill", Order::Fill), ("positional", Order::Positional)] {
            for (preset, policy, skip) in [
                ("paper", Policy::paper(0.4), &[0u32, 1][..]),
                ("kvpress", Policy::kvpress(0.4), &[]),
                ("safe", Policy::safe(0.4), &[0, 1]),
            ] {
                let policy = Policy { order, ..policy };
                check(&input, &["--keep-ratio", "0.4", "--preset", preset, "--order", order_name], &policy, skip);
            }
        }
    }
}

#[test]
fn every_flag_reaches_the_policy() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = dir.path().join("in.safetensors");
    write(&input, &random_cache(Dtype::Bf16));
    let tokens = |n| Policy::new(Budget::KeepTokens(n));
    let random = Policy { direction: Direction::Random { seed: 9 }, ..tokens(20) };
    let highest = Policy { direction: Direction::Highest, ..Policy::kvpress(0.5) };
    let guarded = Policy { sinks: 3, recent: 10, ..Policy::paper(0.2) };
    check(&input, &["--keep-tokens=20", "--direction=random", "--seed=9", "--skip-layers="], &random, &[]);
    check(&input, &["--direction=highest", "--rounding=floor", "--skip-layers", "3"], &highest, &[3]);
    check(&input, &["--keep-ratio=.2", "--sinks=3", "--recent=10", "--selector=bitonic"], &guarded, &[0, 1]);
    check(&input, &["--keep-ratio=0", "--preset=kvpress", "--selector=radix"], &Policy::kvpress(0.0), &[]);
    check(&input, &["--keep-ratio=1"], &Policy::paper(1.0), &[0, 1]);
    check(&input, &["--preset=safe", "--sinks=0", "--recent=0", "--skip-layers="], &Policy::paper(0.5), &[]);
}

#[test]
fn bundled_cache_equals_the_reference_and_double_precision() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = dir.path().join("in.safetensors");
    std::fs::copy(BUNDLED, &input).expect("a copy");
    let got = check(&input, &["--skip-layers", ""], &Policy::paper(0.5), &[]);
    for layer in [0, 2, 10, 20, 29] {
        let keys = &read(&input)[&format!("layers.{layer}.keys")];
        for (row, kept) in words(&got[&format!("layers.{layer}.positions")]).chunks_exact(256).enumerate() {
            let norms: Vec<f64> = keys.2[row * 512 * 128..][..512 * 128]
                .chunks_exact(128)
                .map(|key| key.chunks_exact(2).map(|b| f64::from(half::f16::from_le_bytes([b[0], b[1]])).powi(2)).sum())
                .collect();
            let mut sorted = norms.clone();
            sorted.sort_by(f64::total_cmp);
            let slack = sorted[255] * 64.0 * f64::from(2.0_f32.powi(-24));
            for (position, &norm) in (0..512).zip(&norms) {
                let is_kept = kept.contains(&position);
                assert!(!is_kept || norm <= sorted[255] + slack, "layer {layer} row {row}: {position} must go");
                assert!(is_kept || norm >= sorted[255] - slack, "layer {layer} row {row}: {position} must stay");
            }
        }
    }
}

#[test]
fn a_second_compression_goes_on_from_the_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = dir.path().join("cache.safetensors");
    write(&cache, &random_cache(Dtype::F32));
    let path = cache.to_str().expect("text");
    // In place: the output is the input.
    succeed(&["--input", path, "--output", path, "--preset", "safe", "--keep-ratio", "0.8"]);
    assert_eq!(read(&cache)["layers.3.positions"].1, [1, 3, 78], "ceil(0.8 * 97) tokens");
    for (direction_name, direction) in
        [("lowest", Direction::Lowest), ("highest", Direction::Highest), ("random", Direction::Random { seed: 0 })]
    {
        let policy = Policy { sinks: 4, recent: 8, direction, ..Policy::paper(0.5) };
        let args = ["--direction", direction_name, "--sinks=4", "--recent=8", "--skip-layers="];
        check(&cache, &args, &policy, &[]);
    }
}

#[test]
fn what_is_no_layer_passes_through() {
    let dir = tempfile::tempdir().expect("a folder");
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let mut cache = random_cache(Dtype::F16);
    let empty = Tensor(FileDtype::F16, vec![1, 2, 0, 64], Vec::new());
    cache.insert("layers.5.keys".to_owned(), empty.clone());
    cache.insert("layers.5.values".to_owned(), empty.clone());
    write(&input, &cache);
    let text = succeed(&["--input", input.to_str().expect("text"), "--output", output.to_str().expect("text")]);
    assert!(text.contains("0 -> 0"), "an empty layer is a no-op:\n{text}");
    let got = read(&output);
    for name in ["layers.x.keys", "logits", "layers.0.keys", "layers.0.values", "layers.5.keys"] {
        assert_eq!(got[name], cache[name], "{name}");
    }
    assert_eq!(got["layers.5.positions"].1, [1, 2, 0], "no positions");
    let bytes = std::fs::read(&output).expect("a file");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    assert_eq!(header.metadata().as_ref().and_then(|m| m.get("model")).map(String::as_str), Some("none"), "metadata");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 2, "nothing else is left in the folder");
}

#[test]
fn without_arguments_it_runs_on_the_bundled_cache() {
    let text = succeed(&[]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("adapter: "), "{text}");
    let first = |line: &&str| line.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(
        lines[1..].iter().map(first).collect::<Vec<_>>(),
        ["layer", "0", "2", "10", "20", "29", "total"],
        "{text}"
    );
    assert!(lines[2].contains("512 -> 512") && lines[2].contains("left whole"), "layer 0 is left whole:\n{text}");
    assert!(lines[3].contains("512 -> 256") && lines[3].contains("393216 -> 196608"), "{text}");
    // Every layer's moves are those that the reference makes.
    let cache = read(Path::new(BUNDLED));
    for (line, layer) in lines[3..7].iter().zip([2, 10, 20, 29]) {
        let keys = &cache[&format!("layers.{layer}.keys")];
        let moved: usize = (0..3)
            .map(|row| {
                let bytes = &keys.2[row * 512 * 128..][..512 * 128];
                let spec = spec_of(keys);
                let policy = Policy::paper(0.5);
                let state = CacheRow::new(512);
                let scored = reference::key_norm::score_row(&policy, layer, row as u32, &state, &spec, bytes);
                let selected = reference::top_k::select(&scored.order_keys, &policy.budget, policy.order);
                selected.expect("a valid policy").num_moved()
            })
            .sum();
        assert!(line.split_whitespace().any(|cell| cell == moved.to_string()), "{moved} rows move:\n{line}");
    }
}

#[test]
fn a_nan_is_named_in_a_note() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = dir.path().join("in.safetensors");
    let mut cache = random_cache(Dtype::F32);
    cache.get_mut("layers.3.keys").expect("keys").2[320..324].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&input, &cache);
    let text = succeed(&["--input", input.to_str().expect("text")]);
    assert!(text.contains("note: layers 3: a key holds NaN"), "{text}");
    check(&input, &[], &Policy::paper(0.5), &[0, 1]);
}

#[test]
fn adapters_are_listed_and_found_by_a_part_of_their_name() {
    let list = succeed(&["--list-adapters"]);
    let first = list.lines().next().expect("an adapter");
    let (number, described) = first.split_once(": ").expect("a number");
    let name = described.split_once(" (").expect("a name").0.to_uppercase();
    for adapter in [&name[1..], number] {
        let text = succeed(&["--adapter", adapter]);
        assert!(text.starts_with(&format!("adapter: {described}\n")), "{text}");
    }
}

/// One line on stderr, exit code 2, and no output.
fn refuse(args: &[&str], output: Option<&Path>, expected: &str) {
    let got = compress(args);
    let stderr = String::from_utf8_lossy(&got.stderr);
    assert_eq!(got.status.code(), Some(2), "{args:?}: exit code, stderr: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: one line: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{args:?}: {stderr} lacks {expected}");
    if let Some(output) = output {
        let folder = std::fs::read_dir(output.parent().expect("a folder")).expect("a folder");
        let left: Vec<_> = folder.map(|e| e.expect("an entry").file_name()).filter(|n| n != "in.safetensors").collect();
        assert!(left.is_empty(), "{args:?} leaves {left:?}");
    }
}

#[test]
fn bad_arguments_are_refused() {
    for (args, expected) in [
        (&["--keep-ratio", "1.5"][..], "--keep-ratio: keep_ratio is 1.5"),
        (&["--keep-ratio", "nan"], "--keep-ratio: keep_ratio is NaN"),
        (&["--keep-ratio", "-0.5"], "--keep-ratio: keep_ratio is -0.5"),
        (&["--keep-ratio", "half"], "'half' for '--keep-ratio"),
        (&["--keep-tokens", "0"], "--keep-tokens: keep_tokens is 0"),
        (&["--keep-tokens", "-3"], "'-3' for '--keep-tokens"),
        (&["--keep-tokens", "67", "--preset", "safe"], "--keep-tokens: keep_tokens is 67, below sinks + recent = 68"),
        (&["--keep-tokens", "9", "--keep-ratio", "0.5"], "'--keep-tokens <K>' cannot be used with '--keep-ratio <R>'"),
        (&["--order", "sorted"], "'sorted' for '--order <ORDER>' [possible values: fill, positional]"),
        (&["--selector", "x"], "--selector"),
        (&["--direction", "x"], "--direction"),
        (&["--preset", "x"], "--preset"),
        (&["--rounding", "x"], "--rounding"),
        (&["--seed", "-1"], "--seed"),
        (&["--sinks", "-1"], "--sinks"),
        (&["--skip-layers", "0,one"], "--skip-layers"),
        (&["--skip-layers", "92"], "--skip-layers: the file has no layer 92"),
        (&["--adapter", "no such adapter"], "--adapter no such adapter: no adapter has this in its name; there are: "),
        (&["--input", "no/such/file"], "--input no/such/file: "),
        (&["--input", env!("CARGO_MANIFEST_DIR")], "not a regular file"),
        (&["--output", "no/such/folder/file"], "--output no/such/folder/file: "),
        (&["--output", env!("CARGO_MANIFEST_DIR")], "exists and is not a regular file"),
        (&["--frobnicate"], "--frobnicate"),
        (&["stray"], "stray"),
    ] {
        refuse(args, None, expected);
    }
}

/// A change to a cache, and what is said of it.
type Fault = (fn(&mut Cache), &'static str);

#[test]
fn bad_caches_are_refused() {
    let tensor = |dtype, shape: &[usize]| {
        let elements: usize = shape.iter().product();
        Tensor(dtype, shape.to_vec(), vec![0; elements * if dtype == FileDtype::F64 { 8 } else { 2 }])
    };
    let set = move |cache: &mut Cache, name: &str, dtype, shape: &[usize]| {
        cache.insert(name.to_owned(), tensor(dtype, shape));
    };
    let dir = tempfile::tempdir().expect("a folder");
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let (path, out_path) = (input.to_str().expect("text"), output.to_str().expect("text"));
    let f16 = FileDtype::F16;
    let faults: [(&str, FileDtype, &[usize], &str); 13] = [
        ("layers.0.values", f16, &[2, 2, 149, 64], "layers.0.values has seq_len 149, but layers.0.keys has 150"),
        ("layers.0.values", f16, &[2, 1, 150, 64], "layers.0.values has num_kv_heads 1, but layers.0.keys has 2"),
        ("layers.0.values", f16, &[1, 2, 150, 64], "layers.0.values has batch 1, but layers.0.keys has 2"),
        ("layers.0.keys", f16, &[2, 150, 64], "layers.0.keys has shape [2, 150, 64], expected [batch, num_kv_heads"),
        (
            "layers.3.keys",
            FileDtype::F64,
            &[1, 3, 97, 80],
            "layers.3.keys has dtype F64, expected F16, BF16, F32, F8_E4M3 or F8_E5M2",
        ),
        ("layers.3.keys", FileDtype::I16, &[1, 3, 97, 80], "layers.3.keys has dtype I16"),
        ("layers.3.keys", f16, &[1, 3, 97, 576], "layers.3: keys.head_dim is 576 elements"),
        ("layers.3.keys", f16, &[1, 3, 97, 20], "layers.3: keys.head_dim is 20 elements"),
        ("layers.3.positions", f16, &[1, 3, 97], "layers.3.positions is F16 [1, 3, 97], expected U32 [1, 3, 97]"),
        ("layers.7.keys", f16, &[1, 3, 97, 80], "tensor layers.7.values is missing"),
        (
            "layers.00.keys",
            f16,
            &[1, 3, 97, 80],
            "tensor layers.00.keys: expected a layer index from 0 to 65535 without",
        ),
        ("layers.65536.positions", f16, &[1], "tensor layers.65536.positions: expected a layer index from 0 to 65535"),
        ("layers.99999999999.keys", f16, &[1], "tensor layers.99999999999.keys: expected a layer index"),
    ];
    for (name, dtype, shape, expected) in faults {
        let mut cache = random_cache(Dtype::F16);
        set(&mut cache, name, dtype, shape);
        write(&input, &cache);
        refuse(&["--input", path, "--output", out_path], Some(&output), expected);
    }
    let faults: [Fault; 4] = [
        (|c| drop(c.remove("layers.3.keys")), "tensor layers.3.keys is missing"),
        (|c| c.retain(|name, _| name == "logits"), "no tensor is named layers.{i}.keys"),
        (
            |c| {
                let bytes = [0u32; 291].iter().flat_map(|w| w.to_le_bytes()).collect();
                c.insert("layers.3.positions".to_owned(), Tensor(FileDtype::U32, vec![1, 3, 97], bytes));
            },
            "layers.3.positions: a row holds a position twice",
        ),
        (
            |c| {
                let empty = Tensor(FileDtype::F16, vec![0, 2, 150, 64], Vec::new());
                c.insert("layers.0.keys".to_owned(), empty.clone());
                c.insert("layers.0.values".to_owned(), empty);
            },
            "layers.0: batch_size is 0",
        ),
    ];
    for (change, expected) in faults {
        let mut cache = random_cache(Dtype::F16);
        change(&mut cache);
        write(&input, &cache);
        refuse(&["--input", path, "--output", out_path], Some(&output), expected);
    }
}

#[test]
fn broken_files_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let whole = std::fs::read(BUNDLED).expect("the bundled cache");
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    for (bytes, expected) in [
        (Vec::new(), "0 bytes, too short"),
        (whole[..7].to_vec(), "7 bytes, too short"),
        (whole[..100].to_vec(), "cut off"),
        (whole[..whole.len() - 1].to_vec(), "its header describes"),
        ([&whole[..], &[0]].concat(), "its header describes"),
        (vec![0xff; 64], "not a safetensors file"),
        (header("no json"), "header of the file is invalid"),
        (header(r#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,6]}}"#), "header of the file is invalid"),
    ] {
        std::fs::write(&input, bytes).expect("a file");
        let args = ["--input", input.to_str().expect("text"), "--output", output.to_str().expect("text")];
        refuse(&args, Some(&output), expected);
    }
}

#[test]
fn a_refused_run_leaves_an_earlier_output_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = dir.path().join("out.safetensors");
    std::fs::write(&output, "earlier").expect("a file");
    let got = compress(&["--output", output.to_str().expect("text"), "--adapter", "no such adapter"]);
    assert_eq!(got.status.code(), Some(2), "exit code");
    assert_eq!(std::fs::read(&output).expect("a file"), b"earlier", "the earlier output");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1, "no temporary file");
}

/// Whoever may not read a cache may not read what takes its place, and a link that leads nowhere stays one.
#[cfg(unix)]
#[test]
fn what_is_replaced_keeps_its_permissions() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a folder");
    let cache = dir.path().join("cache.safetensors");
    write(&cache, &random_cache(Dtype::F16));
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    let path = cache.to_str().expect("text");
    succeed(&["--input", path, "--output", path, "--skip-layers", "3"]);
    assert_eq!(std::fs::metadata(&cache).expect("a file").permissions().mode() & 0o777, 0o600);
    assert_eq!(read(&cache)["layers.0.keys"].1, [2, 2, 75, 64], "compressed in place");

    let link = dir.path().join("link.safetensors");
    std::os::unix::fs::symlink("nowhere", &link).expect("a link");
    refuse(&["--input", path, "--output", link.to_str().expect("text")], None, "is a link to nothing");
    assert!(link.is_symlink(), "the link is left alone");
}
