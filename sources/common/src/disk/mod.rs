//! Files on their way to disk. Sources and the engine use [`write_staged`], [`digest_bytes`], [`SOURCE_NOTES`], [`SOURCE_ANSWERS`], [`check_space`]
//! and [`same_volume`] of it; the rest is the transfer engine's and the store's.
//!
//! | module | what it holds |
//! |---|---|
//! | `key` | the name of a file's content, and what lies under it below the store's root |
//! | `lock` | one at a time, across processes |
//! | `partial` | a file that is not all there yet, and which of its bytes are |
//! | `state` | how that is written down |
//! | `hasher` | digests that follow a partial as it grows |
//! | `publish` | a whole file, moved to its place in one step |
//! | `folder` | folders, small files and links, written so that a crash leaves the old or the new |
//! | `folders` | the folders that one call publishes into |
//! | `steps` | syncing and renaming, noted in tests |
//! | `temporary` | files on their way to a name, and what a crash left of such |
//! | `space` | file systems, and their free bytes |

mod folder;
mod folders;
mod hasher;
mod key;
mod lock;
mod partial;
mod positioned;
mod publish;
mod space;
mod state;
mod steps;
mod temporary;

pub use folder::{SOURCE_ANSWERS, SOURCE_NOTES, write_staged};
pub(crate) use folder::{prepare_root, write_text_atomically, write_text_staged};
pub(crate) use folders::Folders;
pub use hasher::digest_bytes;
pub(crate) use hasher::{Hasher, digest_file};
pub(crate) use key::FileKey;
pub(crate) use lock::FileLock;
pub(crate) use partial::{Partial, Writer};
pub(crate) use positioned::write_all_at;
pub(crate) use publish::{Target, link, publish, publish_bytes, publish_temporary, sweep};
pub(crate) use space::if_full;
pub use space::{check as check_space, same_volume};
#[cfg(test)]
pub(crate) use steps::{Step, steps_below};
pub(crate) use temporary::{sweep_temporaries, temporary};
