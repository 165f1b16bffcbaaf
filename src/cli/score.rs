//! The command `score`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::paths::{keep_apart, not_a_run};
use super::{DeviceArgs, PrecisionArgs, STDOUT};
use crate::error::{Error, Result};
use crate::model::{self, CausalLm, ModelConfig};
use crate::text::chat::Message;
use crate::text::tokenizer::Tokenizer;
use crate::train::token_scores as score;
use crate::{files, json};

/// Write log-probability and entropy of every token, one JSON line per row.
///
/// Rows are {"text": …}, {"messages": […]} or {"input_ids": […]}; other keys are ignored. Text is encoded as it is, messages
/// through the chat template, nothing is added. Output: {"input_ids": […], "logprobs": [null, …], "entropy": [null, …]};
/// position i is about the token at i, in nats.
#[derive(Debug, Args)]
pub(super) struct ScoreArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    model: PathBuf,
    /// JSONL file of rows.
    #[arg(long, short)]
    input: PathBuf,
    /// File to write; standard output when not given.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Divides the logits.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Tokens of one forward pass at most (a longer row makes a pass of its own).
    #[arg(long, default_value_t = 4096)]
    tokens_per_batch: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn score(args: &ScoreArgs) -> anyhow::Result<()> {
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return Err(Error::Invalid(format!("--temperature {} must be positive", args.temperature)).into());
    }
    not_a_run(&args.model, &["final", "adapter"])?;
    keep_apart(&[("--output", args.output.as_ref())], &[&args.input])?;
    let file = BufReader::new(File::open(&args.input).map_err(Error::io(&args.input))?);
    let (device, _) = args.device.open()?;
    let (config, model) = model::load_as(&args.model, &device, args.precision.dtype)?;
    let scorer = Scorer { args, config, model, tokenizer: Tokenizer::load(&args.model)? };
    scorer.tokenizer.check_vocab(scorer.config.vocab_size, &args.model)?;
    match &args.output {
        Some(path) => files::write_with(path, |out| scorer.run(file, out))?,
        None => scorer.run(file, &mut BufWriter::new(std::io::stdout().lock()))?,
    }
    Ok(())
}

struct Scorer<'a> {
    args: &'a ScoreArgs,
    config: ModelConfig,
    model: CausalLm,
    tokenizer: Tokenizer,
}

impl Scorer<'_> {
    fn run(&self, rows: impl BufRead, out: &mut dyn Write) -> Result<()> {
        let (mut batch, mut held, mut empty) = (Vec::new(), 0, true);
        for (number, line) in (1..).zip(rows.split(b'\n')) {
            let line = line.map_err(Error::io(&self.args.input))?;
            let place = PathBuf::from(format!("{}:{number}", self.args.input.display()));
            let line = std::str::from_utf8(&line)
                .map_err(|_| Error::file(&place, "the text is not UTF-8; save it as UTF-8"))?
                .trim_start_matches('\u{feff}');
            if line.trim().is_empty() {
                continue;
            }
            empty = false;
            let tokens = self.tokens(&place, line)?;
            if held > 0 && held + tokens.len() > self.args.tokens_per_batch {
                self.write(&mut batch, out)?;
                held = 0;
            }
            held += tokens.len();
            batch.push((place, tokens));
        }
        if empty {
            return Err(Error::file(&self.args.input, "the file has no rows"));
        }
        self.write(&mut batch, out)?;
        out.flush().map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> Error {
        Error::io(self.args.output.as_deref().unwrap_or(Path::new(STDOUT)))
    }

    /// Return the tokens of a row.
    fn tokens(&self, place: &Path, line: &str) -> Result<Vec<u32>> {
        let row: Value = json::row(line).map_err(|error| Error::file(place, error))?;
        let keys = ["text", "messages", "input_ids"];
        let given: Vec<&str> = keys.into_iter().filter(|key| !row[key].is_null()).collect();
        let [key] = given[..] else {
            let message = format!("a row must have one of text, messages, input_ids; this one has {}", given.len());
            return Err(Error::file(place, message));
        };
        let wrong = |error: serde_json::Error| Error::file(place, format!("{key}: {error}"));
        let value = row[key].clone();
        let tokens: Vec<u32> = match key {
            "text" => self.tokenizer.encode(&serde_json::from_value::<String>(value).map_err(wrong)?)?,
            "messages" => {
                let messages: Vec<Message> = serde_json::from_value(value).map_err(wrong)?;
                let rendered = self.tokenizer.render(&messages, false);
                self.tokenizer.encode(&rendered.map_err(|error| Error::file(place, error))?)?
            }
            _ => serde_json::from_value(value).map_err(wrong)?,
        };
        let (vocab, longest) = (self.config.vocab_size, self.config.max_position_embeddings);
        if tokens.is_empty() {
            return Err(Error::file(place, format!("{key} has no tokens")));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::file(place, format!("token {token} is outside the vocabulary (vocab_size = {vocab})")));
        }
        if tokens.len() > longest {
            let message = format!("{} tokens are more than max_position_embeddings = {longest}", tokens.len());
            return Err(Error::file(place, message));
        }
        Ok(tokens)
    }

    /// Score the rows of a batch and write their lines.
    fn write(&self, batch: &mut Vec<(PathBuf, Vec<u32>)>, out: &mut dyn Write) -> Result<()> {
        let (places, sequences): (Vec<PathBuf>, Vec<Vec<u32>>) = std::mem::take(batch).into_iter().unzip();
        for (place, scored) in places.iter().zip(score::score(&self.model, sequences, self.args.temperature)) {
            if scored.logprobs.iter().chain(&scored.entropy).flatten().any(|figure| !figure.is_finite()) {
                let temperature = match self.args.temperature {
                    small if small < 1.0 => format!("--temperature {small:e} is too small, or "),
                    _ => String::new(),
                };
                let message = format!("a log-probability is not finite: {temperature}the model's weights are broken");
                return Err(Error::file(place, message));
            }
            let line = serde_json::to_string(&scored).unwrap_or_else(|error| unreachable!("{error}"));
            writeln!(out, "{line}").map_err(self.failed())?;
        }
        Ok(())
    }
}
