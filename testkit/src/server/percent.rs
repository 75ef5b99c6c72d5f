//! Percent-encoding of URLs.

/// `text` decoded; what is no valid escape stays as it is. Bytes that are no UTF-8 become U+FFFD.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.first_chunk::<2>().filter(|_| first == b'%').and_then(|digits| {
            u8::from_str_radix(str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?, 16).ok()
        });
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `text` as one segment of a path or one value of a query: all but the unreserved characters of RFC 3986 escaped.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// `path` with each of its segments encoded.
pub(crate) fn encode_path(path: &str) -> String {
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// The pairs of a query or a form, decoded, with `+` for a space.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let text = "refs/pr/1 ü%+&.gguf";
        assert_eq!(encode(text), "refs%2Fpr%2F1%20%C3%BC%25%2B%26.gguf");
        assert_eq!(decode(&encode(text)), text);
        assert_eq!(encode_path("a b/c"), "a%20b/c");
        assert_eq!(decode("50%, %zz, %+1, %4"), "50%, %zz, %+1, %4");
    }

    #[test]
    fn a_query_is_read_by_pairs() {
        let read: Vec<_> = pairs("recursive=true&cursor=a%3D+b&expand").collect();
        let expected = [("recursive", "true"), ("cursor", "a= b"), ("expand", "")].map(|(n, v)| (n.into(), v.into()));
        assert_eq!(read, expected);
    }
}
