//! Digests that a release has in an asset of its own.

use llm_local_core::Digest;

/// Names of assets that hold the SHA-256 of several others.
const LISTS: [&str; 8] = [
    "sha256sums",
    "sha256sums.txt",
    "sha256sum.txt",
    "sha256sums.sha256",
    "checksums.txt",
    "checksums_sha256.txt",
    "checksums.sha256",
    "checksums",
];

/// Whether an asset of this name holds digests and nothing else.
pub(crate) fn is_sums(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    LISTS.contains(&name.as_str()) || name.ends_with(".sha256") || name.ends_with(".sha256sum")
}

/// Those of the assets `sums` that may hold the digest of `file`: of its own first.
pub(crate) fn of<'a>(file: &str, sums: &[&'a str]) -> Vec<&'a str> {
    let own = sums.iter().copied().filter(|name| is_own(name, file));
    own.chain(sums.iter().copied().filter(|name| is_list(name))).collect()
}

fn is_own(name: &str, file: &str) -> bool {
    [".sha256", ".sha256sum"].iter().any(|ending| name.strip_suffix(ending) == Some(file))
}

fn is_list(name: &str) -> bool {
    LISTS.contains(&name.to_ascii_lowercase().as_str())
}

/// The digest of `file` in `text`, whose asset is `name`: lines of `<hex>  file` as `sha256sum` writes them (`*` before
/// the name for binary), of `SHA256 (file) = <hex>` as BSD's tools do, or the digest alone where the asset is of one
/// file. `None` if there is none.
///
/// # Errors
/// Two that differ.
pub(crate) fn digest(text: &str, name: &str, file: &str) -> Result<Option<Digest>, (Digest, Digest)> {
    let mut found = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (hex, path) = match line.strip_prefix("SHA256 (").and_then(|rest| rest.rsplit_once(") = ")) {
            Some((path, hex)) => (hex, path),
            None => match line.split_once(char::is_whitespace) {
                Some((hex, path)) => (hex, path.trim_start().trim_start_matches('*')),
                None if is_own(name, file) && !is_list(name) => (line, file),
                None => continue,
            },
        };
        let path = path.strip_prefix("./").unwrap_or(path);
        let Ok(digest) = format!("sha256:{}", hex.to_ascii_lowercase()).parse::<Digest>() else { continue };
        if path != file {
            continue;
        }
        match found {
            Some(known) if known != digest => return Err((known, digest)),
            _ => found = Some(digest),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_in_the_forms_that_tools_write() {
        let (a, b) = ("0A".repeat(32), "1b".repeat(32));
        let parsed = |hex: &str| format!("sha256:{}", hex.to_lowercase()).parse::<Digest>().unwrap();
        let want = |hex: &str| Ok(Some(parsed(hex)));
        let text = format!("# made by hand\n{a}  x.zip\n{b} *./y.zip\r\nnot-hex  z.zip\n");
        assert_eq!(digest(&text, "SHA256SUMS", "x.zip"), want(&a));
        assert_eq!(digest(&text, "SHA256SUMS", "y.zip"), want(&b));
        assert_eq!(digest(&text, "SHA256SUMS", "z.zip"), Ok(None));
        assert_eq!(digest(&format!("SHA256 (x (1).zip) = {a}"), "checksums.txt", "x (1).zip"), want(&a));
        assert_eq!(digest(&a, "x.zip.sha256", "x.zip"), want(&a));
        assert_eq!(digest(&a, "SHA256SUMS", "x.zip"), Ok(None));
        let twice = format!("{a}  x.zip\n{b}  x.zip");
        assert_eq!(digest(&twice, "SHA256SUMS", "x.zip"), Err((parsed(&a), parsed(&b))));
        assert_eq!(digest(&format!("{a}  x.zip\n{a}  x.zip"), "SHA256SUMS", "x.zip"), want(&a));
    }

    #[test]
    fn an_assets_own_sum_comes_before_the_list() {
        let sums = ["SHA256SUMS.txt", "x.zip.sha256"];
        assert_eq!(of("x.zip", &sums), ["x.zip.sha256", "SHA256SUMS.txt"]);
        assert_eq!(of("y.zip", &sums), ["SHA256SUMS.txt"]);
        assert!(of("y.zip", &sums[1..]).is_empty());
        assert!(sums.iter().all(|name| is_sums(name)));
        assert!(!is_sums("x.zip") && !is_sums("sha256sums.zip"));
    }
}
