//! `tojson` as transformers has it: Python's `json.dumps` without escapes for HTML or for characters beyond ASCII.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// A template can nest values, and share one among many, without end; both are bounded.
const MAX_DEPTH: usize = 64;
const MAX_BYTES: usize = 16 << 20;

struct Style {
    ascii: bool,
    sorted: bool,
    /// Spaces per level; without them all stands on one line.
    indent: Option<usize>,
    between_items: String,
    after_key: String,
}

/// The filter: `value|tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let indent = arguments.get::<Option<usize>>("indent")?;
    let (between_items, after_key) = match arguments.get::<Option<Value>>("separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(separators) => match &separators.try_iter()?.map(|s| s.to_string()).collect::<Vec<_>>()[..] {
            [between_items, after_key] => (between_items.clone(), after_key.clone()),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: `separators` are two texts")),
        },
    };
    let style = Style {
        ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        between_items,
        after_key,
    };
    arguments.assert_all_used()?;
    let mut out = String::new();
    write(value, &style, 0, &mut out)?;
    Ok(Value::from(out))
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    let bad = |reason: String| Err(Error::new(ErrorKind::InvalidOperation, reason));
    if depth > MAX_DEPTH || out.len() > MAX_BYTES {
        return bad(format!("tojson: the value has more than {MAX_DEPTH} levels or {MAX_BYTES} bytes"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_text(value.as_str().unwrap_or_default(), style.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect::<Vec<_>>();
            group('[', ']', &items, style, depth, out, |item, out| write(item, style, depth + 1, out))?;
        }
        ValueKind::Map => {
            let mut keys = value.try_iter()?.collect::<Vec<_>>();
            if style.sorted {
                keys.sort_by_key(Value::to_string);
            }
            group('{', '}', &keys, style, depth, out, |key, out| {
                write_text(&key_text(key), style.ascii, out);
                out.push_str(&style.after_key);
                write(&value.get_item(key)?, style, depth + 1, out)
            })?;
        }
        kind => return bad(format!("tojson: a value of the kind {kind} is not JSON")),
    }
    Ok(())
}

/// Python writes keys that are not text as the text of their JSON.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => key.is_true().to_string(),
        _ => key.to_string(),
    }
}

fn group(
    open: char,
    close: char,
    items: &[Value],
    style: &Style,
    depth: usize,
    out: &mut String,
    mut each: impl FnMut(&Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |level: usize, out: &mut String| {
        if let Some(spaces) = style.indent.filter(|_| !items.is_empty()) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', spaces.min(MAX_BYTES / (MAX_DEPTH + 1)) * level));
        }
    };
    out.push(open);
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.push_str(&style.between_items);
        }
        line(depth + 1, out);
        each(item, out)?;
    }
    line(depth, out);
    out.push(close);
    Ok(())
}

fn write_text(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
