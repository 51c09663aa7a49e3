// The finaliser of MurmurHash3 (A. Appleby, public domain): one word in, one well-mixed word out.
fn mix(word: u32) -> u32 {
    var h = word;
    h ^= h >> 16u;
    h *= 0x85ebca6bu;
    h ^= h >> 13u;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16u);
}
