//! HTML page, text and JSON of an analysis.

use serde::Serialize;
use serde_json::{Value, json};

use super::completions::{shade, shades, shown_text};
use super::conflict::{ConflictSection, of_blocks};
use super::findings;
use super::numbers::{number, percent, signed};
use super::outcome::Tile;
use super::render;
use crate::error::Result;
use crate::train::analyze::{Analysis, BLOCK, Shown, ShownCompletion, ShownToken};

/// Name of the rows in the generated sentences.
const UNIT: findings::CountNoun = ["block of problems", "blocks of problems"];

#[derive(Serialize)]
struct AnalysisPage<'a> {
    title: &'a str,
    settings: String,
    tiles: Vec<Tile>,
    conflict: ConflictSection,
    shades: Vec<String>,
    examples: Vec<AnalysedProblem<'a>>,
}

#[derive(Serialize)]
struct AnalysedProblem<'a> {
    family: &'a str,
    prompt: &'a str,
    answer: &'a str,
    sides: Vec<AnalysisSide>,
}

#[derive(Serialize)]
struct AnalysisSide {
    what: &'static str,
    length: usize,
    advantages: String,
    tokens: Vec<AnalysisToken>,
}

#[derive(Serialize)]
struct AnalysisToken {
    text: String,
    class: String,
    title: String,
}

/// Return a self-contained HTML page with the figures of an analysis and some of its completions, token by token.
///
/// # Errors
/// Only internal ones: the template or a plot cannot be rendered.
pub fn analysis(analysis: &Analysis, title: &str, settings: &str) -> Result<String> {
    let figure = |name: &str| analysis.metrics.get(name);
    let tile = |name, value: String, note: &str| Tile { name, value, note: note.into() };
    let view = AnalysisPage {
        title,
        settings: settings.to_string(),
        tiles: vec![
            tile("Accuracy", percent(figure("rewards/accuracy/mean")), "of the sampled completions"),
            tile("Mean length", number(figure("completions/mean_length"), 1), "tokens per completion"),
            tile("Entropy", number(figure("entropy"), 3), "nats per token, T = 1"),
            tile("Connectors", number(figure("conflict/connectors/per_1000"), 1), "per 1000 tokens"),
        ],
        conflict: of_blocks(&rows(analysis), UNIT, analysis.types.clone())?,
        shades: shades(),
        examples: analysis.shown.iter().map(example).collect(),
    };
    render("analysis.html", include_str!("analysis.html"), view)
}

/// Return the findings of an analysis as sentences, the verdict first.
pub fn analysis_text(analysis: &Analysis) -> Vec<String> {
    findings::sentences(&rows(analysis), UNIT).unwrap_or_default()
}

/// Return the figures of an analysis as JSON.
pub fn analysis_json(analysis: &Analysis) -> Value {
    json!({
        "problems": analysis.problems,
        "problems_per_block": BLOCK,
        "findings": analysis_text(analysis),
        "metrics": analysis.metrics.values(),
        "blocks": analysis.blocks.iter().map(|block| block.values()).collect::<Vec<_>>(),
        "types": analysis.types,
    })
}

/// Return the metrics of each block. Standard errors are computed over blocks; a single block gives none.
fn rows(analysis: &Analysis) -> Vec<&findings::MetricsRow> {
    analysis.blocks.iter().map(|block| block.values()).collect()
}

fn example(shown: &Shown) -> AnalysedProblem<'_> {
    let side = |completion: &ShownCompletion| {
        let parts = [completion.advantage.task, completion.advantage.length].map(|a| signed(Some(a.into()), 2));
        let advantages = format!("A accuracy {}, A length {}", parts[0], parts[1]);
        let token = |token: &ShownToken| {
            let nats = f64::from(token.entropy);
            let connector = if token.connector { " connector" } else { "" };
            AnalysisToken {
                text: shown_text(&token.text),
                class: format!("s{}{connector}", shade(nats)),
                title: format!("entropy {nats:.3} nats, p {:.3}, {advantages}", token.probability),
            }
        };
        let tokens = completion.tokens.iter().map(token).collect();
        AnalysisSide { what: completion.what, length: completion.tokens.len(), advantages: advantages.clone(), tokens }
    };
    AnalysedProblem {
        family: &shown.data_source,
        prompt: &shown.prompt,
        answer: &shown.answer,
        sides: shown.completions.iter().map(side).collect(),
    }
}
