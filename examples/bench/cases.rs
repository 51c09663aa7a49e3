//! Which shapes and cases a run has.

use keynorm::{Dtype, KvShape, TensorSpec};

use crate::case::Case;
use crate::cli::{Layout, Preset, RunArgs};
use crate::data::Norms;
use crate::design::{DECODE, DECODE_LAYERS, GOALS, LARGE_BYTES};
use crate::gpu::Result;

/// One shape and the cases that share its data.
#[derive(Debug)]
pub struct Group {
    pub shape: KvShape,
    /// Tokens a row.
    pub seq_len: u32,
    /// Tokens a page, of a paged cache.
    pub page_size: Option<u32>,
    pub norms: Norms,
    pub cases: Vec<Case>,
}

impl Group {
    fn has_data_of(&self, other: &Self) -> bool {
        (self.shape, self.seq_len, self.page_size, self.norms)
            == (other.shape, other.seq_len, other.page_size, other.norms)
    }
}

/// A shape in short: rows, tokens, elements, their type.
type Short = (u32, u32, TensorSpec);

/// A shape, its keep ratios, layers, and whether norms are cached.
type Wanted = (Short, Vec<f64>, u32, bool);

pub fn groups(args: &RunArgs) -> Result<Vec<Group>> {
    if args.rows.is_empty() != args.seq_len.is_empty() {
        return Err("--rows and --len go together".into());
    }
    let mut groups: Vec<Group> = Vec::new();
    let decode = args.preset == Some(Preset::Design);
    let decode = decode.then_some(((DECODE.rows, DECODE.seq_len, f16()), vec![DECODE.keep_ratio], DECODE_LAYERS, true));
    let given = wanted(args).into_iter().map(|(shape, keeps)| (shape, keeps, args.layers, args.cached));
    let in_layout = |wanted: Wanted| args.layout.iter().map(move |&layout| (layout, wanted.clone()));
    let of_norms = |(layout, wanted): (Layout, Wanted)| args.norms.iter().map(move |&n| (n, layout, wanted.clone()));
    for (norms, layout, wanted) in given.chain(decode).flat_map(in_layout).flat_map(of_norms) {
        let ((rows, seq_len, spec), keeps, num_layers, cached) = wanted;
        if cached && layout == Layout::Paged {
            if args.cached {
                return Err("--cached is of contiguous caches".into());
            }
            continue; // the last row of the design
        }
        let page_size = (layout == Layout::Paged).then_some(args.page_size);
        let (batch_size, num_kv_heads) = if page_size.is_some() { (rows, 1) } else { (1, rows) };
        if (1..seq_len).contains(&args.capacity) {
            return Err(format!("--capacity {} has no room for {seq_len} tokens", args.capacity));
        }
        let capacity = args.capacity.max(seq_len);
        let shape = KvShape { num_layers, batch_size, num_kv_heads, capacity, keys: spec, values: spec };
        shape.check().map_err(|e| e.to_string())?;
        let mut cases = Vec::new();
        for keep_ratio in keeps {
            for &order in &args.order {
                for &score in &args.score {
                    let case =
                        |&selector| Case { keep_ratio, order, selector, score, passes: args.passes && !cached, cached };
                    cases.extend(args.selector.iter().map(case));
                }
            }
        }
        let group = Group { shape, seq_len, page_size, norms, cases };
        match groups.last_mut().filter(|g| g.has_data_of(&group)) {
            Some(last) => last.cases.extend(group.cases),
            None => groups.push(group),
        }
    }
    if groups.is_empty() {
        return Err("no shape: give --preset design, --shape 8x4096, or --rows 8 --len 4096".into());
    }
    Ok(groups)
}

const fn f16() -> TensorSpec {
    TensorSpec::new(Dtype::F16, 128)
}

fn wanted(args: &RunArgs) -> Vec<(Short, Vec<f64>)> {
    let f16 = f16();
    match args.preset {
        Some(Preset::Design) => GOALS.iter().map(|g| ((g.rows, g.seq_len, f16), vec![g.keep_ratio])).collect(),
        Some(Preset::Floor) => floor_shapes().map(|shape| (shape, vec![0.1, 0.5, 0.9])).collect(),
        Some(Preset::Scaling) => {
            let long = [1, 8].into_iter().flat_map(|rows| (16..=20).map(move |log| (rows, 1 << log, f16)));
            // Half a cache of 8 rows of 1M tokens in rows of every length, so that nothing but the length differs.
            let even = (16..=20).map(|log| (1 << (22 - log), 1 << log, f16));
            long.chain(even).chain([(2048, 512, f16)]).map(|shape| (shape, vec![0.5])).collect()
        }
        None => {
            let mut shapes: Vec<_> =
                args.rows.iter().flat_map(|&r| args.seq_len.iter().map(move |&n| (r, n))).collect();
            shapes.extend(&args.shape);
            let specs = args.dtype.iter().flat_map(|&t| args.head_dim.iter().map(move |&d| TensorSpec::new(t, d)));
            specs.flat_map(|s| shapes.iter().map(move |&(r, n)| ((r, n, s), args.keep.clone()))).collect()
        }
    }
}

/// Few long rows, many short ones and between, each with as many keys as the floor's goal begins at.
fn floor_shapes() -> impl Iterator<Item = Short> {
    [Dtype::F16, Dtype::Bf16, Dtype::F32].into_iter().flat_map(|dtype| {
        [64, 128, 256].into_iter().flat_map(move |head_dim| {
            let spec = TensorSpec::new(dtype, head_dim);
            [8, 64, 512].map(|rows| {
                let seq_len = LARGE_BYTES / u64::from(rows) / u64::from(spec.row_bytes());
                (rows, u32::try_from(seq_len).unwrap_or(u32::MAX), spec)
            })
        })
    })
}
