//! The shaders without a GPU: every module is parsed, validated for baseline WebGPU, measured against the default
//! limits and translated to each back end; every kernel's header and Rust mirror is compared with what naga reflects.
//! Each check is a function that a test below feeds a broken sample.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use keynorm::{Dtype, Module, Reduction, params};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, ArraySize, Expression, Handle, Literal, Override, StorageAccess, Type, TypeInner};

type Check<T = ()> = Result<T, String>;

/// A module with its overrides at their defaults, its info, and the number of storage buffers it declares (the override
/// pass drops what is not used).
struct Resolved(naga::Module, ModuleInfo, usize);

fn parse(source: &str, capabilities: Capabilities) -> Check<(naga::Module, ModuleInfo)> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info =
        Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

fn resolve(source: &str, capabilities: Capabilities) -> Check<Resolved> {
    resolve_with(source, capabilities, &[])
}

fn resolve_with(source: &str, capabilities: Capabilities, constants: &[(&str, u32)]) -> Check<Resolved> {
    let (module, info) = parse(source, capabilities)?;
    let storage = module.global_variables.iter().filter(|(_, v)| matches!(v.space, AddressSpace::Storage { .. }));
    let num_storage = storage.count();
    let constants = constants.iter().map(|&(name, value)| (name.to_owned(), f64::from(value))).collect();
    let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants)
        .map_err(|e| e.to_string())?;
    Ok(Resolved(module.into_owned(), info.into_owned(), num_storage))
}

fn uses_subgroups(module: Module) -> bool {
    let text = format!("{module:?}");
    text.contains("reduction: Subgroup") || text.contains("subgroups: true")
}

/// WebGPU without any optional feature; `unpack2x16float` is part of it.
const BASELINE: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// wgpu's arrays of storage buffers.
const ARRAYS: Capabilities =
    Capabilities::STORAGE_BUFFER_BINDING_ARRAY.union(Capabilities::STORAGE_BUFFER_BINDING_ARRAY_NON_UNIFORM_INDEXING);

fn capabilities(module: Module) -> Capabilities {
    let subgroups = if uses_subgroups(module) { Capabilities::SUBGROUP } else { Capabilities::empty() };
    BASELINE | subgroups | if uses_arrays(module) { ARRAYS } else { Capabilities::empty() }
}

fn uses_arrays(module: Module) -> bool {
    let text = format!("{module:?}");
    text.contains("tokens: Arrays") || text.contains("arrays: true")
}

fn for_each_module(check: impl Fn(Module, &Resolved) -> Check) {
    let all = Module::all();
    assert!(all.len() >= 20, "the list of modules has {} entries", all.len());
    for module in all {
        let result = resolve(&module.source(), capabilities(module)).and_then(|resolved| check(module, &resolved));
        result.unwrap_or_else(|e| panic!("{module:?}: {e}"));
    }
}

/// The default limits of WebGPU.
fn check_limits(Resolved(module, info, num_storage): &Resolved) -> Check {
    if *num_storage > 8 {
        return Err(format!("{num_storage} storage buffers"));
    }
    for (ix, entry) in module.entry_points.iter().enumerate() {
        let bytes = workgroup_bytes(module, info, ix);
        if bytes > 16384 {
            return Err(format!("{} takes {bytes} bytes of workgroup memory", entry.name));
        }
        let invocations: u32 = entry.workgroup_size.iter().product();
        if invocations > 256 {
            return Err(format!("{} has {invocations} invocations", entry.name));
        }
    }
    Ok(())
}

fn workgroup_bytes(module: &naga::Module, info: &ModuleInfo, entry: usize) -> u32 {
    let used = info.get_entry_point(entry);
    let variables = module.global_variables.iter();
    let variables = variables.filter(|&(h, v)| v.space == AddressSpace::WorkGroup && !used[h].is_empty());
    variables.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum()
}

/// To each back end that takes the module's features: wgpu 30 has no arrays of storage buffers on DX12.
fn translate(Resolved(module, info, _): &Resolved, has_arrays: bool) -> Check {
    naga::back::spv::write_vec(module, info, &naga::back::spv::Options::default(), None)
        .map_err(|e| format!("SPIR-V: {e}"))?;
    let options = naga::back::msl::Options { lang_version: (2, 4), ..Default::default() };
    naga::back::msl::write_string(module, info, &options, &Default::default()).map_err(|e| format!("MSL: {e}"))?;
    if has_arrays {
        return Ok(());
    }
    let options = naga::back::hlsl::Options { shader_model: naga::back::hlsl::ShaderModel::V6_0, ..Default::default() };
    let pipeline = naga::back::hlsl::PipelineOptions::default();
    let mut text = String::new();
    naga::back::hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    check_stores(&text)
}

/// FXC, which wgpu takes where DXC is not found, refuses to store to an element of a vector by an index that it does not know; of
/// such an index naga says that it is at most 1, 2 or 3.
fn check_stores(hlsl: &str) -> Check {
    let is_element = |place: &str| [", 1u)]", ", 2u)]", ", 3u)]"].iter().any(|end| place.ends_with(end));
    match hlsl.lines().find(|line| line.split_once(" = ").is_some_and(|(place, _)| is_element(place))) {
        Some(line) => Err(format!("HLSL: {}", line.trim())),
        None => Ok(()),
    }
}

/// Browsers need `enable subgroups;`, naga refuses it, so that it is never in a file; nor is any preprocessor.
fn check_plain_wgsl(text: &str) -> Check {
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.starts_with('#') || ["enable ", "requires ", "diagnostic("].iter().any(|d| line.starts_with(d)) {
            return Err(format!("line {number}: {line}"));
        }
    }
    Ok(())
}

fn shader_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

/// (file name, text) of every WGSL file in a folder.
fn files(dir: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dir).expect("the folder of shaders");
    let mut files: Vec<_> = entries
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "wgsl"))
        .map(|p| {
            let name = p.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&p).expect("a text file"))
        })
        .collect();
    files.sort();
    assert!(files.len() >= 5, "few shaders in {}", dir.display());
    files
}

/// What a header says, or what naga reflects.
#[derive(Debug, Default, PartialEq, Eq)]
struct Interface {
    /// Number → name and access.
    bindings: BTreeMap<u32, (String, String)>,
    entry_points: BTreeSet<String>,
    /// Name → default.
    overrides: BTreeMap<String, String>,
}

const ITEMS: [&str; 8] = [
    "Source:",
    "Reference:",
    "Bindings:",
    "Entry points:",
    "Overrides:",
    "Workgroup bytes:",
    "Algorithm:",
    "Invariants:",
];

/// The items of a header, in order; the first is the summary.
fn header_items(stem: &str, text: &str) -> Check<Vec<String>> {
    let header: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//!")).collect();
    let header = header.join("\n");
    let mut rest = header.strip_prefix(&format!(" {stem}: ")).ok_or(format!("does not start with `//! {stem}: `"))?;
    let mut items = Vec::new();
    for item in ITEMS {
        // `Reference:` may follow its source on one line.
        let (before, after) = rest.split_once(item).ok_or(format!("lacks {item} in its place"))?;
        items.push(before.trim().to_owned());
        rest = after;
    }
    items.push(rest.trim().to_owned());
    match items.iter().position(String::is_empty) {
        Some(0) => Err("has an empty summary".to_owned()),
        Some(ix) => Err(format!("has an empty item {}", ITEMS[ix - 1])),
        None => Ok(items),
    }
}

fn binding_lines(text: &str) -> BTreeMap<u32, (String, String)> {
    let words = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let lines = words.filter(|w| w.len() >= 3);
    lines.filter_map(|w| Some((w[0].parse().ok()?, (w[1].to_owned(), w[2].to_owned())))).collect()
}

fn header_interface(items: &[String]) -> Check<Interface> {
    let mut bindings = binding_lines(&items[3]);
    let shared_lists = ["shared/top_k", "shared/score_rows"];
    for shared in items[3].split_whitespace().filter(|w| shared_lists.iter().any(|list| w.starts_with(list))) {
        let path = shader_dir().join(shared.trim_end_matches([',', ';']));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let comment: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//")).collect();
        bindings.extend(binding_lines(&comment.join("\n")));
    }
    let entries = items[4].lines().filter_map(|l| l.split_once(" · dispatch"));
    let entry_points = entries.flat_map(|(names, _)| names.split(',')).map(|n| n.trim().to_owned()).collect();
    let mut overrides = BTreeMap::new();
    for part in items[5].split(';') {
        let (names, value) = part.split_once('=').ok_or(format!("override without default: {part}"))?;
        let value = value.split([',', '\n']).next().unwrap_or_default().trim();
        overrides.extend(names.split(',').map(|n| (n.trim().to_owned(), value.to_owned())));
    }
    Ok(Interface { bindings, entry_points, overrides })
}

/// What all modules of a kernel's file declare together.
fn reflect(module: &naga::Module, into: &mut Interface) {
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        if binding.group == 1 {
            let name = variable.name.as_deref();
            assert!([Some("keys"), Some("values")].contains(&name), "{name:?} in the group of the arrays");
            continue;
        }
        assert_eq!(binding.group, 0, "all other bindings are in group 0");
        let access = match variable.space {
            AddressSpace::Uniform => "uniform",
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => "read_write",
            AddressSpace::Storage { .. } => "read",
            other => panic!("a binding in {other:?}"),
        };
        let name = variable.name.clone().expect("a name");
        into.bindings.insert(binding.binding, (name, access.to_owned()));
    }
    into.entry_points.extend(module.entry_points.iter().map(|e| e.name.clone()));
    for (handle, value) in module.overrides.iter() {
        // Expressions of overrides, such as sizes of arrays, are overrides without a name.
        if let Some(name) = &value.name {
            into.overrides.insert(name.clone(), default_of(module, handle));
        }
    }
}

fn default_of(module: &naga::Module, handle: Handle<Override>) -> String {
    match module.overrides[handle].init.map(|init| &module.global_expressions[init]) {
        Some(Expression::Literal(Literal::U32(v))) => v.to_string(),
        Some(Expression::Literal(Literal::Bool(v))) => v.to_string(),
        other => format!("{other:?}"),
    }
}

/// The sum of `number [* OVERRIDE] [/ OVERRIDE]` terms between plus signs; words after a term are its condition.
fn stated_bytes(text: &str, overrides: &BTreeMap<String, String>) -> Check<u32> {
    let value = |word: &str| {
        let word = word.trim_end_matches([',', ':', ';']);
        word.parse::<u32>().ok().or_else(|| overrides.get(word)?.parse().ok())
    };
    let mut sum = 0;
    for term in text.split('+') {
        let words: Vec<&str> = term.split_whitespace().collect();
        let first = words.first().and_then(|w| value(w)).ok_or(format!("no number of bytes in {term:?}"))?;
        // Words after the factors are the term's condition.
        let mut bytes = first;
        for pair in words[1..].chunks(2) {
            match pair {
                ["*", factor] => bytes *= value(factor).ok_or(format!("no override {factor}"))?,
                ["/", divisor] => bytes /= value(divisor).ok_or(format!("no override {divisor}"))?,
                _ => break,
            }
        }
        sum += bytes;
    }
    Ok(sum)
}

/// Headers leave out scalars and may round row descriptions up.
fn check_bytes(text: &str, overrides: &BTreeMap<String, String>, modules: &[(naga::Module, Resolved)]) -> Check {
    let stated = stated_bytes(text, overrides)?;
    let of_module = |Resolved(resolved, info, _): &Resolved| {
        (0..resolved.entry_points.len()).map(|ix| workgroup_bytes(resolved, info, ix)).max()
    };
    let bytes = modules.iter().filter_map(|m| of_module(&m.1)).max().unwrap_or(0);
    if bytes.abs_diff(stated) > 256 {
        return Err(format!("header says {stated} workgroup bytes, naga says {bytes}"));
    }
    Ok(())
}

/// A kernel's header against the modules that are made of its file.
fn check_header(stem: &str, text: &str, modules: &[(naga::Module, Resolved)]) -> Check {
    let items = header_items(stem, text)?;
    let stated = header_interface(&items)?;
    let mut reflected = Interface::default();
    for (module, _) in modules {
        reflect(module, &mut reflected);
    }
    if stated != reflected {
        return Err(format!("header says {stated:#?}\nnaga says {reflected:#?}"));
    }
    check_bytes(&items[6], &stated.overrides, modules)?;
    let reference = items[2].split([' ', ',', '\n']).find(|w| w.starts_with("src/reference/"));
    let reference = reference.ok_or("names no file of src/reference/")?.trim_end_matches('.');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(reference);
    if path.is_file() { Ok(()) } else { Err(format!("{reference} does not exist")) }
}

/// What begins the text of modules with arrays.
const ENABLED: &str = "enable wgpu_binding_array; ";

fn modules_of(kernel: &str, constants: &[(&str, u32)]) -> Vec<(naga::Module, Resolved)> {
    let is_made_of_it = |m: &Module| m.source().trim_start_matches(ENABLED).starts_with(kernel);
    let made_of_it = Module::all().into_iter().filter(is_made_of_it);
    made_of_it
        .map(|m| {
            let (module, _) = parse(&m.source(), capabilities(m)).expect("a valid module");
            (module, resolve_with(&m.source(), capabilities(m), constants).expect("a valid module"))
        })
        .collect()
}

/// Fields and their offsets (in words) as the derived `Debug` of a struct whose words count up prints them.
fn wgsl_layout(module: &naga::Module, ty: Handle<Type>, base: u32) -> String {
    match &module.types[ty].inner {
        TypeInner::Struct { members, .. } => {
            let fields = members.iter().map(|m| {
                let inner = wgsl_layout(module, m.ty, base + m.offset / 4);
                let nested = matches!(module.types[m.ty].inner, TypeInner::Struct { .. });
                let ty = if nested { module.types[m.ty].name.clone().unwrap_or_default() + " " } else { String::new() };
                format!("{}: {ty}{inner}", m.name.as_deref().unwrap_or("?"))
            });
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        TypeInner::Scalar(naga::Scalar::U32) => base.to_string(),
        TypeInner::Array { size: ArraySize::Constant(length), stride: 16, .. } => {
            format!("{:?}", (base..base + 4 * length.get()).collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    }
}

fn rust_layout<T: Pod + std::fmt::Debug>() -> String {
    let words: Vec<u32> = (0..).take(size_of::<T>() / 4).collect();
    let text = format!("{:?}", bytemuck::pod_read_unaligned::<T>(bytemuck::cast_slice(&words)));
    text[text.find('{').expect("a struct")..].to_owned()
}

/// Layout and size of every mirror.
fn mirrors() -> Vec<(String, u32)> {
    fn of<T: Pod + std::fmt::Debug>() -> (String, u32) {
        (rust_layout::<T>(), u32::try_from(size_of::<T>()).expect("a small struct"))
    }
    vec![
        of::<params::KeyNormParams>(),
        of::<params::ScoreParams>(),
        of::<params::RotateParams>(),
        of::<params::RenumberParams>(),
        of::<params::TopKParams>(),
        of::<params::CompactParams>(),
        of::<params::RowParams>(),
        of::<params::BandParams>(),
        of::<params::PageParams>(),
        of::<params::AppendParams>(),
        of::<params::RowRule>(),
        of::<params::OrderParams>(),
    ]
}

/// The struct of a binding, whose fields and size one of the mirrors must have; returns which.
fn check_mirror(module: &naga::Module, ty: Handle<Type>) -> Check<usize> {
    let found = (wgsl_layout(module, ty, 0), module.types[ty].inner.size(module.to_ctx()));
    mirrors().iter().position(|m| *m == found).ok_or(format!("no mirror is {found:?}"))
}

#[test]
fn every_module_validates_for_baseline_webgpu() {
    for_each_module(|module, _| {
        // Subgroup variants are the only ones that need a feature, and they do.
        match (uses_subgroups(module) || uses_arrays(module), parse(&module.source(), BASELINE)) {
            (true, Ok(_)) => Err("needs no feature".to_owned()),
            _ => Ok(()),
        }
    });
}

#[test]
fn every_module_keeps_to_the_default_limits() {
    for_each_module(|_, resolved| check_limits(resolved));
}

/// Workgroup memory of an entry point, bytes.
fn bytes_of(module: Module, constants: &[(&str, u32)], entry: &str) -> u32 {
    let resolved = resolve_with(&module.source(), capabilities(module), constants);
    let Resolved(resolved, info, _) = resolved.expect("a valid module");
    let ix = resolved.entry_points.iter().position(|e| e.name == entry).expect("the entry point");
    workgroup_bytes(&resolved, &info, ix)
}

/// Rows of two eights an invocation, as long as the host takes them by what workgroup memory a device has.
#[test]
fn the_longest_rows_of_two_eights_keep_to_workgroup_memory() {
    for (kib, workgroup, pair_words, reduction) in [
        (16, 256, 2048, Reduction::Workgroup),
        (24, 1024, 5056, Reduction::Subgroup),
        (32, 1024, 7104, Reduction::Subgroup),
        (32, 512, 4096, Reduction::Workgroup),
        (48, 1024, 8192, Reduction::Subgroup),
    ] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2] {
            let module = Module::Row { dtype, reduction, arrays: false };
            let bytes = bytes_of(module, &[("WG_SIZE", workgroup), ("PAIR_WORDS", pair_words)], "move_row");
            assert!((4 * pair_words..=kib << 10).contains(&bytes), "{module:?}, {kib} KiB: {bytes} bytes");
        }
    }
}

/// The widest workgroups that the host asks for, where a device has no more workgroup memory than Metal and DX12: wgpu 30
/// does not compare.
#[test]
fn the_widest_workgroups_keep_to_32_kib() {
    let wide = ("WG_SIZE", 1024);
    let radix = |subgroups| (Module::Radix { subgroups }, vec![wide], "radix_row");
    let settle = |subgroups| (Module::RadixLong { subgroups }, vec![wide], "settle");
    let bitonic = |entry| (Module::Bitonic, vec![wide, ("SORT_LEN", 4096)], entry);
    let radixes = [radix(true), radix(false), settle(true), settle(false)];
    let bitonics = ["bitonic_row", "bitonic_tiles", "bitonic_merge"].map(bitonic);
    for (module, constants, entry) in radixes.into_iter().chain(bitonics) {
        let bytes = bytes_of(module, &constants, entry);
        assert!((4096..=32768).contains(&bytes), "{module:?}, {entry}: {bytes} bytes");
    }
}

#[test]
fn every_module_translates() {
    for_each_module(|module, resolved| translate(resolved, uses_arrays(module)));
}

#[test]
fn every_file_is_plain_wgsl_and_in_use() {
    let all = Module::all().into_iter();
    let sources: Vec<String> = all.flat_map(|m| [m.source(), m.source_by(true)]).collect();
    for (name, text) in files(&shader_dir()).into_iter().chain(files(&shader_dir().join("shared"))) {
        check_plain_wgsl(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(sources.iter().any(|s| s.contains(&text)), "{name} is in no module");
    }
}

/// What CPUs build.
#[test]
fn every_module_validates_with_wide_moves() {
    let mut found = 0;
    for module in Module::all().into_iter().filter(|m| m.source_by(true) != m.source()) {
        let resolved = resolve(&module.source_by(true), capabilities(module) | Capabilities::SHADER_INT64);
        let checked = resolved.and_then(|resolved| check_limits(&resolved));
        checked.unwrap_or_else(|e| panic!("{module:?}: {e}"));
        found += 1;
    }
    assert!(found >= 10, "{found} modules move by 64-bit words");
}

#[test]
fn every_header_says_what_naga_reflects() {
    for (name, text) in files(&shader_dir()) {
        let modules = modules_of(&text, &[]);
        assert!(!modules.is_empty(), "{name} starts no module");
        let stem = name.trim_end_matches(".wgsl");
        check_header(stem, &text, &modules).unwrap_or_else(|e| panic!("{name}: {e}"));
        // The bytes hold for other workgroups too.
        let items = header_items(stem, &text).expect("sound items");
        let mut overrides = header_interface(&items).expect("a sound interface").overrides;
        if overrides.get("WG_SIZE").is_some_and(|size| size == "256") {
            overrides.insert("WG_SIZE".to_owned(), "512".to_owned());
            let wide = modules_of(&text, &[("WG_SIZE", 512)]);
            check_bytes(&items[6], &overrides, &wide).unwrap_or_else(|e| panic!("{name}, 512 invocations: {e}"));
        }
    }
}

#[test]
fn every_twin_has_a_kernel() {
    let kernels: String = files(&shader_dir()).into_iter().map(|f| f.1).collect();
    let twins = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/reference")).expect("the twins");
    let mut num_twins = 0;
    for twin in twins {
        let name = twin.expect("an entry").file_name().to_string_lossy().into_owned();
        if name != "mod.rs" {
            num_twins += 1;
            assert!(kernels.contains(&format!("src/reference/{name}")), "no kernel names {name} as its reference");
        }
    }
    assert!(num_twins >= 3, "found {num_twins} twins");
}

#[test]
fn every_uniform_and_layer_table_has_a_mirror() {
    let mut found = BTreeSet::new();
    for module in Module::all() {
        let (naga, _) = parse(&module.source(), capabilities(module)).expect("a valid module");
        for (_, variable) in naga.global_variables.iter() {
            let layers = match naga.types[variable.ty].inner {
                TypeInner::Array { base, size: ArraySize::Dynamic, .. } => {
                    (naga.types[base].name.as_deref() == Some("RowRule")).then_some(base)
                }
                _ => None,
            };
            let uniform = (variable.space == AddressSpace::Uniform).then_some(variable.ty);
            if let Some(ty) = layers.or(uniform) {
                found.insert(check_mirror(&naga, ty).unwrap_or_else(|e| panic!("{module:?}: {e}")));
            }
        }
    }
    assert_eq!(found.len(), mirrors().len(), "a mirror that no shader has");
}

mod rejects {
    use super::*;

    const SAMPLE: &str = "override WG_SIZE: u32 = 64u;
        @group(0) @binding(0) var<storage, read_write> b: array<u32>;
        var<workgroup> w: array<u32, WG_SIZE>;
        @compute @workgroup_size(WG_SIZE) fn main(@builtin(local_invocation_index) i: u32) { w[i] = b[i]; b[i] = w[0]; }";

    #[track_caller]
    fn refused<T>(result: Check<T>, why: &str) {
        let error = result.err().expect("the check passes a broken sample");
        assert!(error.contains(why), "refused for another reason: {error}");
    }

    fn limits_of(source: &str) -> Check {
        check_limits(&resolve(source, BASELINE)?)
    }

    #[test]
    fn invalid_shaders() {
        limits_of(SAMPLE).expect("the sample is sound");
        refused(limits_of(&SAMPLE.replace("b[i] =", "b[i] +")), "expected");
        refused(limits_of(&SAMPLE.replace("= w[0]", "= 1.5")), "type");
        refused(limits_of(&SAMPLE.replace("= w[0]", "= subgroupAdd(w[0])")), "SUBGROUP");
    }

    #[test]
    fn limits() {
        refused(limits_of(&SAMPLE.replace("64u", "257u")), "main has 257 invocations");
        refused(limits_of(&SAMPLE.replace("WG_SIZE>", "4097>")), "16388 bytes of workgroup memory");
        let nine = (1..9).map(|b| format!("@group(0) @binding({b}) var<storage> b{b}: array<u32>;\n"));
        refused(limits_of(&(nine.collect::<String>() + SAMPLE)), "9 storage buffers");
    }

    #[test]
    fn untranslatable_modules() {
        let resolved = resolve(SAMPLE, BASELINE).expect("the sample is sound");
        translate(&resolved, false).expect("the sample translates");
        let of_vector = SAMPLE.replace("b[i] = w[0];", "var v: vec4<u32>; v[i] = w[0]; b[i] = v.x;");
        refused(translate(&resolve(&of_vector, BASELINE).expect("WGSL"), false), "HLSL: v[min");
        // A module whose overrides are left open is what a back end refuses.
        let (module, info) = parse(SAMPLE, BASELINE).expect("the sample is sound");
        refused(translate(&Resolved(module, info, 0), false), "verride");
    }

    #[test]
    fn directives() {
        refused(check_plain_wgsl("fn f() {}\nenable subgroups;"), "line 2: enable");
        refused(check_plain_wgsl("  #ifdef X"), "line 1: #ifdef");
    }

    #[test]
    fn headers() {
        let (_, text) = files(&shader_dir()).into_iter().find(|f| f.0 == "append.wgsl").expect("append.wgsl");
        let modules = modules_of(&text, &[]);
        let check = |text: &str| check_header("append", text, &modules);
        check(&text).expect("the file is sound");
        refused(check_header("other", &text, &modules), "does not start");
        for (item, replacement) in [
            ("Invariants:", "Remarks:"),
            ("1 state_meta", "3 state_meta"),
            ("2 counts", "2 count"),
            ("2 counts read", "2 counts read_write"),
            ("WG_SIZE = 256", "WG_SIZE = 128"),
            ("WG_SIZE = 256", "WG_LEN = 256"),
            ("truncate · dispatch", "appends · dispatch"),
            ("Workgroup bytes: 0", "Workgroup bytes: 4096"),
            ("reference/compact.rs", "reference/absent.rs"),
        ] {
            assert!(text.contains(item), "the sample no longer holds {item}");
            refused(check(&text.replacen(item, replacement, 1)), "");
        }
        refused(
            check(&text.replace("Bindings:", "@").replace("Entry points:", "Bindings:").replace('@', "Entry points:")),
            "",
        );
    }

    #[test]
    fn mirrors_that_differ() {
        let source = |fields: &str| format!("struct L {{ {fields} }} @group(0) @binding(0) var<uniform> p: L;");
        let check = |fields: &str| {
            let (module, _) = parse(&source(fields), BASELINE)?;
            check_mirror(&module, module.global_variables.iter().next().expect("a variable").1.ty)
        };
        let names = ["budget_mode", "ratio_low", "ratio_high", "tokens", "key_limit", "min_len", "pooled", "pad0"];
        let fields = names.map(|n| format!("{n}: u32")).join(", ");
        check(&fields).expect("the mirror of RowRule");
        refused(check(&fields.replace("tokens", "token")), "no mirror");
        refused(check(&fields.replace(", pooled: u32", "")), "no mirror");
        refused(check(&fields.replace("tokens: u32", "tokens: i32")), "no mirror");
        refused(
            check(&fields.replace("budget_mode: u32, ratio_low: u32", "ratio_low: u32, budget_mode: u32")),
            "no mirror",
        );
    }
}
