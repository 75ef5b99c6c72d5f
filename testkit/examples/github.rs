//! Serves a folder as GitHub releases on the loopback, for scripts that point other tools at it:
//!
//! ```text
//! cargo run -p llm-local-testkit --features github --example github -- [OPTIONS] [FOLDER]
//! ```
//!
//! Each file `FOLDER/owner/name/tag/asset` is an asset of the release for `tag`; a tag with a `/` has it as `%2F`. Tags
//! are published in the order of their names, so the last one is the latest. The first line on the standard output is
//! `api http://…`, for `GITHUB_API_URL`. It serves until its standard input ends, and then tells how many requests and
//! bytes there were.
#![allow(clippy::print_stdout)] // its output is what a script reads

use std::{error::Error, fs, io, path::Path};

use llm_local_testkit::github::{Access, Asset, Content, GitHub, Release, Repository};

const OPTIONS: &str = "\
options:
  --token TOKEN          a token that sees everything; other tokens are refused
  --private OWNER/NAME   makes a repository private
  --no-digests           lets the API give no digests
  --sums NAME            adds a list of SHA-256 under this name to each release
  --limit REQUESTS       how many requests the API answers without a token (60)";

fn main() -> Result<(), Box<dyn Error>> {
    let mut builder = GitHub::builder();
    let (mut folders, mut private, mut digests, mut sums) = (Vec::new(), Vec::new(), true, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{OPTIONS}"));
        match argument.as_str() {
            "--token" => builder = builder.with_token(value()?, Access::Push),
            "--private" => private.push(value()?),
            "--no-digests" => digests = false,
            "--sums" => sums = Some(value()?),
            "--limit" => builder = builder.with_rate_limit(value()?.parse()?, 5000),
            option if option.starts_with('-') => return Err(format!("no option {option}\n{OPTIONS}").into()),
            folder => folders.push(folder.to_owned()),
        }
    }
    for root in folders.iter().map(Path::new) {
        for owner in entries(root)? {
            for name in entries(&root.join(&owner))? {
                let id = format!("{owner}/{name}");
                let mut repository = Repository::new(&id);
                for tag in entries(&root.join(&id))? {
                    let release = release(&root.join(&id).join(&tag), &tag.replace("%2F", "/"), digests)?;
                    let with_sums = sums.iter().fold(release, |release, name| release.with_sha256sums(name));
                    repository = repository.with_release(with_sums);
                }
                let is_private = private.contains(&id);
                builder = builder.with_repository(if is_private { repository.private() } else { repository });
            }
        }
    }

    let github = builder.start();
    println!("api {}", github.api_url());
    println!("web {}", github.web_url());
    println!("cdn {}", github.cdn_url());
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    println!("requests {}", github.requests().len());
    println!("bytes {}", github.bytes_served());
    Ok(())
}

fn release(folder: &Path, tag: &str, digests: bool) -> Result<Release, Box<dyn Error>> {
    let mut release = Release::new(tag);
    for name in entries(folder)? {
        let asset = Asset::new(&name, Content::file(folder.join(&name))?);
        release = release.with_asset(if digests { asset } else { asset.without_digest() });
    }
    Ok(release)
}

/// The names in a folder, in order.
fn entries(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let read = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names = Vec::new();
    for entry in read {
        let name = entry?.file_name();
        names.push(name.into_string().map_err(|name| format!("{}: not a name in UTF-8: {name:?}", folder.display()))?);
    }
    names.sort();
    Ok(names)
}
