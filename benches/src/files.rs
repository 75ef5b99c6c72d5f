//! Files before they are measured.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use crate::Result;

/// Reads every file under `path` once, so that all of them are in the page cache. Returns their bytes.
pub(crate) fn touch(path: &Path) -> Result<u64> {
    let at = |e: io::Error| format!("{}: {e}", path.display());
    if path.is_dir() {
        return fs::read_dir(path).map_err(at)?.map(|entry| touch(&entry.map_err(at)?.path())).sum();
    }
    Ok(io::copy(&mut File::open(path).map_err(at)?, &mut io::sink()).map_err(at)?)
}

/// How a model or an adapter is called in the output: the last part of its path.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// How many threads compute: `RAYON_NUM_THREADS`, as rayon and candle read it, else as many as there are.
pub(crate) fn threads() -> usize {
    candle_core::utils::get_num_threads()
}

/// The threads as a measurement states them. candle has two pools, one of them for quantized products alone; figures of
/// pools of different sizes would be of neither, so they are refused.
pub(crate) fn threads_in_words() -> Result<String> {
    let (rayon, quantized) = (threads(), candle_core::utils::barrier_pool().n_workers() + 1);
    if rayon != quantized {
        return Err(format!(
            "RAYON_NUM_THREADS gives {rayon} threads and CANDLE_NUM_THREADS {quantized}; unset CANDLE_NUM_THREADS"
        )
        .into());
    }
    Ok(format!("{rayon} thread{}", if rayon == 1 { "" } else { "s" }))
}
