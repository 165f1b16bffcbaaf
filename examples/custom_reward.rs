//! A custom reward as a Rust type, and a short training run with it.
//!
//! ```text
//! cargo run --release --example custom_reward
//! ```
//!
//! A stage refers to the reward by `{ type = "custom", name = "…" }`; the value is passed to [`Trainer::reward`]. In
//! other languages, a reward is a program that `tempering train` starts: see [`tempering::reward::command`].

use std::sync::atomic::AtomicBool;

use tempering::config::load;
use tempering::reward::{AnswerGroup, Memory, Parts, Reward};
use tempering::train::{Observer, RlConfig, Session, Start, Trainer};
use tempering::{Result, metrics::Metrics};

/// Reward of correct answers, larger for shorter ones: 1 at zero tokens, 0.5 at `half` tokens. Wrong answers get 0.
#[derive(Debug)]
struct ShortAndRight {
    half: f32,
}

impl Reward for ShortAndRight {
    fn name(&self) -> &str {
        "short_and_right"
    }

    /// Return 1 for the task and a penalty for length. Problems without a usable answer have no reward.
    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, right| {
            let share = self.half / (self.half + answer.length() as f32);
            if right { Parts { task: 1.0, length: share - 1.0 } } else { Parts::default() }
        }))
    }
}

/// Observer that prints a line per step.
struct Lines;

impl Observer for Lines {
    fn begin(&mut self, phase: &str, total: usize) {
        println!("{phase}: {total}");
    }
    fn advance(&mut self, done: usize, metrics: Option<&Metrics>) {
        let figure = |name: &str| metrics.and_then(|metrics| metrics.get(name));
        if let (Some(reward), Some(length)) =
            (figure("rewards/short_and_right/mean"), figure("completions/mean_length"))
        {
            println!("step {done}: reward {reward:.3}, mean length {length:.1}");
        }
    }
    fn note(&mut self, line: &str) {
        println!("{line}");
    }
}

fn main() -> Result<()> {
    let output = std::env::temp_dir().join(format!("tempering-{}", std::process::id()));
    let settings = [
        format!("output_dir={}", output.display()),
        "eval.num_problems=40".to_string(),
        "stages.0.rewards=[{ type = 'custom', name = 'short_and_right' }]".to_string(),
        "stages.0.exit.max_steps=5".to_string(),
        "stages.1.exit.max_steps=1".to_string(),
    ];
    let config: RlConfig = load(None, &settings)?;
    let stop = AtomicBool::new(false);
    let mut session = Session { observer: &mut Lines, stop: &stop, start: Start::New };
    let finished = Trainer::new(&config).reward(ShortAndRight { half: 64.0 }).run(&mut session)?;
    println!("{}", finished.dir.display());
    Ok(())
}
