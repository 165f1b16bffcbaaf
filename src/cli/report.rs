//! The command `report`.

use std::path::PathBuf;

use clap::Args;

use super::print;
use crate::report;

/// Regenerate the report of a run.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Run directory.
    run: PathBuf,
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    print(report::write(&args.run)?.display())
}
