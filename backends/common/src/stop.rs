//! Stop texts that match across tokens.
