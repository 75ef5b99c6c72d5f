//! What every source shares: the transfer engine, which moves and verifies bytes, and the store, which keeps them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`transfer`] | makes every file of a plan present and verified |
//! | [`network`] | requests: the runtime they run on, redirects, retries, and time |
//! | [`access`] | what a source is told of its host: the URL, and the token for it |
//! | [`disk`] | files on their way to disk: keys, locks, partials, hashes, publishing, free space |
//! | [`progress`] | how far a plan is, as events and as a stream |
//! | [`location`] | what two refs of one place have in common |
//! | [`unpack`] | archives unpacked, and numbered parts joined |
//! | [`store`] | what is kept: records, and how artifacts are listed, verified, deleted and evicted |

pub mod access;
pub mod disk;
pub mod location;
pub mod network;
pub mod progress;
pub mod store;
pub mod transfer;
pub mod unpack;
