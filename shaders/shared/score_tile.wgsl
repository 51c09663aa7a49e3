// Tiles of a row's tokens. With a histogram a workgroup is worth what it costs only where it has many tokens: so where a row
// has fewer workgroups than tiles, they take tiles until none is left, and none waits for another, however many find room
// on the device at once.

var<workgroup> wg_tile: u32;

fn take_tile(local_row: u32) -> u32 {
    return atomicAdd(&histogram[local_row * params.histogram_stride + TAKEN_COUNT_IX], 1u);
}

// `grid` is (part, row), of so many parts, scouts among them. A row that is longer than they were made for is scored whole.
// A scout scores a tile of no tokens.
fn score_tile(grid: vec3<u32>, grid_width: u32, index: u32) {
    if is_idle_scout(grid.yxz, params.num_rows) {
        return;
    }
    let wg = behind_scouts(grid.yxz).yxz;
    let num_parts = grid_width - SCOUTS;
    var r: Row;
    var first = 0u;
    var end = 0u;
    var num_tiles = 1u;
    if !is_scout(grid.yxz) {
        r = scored_row(wg.y);
        if wg.x == 0u && index == 0u {
            note_row(wg.y, r);
        }
        first = first_slot(r);
        end = end_of(r);
        num_tiles = (max(end, first) - first + TILE - 1u) / TILE;
    }
    let place = place_of_row(r);
    let takes = HISTOGRAM && num_parts < num_tiles;
    var tile = wg.x;
    if takes {
        if index == 0u {
            wg_tile = take_tile(wg.y);
        }
        tile = workgroupUniformLoad(&wg_tile);
    }
    if tile < num_tiles {
        start_histogram(index);
        while tile < num_tiles {
            var next = num_tiles;
            if takes {
                if index == 0u {
                    next = take_tile(wg.y); // asked for now, needed when this one is done
                }
            }
            score_tokens(wg, index, r, place, first + tile * TILE, TILE, end);
            tile = num_tiles;
            if takes {
                if index == 0u {
                    wg_tile = next;
                }
                tile = workgroupUniformLoad(&wg_tile);
            }
        }
        flush_histogram(wg, index);
    }
}
