//! The command `settings`: lists all settings of a command.

use clap::{Args, ValueEnum};

use super::print;

/// Whose settings.
#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// Command whose settings are listed.
    #[arg(value_enum, default_value = "train")]
    command: SettingsCommand,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SettingsCommand {
    Train,
    Sft,
    Study,
}

pub(super) fn run(args: &SettingsArgs) -> anyhow::Result<()> {
    print(match args.command {
        SettingsCommand::Train => include_str!("../../assets/settings/train.toml").trim_end(),
        SettingsCommand::Sft => include_str!("../../assets/settings/sft.toml").trim_end(),
        SettingsCommand::Study => include_str!("../../assets/settings/study.toml").trim_end(),
    })?;
    Ok(())
}
