//! Writing that never leaves half a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes a file whole or not at all.
///
/// `fill` writes to a temporary file in the same directory, which is flushed to the disk and then
/// renamed to `path`, replacing what was there. If anything fails (an unwritable directory, a full
/// disk, an error of `fill`) `path` is as it was before and the temporary file is gone.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::file(path, "a name for a file", "a directory"));
    }
    write_in(dir, path, fill).map_err(Error::io("write", path))
}

fn write_in(
    dir: &Path,
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".part");
    // A temporary file is private by default; this one becomes the user's, so the umask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(dir)?;
    let mut writer = BufWriter::new(temporary.as_file_mut());
    fill(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    // The rename is durable once the directory is; a directory that cannot be opened for that
    // (no read permission) is no reason to report a file that stands there as not written.
    #[cfg(unix)]
    if let Ok(dir) = File::open(dir) {
        dir.sync_all().ok();
    }
    Ok(())
}
