// Scratch of up to sixteen layers, each a buffer of its own.
//   4 lists0 read u32 [row, lists_stride] slots and what follows them, then row infos and status bits
//   5 lists1 read u32, likewise
//   6 lists2 read u32, likewise
//   7 lists3 read u32, likewise
//   8 lists4 read u32, likewise
//   9 lists5 read u32, likewise
//   10 lists6 read u32, likewise
//   11 lists7 read u32, likewise
//   12 lists8 read u32, likewise
//   13 lists9 read u32, likewise
//   14 lists10 read u32, likewise
//   15 lists11 read u32, likewise
//   16 lists12 read u32, likewise
//   17 lists13 read u32, likewise
//   18 lists14 read u32, likewise
//   19 lists15 read u32, likewise

@group(0) @binding(4) var<storage, read> lists0: array<u32>;
@group(0) @binding(5) var<storage, read> lists1: array<u32>;
@group(0) @binding(6) var<storage, read> lists2: array<u32>;
@group(0) @binding(7) var<storage, read> lists3: array<u32>;
@group(0) @binding(8) var<storage, read> lists4: array<u32>;
@group(0) @binding(9) var<storage, read> lists5: array<u32>;
@group(0) @binding(10) var<storage, read> lists6: array<u32>;
@group(0) @binding(11) var<storage, read> lists7: array<u32>;
@group(0) @binding(12) var<storage, read> lists8: array<u32>;
@group(0) @binding(13) var<storage, read> lists9: array<u32>;
@group(0) @binding(14) var<storage, read> lists10: array<u32>;
@group(0) @binding(15) var<storage, read> lists11: array<u32>;
@group(0) @binding(16) var<storage, read> lists12: array<u32>;
@group(0) @binding(17) var<storage, read> lists13: array<u32>;
@group(0) @binding(18) var<storage, read> lists14: array<u32>;
@group(0) @binding(19) var<storage, read> lists15: array<u32>;

fn list_word(which: u32, ix: u32) -> u32 {
    switch which {
        case 0u: { return lists0[ix]; }
        case 1u: { return lists1[ix]; }
        case 2u: { return lists2[ix]; }
        case 3u: { return lists3[ix]; }
        case 4u: { return lists4[ix]; }
        case 5u: { return lists5[ix]; }
        case 6u: { return lists6[ix]; }
        case 7u: { return lists7[ix]; }
        case 8u: { return lists8[ix]; }
        case 9u: { return lists9[ix]; }
        case 10u: { return lists10[ix]; }
        case 11u: { return lists11[ix]; }
        case 12u: { return lists12[ix]; }
        case 13u: { return lists13[ix]; }
        case 14u: { return lists14[ix]; }
        default: { return lists15[ix]; }
    }
}
