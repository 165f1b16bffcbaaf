//! The command `settings`: lists all settings of a command.

use clap::{Args, ValueEnum};

use super::print;

/// Whose settings.
#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// The command they are for.
    #[arg(value_enum, default_value = "train")]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Command {
    Train,
    Sft,
    Study,
}

pub(super) fn run(args: &SettingsArgs) -> anyhow::Result<()> {
    print(match args.command {
        Command::Train => include_str!("../../assets/settings/train.toml").trim_end(),
        Command::Sft => include_str!("../../assets/settings/sft.toml").trim_end(),
        Command::Study => include_str!("../../assets/settings/study.toml").trim_end(),
    })?;
    Ok(())
}
