// Scratch of up to four layers, each a buffer of its own.
//   4 lists0 read u32 [row, lists_stride] slots and what follows them, then row infos and status bits
//   5 lists1 read u32, likewise
//   6 lists2 read u32, likewise
//   7 lists3 read u32, likewise

@group(0) @binding(4) var<storage, read> lists0: array<u32>;
@group(0) @binding(5) var<storage, read> lists1: array<u32>;
@group(0) @binding(6) var<storage, read> lists2: array<u32>;
@group(0) @binding(7) var<storage, read> lists3: array<u32>;

fn list_word(which: u32, ix: u32) -> u32 {
    switch which {
        case 0u: { return lists0[ix]; }
        case 1u: { return lists1[ix]; }
        case 2u: { return lists2[ix]; }
        default: { return lists3[ix]; }
    }
}
