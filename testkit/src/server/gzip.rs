//! Gzip without compression, for answers that arrive encoded though nobody asked for it.

/// `bytes` as a gzip file (RFC 1952) of stored deflate blocks (RFC 1951, 3.2.4).
pub(super) fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = bytes.chunks(0xffff).peekable();
    if blocks.peek().is_none() {
        file.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        file.push(u8::from(blocks.peek().is_none()));
        file.extend(length.to_le_bytes());
        file.extend((!length).to_le_bytes());
        file.extend(block);
    }
    file.extend(crc32(bytes).to_le_bytes());
    file.extend((bytes.len() as u32).to_le_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the check value of CRC-32");
    }

    #[test]
    fn bytes_are_stored_in_blocks_of_at_most_65535() {
        let bytes = vec![7; 0x1_0000];
        let file = stored(&bytes);
        assert_eq!(file.len(), 10 + 5 + 0xffff + 5 + 1 + 8);
        assert_eq!((file[10], file[15 + 0xffff]), (0, 1), "only the second block is the last");
    }
}
