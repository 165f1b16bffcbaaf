//! The command `score`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use super::paths::{keep_apart, not_a_run};
use super::{DeviceArgs, PrecisionArgs, STDOUT};
use crate::data::{load_rows, thinking};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{self, CausalLm, ModelConfig};
use crate::text::chat::Message;
use crate::text::tokenizer::Tokenizer;
use crate::train::token_scores as score;

/// Write log-probability and entropy of every token, one JSON line per row.
/// Rows are {"text": …}, {"messages": […]} or {"input_ids": […]}; other keys are ignored. Text is encoded as it is,
/// messages with the chat template; nothing else is added. Output: {"input_ids": […], "logprobs": [null, …], "entropy":
/// [null, …]}; entry i is for token i, in nats.
#[derive(Debug, Args)]
pub(super) struct ScoreArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    model: PathBuf,
    /// File of rows (.jsonl, .json, .parquet), or owner/name[:config][:split][@revision] of the Hub.
    #[arg(long, short)]
    input: PathBuf,
    /// File to write; standard output when not given.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Temperature, by which the logits are divided.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Maximum number of tokens in one forward pass (a longer row is processed alone).
    #[arg(long, default_value_t = 4096)]
    tokens_per_batch: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Place and tokens of a row.
type TokenRow = (String, Vec<u32>);

pub(super) fn score(args: &ScoreArgs) -> anyhow::Result<()> {
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return Err(Error::Invalid(format!("--temperature {} must be positive", args.temperature)).into());
    }
    if args.tokens_per_batch == 0 {
        return Err(Error::Invalid("--tokens-per-batch 0 must be positive".to_string()).into());
    }
    not_a_run(&args.model, &["final", "adapter"])?;
    keep_apart(&[("--output", args.output.as_ref())], &[&args.input])?;
    let (config, tokenizer) = (model::config_of(&args.model)?, Tokenizer::load(&args.model)?);
    tokenizer.check_vocab(config.vocab_size, &args.model)?;
    let rows = load_rows(&args.input, |place, row| Ok((place.to_string(), tokens(row, &tokenizer, &config)?)))?;
    let (device, _) = args.device.open()?;
    let (_, model) = model::load_as(&args.model, &device, args.precision.dtype)?;
    let scorer = Scorer { args, model };
    match &args.output {
        Some(path) => files::write_with(path, |out| scorer.run(rows, out))?,
        None => scorer.run(rows, &mut BufWriter::new(std::io::stdout().lock()))?,
    }
    Ok(())
}

/// Return the tokens of a row.
fn tokens(
    mut row: Map<String, Value>,
    tokenizer: &Tokenizer,
    config: &ModelConfig,
) -> std::result::Result<Vec<u32>, String> {
    let keys = ["text", "messages", "input_ids"];
    let given: Vec<&str> = keys.into_iter().filter(|key| row.get(*key).is_some_and(|value| !value.is_null())).collect();
    let [key] = given[..] else {
        return Err(format!(
            "expected exactly one of the fields text, messages, input_ids; the row has {} of them",
            given.len()
        ));
    };
    let (vocab, longest) = (config.vocab_size, config.max_position_embeddings);
    let wrong = |error: serde_json::Error| format!("{key}: {error}");
    let failed = |error: Error| error.to_string();
    let overlong = |count: String| {
        format!("{count} tokens are more than the model's max_position_embeddings = {longest}: shorten the row")
    };
    // A huge text is neither rendered nor encoded, which would take a hundred times its size in memory.
    let short = |bytes: usize| {
        let least = tokenizer.least_tokens(bytes);
        if least > longest { Err(overlong(format!("at least {least}"))) } else { Ok(()) }
    };
    let encode = |text: &str| short(text.len()).and_then(|()| tokenizer.encode(text).map_err(failed));
    let value = row.remove(key).unwrap_or_default();
    let tokens: Vec<u32> = match key {
        "text" => encode(&serde_json::from_value::<String>(value).map_err(wrong)?)?,
        "messages" => {
            for (index, turn) in value.as_array().into_iter().flatten().enumerate() {
                let place = format!("messages[{index}]");
                if let Some((field, _)) = thinking(turn, &place)? {
                    let advice = "put it into content, between <think> and </think>";
                    return Err(format!("{place}.{field}: thinking in a separate field is not read; {advice}"));
                }
            }
            let messages: Vec<Message> = serde_json::from_value(value).map_err(wrong)?;
            short(messages.iter().map(|message| message.content.len()).sum())?;
            encode(&tokenizer.render(&messages, false).map_err(failed)?)?
        }
        _ => serde_json::from_value(value).map_err(wrong)?,
    };
    if tokens.is_empty() {
        return Err(format!("{key} has no tokens: remove the row"));
    }
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
        return Err(format!("token {token} is outside the vocabulary (vocab_size = {vocab})"));
    }
    if tokens.len() > longest {
        return Err(overlong(tokens.len().to_string()));
    }
    Ok(tokens)
}

struct Scorer<'a> {
    args: &'a ScoreArgs,
    model: CausalLm,
}

impl Scorer<'_> {
    fn run(&self, rows: Vec<TokenRow>, out: &mut dyn Write) -> Result<()> {
        let (mut batch, mut held) = (Vec::new(), 0);
        for row in rows {
            if held > 0 && held + row.1.len() > self.args.tokens_per_batch {
                self.write(&mut batch, out)?;
                held = 0;
            }
            held += row.1.len();
            batch.push(row);
        }
        self.write(&mut batch, out)?;
        out.flush().map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> Error {
        Error::io(self.args.output.as_deref().unwrap_or(Path::new(STDOUT)))
    }

    /// Score the rows of a batch and write their lines.
    fn write(&self, batch: &mut Vec<TokenRow>, out: &mut dyn Write) -> Result<()> {
        let (places, sequences): (Vec<String>, Vec<Vec<u32>>) = std::mem::take(batch).into_iter().unzip();
        for (place, scored) in places.iter().zip(score::score(&self.model, sequences, self.args.temperature)) {
            if scored.logprobs.iter().chain(&scored.entropy).flatten().any(|figure| !figure.is_finite()) {
                let temperature = match self.args.temperature {
                    small if small < 1.0 => format!("--temperature {small:e} is too small, or "),
                    _ => String::new(),
                };
                let message = format!("a log-probability is not finite: {temperature}the model's weights are damaged");
                return Err(Error::file(place, message));
            }
            let line = serde_json::to_string(&scored).unwrap_or_else(|error| unreachable!("{error}"));
            writeln!(out, "{line}").map_err(self.failed())?;
        }
        Ok(())
    }
}
