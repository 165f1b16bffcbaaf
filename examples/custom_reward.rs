//! A reward of one's own, and what it says of a few sampled completions.
//!
//! ```text
//! cargo run --release --example custom_reward [MODEL DIRECTORY]
//! ```
//!
//! [`Reward`] is open: anything that looks at a problem and a completion can be one. The stages of `tempering train` are
//! not: a configuration file names rewards of the closed list `tempering::objective::RewardKind`. To train with a reward
//! of one's own, either add a variant there, or write the loop, which is one page: see `grpo_one_page.rs` and put the
//! reward where that file calls `Accuracy`.

use std::path::PathBuf;

use tempering::data::Problem;
use tempering::generate::{Request, Sampling, Watch, generate};
use tempering::problems::{DataConfig, Problems};
use tempering::reward::{Accuracy, Completion, Reward};
use tempering::tasks::Split;
use tempering::text::tokenizer::Tokenizer;
use tempering::{Result, device, model};

/// Right answers only, and the better the shorter: 1 for no tokens, half of it at `half` tokens.
struct ShortAndRight {
    half: f32,
}

impl Reward for ShortAndRight {
    fn name(&self) -> &str {
        "short_and_right"
    }

    /// `None` where accuracy has no say, since the row's own answer is unusable; such completions are left out.
    fn score(&self, problem: &Problem, completion: &Completion) -> Option<f32> {
        let right = Accuracy.score(problem, completion)?;
        Some(right * self.half / (self.half + completion.tokens as f32))
    }
}

const PROBLEMS: usize = 4;
const GROUP: usize = 4;

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "assets/base".to_string()));
    let (config, model) = model::load(&dir, &device::parse("cpu")?)?;
    let tokenizer = Tokenizer::load(&dir)?;
    tokenizer.check_vocab(config.vocab_size, &dir)?;
    let problems: Problems = DataConfig::default().open(Split::HeldOut)?;
    let problems: Vec<Problem> = problems.take(PROBLEMS)?;

    // A group of completions for each problem; the key makes every one of them reproducible.
    let mut requests = Vec::new();
    for problem in &problems {
        let prompt = tokenizer.encode_prompt(&problem.prompt)?;
        requests.extend((0..GROUP as u64).map(|i| Request { prompt: prompt.clone(), key: [0, 0, problem.id, i] }));
    }
    let stop = tokenizer.stop_ids().to_vec();
    let sampling = Sampling { max_completion_length: 256, stop, rows: requests.len(), ..Sampling::default() };
    let completions = generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue)?;

    let rewards: [&dyn Reward; 2] = [&Accuracy, &ShortAndRight { half: 64.0 }];
    for (problem, group) in problems.iter().zip(completions.chunks(GROUP)) {
        println!("\n{}  (answer: {})", problem.prompt.text(), problem.answer);
        for completion in group {
            let text = tokenizer.decode(&completion.tokens, true);
            let seen = Completion { text: &text, tokens: completion.tokens.len(), finished: completion.finished() };
            let score = |reward: &&dyn Reward| match reward.score(problem, &seen) {
                Some(score) => format!("{} {score:.3}", reward.name()),
                None => format!("{} -", reward.name()),
            };
            println!("  {}  {} tokens", rewards.iter().map(score).collect::<Vec<_>>().join("  "), seen.tokens);
        }
    }
    Ok(())
}
