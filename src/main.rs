//! The command `echogate`.
fn main() {}
