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
/// Ends of such names, behind that of the project and its version: release tools write them so.
const LIST_ENDINGS: [&str; 6] =
    ["_sha256sums", "-sha256sums", ".sha256sums", "_sha256sums.txt", "_checksums.txt", "-checksums.txt"];

/// Whether an asset of this name holds digests and nothing else.
pub(crate) fn is_sums(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    is_list(name) || lower.ends_with(".sha256") || lower.ends_with(".sha256sum")
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
    let name = name.to_ascii_lowercase();
    LISTS.contains(&name.as_str()) || LIST_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The digest of `file` in `text`, whose asset is `name`: lines of `<hex>  file` as `sha256sum` writes them (`*` before
/// the name for binary), of `SHA256 (file) = <hex>` as BSD's tools do, or the digest alone where the asset is of one
/// file. Releases have no folders, so a `dist/file` is it too, if no other path that ends so has another digest and none is
/// the `file` itself. `None` if there is none.
///
/// # Errors
/// Two that differ for one path.
pub(crate) fn digest(text: &str, name: &str, file: &str) -> Result<Option<Digest>, (Digest, Digest)> {
    let lines = text.lines().map(str::trim).filter_map(|line| entry(line, name, file));
    let (exact, below): (Vec<_>, Vec<_>) =
        lines.filter(|(path, _)| base(path) == file).partition(|(path, _)| *path == file);
    let found = if exact.is_empty() { below } else { exact };
    let Some((path, digest)) = found.first() else { return Ok(None) };
    match found.iter().find(|(_, other)| other != digest) {
        None => Ok(Some(*digest)),
        Some((other_path, other)) if other_path == path => Err((*digest, *other)),
        Some(_) => Ok(None),
    }
}

/// What `line` of the asset `name` says: of which path, and its digest.
fn entry<'a>(line: &'a str, name: &str, file: &'a str) -> Option<(&'a str, Digest)> {
    let (hex, path) = match line.strip_prefix("SHA256 (").and_then(|rest| rest.rsplit_once(") = ")) {
        Some((path, hex)) => (hex, path),
        None => match line.split_once(char::is_whitespace) {
            Some((hex, path)) => (hex, path.trim_start().trim_start_matches('*')),
            None if is_own(name, file) && !is_list(name) => (line, file),
            None => return None,
        },
    };
    let digest = format!("sha256:{}", hex.to_ascii_lowercase()).parse().ok()?;
    Some((path.strip_prefix("./").unwrap_or(path), digest))
}

/// The last part of a path of any system.
fn base(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
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
    fn a_path_that_ends_with_the_name_is_it_unless_two_differ() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let parsed = |hex: &str| Some(format!("sha256:{hex}").parse::<Digest>().unwrap());
        let of = |lines: &[(&str, &str)]| {
            let text: String = lines.iter().map(|(hex, path)| format!("{hex}  {path}\n")).collect();
            digest(&text, "SHA256SUMS", "x.zip")
        };
        assert_eq!(of(&[(&a, "dist/x.zip")]), Ok(parsed(&a)));
        assert_eq!(of(&[(&a, "dist\\x.zip"), (&b, "dist\\ax.zip"), (&b, "x.zip/y")]), Ok(parsed(&a)));
        assert_eq!(of(&[(&a, "linux/x.zip"), (&a, "mac/x.zip")]), Ok(parsed(&a)));
        assert_eq!(of(&[(&a, "linux/x.zip"), (&b, "mac/x.zip")]), Ok(None));
        assert_eq!(of(&[(&a, "old/x.zip"), (&b, "./x.zip")]), Ok(parsed(&b)));
        assert_eq!(of(&[(&a, "d/x.zip"), (&b, "d/x.zip")]), Err((parsed(&a).unwrap(), parsed(&b).unwrap())));
    }

    #[test]
    fn lists_are_known_by_the_names_that_release_tools_give_them() {
        for name in [
            "lora_1.2_SHA256SUMS",
            "lora-1.2-sha256sums",
            "lora_1.2_checksums.txt",
            "lora-checksums.txt",
            "lora.sha256sums",
            "lora_sha256sums.txt",
        ] {
            assert!(is_sums(name), "{name}");
            assert_eq!(of("x.zip", &[name]), [name]);
        }
        for name in ["checksums.zip", "lora_SHA256SUMS.sig", "sha256sums.asc", "checksums.txt.pem"] {
            assert!(!is_sums(name), "{name}");
        }
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
