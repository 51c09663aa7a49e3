// From the norm of a key to the order key of its token: direction and protection.

const INFINITY_BITS: u32 = 0x7f800000u;
const NAN_ORDER_KEY: u32 = 0xfffffffeu;

// 31 bits of (seed, layer, row, position) by four rounds of the murmur3 finaliser.
fn random_bits(layer: u32, row: u32, position: u32) -> u32 {
    var h = mix(params.seed_low ^ 0x9e3779b9u);
    h = mix(h ^ params.seed_high);
    h = mix(h ^ (layer * 0x85ebca6bu));
    h = mix(h ^ (row * 0xc2b2ae35u));
    return mix(h ^ position) >> 1u;
}

fn mix(value: u32) -> u32 {
    var h = value;
    h ^= h >> 16u;
    h *= 0x85ebca6bu;
    h ^= h >> 13u;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16u);
}

// `norm`: bits of the squared norm, above those of infinity for NaN.
fn order_key(r: Row, slot: u32, norm: u32) -> u32 {
    let nan = norm > INFINITY_BITS;
    var key = norm + 1u;
    if params.direction == 1u {
        key = INFINITY_BITS - norm + 1u;
    }
    if nan {
        key = NAN_ORDER_KEY;
    }
    if max(params.sinks, params.recent) > 0u || params.direction == 2u {
        let position = position_of(r, slot);
        if params.direction == 2u && !nan {
            key = random_bits(r.layer, r.row, position) + 1u;
        }
        let recent = recent_of(params.recent, params.share_low, params.share_high, r.len);
        if position < params.sinks || r.num_seen - position <= recent {
            key = 0u;
        }
    }
    if slot < r.first_writable {
        key = 0u;
    }
    return key;
}
