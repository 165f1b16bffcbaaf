//! The command `merge`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceArgs;
use super::paths::not_a_run;
use crate::hub::{self, ModelFiles};
use crate::model::lora;
use crate::text::tokenizer::Tokenizer;
use crate::train::checkpoint;
use crate::{error::Error, model};

/// Merge an adapter into its base model, or extract the language model of a vision-language model, and write a Hugging
/// Face directory.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Directory with adapter_config.json and adapter_model.safetensors (PEFT's format), or with a model such as gemma3 or qwen3_5;
    /// or owner/name[@revision] of the Hub.
    #[arg(value_name = "ADAPTER")]
    source: PathBuf,
    /// Directory to write; must not exist yet.
    #[arg(long, short)]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn merge(args: &MergeArgs) -> anyhow::Result<()> {
    not_a_run(&args.source, &["adapter", "final"])?;
    let folder = hub::model(&args.source, ModelFiles::Settings)?;
    if !lora::is_adapter(&folder) && !model::is_wrapped(&folder)? {
        let message = "is neither an adapter (adapter_config.json without a model in the same folder) nor a model that \
            contains a language model";
        return Err(Error::file(&args.source, message).into());
    }
    if args.output.exists() {
        return Err(Error::file(&args.output, "already exists; choose another --output").into());
    }
    let (config, model) = model::load(&args.source, &args.device.open()?.0)?;
    let tokenizer = Tokenizer::load(&args.source)?;
    checkpoint::export(&args.output, &config, &model, &tokenizer)?;
    super::print(args.output.display())
}
