//! `echogate bench compare`: two results, and the exit code that a pipeline wants.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::bench::compare;
use crate::bench::record::Record;
use crate::cli::print;
use crate::error::SetupError;

/// Compare two results of the bench
///
/// Figure by figure, with both runs' spreads. Throughput and cost are compared as they are against their own run's control.
///
/// Exit codes: 0 nothing of Echogate's became worse beyond the noise; 1 something did; 2 the two cannot be compared.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The JSON of the run before
    old: PathBuf,
    /// The JSON of the run after
    new: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let comparison = compare(&read(&arguments.old)?, &read(&arguments.new)?)?;
    print(&comparison.to_string());
    Ok(if comparison.regressions() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(file: &Path) -> Result<Record, SetupError> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).map_err(|cause| SetupError::caused(format!("cannot read {name}"), cause))?;
    Record::parse(&text, &name)
}
