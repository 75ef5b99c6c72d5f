//! How a source is made: by the environment, and what is said besides.

use std::{fmt, path::PathBuf};

use llm_local_core::{Error, PluginContext, Result};
use llm_local_source_common::network::{Network, NetworkConfig};

use crate::{
    HuggingFace,
    settings::{Settings, endpoint, token},
    xet::PLAIN_LIMIT,
};

impl HuggingFace {
    /// The source that the environment describes: `HF_TOKEN` (or `HUGGING_FACE_HUB_TOKEN`), `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`),
    /// `HF_XET_CACHE`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`), and the token file of
    /// `hf auth login`.
    ///
    /// # Errors
    /// As [`HuggingFaceBuilder::build`].
    pub fn from_env() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts a source with settings of its own.
    pub fn builder() -> HuggingFaceBuilder {
        HuggingFaceBuilder::default()
    }
}

/// Makes a [`HuggingFace`]. What is not set is taken from the environment.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct HuggingFaceBuilder {
    token: Option<HiddenText>,
    endpoint: Option<String>,
    cache_dir: Option<PathBuf>,
    offline: Option<bool>,
    network: Option<Network>,
    pub(crate) plain_limit: Option<u64>,
}

/// A text that `Debug` shows nothing of.
#[derive(Clone)]
struct HiddenText(String);

impl fmt::Debug for HiddenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl HuggingFaceBuilder {
    /// Sets the access token; an empty one stands for none, whatever the environment has. It is sent to the endpoint and
    /// to no other host.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(HiddenText(token.into()));
        self
    }

    /// Sets the Hub's URL: `https://huggingface.co` if nothing else says so.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sets the folder of the Hub's cache: `~/.cache/huggingface/hub` if nothing else says so.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Sets whether no request may be made.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = Some(offline);
        self
    }

    /// Sets what makes the requests.
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Makes the requests by the network of the engine that `context` is of, if there is one.
    pub(crate) fn within(self, context: &PluginContext) -> Self {
        match context.get::<Network>() {
            Some(network) => self.network(network.clone()),
            None => self,
        }
    }

    /// Makes the source.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for an endpoint or token that cannot be one, [`Error::NotFound`] if the cache's folder
    /// depends on a home folder that is not known, [`Error::Io`] for a token file that cannot be read.
    pub fn build(self) -> Result<HuggingFace> {
        // A token, endpoint or folder that is given must not fail by what the environment says of it.
        let variable = |name: &str| match name {
            "HF_TOKEN" if self.token.is_some() => Some("unused".into()),
            "HF_ENDPOINT" if self.endpoint.is_some() => None,
            "HF_HUB_CACHE" if self.cache_dir.is_some() => self.cache_dir.clone().map(PathBuf::into_os_string),
            _ => std::env::var_os(name),
        };
        let mut settings = Settings::from_environment(variable, etcetera::home_dir().ok())?;
        if let Some(HiddenText(text)) = self.token {
            settings.token = token(&text, "the token given to the source")?;
        }
        if let Some(url) = self.endpoint {
            settings.endpoint = endpoint(&url)?;
        }
        if let Some(folder) = self.cache_dir {
            settings.cache = folder;
        }
        // What is recorded of a cache must mean the same in whatever folder a process is.
        settings.cache = std::path::absolute(&settings.cache).map_err(|e| Error::io("find", &settings.cache, e))?;
        if let Some(offline) = self.offline {
            settings.offline = offline;
        }
        let network = self.network.unwrap_or_else(|| Network::new(NetworkConfig::new()));
        Ok(HuggingFace::new(settings, network, self.plain_limit.unwrap_or(PLAIN_LIMIT)))
    }
}
