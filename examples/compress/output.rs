//! The cache that is written: beside its place first, then renamed, so that no half-written file is ever seen.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use tempfile::NamedTempFile;

use crate::Failure;

/// A cache that is being written. Dropped before [`Output::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Output {
    file: NamedTempFile,
    path: PathBuf,
    label: String,
    /// First byte of each tensor in the file.
    starts: HashMap<String, u64>,
}

impl Output {
    /// Writes the header. `tensors` come with any offsets; they are laid out here as safetensors does, by falling
    /// alignment, then by name.
    pub fn create(
        path: &Path,
        metadata: Option<HashMap<String, String>>,
        mut tensors: Vec<(String, TensorInfo)>,
    ) -> Result<Self, Failure> {
        let label = format!("--output {}", path.display());
        let path = target(path).map_err(|e| format!("{label}: {e}"))?;
        tensors.sort_by(|(a_name, a), (b_name, b)| b.dtype.cmp(&a.dtype).then(a_name.cmp(b_name)));
        let mut end = 0;
        for (_, info) in &mut tensors {
            let bits = info.shape.iter().product::<usize>() * info.dtype.bitsize();
            info.data_offsets = (end, end + bits / 8);
            end = info.data_offsets.1;
        }
        let placed: Vec<(String, usize)> = tensors.iter().map(|(name, t)| (name.clone(), t.data_offsets.0)).collect();
        let header = Metadata::new(metadata, tensors).map_err(|e| format!("{label}: {e}"))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| format!("{label}: {e}"))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let data_start = 8 + header.len() as u64;
        let starts = placed.into_iter().map(|(name, start)| (name, data_start + start as u64)).collect();
        let file = temporary(&path, &header).map_err(|e| format!("{label}: {e}"))?;
        Ok(Self { file, path, label, starts })
    }

    /// Writes a piece of a tensor at a byte of it.
    pub fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        let start = self.starts.get(name).ok_or_else(|| format!("{}: no tensor {name}", self.label))? + at;
        let file = self.file.as_file_mut();
        let written = file.seek(SeekFrom::Start(start)).and_then(|_| file.write_all(bytes));
        written.map_err(|e| format!("{}: {e}", self.label))
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result<(), Failure> {
        let Self { file, path, label, .. } = self;
        file.as_file().sync_all().map_err(|e| format!("{label}: {e}"))?;
        file.persist(path).map_err(|e| format!("{label}: {}", e.error))?;
        Ok(())
    }
}

/// The file behind a link, so that the link stays; only a file may be replaced.
fn target(path: &Path) -> std::io::Result<PathBuf> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => std::fs::canonicalize(path),
        Ok(_) => Err(std::io::Error::other("exists and is not a regular file")),
        Err(_) if path.is_symlink() => Err(std::io::Error::other("is a link to nothing")),
        Err(_) => Ok(path.to_owned()),
    }
}

fn temporary(path: &Path, header: &[u8]) -> std::io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| std::io::Error::other("not a file name"))?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let open = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
    let mut file = tempfile::Builder::new().prefix(&prefix).suffix(".part").make_in(folder, open)?;
    // Of the mode: the owner and group are those of whoever writes.
    #[cfg(unix)]
    if let Ok(replaced) = std::fs::metadata(path) {
        file.as_file().set_permissions(replaced.permissions())?;
    }
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header)?;
    Ok(file)
}
