// What a repetition left behind, in 8 words: sums of mixed words, which no order of addition changes, and counts.
// Reference: examples/bench/data.rs.

struct Params {
    first_word: u32,   // of the tensor, where the window begins
    num_words: u32,    // of the window
    token_words: u32,  // words a token
    capacity: u32,     // slots a row
    lengths_base: u32, // of the tensor's first row
    salt: u32,         // tells tensors and layers apart
    page_size: u32,    // tokens; 0 where the tensor is not paged
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> tensor: array<u32>;
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
// Sums of kept rows (two), sums of positions (two), slots whose token came from elsewhere, slots kept.
@group(0) @binding(3) var<storage, read_write> found: array<atomic<u32>, 8>;

// Of each page, which of its row's pages it is.
@group(0) @binding(4) var<storage, read> inverse: array<u32>;

var<workgroup> wg_sums: array<atomic<u32>, 4>;

fn is_kept(token: u32) -> bool {
    var slot = token % params.capacity;
    if params.page_size > 0u {
        slot = inverse[token / params.page_size] * params.page_size + token % params.page_size;
    }
    return slot < state[params.lengths_base + token / params.capacity];
}

fn add(local_ix: u32, sums: vec4u, first: u32, count: u32) {
    for (var i = 0u; i < count; i++) {
        atomicAdd(&wg_sums[i], sums[i]);
    }
    workgroupBarrier();
    if local_ix < count {
        atomicAdd(&found[first + local_ix], atomicLoad(&wg_sums[local_ix]));
    }
}

@compute @workgroup_size(256)
fn sum_rows(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local_ix: u32,
) {
    var sums = vec4u();
    for (var i = id.x; i < params.num_words; i += groups.x * 256u) {
        let at = params.first_word + i;
        if is_kept(at / params.token_words) {
            let h = mix(tensor[i] ^ mix(at ^ params.salt));
            sums += vec4u(h, mix(h ^ 0x9e3779b9u), 0u, 0u);
        }
    }
    add(local_ix, sums, 0u, 2u);
}

@compute @workgroup_size(256)
fn sum_positions(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local_ix: u32,
) {
    var sums = vec4u();
    for (var i = id.x; i < params.num_words; i += groups.x * 256u) {
        let at = params.first_word + i;
        if is_kept(at) {
            let position = tensor[i];
            let h = mix(position ^ mix(at ^ params.salt));
            sums += vec4u(h, mix(h ^ 0x9e3779b9u), u32(position != at % params.capacity), 1u);
        }
    }
    add(local_ix, sums, 2u, 4u);
}
