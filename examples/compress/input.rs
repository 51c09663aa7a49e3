//! The cache that is read: header checked, tensors read in pieces, so that a cache may be larger than the memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use keynorm::{Dtype, KvShape, Policy, TensorSpec};
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};

use crate::Failure;

/// Bytes that are read, moved and written at a time.
pub const CHUNK_BYTES: usize = 16 << 20;
/// As the safetensors crate: a longer header is refused.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open cache.
#[derive(Debug)]
pub struct Input {
    file: File,
    /// The argument, for messages.
    label: String,
    data_start: u64,
    pub metadata: Option<HashMap<String, String>>,
    /// By index.
    pub layers: Vec<Layer>,
    /// Tensors of no layer, which pass through.
    pub others: Vec<(String, TensorInfo)>,
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct Layer {
    pub index: u32,
    /// One layer; `capacity` is the length, which may be 0.
    pub shape: KvShape,
    pub keys: TensorInfo,
    pub values: TensorInfo,
    /// Of a cache that was compressed before.
    pub positions: Option<TensorInfo>,
}

/// Original positions that the input brings: one list a row, and the tokens seen by each sequence.
#[derive(Debug)]
pub struct Positions {
    pub rows: Vec<u32>,
    pub num_seen: Vec<u32>,
}

impl Layer {
    pub fn name(&self, part: &str) -> String {
        format!("layers.{}.{part}", self.index)
    }

    pub fn len(&self) -> u32 {
        self.shape.capacity
    }

    /// Bytes of keys and values for `tokens` tokens in each row.
    pub fn bytes(&self, tokens: u32) -> u64 {
        let token_bytes = self.shape.keys.row_bytes() + self.shape.values.row_bytes();
        u64::from(self.shape.rows_per_layer()) * u64::from(tokens) * u64::from(token_bytes)
    }

    /// Tokens that every row keeps.
    pub fn kept(&self, policy: &Policy, positions: Option<&Positions>) -> Result<u32, Failure> {
        let budget = |protected: u32| policy.budget.tokens(self.len(), protected).map_err(|e| e.to_string());
        let Some(positions) = positions.filter(|_| self.len() > 0) else {
            return budget(policy.sinks.saturating_add(policy.recent).min(self.len()));
        };
        let heads = self.shape.num_kv_heads as usize;
        let mut kept = None;
        for (row, list) in positions.rows.chunks_exact(self.len() as usize).enumerate() {
            let seen = positions.num_seen[row / heads];
            let protected = list.iter().filter(|&&p| p < policy.sinks || seen - p <= policy.recent).count();
            let row_kept = budget(u32::try_from(protected).unwrap_or(u32::MAX))?;
            if *kept.get_or_insert(row_kept) != row_kept {
                return Err(format!(
                    "{}: rows would keep different numbers of tokens, since more of some are protected than the budget; \
                     keep more, or protect fewer by --sinks and --recent",
                    self.name("positions")
                ));
            }
        }
        Ok(kept.unwrap_or(0))
    }
}

impl Input {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let label = format!("--input {}", path.display());
        let failed = |error: std::io::Error| format!("{label}: {error}");
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(format!("{label}: not a regular file"));
        }
        let mut file = File::open(path).map_err(failed)?;
        let (header, data_start) = read_header(&mut file, metadata.len()).map_err(|e| format!("{label}: {e}"))?;
        let data_end = data_start + header.data_len() as u64;
        if data_end != metadata.len() {
            return Err(format!(
                "{label}: {} bytes, but its header describes {data_end}; it is cut off or not one file",
                metadata.len()
            ));
        }
        let (layers, others) = sort_tensors(&header).map_err(|e| format!("{label}: {e}"))?;
        Ok(Self { file, label, data_start, metadata: header.metadata().clone(), layers, others })
    }

    /// Hands a tensor to `sink` in pieces, with the byte at which each begins.
    pub fn read(
        &mut self,
        tensor: &TensorInfo,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (start, end) = tensor.data_offsets;
        let failed = |error: std::io::Error| format!("{}: {error}", self.label);
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(failed)?;
        let mut chunk = vec![0; CHUNK_BYTES.min(end - start)];
        let mut at = 0;
        while at < end - start {
            let size = chunk.len().min(end - start - at);
            self.file.read_exact(&mut chunk[..size]).map_err(failed)?;
            sink(at as u64, &chunk[..size])?;
            at += size;
        }
        Ok(())
    }

    /// Positions of a layer that was compressed before. The tokens seen are not in the file: the highest position of a
    /// sequence, plus 1, stands for them.
    pub fn positions(&mut self, layer: &Layer) -> Result<Option<Positions>, Failure> {
        let Some(tensor) = &layer.positions else { return Ok(None) };
        let mut rows = Vec::new();
        self.read(tensor, |_, bytes| {
            rows.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            Ok(())
        })?;
        let bad = |what| format!("{}: {}: {what}", self.label, layer.name("positions"));
        let len = (layer.len() as usize).max(1);
        for row in rows.chunks_exact(len) {
            let mut sorted = row.to_vec();
            sorted.sort_unstable();
            if sorted.windows(2).any(|w| w[0] == w[1]) {
                return Err(bad("a row holds a position twice"));
            }
            if sorted.last() == Some(&u32::MAX) {
                return Err(bad("a position is 4294967295, expected less"));
            }
        }
        let num_seen = match layer.len() {
            0 => vec![0; layer.shape.batch_size as usize],
            _ => rows
                .chunks_exact(len * layer.shape.num_kv_heads as usize)
                .map(|sequence| sequence.iter().max().map_or(0, |p| p + 1))
                .collect(),
        };
        Ok(Some(Positions { rows, num_seen }))
    }
}

fn read_header(file: &mut File, file_bytes: u64) -> Result<(Metadata, u64), Failure> {
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(format!("{file_bytes} bytes, too short for a safetensors file"));
    }
    file.read_exact(&mut length).map_err(|e| e.to_string())?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(format!("not a safetensors file: its header would have {header_bytes} bytes"));
    }
    if header_bytes > file_bytes - 8 {
        return Err(format!("cut off: {file_bytes} bytes, but the header alone has {header_bytes}"));
    }
    let mut header = Vec::new();
    file.take(header_bytes).read_to_end(&mut header).map_err(|e| e.to_string())?;
    let metadata = serde_json::from_slice(&header).map_err(|e| format!("the header of the file is invalid: {e}"))?;
    Ok((metadata, 8 + header_bytes))
}

/// Highest index of a layer; the policies name all layers below it.
const MAX_LAYER: u32 = 65_535;

/// Index and part of a name of the form `layers.{i}.{part}`; `None` of another form. An index that is written otherwise is
/// refused: such a layer would be left as it is among others that are compressed.
fn parse_name(name: &str) -> Result<Option<(u32, &str)>, Failure> {
    let Some((index, part)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return Ok(None);
    };
    let is_number = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    if !is_number || !matches!(part, "keys" | "values" | "positions") {
        return Ok(None);
    }
    let parsed = index.parse().ok().filter(|&parsed: &u32| parsed <= MAX_LAYER && parsed.to_string() == index);
    let parsed =
        parsed.ok_or(format!("tensor {name}: expected a layer index from 0 to {MAX_LAYER} without leading zeros"))?;
    Ok(Some((parsed, part)))
}

type Sorted = (Vec<Layer>, Vec<(String, TensorInfo)>);

fn sort_tensors(header: &Metadata) -> Result<Sorted, Failure> {
    let mut parts: BTreeMap<u32, HashMap<&str, TensorInfo>> = BTreeMap::new();
    let mut others = Vec::new();
    let names = header.offset_keys();
    for name in &names {
        let Some(info) = header.info(name) else { continue };
        match parse_name(name)? {
            Some((index, part)) => {
                parts.entry(index).or_default().insert(part, info.clone());
            }
            None => others.push((name.clone(), info.clone())),
        }
    }
    if parts.is_empty() {
        return Err("no tensor is named layers.{i}.keys".to_owned());
    }
    let layers = parts.into_iter().map(|(index, mut parts)| {
        let mut part = |name: &str| parts.remove(name).ok_or(format!("tensor layers.{index}.{name} is missing"));
        let (keys, values, positions) = (part("keys")?, part("values")?, part("positions").ok());
        let shape = layer_shape(index, &keys, &values)?;
        check_positions(index, positions.as_ref(), &keys)?;
        Ok(Layer { index, shape, keys, values, positions })
    });
    Ok((layers.collect::<Result<_, Failure>>()?, others))
}

fn layer_shape(index: u32, keys: &TensorInfo, values: &TensorInfo) -> Result<KvShape, Failure> {
    let [k, v] = [("keys", keys), ("values", values)].map(|(part, info)| dims(&format!("layers.{index}.{part}"), info));
    let ((k, keys), (v, values)) = (k?, v?);
    for (i, dimension) in ["batch", "num_kv_heads", "seq_len"].into_iter().enumerate() {
        if k[i] != v[i] {
            return Err(format!(
                "layers.{index}.values has {dimension} {}, but layers.{index}.keys has {}; they must agree",
                v[i], k[i]
            ));
        }
    }
    let shape = KvShape { num_layers: 1, batch_size: k[0], num_kv_heads: k[1], capacity: k[2], keys, values };
    // A length of 0 is valid; a capacity of 0 is not.
    let checked = KvShape { capacity: shape.capacity.max(1), ..shape };
    checked.check().map_err(|e| format!("layers.{index}: {e}"))?;
    Ok(shape)
}

fn dims(name: &str, info: &TensorInfo) -> Result<([u32; 3], TensorSpec), Failure> {
    let dtype = match info.dtype {
        FileDtype::F32 => Dtype::F32,
        FileDtype::F16 => Dtype::F16,
        FileDtype::BF16 => Dtype::Bf16,
        FileDtype::F8_E4M3 => Dtype::F8E4M3,
        FileDtype::F8_E5M2 => Dtype::F8E5M2,
        other => return Err(format!("{name} has dtype {other}, expected F16, BF16, F32, F8_E4M3 or F8_E5M2")),
    };
    let dims: Vec<u32> = info.shape.iter().map(|&d| u32::try_from(d).unwrap_or(u32::MAX)).collect();
    let [batch, heads, tokens, head_dim] = dims[..] else {
        let shape = &info.shape;
        return Err(format!("{name} has shape {shape:?}, expected [batch, num_kv_heads, seq_len, head_dim]"));
    };
    Ok(([batch, heads, tokens], TensorSpec::new(dtype, head_dim)))
}

fn check_positions(index: u32, positions: Option<&TensorInfo>, keys: &TensorInfo) -> Result<(), Failure> {
    let Some(info) = positions else { return Ok(()) };
    if info.dtype == FileDtype::U32 && info.shape == keys.shape[..3] {
        return Ok(());
    }
    let (dtype, shape, expected) = (info.dtype, &info.shape, &keys.shape[..3]);
    Err(format!("layers.{index}.positions is {dtype} {shape:?}, expected U32 {expected:?} as its keys"))
}
