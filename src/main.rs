//! The command `echogate`. What it does is in [`echogate::cli`].

use std::process::ExitCode;

/// The binary's allocator, and the binary's only: a program that embeds the library chooses its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    echogate::cli::main()
}
