//! The internet checksum.
