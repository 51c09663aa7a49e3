//! Workgroups that have no row and bring instructions in before the others need them: shaders/shared/scout.wgsl.

use crate::device::Capabilities;

/// Most rows of a grid that are scouts'.
pub(crate) const MOST_SCOUT_ROWS: u32 = 3;

impl Capabilities {
    /// Rows of the grid that are scouts', where a workgroup takes a row: one for each part that they may begin with. On a CPU
    /// there are none.
    pub const fn scouts_of_rows(&self) -> u32 {
        if self.serial { 0 } else { MOST_SCOUT_ROWS }
    }

    /// Likewise where several workgroups take a row, so that one row holds scouts for most parts.
    pub const fn scouts_of_parts(&self) -> u32 {
        if self.serial { 0 } else { 1 }
    }
}
