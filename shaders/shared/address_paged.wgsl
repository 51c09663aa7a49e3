// Addresses of a paged cache, in units of the access file: a table of page ids gives each sequence its pages.
// PAGE_SIZE is an override, so that division by it is a multiplication.
@group(0) @binding(8) var<storage, read_write> page_table: array<u32>;

override PAGE_SIZE: u32 = 16u;

struct TensorLayout {
    batch_stride: u32, // units of the access file: from one page to the next
    head_stride: u32,  // units
    token_stride: u32, // units: from one slot of a page to the next
    layer_stride: u32, // 0: one layer is bound
    base: u32,         // units: of page 0, head 0, slot 0
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

// Where a row's head begins in page 0, and its sequence's row of the table.
struct Place {
    base: u32,
    table_row: u32,
}

fn place_of(t: TensorLayout, layer_ix: u32, row: u32, num_kv_heads: u32) -> Place {
    let head = divided(row, num_kv_heads);
    return Place(t.base + head.rest * t.head_stride, params.table_base + head.quotient * params.table_stride);
}

fn base_in_page(t: TensorLayout, place: Place, page: u32, slot: u32) -> u32 {
    return place.base + page * t.batch_stride + slot % PAGE_SIZE * t.token_stride;
}

fn token_base(t: TensorLayout, place: Place, slot: u32) -> u32 {
    return base_in_page(t, place, page_table[place.table_row + slot / PAGE_SIZE], slot);
}

// Of four tokens in a row, none beyond the last. They lie in one page or, since a page has eight slots at least, in two.
fn token_bases(t: TensorLayout, place: Place, slot: u32, last: u32) -> vec4<u32> {
    let slots = min(vec4<u32>(slot, slot + 1u, slot + 2u, slot + 3u), vec4<u32>(last));
    let first_ix = slots.x / PAGE_SIZE;
    let first_page = page_table[place.table_row + first_ix];
    let last_page = page_table[place.table_row + slots.w / PAGE_SIZE];
    let pages = select(vec4<u32>(last_page), vec4<u32>(first_page), slots / PAGE_SIZE == vec4<u32>(first_ix));
    return vec4<u32>(place.base) + pages * t.batch_stride + slots % PAGE_SIZE * t.token_stride;
}
