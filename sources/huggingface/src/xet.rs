//! Files that the Hub serves by the protocol of xet, its storage by chunks, and by no other way: those of more than 50 GB.
//!
//! By hf-xet, which hf-hub is built on: hf-hub 1.0.0 asks the host that the Hub redirects to whether a file is in xet,
//! which does not say so, and falls back to the plain way.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _, stream};
use llm_local_core::{Error, Result, source::ByteStream};
use llm_local_source_common::network::retrying;
use serde::Deserialize;
use xet::xet_session::{
    HeaderMap, HeaderValue, SessionError, XetConfig, XetDownloadStreamGroupBuilder, XetFileInfo, XetSession,
    XetSessionBuilder, header,
};

use crate::{api::Api, refusal::Asked, settings::Settings};

/// Files of more bytes are not served by a plain request.
pub(crate) const PLAIN_LIMIT: u64 = 50_000_000_000;

/// What `GET /api/models/{id}/xet-read-token/{commit}` answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadToken {
    access_token: String,
    /// Seconds of the Unix epoch.
    exp: u64,
    cas_url: String,
}

/// A file in xet.
#[derive(Debug, Clone)]
pub(crate) struct XetFile {
    /// The repository, by its name of today.
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// The hash that xet knows it by.
    pub(crate) hash: String,
    pub(crate) size: u64,
}

/// Reads files that are in xet. Everything async in it runs on the threads of the network.
#[derive(Default)]
pub(crate) struct Xet {
    session: OnceLock<Result<XetSession>>,
}

impl Xet {
    /// The bytes `range` of `file`.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] where only some hosts may be asked: hf-xet asks whatever hosts its storage names, by a client of
    /// its own, and nothing here could hold it to them. What the Hub says when it refuses; [`Error::DownloadFailed`].
    pub(crate) async fn open(&self, api: &Api, asked: &Asked, file: &XetFile, range: Range<u64>) -> Result<ByteStream> {
        if api.network().config().allowed_hosts.is_some() {
            let what = format!("reading a file of {} bytes of {} by xet", file.size, asked.reference);
            let reason = "the Hub gives files of more than 50 GB by xet alone, whose storage names further hosts, and only \
                          allowed hosts may be asked; take a repository that splits them into smaller files, or allow all \
                          hosts (NetworkConfig::allowed_hosts)";
            return Err(Error::not_allowed(what, reason));
        }
        let url = api.url(&["api", "models"], &file.repo, &["xet-read-token", &file.commit])?;
        let token =
            retrying(api.network(), &asked.reference, || async { Ok(api.get_json::<ReadToken>(&url, asked).await?.0) });
        let token = token.await?;
        // A Hub could name a folder of this machine as well.
        api.network().check_url(&token.cas_url)?;
        let mut headers = HeaderMap::new();
        if let Some(token) = &api.settings().token
            && let Ok(mut value) = HeaderValue::from_str(&token.header())
        {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let failed = |e: SessionError| failed(&asked.reference, e);
        let group = self.session(api.settings())?.new_download_stream_group().map_err(failed)?;
        let group = group
            .with_endpoint(token.cas_url)
            .with_token_info(token.access_token, token.exp)
            .with_token_refresh_url(url.as_str(), headers);
        read(group, &asked.reference, XetFileInfo::new(file.hash.clone(), file.size), range).await
    }

    /// hf-xet's session. It would read the environment and report how transfers went to its makers; neither is wanted.
    fn session(&self, settings: &Settings) -> Result<XetSession> {
        let make = || {
            let mut config = XetConfig::default();
            config.telemetry.enabled = false;
            let mut builder = XetSessionBuilder::new_with_config(config);
            if let Some(cache) = &settings.xet_cache {
                builder = builder.with_cache_dir(cache);
            }
            builder.build().map_err(|e| Error::unsupported("xet", format!("no client could be made for it: {e}")))
        };
        self.session.get_or_init(make).clone()
    }
}

/// The bytes `range` of `file`, from where `group` says. `what` is for messages.
async fn read(
    group: XetDownloadStreamGroupBuilder,
    what: &str,
    file: XetFileInfo,
    range: Range<u64>,
) -> Result<ByteStream> {
    let group = group.build().await.map_err(|e| failed(what, e))?;
    let length = range.end.saturating_sub(range.start);
    let stream = group.download_stream(file, Some(range)).await.map_err(|e| failed(what, e))?;
    let of = what.to_owned();
    // The connections are the group's, so it lives as long as the stream.
    let stream = stream::try_unfold((stream, group), move |(mut stream, group)| {
        let of = of.clone();
        async move {
            let bytes = stream.next().await.map_err(|e| failed(&of, e))?;
            Ok(bytes.map(|bytes| (bytes, (stream, group))))
        }
    });
    Ok(exactly(length, what.to_owned(), stream))
}

/// `stream` as long as it gives no more than `length` bytes, and an error if it ends before: hf-xet ends a stream without
/// one when the task that makes it panics.
fn exactly(length: u64, what: String, stream: impl Stream<Item = Result<Bytes>> + Send + 'static) -> ByteStream {
    Box::pin(stream::try_unfold((Box::pin(stream), 0_u64), move |(mut stream, mut given)| {
        let what = what.clone();
        async move {
            let bytes = stream.try_next().await?;
            given += bytes.as_ref().map_or(0, |b| b.len() as u64);
            let is_wrong = if bytes.is_some() { given > length } else { given < length };
            if is_wrong {
                let reason = format!("xet: expected {length} bytes, and {given} came");
                return Err(Error::DownloadFailed { what, reason, retryable: true, source: None });
            }
            Ok(bytes.map(|bytes| (bytes, (stream, given))))
        }
    }))
}

fn failed(what: &str, error: SessionError) -> Error {
    let reason = format!("xet: {error}");
    Error::DownloadFailed { what: what.to_owned(), reason, retryable: true, source: Some(Arc::new(error)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_local_source_common::network::{Network, NetworkConfig};
    use xet::xet_session::Sha256Policy;

    /// A store of chunks in a folder, of hf-xet's own, stands for the one that the Hub names.
    #[test]
    fn a_range_of_a_file_in_xet_is_exactly_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("local://{}", folder.path().join("cas").display());
        let environment = |name: &str| (name == "HF_HOME").then(|| folder.path().as_os_str().to_owned());
        let settings = Settings::from_environment(environment, None).unwrap();
        let content: Vec<u8> = (0..600_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let expected = content.clone();
        let network = Network::new(NetworkConfig::new());
        let read = async move {
            let session = Xet::default().session(&settings)?;
            let commit = session.new_upload_commit().unwrap().with_endpoint(&store).build().await.unwrap();
            let upload = commit.upload_bytes(content, Sha256Policy::Compute, None).await.unwrap();
            let file = upload.finalize_ingestion().await.unwrap().xet_info;
            commit.commit().await.unwrap();
            let mut read = Vec::new();
            for range in [0..2_400_000, 0..1, 1_234_567..2_000_001, 2_399_999..2_400_000] {
                let group = session.new_download_stream_group().unwrap().with_endpoint(&store);
                let stream = super::read(group, "hf:a/b", file.clone(), range.clone()).await?;
                read.push((range, stream.try_collect::<Vec<_>>().await?.concat()));
            }
            Ok(read)
        };
        let read = pollster::block_on(network.run(read)).unwrap();
        for (range, bytes) in read {
            assert!(bytes == expected[range.start as usize..range.end as usize], "{range:?}: {} bytes", bytes.len());
        }
    }

    #[test]
    fn a_stream_of_another_length_is_an_error() {
        for (length, given) in [(5, "abcde"), (6, "abcde"), (4, "abcde"), (0, "")] {
            let chunks: Vec<_> = given.as_bytes().chunks(2).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let stream = exactly(length, "hf:a/b".into(), stream::iter(chunks));
            let result = pollster::block_on(stream.try_collect::<Vec<_>>()).map(|c| c.concat());
            match result {
                Ok(bytes) => assert_eq!((bytes.as_slice(), length), (given.as_bytes(), given.len() as u64)),
                Err(error) => {
                    assert!(length != given.len() as u64 && error.is_retryable(), "{error}");
                    assert!(error.to_string().contains(&format!("expected {length} bytes")), "{error}");
                }
            }
        }
    }
}
