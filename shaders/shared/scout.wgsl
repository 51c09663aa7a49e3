// Scouts: workgroups in the first rows of the grid that have no row of their own. What a workgroup runs once is fetched while
// it runs; where all of them wait for their loads together, nobody fetches what comes next. A scout loads nothing and leaves
// out as many parts of the code as its number says, so that instructions come in while the others wait for data. It has a
// row of no tokens and writes to workgroup memory alone. The module gives SCOUTS, rows of the grid that are theirs.

// Scouts that do anything: beyond them more make no difference. See benches/record.
const MOST_SCOUTS: u32 = 16u;

fn is_scout(grid: vec3<u32>) -> bool {
    return grid.y < SCOUTS;
}

fn scout_number(grid: vec3<u32>, grid_width: u32) -> u32 {
    return grid.y * grid_width + grid.x;
}

fn is_idle_scout(grid: vec3<u32>, grid_width: u32) -> bool {
    return is_scout(grid) && scout_number(grid, grid_width) >= MOST_SCOUTS;
}

// Parts of so many that the workgroup leaves out, of those that have a row none.
fn parts_left_out(grid: vec3<u32>, grid_width: u32, num_parts: u32) -> u32 {
    return select(0u, scout_number(grid, grid_width) % num_parts, is_scout(grid));
}

// The workgroup's place among those of rows; a scout's is the first.
fn behind_scouts(grid: vec3<u32>) -> vec3<u32> {
    return select(vec3<u32>(grid.x, grid.y - SCOUTS, grid.z), vec3<u32>(0u), is_scout(grid));
}
