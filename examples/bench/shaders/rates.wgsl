// The ceilings: plain copies and reads of 16-byte words, several independent loads in flight an invocation.

const WG_SIZE: u32 = 256u;

@group(0) @binding(0) var<storage, read_write> source: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> sink: array<vec4u>;

@compute @workgroup_size(WG_SIZE)
fn copy_4(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local_ix: u32) {
    let at = group.x * (4u * WG_SIZE) + local_ix;
    let a = source[at];
    let b = source[at + WG_SIZE];
    let c = source[at + 2u * WG_SIZE];
    let d = source[at + 3u * WG_SIZE];
    sink[at] = a;
    sink[at + WG_SIZE] = b;
    sink[at + 2u * WG_SIZE] = c;
    sink[at + 3u * WG_SIZE] = d;
}

@compute @workgroup_size(WG_SIZE)
fn copy_8(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local_ix: u32) {
    let at = group.x * (8u * WG_SIZE) + local_ix;
    let a = source[at];
    let b = source[at + WG_SIZE];
    let c = source[at + 2u * WG_SIZE];
    let d = source[at + 3u * WG_SIZE];
    let e = source[at + 4u * WG_SIZE];
    let f = source[at + 5u * WG_SIZE];
    let g = source[at + 6u * WG_SIZE];
    let h = source[at + 7u * WG_SIZE];
    sink[at] = a;
    sink[at + WG_SIZE] = b;
    sink[at + 2u * WG_SIZE] = c;
    sink[at + 3u * WG_SIZE] = d;
    sink[at + 4u * WG_SIZE] = e;
    sink[at + 5u * WG_SIZE] = f;
    sink[at + 6u * WG_SIZE] = g;
    sink[at + 7u * WG_SIZE] = h;
}

@compute @workgroup_size(WG_SIZE)
fn read_8(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local_ix: u32) {
    let at = group.x * (8u * WG_SIZE) + local_ix;
    let a = source[at];
    let b = source[at + WG_SIZE];
    let c = source[at + 2u * WG_SIZE];
    let d = source[at + 3u * WG_SIZE];
    let e = source[at + 4u * WG_SIZE];
    let f = source[at + 5u * WG_SIZE];
    let g = source[at + 6u * WG_SIZE];
    let h = source[at + 7u * WG_SIZE];
    let all = a ^ b ^ c ^ d ^ e ^ f ^ g ^ h;
    if all.x == 0x6b65796eu && all.y == 0x6f726d21u { // never: it only keeps the loads alive
        sink[0] = all;
    }
}

@compute @workgroup_size(WG_SIZE)
fn write_8(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local_ix: u32) {
    let at = group.x * (8u * WG_SIZE) + local_ix;
    let word = vec4u(at);
    sink[at] = word;
    sink[at + WG_SIZE] = word;
    sink[at + 2u * WG_SIZE] = word;
    sink[at + 3u * WG_SIZE] = word;
    sink[at + 4u * WG_SIZE] = word;
    sink[at + 5u * WG_SIZE] = word;
    sink[at + 6u * WG_SIZE] = word;
    sink[at + 7u * WG_SIZE] = word;
}

// The least that a pass can do.
@compute @workgroup_size(WG_SIZE)
fn touch(@builtin(local_invocation_index) local_ix: u32) {
    sink[local_ix] = vec4u(local_ix);
}
