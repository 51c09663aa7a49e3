//! Writes the text of every shader module into a folder, a file each, for other compilers and tools.
//! `cargo run --example wgsl -- FOLDER`

use std::error::Error;
use std::path::PathBuf;

use keynorm::Module;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: wgsl FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    for module in Module::all() {
        // Of what the module is made: letters, digits and underscores.
        let name: String = format!("{module:?}").chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        std::fs::write(folder.join(name + ".wgsl"), module.source())?;
    }
    Ok(())
}
