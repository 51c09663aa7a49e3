//! Three WGSL kernels that run as Burn operations, on Burn's own buffers and in its own passes. Without autotune Burn sums
//! a row in one invocation, and its matrix products are tiles that a single token leaves idle; on lavapipe, a CPU, they
//! take several times as long as these.

use anyhow::{Result, anyhow};
use burn::tensor::{Int, Tensor};
use burn_wgpu::{CubeTensor, KernelSource, SourceKernel, SourceTemplate, Wgpu};
use cubecl::prelude::*;
use cubecl::server::KernelArguments;

/// The kernels as an adapter likes them.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    is_cpu: bool,
}

/// A kernel: its text, which is asked for once, and the numbers that the text depends on.
struct Source<const N: usize> {
    name: &'static str,
    numbers: [usize; N],
    text: fn([usize; N]) -> String,
}

impl<const N: usize> KernelSource for Source<N> {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new((self.text)(self.numbers))
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.name, self.numbers))
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

impl<const N: usize> Source<N> {
    fn launch(self, count: [usize; 2], tensors: Vec<CubeTensor>) -> Result<()> {
        let client = tensors[0].client.clone();
        let buffers = tensors.into_iter().map(|t| t.handle.binding()).collect();
        let count = CubeCount::Static(u32::try_from(count[0])?, u32::try_from(count[1])?, 1);
        let kernel = Box::new(SourceKernel::new(self, CubeDim::new_1d(32)));
        client.launch(kernel, count, KernelArguments::new().with_buffers(buffers));
        Ok(())
    }
}

fn primitive<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor> {
    tensor.try_into_primitive::<Wgpu>().map_err(|e| anyhow!("not a wgpu tensor: {e:?}"))
}

fn integers(tensor: &Tensor<1, Int>) -> Result<CubeTensor> {
    tensor.clone().try_into_primitive::<Wgpu>().map_err(|e| anyhow!("not a wgpu tensor: {e:?}"))
}

fn contiguous<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor> {
    Ok(burn_wgpu::into_contiguous(primitive(tensor)?))
}

/// Tokens up to which a GPU takes `linear` rather than Burn's product.
const FEW_TOKENS: usize = 4;

impl Kernels {
    /// For an adapter that is a CPU or is not.
    #[must_use]
    pub const fn new(is_cpu: bool) -> Self {
        Self { is_cpu }
    }

    /// x [m, k] · w [k, n]; k and n are multiples of 4, w is contiguous, `rows` holds m.
    ///
    /// # Errors
    /// A tensor that is not on the wgpu backend.
    pub fn linear(self, x: Tensor<2>, w: Tensor<2>, rows: &Tensor<1, Int>) -> Result<Tensor<2>> {
        let ([m, k], [_, n]) = (x.dims(), w.dims());
        if !self.is_cpu && m > FEW_TOKENS {
            return Ok(x.matmul(w));
        }
        // A CPU has no idle lanes to give a share of the sum to.
        let slices = if self.is_cpu { 1 } else { 8 };
        let tile = if m > FEW_TOKENS { 8 } else { m.next_power_of_two() };
        let out = Tensor::<2>::empty([m, n], &x.device());
        let tensors = vec![contiguous(x)?, primitive(w)?, primitive(out.clone())?, integers(rows)?];
        let source = Source { name: "linear", numbers: [tile, k, n, slices], text: linear_text };
        source.launch([(n / 4).div_ceil(COLUMNS), m.div_ceil(tile)], tensors)?;
        Ok(out)
    }

    /// RMSNorm of the rows of x [m, n], without a gain.
    ///
    /// # Errors
    /// As [`Kernels::linear`].
    pub fn rms_norm(self, x: Tensor<2>, eps: f64) -> Result<Tensor<2>> {
        let [m, n] = x.dims();
        let out = Tensor::<2>::empty([m, n], &x.device());
        let eps = (eps as f32).to_bits() as usize;
        let source = Source { name: "rms_norm", numbers: [n, eps, self.lanes()], text: rms_norm_text };
        source.launch([m, 1], vec![contiguous(x)?, primitive(out.clone())?])?;
        Ok(out)
    }

    /// Causal softmax of the rows of scores [heads, group · T, len], in place: row r is token r % T of the T that came
    /// last, and sees the slots up to its own. `dims` holds len and T.
    ///
    /// # Errors
    /// As [`Kernels::linear`].
    pub fn softmax(self, scores: Tensor<3>, dims: &Tensor<1, Int>) -> Result<Tensor<3>> {
        let [heads, rows, _] = scores.dims();
        let source = Source { name: "softmax", numbers: [self.lanes()], text: softmax_text };
        source.launch([heads * rows, 1], vec![contiguous(scores.clone())?, integers(dims)?])?;
        Ok(scores)
    }

    const fn lanes(self) -> usize {
        if self.is_cpu { 8 } else { 256 }
    }
}

/// Columns of four that a workgroup of `linear` computes.
const COLUMNS: usize = 32;

/// `sum` and `maximum` over a workgroup.
fn reduction(lanes: usize) -> String {
    let fold = |name: &str, step: &str| {
        format!(
            "fn {name}(lane: u32, own: f32) -> f32 {{
  workgroupBarrier();
  part[lane] = own;
  for (var half = {}u; half > 0u; half /= 2u) {{
    workgroupBarrier();
    if lane < half {{ part[lane] = {step}; }}
  }}
  workgroupBarrier();
  return part[0];
}}
",
            lanes / 2
        )
    };
    format!(
        "var<workgroup> part: array<f32, {lanes}>;\n{}{}",
        fold("sum", "part[lane] + part[lane + half]"),
        fold("maximum", "max(part[lane], part[lane + half])")
    )
}

fn rms_norm_text([n, eps, lanes]: [usize; 3]) -> String {
    format!(
        "{}
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size({lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {{
  let base = group.x * {n}u;
  var own = 0.0;
  for (var i = lane; i < {n}u; i += {lanes}u) {{ own += x[base + i] * x[base + i]; }}
  let factor = inverseSqrt(sum(lane, own) / {n}.0 + bitcast<f32>({eps}u));
  for (var i = lane; i < {n}u; i += {lanes}u) {{ y[base + i] = x[base + i] * factor; }}
}}
",
        reduction(lanes)
    )
}

fn softmax_text([lanes]: [usize; 1]) -> String {
    format!(
        "{}
@group(0) @binding(0) var<storage, read_write> scores: array<f32>;
@group(0) @binding(1) var<storage, read_write> dims: array<u32>;
@compute @workgroup_size({lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {{
  let len = dims[0];
  let count = dims[1];
  let base = group.x * len;
  let seen = len - count + group.x % count + 1u;
  var highest = -3.4e38;
  for (var i = lane; i < seen; i += {lanes}u) {{ highest = max(highest, scores[base + i]); }}
  highest = maximum(lane, highest);
  var own = 0.0;
  for (var i = lane; i < seen; i += {lanes}u) {{
    let e = exp(scores[base + i] - highest);
    scores[base + i] = e;
    own += e;
  }}
  let factor = 1.0 / sum(lane, own);
  for (var i = lane; i < len; i += {lanes}u) {{ scores[base + i] = select(0.0, scores[base + i] * factor, i < seen); }}
}}
",
        reduction(lanes)
    )
}

/// A workgroup takes `tile` tokens and [`COLUMNS`] columns of four; each slice of it a share of the sum. The sums are named
/// variables: drivers keep an array in memory.
fn linear_text([tile, k, n, slices]: [usize; 4]) -> String {
    let lines = |line: &dyn Fn(usize) -> String| (0..tile).map(line).collect::<Vec<_>>().join("\n");
    let declare = lines(&|r| format!("  var acc{r} = vec4f(0.0);"));
    // Rows beyond the last are computed from the last one and not written.
    let base = lines(&|r| format!("  let base{r} = min(first + {r}u, m - 1u) * K4;"));
    let add = lines(&|r| {
        format!("    let x{r} = x[base{r} + i];\n    acc{r} += x{r}.x * w0 + x{r}.y * w1 + x{r}.z * w2 + x{r}.w * w3;")
    });
    let share = lines(&|r| format!("  part[({r}u * SLICES + slice) * {COLUMNS}u + lane] = acc{r};"));
    let gather = lines(&|r| {
        format!("    for (var s = 1u; s < SLICES; s++) {{ acc{r} += part[({r}u * SLICES + s) * {COLUMNS}u + lane]; }}")
    });
    let store = lines(&|r| format!("    if first + {r}u < m {{ y[(first + {r}u) * N4 + col] = acc{r}; }}"));
    let (memory, exchange) = if slices == 1 {
        (String::new(), String::new())
    } else {
        let memory = format!("var<workgroup> part: array<vec4f, {}>;", tile * slices * COLUMNS);
        (memory, format!("{share}\n  workgroupBarrier();\n  if slice == 0u {{\n{gather}\n  }}"))
    };
    format!(
        "@group(0) @binding(0) var<storage, read_write> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> dims: array<u32>;
{memory}
const K4 = {}u;
const N4 = {}u;
const SLICES = {slices}u;
@compute @workgroup_size({COLUMNS}, {slices})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {{
  let lane = local.x;
  let slice = local.y;
  let col = group.x * {COLUMNS}u + lane;
  let m = dims[0];
  let first = group.y * {tile}u;
{declare}
{base}
  for (var i = K4 * slice / SLICES; i < K4 * (slice + 1u) / SLICES; i++) {{
    let w0 = w[(4u * i) * N4 + col];
    let w1 = w[(4u * i + 1u) * N4 + col];
    let w2 = w[(4u * i + 2u) * N4 + col];
    let w3 = w[(4u * i + 3u) * N4 + col];
{add}
  }}
{exchange}
  if slice == 0u && col < N4 {{
{store}
  }}
}}
",
        k / 4,
        n / 4
    )
}
