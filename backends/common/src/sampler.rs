//! The choice of the next token, on plain slices.
