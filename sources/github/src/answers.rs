//! Answers of the API, kept so that asking again costs nothing of the hourly limit where nothing changed.

use std::{fs, path::PathBuf, time::SystemTime};

use llm_local_core::{Error, Result};
use llm_local_source_common::{disk::write_staged, network::next_page};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// An answer, with the ETag that it came under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) url: String,
    pub(crate) etag: String,
    /// The `Link` header, which leads to the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<String>,
    pub(crate) body: String,
}

impl Answer {
    /// Whether it is the last page of a list, or the next one is at the same host.
    pub(crate) fn leads_nowhere_else(&self) -> bool {
        self.link.as_deref().is_none_or(|link| next_page(link, &self.url).is_ok())
    }
}

/// The folder of kept answers, if there is to be one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers(pub(crate) Option<PathBuf>);

impl Answers {
    /// What was answered to `url`. Whatever cannot be read is asked for anew.
    pub(crate) fn get(&self, url: &str) -> Option<Answer> {
        let text = fs::read_to_string(self.path(url)?).ok()?;
        serde_json::from_str::<Answer>(&text).ok().filter(|answer| answer.url == url)
    }

    /// Notes that the answer to `url` was used at the time `now`: the store cleans away those that were not for long.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(crate) fn touch(&self, url: &str, now: SystemTime) -> Result<()> {
        let Some(path) = self.path(url) else { return Ok(()) };
        let touched = fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(now));
        touched.map_err(|e| Error::io("write the time of", &path, e))
    }

    /// Keeps `answer`.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(crate) fn put(&self, answer: &Answer) -> Result<()> {
        let (Some(path), Some(folder)) = (self.path(&answer.url), &self.0) else { return Ok(()) };
        let text = serde_json::to_vec(answer).map_err(|e| Error::io("write", &path, e.into()))?;
        write_staged(&path, &text, folder)
    }

    fn path(&self, url: &str) -> Option<PathBuf> {
        let mut name = String::new();
        for byte in Sha256::digest(url) {
            name += &format!("{byte:02x}");
        }
        Some(self.0.as_ref()?.join(name + ".json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(url: &str, body: &str) -> Answer {
        Answer { url: url.into(), etag: "\"1\"".into(), link: None, body: body.into() }
    }

    #[test]
    fn the_last_answer_to_a_url_is_kept_and_what_is_broken_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let answers = Answers(Some(folder.path().join("github")));
        assert_eq!(answers.get("https://a/1"), None);
        answers.put(&answer("https://a/1", "old")).unwrap();
        answers.put(&answer("https://a/1", "new")).unwrap();
        answers.put(&answer("https://a/2", "other")).unwrap();
        assert_eq!(answers.get("https://a/1").unwrap().body, "new");
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        answers.touch("https://a/1", long_ago).unwrap();
        let written = |url| fs::metadata(answers.path(url).unwrap()).unwrap().modified().unwrap();
        assert!(written("https://a/1") == long_ago && written("https://a/2") > long_ago);
        assert_eq!(answers.get("https://a/1").unwrap().body, "new");
        assert_eq!(answers.touch("https://a/3", long_ago).unwrap_err().code(), "io");
        assert_eq!(fs::read_dir(folder.path().join("github")).unwrap().count(), 2);
        fs::write(answers.path("https://a/1").unwrap(), "{").unwrap();
        assert_eq!(answers.get("https://a/1"), None);
        Answers(None).put(&answer("https://a/1", "x")).unwrap();
        Answers(None).touch("https://a/1", long_ago).unwrap();
        assert_eq!(Answers(None).get("https://a/1"), None);
    }
}
