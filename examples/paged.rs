//! A paged cache as a runtime holds it: a pool of pages for all sequences, a table of page ids, and an allocator that
//! takes back what a compression frees.
//!
//! Two sequences share their first page (a common prompt) and hold 100 tokens each. After the compression the pages that
//! neither needs any more go back to the allocator.

use keynorm::{
    Budget, Compressor, Dtype, KvShape, Options, PageShape, PageTable, PagedKvView, Policy, TensorSpec, wgpu,
};

const PAGE_SIZE: u32 = 16;
const NUM_PAGES: u32 = 32;
const LEN: u32 = 100;

/// The runtime's own: ids of free pages, and each sequence's pages in order.
struct Allocator {
    free: Vec<u32>,
    tables: Vec<Vec<u32>>,
}

impl Allocator {
    /// The sequences' tables as words, padded to the capacity.
    fn words(&self, pages_a_sequence: usize) -> Vec<u32> {
        let row = |table: &Vec<u32>| {
            let mut row = table.clone();
            row.resize(pages_a_sequence, u32::MAX); // entries that are not in use may hold anything
            row
        };
        self.tables.iter().flat_map(row).collect()
    }

    /// Takes the freed pages back; they are the last ones of the sequence.
    fn take_back(&mut self, sequence: usize, freed: &[u32]) {
        let kept = self.tables[sequence].len() - freed.len();
        assert_eq!(self.tables[sequence].split_off(kept), freed, "a compression frees a table's end");
        self.free.extend(freed);
    }
}

fn storage(device: &wgpu::Device, words: &[u32]) -> wgpu::Buffer {
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("runtime"),
        size: words.len() as u64 * 4,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: true,
    });
    if let Ok(mut mapped) = buffer.get_mapped_range_mut(..) {
        mapped.copy_from_slice(bytemuck::cast_slice(words));
    }
    buffer.unmap();
    buffer
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let (device, queue) = adapter
        .request_device(&wgpu::DeviceDescriptor {
            required_features: keynorm::optional_features(&adapter),
            required_limits: keynorm::recommended_limits(&adapter),
            ..Default::default()
        })
        .await?;

    // [page, 2, head, slot, dim]: keys and values of a page side by side. Page 0 is a sentinel that no sequence gets.
    let spec = TensorSpec::new(Dtype::F16, 64);
    let shape = KvShape { num_layers: 1, batch_size: 2, num_kv_heads: 4, capacity: 128, keys: spec, values: spec };
    let pages = PageShape { page_size: PAGE_SIZE, num_pages: NUM_PAGES, has_sentinel: true };
    let mut allocator = Allocator { free: (14..NUM_PAGES).collect(), tables: Vec::new() };
    allocator.tables.push(vec![5, 1, 9, 4, 13, 2, 8]);
    allocator.tables.push(vec![5, 3, 7, 12, 6, 10, 11]); // page 5 is shared

    let pool_words = NUM_PAGES * 2 * 4 * PAGE_SIZE * spec.row_bytes() / 4;
    // f16 pairs of many sizes, so that the keys differ in norm.
    let pool: Vec<u32> = (0..pool_words).map(|i| 0x3000_2c00 + (i.wrapping_mul(2_654_435_761) >> 22)).collect();
    let pool = storage(&device, &pool);
    let table = storage(&device, &allocator.words((shape.capacity / PAGE_SIZE) as usize));

    let plan = Compressor::new(&device, Options::default())?.plan(&shape, &Policy::new(Budget::keep_ratio(0.5)))?;
    let (state, workspace) = (plan.create_state()?, plan.create_workspace()?);
    let table = PageTable { buffer: &table, offset_bytes: 0, stride: (shape.capacity / PAGE_SIZE).into() };
    let view = PagedKvView::one_pool(&shape, &pages, &pool, table);
    let bound = plan.bind_paged(&device, &pages, &[view], &state, &workspace)?;

    state.set_lengths(&queue, &[LEN, LEN])?;
    state.set_first_writable(&queue, &[1, 1])?;
    let kept = bound.compress(&device, &queue, LEN).await?;
    let freed = bound.freed_pages().ok_or("a paged cache")?.read(&device, &queue).await?;
    // Of the one layer. Layers that share a table free a page when each of them has.
    for (sequence, pages) in freed[0].iter().enumerate() {
        allocator.take_back(sequence, &pages.freed);
        let len = kept.layers[0].positions[sequence * 4].len();
        println!(
            "sequence {sequence}: {LEN} tokens became {len}; pages {:?} are free, {:?} stay",
            pages.freed, allocator.tables[sequence]
        );
    }
    println!("{} of {NUM_PAGES} pages are free; page 5, which both share, is as it was", allocator.free.len());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pollster::block_on(run())
}
