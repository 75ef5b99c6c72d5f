//! What can be told of adapters before they are read, or even fetched.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use llm_local_core::{AdapterSpec, ArtifactRef, Error, FetchContext, ModelInfo, Result};
use llm_local_source_common::transfer::Files;
use llm_local_weights::{Head, LARGEST_CONFIG};

use super::Sets;
use crate::{
    blocking::blocking,
    engine::{Inner, Pin},
    lora::{self, AdapterOutline, ReadOptions},
};

impl Inner {
    /// Checks `pins` by config and head, so that nothing is read that is above the limits of `sets`, and nothing fetched that
    /// cannot be used.
    pub(super) async fn check_heads(
        &self,
        pins: &[Pin],
        adapters: &[AdapterSpec],
        sets: &Sets,
        info: &ModelInfo,
        cx: &FetchContext,
    ) -> Result<()> {
        let mut told = Vec::new();
        for (pin, adapter) in pins.iter().zip(adapters) {
            let (job, options) = (pin.job(), ReadOptions::from(adapter));
            let here = self.transfer.present(&job, cx).await?;
            let is_here = here.is_some();
            let outline = match here {
                Some(files) => self.outline_here(&pin.reference, files, options).await?,
                None => self.peek_adapter(&job, &options, cx).await?,
            };
            let Some(outline) = outline else { continue };
            told.push((pin.reference.to_string(), outline.clone()));
            sets.limits.check(told.iter().map(|(reference, outline)| (reference.as_str(), outline)))?;
            // One that is here is checked with all others once it is read, and what may fit only with what another one has too.
            let can_be_told = adapters.len() == 1 || !outline.touches_vocabulary();
            if !is_here && can_be_told {
                let (outlines, allow) = ([(outline, adapter.weight)], [adapter.allow.clone()]);
                let may_be_own = sets.may_be_own([&pin.reference].into_iter());
                sets.way.check(&outlines, &lora::fit_outlines_allowing(&outlines, &allow, info)?, may_be_own)?;
            }
        }
        Ok(())
    }

    /// The adapter in `files`, which are here, without its values. `None` for what may be of a plugin's format.
    ///
    /// # Errors
    /// As [`Inner::peek_adapter`].
    pub(in crate::engine) async fn outline_here(
        &self,
        reference: &ArtifactRef,
        files: Files,
        options: ReadOptions,
    ) -> Result<Option<AdapterOutline>> {
        let others = !self.registry.adapter_formats().map_err(|e| e.into_adapter(reference))?.is_empty();
        let of = reference.clone();
        let outlined = blocking("adapters", move || {
            let config = files.get(lora::CONFIG).map(|path| read(path, 0, LARGEST_CONFIG + 1)).transpose()?;
            if config.as_ref().is_some_and(|config| config.len() as u64 > LARGEST_CONFIG) {
                // The reader says so, with the file's name.
                return Ok(None);
            }
            let names = files.keys().map(String::as_str);
            let declared = match others {
                true => lora::declare_if_builtin(&of, names, config.as_deref(), &options)?,
                false => Some(lora::declare(&of, names, config.as_deref(), &options)?),
            };
            let Some(declared) = declared else { return Ok(None) };
            let Some(path) = files.get(declared.weights()) else { return Ok(None) };
            let head = head(declared.weights(), &of, path);
            if others && !declared.is_recognized_by(&head) {
                return Ok(None);
            }
            declared.outline_by_head(&head?).map(Some)
        });
        outlined.await.map_err(|e| e.into_adapter(reference))
    }
}

/// The start of the weights file at `path`, with its whole header.
fn head(name: &str, of: &ArtifactRef, path: &Path) -> Result<Head> {
    let size = fs_err::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    let mut head = Head::new(name, of, size);
    while let Some(range) = head.wanted()? {
        let bytes = read(path, range.start, range.end - range.start)?;
        if bytes.is_empty() {
            return Err(Error::load(path.display(), format!("it ends after {} bytes, while it is read", range.start)));
        }
        head.extend(&bytes);
    }
    Ok(head)
}

/// At most `most` bytes of the file at `path`, from `start` on.
fn read(path: &Path, start: u64, most: u64) -> Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e| Error::io("read", path, e))
}
