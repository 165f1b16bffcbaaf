//! `merge`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceArgs;
use crate::hub::{self, Part};
use crate::model::lora;
use crate::text::tokenizer::Tokenizer;
use crate::train::checkpoint;
use crate::{device, error::Error, model};

/// Merge an adapter into its base model and write a Hugging Face directory.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Directory with adapter_config.json and adapter_model.safetensors (PEFT's format), or owner/name[@revision] of the Hub.
    adapter: PathBuf,
    /// Directory to write; must not exist yet.
    #[arg(long, short)]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    if !lora::is_adapter(&hub::model(&args.adapter, Part::Settings)?) {
        return Err(
            Error::file(&args.adapter, "is no adapter: it has no adapter_config.json, or a model of its own").into()
        );
    }
    if args.output.exists() {
        return Err(Error::file(&args.output, "exists already; give another --output").into());
    }
    let (config, model) = model::load(&args.adapter, &device::parse(&args.device.device)?)?;
    let tokenizer = Tokenizer::load(&args.adapter)?;
    checkpoint::export(&args.output, &config, &model, &tokenizer)?;
    super::print(args.output.display())
}
