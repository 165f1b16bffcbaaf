//! The command `metrics`: lists the names of all metrics.

use super::print;
use crate::metrics::names::ALL;

pub(super) fn run() -> anyhow::Result<()> {
    let width =
        |column: fn(&[&'static str; 3]) -> &'static str| ALL.iter().map(|row| column(row).len()).max().unwrap_or(0);
    let (name, unit) = (width(|row| row[0]), width(|row| row[1]));
    for [metric, of, meaning] in ALL {
        print(format_args!("{metric:<name$}  {of:<unit$}  {meaning}"))?;
    }
    Ok(())
}
