//! How a partial's progress is written down: a line of JSON, padded so that what follows is aligned, then eight bytes for
//! each segment, little-endian: how many bytes of it are there, from its start. A count is overwritten in place; that it
//! never crosses a multiple of eight keeps it whole on any disk.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The format; another one starts over.
const VERSION: u32 = 1;
/// Bytes of a count.
const COUNT: usize = size_of::<u64>();
/// Without a wish, a file has one segment for each of so many bytes, ...
const BYTES_FOR_SEGMENT: u64 = 64 << 20;
/// ... but no more than these.
const SEGMENTS: u64 = 64;
/// More are not kept track of, whatever the wish.
const MOST_SEGMENTS: u64 = 1 << 16;
/// No state is larger: the most counts, and a header with room for a validator as long as servers send headers.
pub(super) const MOST_BYTES: u64 = MOST_SEGMENTS * COUNT as u64 + (1 << 20);

/// How a file is cut into segments, all of one size but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segments {
    pub(super) size: u64,
    bytes: u64,
}

impl Segments {
    /// Cuts a file of `size` bytes into segments of `bytes`; without a wish into equal ones of a size that
    /// fits it.
    pub(super) fn new(size: u64, bytes: Option<u64>) -> Self {
        let bytes = bytes.unwrap_or_else(|| size.div_ceil(size.div_ceil(BYTES_FOR_SEGMENT).clamp(1, SEGMENTS)));
        Self { size, bytes: bytes.max(size.div_ceil(MOST_SEGMENTS)).max(1) }
    }

    pub(super) fn count(&self) -> usize {
        // At most `MOST_SEGMENTS`, by construction or by the length of what was read.
        self.size.div_ceil(self.bytes) as usize
    }

    /// Where the segment `index` lies in the file.
    pub(super) fn range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.bytes;
        start..start.saturating_add(self.bytes).min(self.size)
    }

    /// The segment that the byte at `offset` lies in.
    pub(super) fn index(&self, offset: u64) -> usize {
        (offset / self.bytes) as usize
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    size: u64,
    segment_bytes: u64,
    validator: Option<String>,
}

/// What is known of a partial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) segments: Segments,
    /// The ETag that all bytes came under.
    pub(super) validator: Option<String>,
    /// Bytes done of each segment, from its start.
    pub(super) done: Vec<u64>,
}

impl State {
    /// Nothing is there yet.
    pub(super) fn new(segments: Segments, validator: Option<String>) -> Self {
        Self { segments, validator, done: vec![0; segments.count()] }
    }

    /// As bytes, and where in them the first count stands.
    pub(super) fn encode(&self) -> serde_json::Result<(Vec<u8>, u64)> {
        let mut bytes = serde_json::to_vec(&Header {
            version: VERSION,
            size: self.segments.size,
            segment_bytes: self.segments.bytes,
            validator: self.validator.clone(),
        })?;
        bytes.resize((bytes.len() + 1).next_multiple_of(COUNT) - 1, b' ');
        bytes.push(b'\n');
        let counts_at = bytes.len() as u64;
        bytes.extend(self.done.iter().flat_map(|done| done.to_le_bytes()));
        Ok((bytes, counts_at))
    }

    /// What `bytes` say of a file of `size` bytes, and where in them the first count stands. `None` where they were not
    /// written by [`State::encode`] for such a file.
    pub(super) fn decode(bytes: &[u8], size: u64) -> Option<(Self, u64)> {
        let counts_at = bytes.iter().position(|&b| b == b'\n')? + 1;
        let (header, counts) = bytes.split_at(counts_at);
        let header: Header = serde_json::from_slice(header).ok()?;
        let segments = Segments { size, bytes: header.segment_bytes };
        let known = header.version == VERSION && header.size == size && segments.bytes > 0;
        if !known
            || counts_at % COUNT != 0
            || size.div_ceil(segments.bytes).checked_mul(COUNT as u64)? != counts.len() as u64
        {
            return None;
        }
        let (counts, _) = counts.as_chunks::<COUNT>();
        let done: Vec<_> = counts.iter().map(|&count| u64::from_le_bytes(count)).collect();
        let fits = |(index, &done): (usize, &u64)| {
            let range = segments.range(index);
            done <= range.end - range.start
        };
        let all_fit = done.iter().enumerate().all(fits);
        all_fit.then_some((Self { segments, validator: header.validator, done }, counts_at as u64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn segments_cover_the_file_once() {
        for (size, wish) in
            [(0, None), (1, None), (10, Some(3)), (9, Some(3)), (5 << 30, None), (1 << 40, Some(1)), (7, Some(0))]
        {
            let segments = Segments::new(size, wish);
            let mut end = 0;
            for index in 0..segments.count() {
                let range = segments.range(index);
                assert!(range.start == end && range.end > end, "{size} {wish:?} {range:?}");
                assert_eq!((segments.index(range.start), segments.index(range.end - 1)), (index, index));
                end = range.end;
            }
            assert_eq!(end, size);
            assert!(segments.count() as u64 <= MOST_SEGMENTS);
        }
        assert_eq!(Segments::new((5 << 30) + 3, None).count(), 64);
        let segments = Segments::new(100 << 20, None);
        assert_eq!((segments.count(), segments.range(1)), (2, 50 << 20..100 << 20));
    }

    #[test]
    fn a_count_never_crosses_a_multiple_of_eight() {
        for length in 0..16 {
            let state = State::new(Segments::new(10, Some(3)), Some("e".repeat(length)));
            let (bytes, counts_at) = state.encode().unwrap();
            assert_eq!(counts_at % 8, 0);
            assert_eq!(bytes.len() as u64, counts_at + 4 * 8);
            assert_eq!(State::decode(&bytes, 10), Some((state, counts_at)));
        }
    }

    #[test]
    fn a_state_of_another_file_or_format_or_with_too_much_in_it_is_none() {
        let mut state = State::new(Segments::new(10, Some(3)), None);
        state.done = vec![3, 2, 0, 1];
        let (bytes, at) = state.encode().unwrap();
        assert!(State::decode(&bytes, 10).is_some());
        assert!(State::decode(&bytes, 11).is_none());
        assert!(State::decode(&bytes[..bytes.len() - 1], 10).is_none());
        assert!(State::decode(&[&bytes[..], &[0; 8]].concat(), 10).is_none());
        assert!(State::decode(&[], 10).is_none());
        let text = |from: &str, to: &str| {
            let header = String::from_utf8(bytes[..at as usize].to_vec()).unwrap();
            assert!(header.contains(from));
            [header.replace(from, to).as_bytes(), &bytes[at as usize..]].concat()
        };
        assert!(State::decode(&text("\"version\":1", "\"version\":2"), 10).is_none());
        assert!(State::decode(&text("\"segment_bytes\":3", "\"segment_bytes\":0"), 10).is_none());
        assert!(State::decode(&text("\"segment_bytes\":3", "\"segment_bytes\":5"), 10).is_none());
        for (index, done) in [(0, 4), (3, 2), (1, u64::MAX)] {
            let mut state = state.clone();
            state.done[index] = done;
            assert!(State::decode(&state.encode().unwrap().0, 10).is_none());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_that_fits_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64), size: u64) {
            prop_assert!(State::decode(&bytes, size).is_none_or(|(s, _)| s.done.len() == s.segments.count()));
        }

        #[test]
        fn a_damaged_state_never_says_more_than_there_can_be(at: prop::sample::Index, byte: u8, done in prop::collection::vec(0..=3u64, 3)) {
            let mut state = State::new(Segments::new(9, Some(3)), Some("\"etag\"".into()));
            state.done = done;
            let mut bytes = state.encode().unwrap().0;
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some((state, _)) = State::decode(&bytes, 9) {
                for (index, &done) in state.done.iter().enumerate() {
                    let range = state.segments.range(index);
                    prop_assert!(done <= range.end - range.start);
                }
            }
        }
    }
}
