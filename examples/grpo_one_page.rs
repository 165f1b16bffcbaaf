//! Group-relative policy optimisation (GRPO), complete in one file.
//!
//! ```text
//! cargo run --release --example grpo_one_page [MODEL DIRECTORY] [STEPS]
//! ```
//!
//! A step samples a group of completions for each of a few problems, grades them, and computes the advantage of each:
//! how much better it is than its group. The update then raises or lowers the probability of every token according to
//! the advantage of its completion, within the clip range. There is no value model: the group mean is the baseline.
//!
//! `src/train/rl.rs` is the same loop with stages, checkpoints, evaluation and a report.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use tempering::data::Problem;
use tempering::data::problems::{DataConfig, Problems};
use tempering::generate::{Completion, Distribution, Request, Sampling, Watch, generate};
use tempering::metrics::mean;
use tempering::model::{self, CausalLm, ModelConfig};
use tempering::objective::advantage::{Aggregation, ScaleRewards, ScoredGroup};
use tempering::objective::{
    Advantage, KlEstimator, Objective, Parts, Ratio, Statistics, Surrogate, TokenTerm, Upstream, advantages,
};
use tempering::optim::{AdamW, Gradients, OptimConfig};
use tempering::reward;
use tempering::tasks::Split;
use tempering::text::tokenizer::Tokenizer;
use tempering::train::batch::Sequence;
use tempering::train::learner::Learner;
use tempering::{Result, device};

const SEED: u64 = 0;
/// Problems per step.
const PROBLEMS: u64 = 8;
/// Completions per problem.
const GROUP: usize = 8;
const TEMPERATURE: f32 = 1.0;
/// Longer completions are truncated and score 0, which makes the model shorten its answers.
const MAX_COMPLETION_LENGTH: usize = 96;
/// Clipped surrogate. `low` and `high` bound the ratio of new to old probability below and above 1.
const OBJECTIVE: Objective = Objective {
    ratio: Ratio::Token,
    surrogate: Surrogate::Clip { low: 0.2, high: 0.28, delta: None },
    kl_estimator: KlEstimator::K3, // not used: there is no reference model here
};
/// Tokens of one forward and backward pass. Affects memory, not the result.
const TOKENS_PER_MICROBATCH: usize = 4096;

/// A completion with its reward and its advantage.
struct Scored {
    sequence: Sequence,
    completion: Completion,
    reward: f32,
    advantage: f32,
}

struct Student {
    config: ModelConfig,
    model: CausalLm,
    tokenizer: Tokenizer,
    optimizer: AdamW,
    optim: OptimConfig,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().unwrap_or_else(|| "assets/base".to_string()));
    let steps = arguments.next().and_then(|steps| steps.parse().ok()).unwrap_or(10);
    let mut learner = Student::load(&dir, &device::parse("cpu")?)?;
    let problems = DataConfig::default().open(Split::Train)?;
    println!("step  accuracy  length  clipped    loss  gradient");
    for step in 0..steps {
        let scored = learner.sample(&problems, step)?;
        let (loss, norm) = learner.update(&scored);
        let column = |of: fn(&Scored) -> f64| mean(&scored.iter().map(of).collect::<Vec<f64>>());
        println!(
            "{:>4}{:>9.1}%{:>8.1}{:>8.1}%{loss:>8.4}{norm:>10.3}",
            step + 1,
            100.0 * column(|s| f64::from(s.reward)),
            column(|s| s.completion.tokens.len() as f64),
            100.0 * column(|s| f64::from(u8::from(!s.completion.finished()))),
        );
    }
    Ok(())
}

impl Student {
    fn load(dir: &Path, device: &Device) -> Result<Self> {
        // Operations on weights of the autodiff device are recorded for the backward pass.
        let (config, model) = model::load(dir, &device.clone().autodiff())?;
        let tokenizer = Tokenizer::load(dir)?;
        tokenizer.check_vocab(config.vocab_size, dir)?;
        let optim = OptimConfig { learning_rate: 1e-3, ..OptimConfig::default() };
        Ok(Self { config, model, tokenizer, optimizer: AdamW::default(), optim })
    }

    /// 1. Samples a group of completions for each problem, 2. grades them, 3. computes their advantages.
    fn sample(&self, problems: &Problems, step: u64) -> Result<Vec<Scored>> {
        let problems: Vec<Problem> = (0..PROBLEMS).map(|i| problems.shuffled(SEED, step * PROBLEMS + i)).collect();
        let mut requests = Vec::new();
        for problem in &problems {
            let prompt = self.tokenizer.encode_prompt(&problem.prompt)?;
            let request =
                |sample: usize| Request { prompt: prompt.clone(), key: [SEED, step, problem.id, sample as u64] };
            requests.extend((0..GROUP).map(request));
        }
        let sampling = Sampling {
            distribution: Distribution::at(TEMPERATURE),
            max_completion_length: MAX_COMPLETION_LENGTH,
            stop: self.tokenizer.stop_ids().to_vec(),
            rows: requests.len(),
            ..Sampling::default()
        };
        let completions = generate(&self.model, &self.config, &requests, &sampling, |_, _| Watch::Continue)?;

        let mut scored = Vec::new();
        for ((problem, group), requests) in problems.iter().zip(completions.chunks(GROUP)).zip(requests.chunks(GROUP)) {
            let rewards: Vec<Option<f32>> = group.iter().map(|completion| self.grade(problem, completion)).collect();
            // A = (r − mean of the group) / (standard deviation of the group + 1e-4)
            let relative = Advantage::Group {
                scale_rewards: ScaleRewards::Group,
                multi_objective_aggregation: Aggregation::SumThenNormalize,
            };
            let compared = ScoredGroup {
                rewards: vec![rewards.iter().map(|reward| reward.map(Parts::task)).collect()],
                lengths: group.iter().map(|completion| completion.tokens.len()).collect(),
                ..ScoredGroup::default()
            };
            let advantages = advantages(relative, None, &[compared], &[1.0]).concat();
            for (((completion, request), reward), advantage) in group.iter().zip(requests).zip(rewards).zip(advantages)
            {
                let tokens = [request.prompt.as_slice(), &completion.tokens].concat();
                scored.push(Scored {
                    sequence: Sequence { tokens, prompt: request.prompt.len() },
                    completion: completion.clone(),
                    reward: reward.unwrap_or(0.0),
                    advantage: advantage.total(),
                });
            }
        }
        Ok(scored)
    }

    /// Return 1 for a correct answer in `\boxed{}` of a completion that was not truncated, else 0.
    fn grade(&self, problem: &Problem, completion: &Completion) -> Option<f32> {
        let answer = reward::answer(problem, &self.tokenizer, completion, false);
        answer.correct.map(|right| if right { 1.0 } else { 0.0 })
    }

    /// 4. Takes an AdamW step on the clipped surrogate; returns the loss and the gradient norm.
    fn update(&mut self, scored: &[Scored]) -> (f64, f64) {
        // Every token is divided by the token count of the whole step, so that the sum over micro-batches is the mean.
        let tokens: usize = scored.iter().map(|s| s.completion.tokens.len()).sum();
        let term = |advantage| {
            move |&old_log_prob| TokenTerm {
                old_log_prob,
                advantage,
                weight: 1.0 / tokens as f32,
                ..TokenTerm::default()
            }
        };
        let sequences: Vec<Sequence> = scored.iter().map(|s| s.sequence.clone()).collect();
        let (mut gradients, mut statistics) = (Gradients::default(), Statistics::default());
        let learner =
            Learner { temperature: TEMPERATURE, tokens_per_microbatch: TOKENS_PER_MICROBATCH, ..Learner::default() };
        learner.backward(&self.model, &sequences, &mut gradients, |range, scores| {
            let terms: Vec<TokenTerm> =
                scored[range].iter().flat_map(|s| s.completion.log_probs.iter().map(term(s.advantage))).collect();
            // −Σ w · min(ρ A, clip(ρ) A), ρ = π(token) / π_old(token). With one update per batch, ρ is 1 up to
            // rounding: the loss value is uninformative, but its gradient is the policy gradient.
            let mut upstream = Upstream::default();
            OBJECTIVE.evaluate(&terms, &scores.log_prob, &scores.sampling_entropy, &mut statistics, &mut upstream);
            Some(upstream)
        });
        let norm = gradients.norm();
        // The gradient is zero if all rewards within each group are equal.
        if norm > 0.0 {
            let scale = self.optim.clip(norm);
            let (model, lr) = (self.model.clone(), self.optim.learning_rate);
            self.model = self.optimizer.step(&self.optim, model, gradients, scale, lr);
        }
        (statistics.loss, norm)
    }
}
