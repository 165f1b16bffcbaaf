//! Shared test support: devices, tolerances, and a small model trained on sums with helpers for runs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value, json};
use tempering::Result;
use tempering::data::problems::DataConfig;
use tempering::eval::EvalConfig;
use tempering::generate::{Request, Sampling};
use tempering::metrics::Metrics;
use tempering::metrics::follow::LogConfig;
use tempering::model::{CausalLm, ModelConfig};
use tempering::objective::Upstream;
use tempering::optim::{Gradients, OptimConfig};
use tempering::reward::{Accuracy, Format, RewardCommand};
use tempering::rollout::settings::RolloutConfig;
use tempering::stage::StageExit;
use tempering::stage::{Stage, StageSampling};
use tempering::text::prompt::PromptConfig;
use tempering::text::tokenizer::Tokenizer;
use tempering::train::batch::Sequence;
use tempering::train::learner::Learner;
use tempering::train::settings::{ModelSource, RlTrain};
use tempering::train::sft::{self, SftConfig, SftModel, SftTrain};
use tempering::train::{Finished, RlConfig, Trainer};
use tempering::train::{Observer, Session, Start, checkpoint};

/// Return the name of the device under test.
pub(crate) fn device_name() -> String {
    std::env::var("TEMPERING_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_string())
}

/// Factor by backend on the tolerances written in tests, which are for the CPU.
const TOLERANCE_FACTORS: [(&str, f32); 8] = [
    ("cpu", 1.0),
    ("ndarray", 1.0),
    // The order of sums depends on shape: on Mesa's llvmpipe, log-probabilities of 1 and 5 rows differed by 1.0014e-5.
    ("wgpu", 2.0),
    ("cubecl-cpu", 1.0),
    // Untested guesses.
    ("vulkan", 10.0),
    ("metal", 10.0),
    ("rocm", 10.0),
    ("cuda", 2.0),
];

/// Convert a tolerance for the CPU to the device under test.
pub(crate) fn within(tolerance: f32) -> f32 {
    let name = device_name();
    let backend = name.split(':').next().unwrap_or_default();
    let (_, slack) =
        TOLERANCE_FACTORS.iter().find(|(known, _)| *known == backend).unwrap_or_else(|| panic!("{backend}: no slack"));
    tolerance * slack
}

/// Return the device under test.
pub(crate) fn device() -> Device {
    tempering::device::parse(&device_name()).unwrap()
}

/// Return a path in this repository. `CARGO_MANIFEST_DIR` at run time is for binaries copied to another machine.
pub(crate) fn repository(path: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join(path)
}

/// Return the embedded model's tokenizer.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::load(&repository("assets/base")).unwrap().with_prompt(&training_prompt()).unwrap()
}

/// Return a configuration with two layers of width 32, initialised widely for non-uniform token distributions.
pub(crate) fn tiny_config() -> ModelConfig {
    let mut config = ModelConfig::qwen2(tokenizer().vocab_size(), 32, 64, 2, 4, 2);
    config.initializer_range = 0.3;
    config
}

/// Return a random model. Use `device().autodiff()` for gradients.
pub(crate) fn tiny(seed: u64, device: &Device) -> (ModelConfig, CausalLm) {
    let config = tiny_config();
    let model = CausalLm::random(&config, seed, device);
    (config, model)
}

/// Return the logits of a packed forward pass without a cache.
pub(crate) fn logits(model: &CausalLm, sequences: &[&[u32]]) -> Vec<f32> {
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
    let model = model.valid();
    values(model.logits(model.forward(&sequences.concat(), &lengths, None)))
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Return the largest absolute difference between two lists of equal length.
pub(crate) fn distance(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(l, r)| (l - r).abs()).fold(0.0, f32::max)
}

/// Return the mean negative log-likelihood of the sequences' completion tokens at temperature 1, and its gradient,
/// computed by the training code.
pub(crate) fn likelihood(model: &CausalLm, sequences: &[Sequence]) -> (f32, Gradients) {
    let count: usize = sequences.iter().map(|sequence| sequence.completion().len()).sum();
    let (mut sum, mut gradients) = (0.0, Gradients::default());
    let work = Learner::default().backward(model, sequences, &mut gradients, |_, scores| {
        sum -= scores.log_prob.iter().sum::<f32>();
        let tokens = scores.log_prob.len();
        Some(Upstream { log_prob: vec![-1.0 / count as f32; tokens], entropy: vec![0.0; tokens] })
    });
    assert_eq!(work.skipped, 0);
    (sum / count as f32, gradients)
}

/// Return prompts of different lengths.
pub(crate) fn ragged_prompts() -> Vec<Vec<u32>> {
    [3u32, 9, 1, 6].iter().map(|&length| (0..length).map(|i| 5 + (i * 37 + length * 11) % 500).collect()).collect()
}

/// Return `group` requests for each prompt.
pub(crate) fn requests(prompts: &[Vec<u32>], group: u64) -> Vec<Request> {
    let request = |p: usize, sample: u64| Request { prompt: prompts[p].clone(), key: [7, 1, p as u64, sample] };
    (0..prompts.len()).flat_map(|p| (0..group).map(move |sample| request(p, sample))).collect()
}

/// Return settings for up to 12 tokens at temperature 1, with 40 stop tokens, so that rows end at different steps.
pub(crate) fn sampling() -> Sampling {
    Sampling { max_completion_length: 12, stop: (100..140).collect(), rows: 64, ..Sampling::default() }
}

/// Temporary folder with `model/`, a small model that sometimes answers two-digit sums correctly, and `sums.jsonl`.
pub(crate) struct Workshop(tempfile::TempDir);

impl Workshop {
    pub(crate) fn new() -> Self {
        let workshop = Self::with_sums();
        std::fs::create_dir(workshop.path("model")).unwrap();
        for (name, bytes) in small_model_files() {
            std::fs::write(workshop.path("model").join(name), bytes).unwrap();
        }
        workshop
    }

    fn with_sums() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        let rows = (0..16).map(|i| {
            let (a, b) = (i / 4 + 1, i % 4 + 1);
            let (prompt, answer) = (format!("Compute {a}+{b}."), a + b);
            json!({ "prompt": prompt, "answer": answer.to_string(),
                    "completion": format!("<think>{a}+{b}={answer}</think>\\boxed{{{answer}}}") })
        });
        workshop.write_lines("sums.jsonl", rows);
        workshop
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn run(&self, name: &str) -> PathBuf {
        self.path("runs").join(name)
    }

    pub(crate) fn write_lines(&self, name: &str, rows: impl IntoIterator<Item = Value>) -> PathBuf {
        let text: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Return the sums as training and evaluation data.
    fn data(&self) -> DataConfig {
        DataConfig { train: self.path("sums.jsonl"), eval: self.path("sums.jsonl"), ..DataConfig::default() }
    }

    /// Return the settings of six GRPO steps on the sums.
    pub(crate) fn rl(&self, name: &str) -> RlConfig {
        RlConfig {
            seed: 0,
            output_dir: self.path("runs"),
            name: name.to_string(),
            note: None,
            device: device_name(),
            model: ModelSource { path: self.path("model"), ..ModelSource::default() },
            lora: None,
            data: self.data(),
            prompt: training_prompt(),
            rollout: RolloutConfig::default(),
            train: RlTrain {
                prompts_per_step: 4,
                num_generations: 4,
                tokens_per_microbatch: 128,
                save_steps: 0,
                eval_steps: 2,
                log_completions_steps: 2,
                ..RlTrain::default()
            },
            optim: OptimConfig { learning_rate: 1e-3, warmup_steps: 2, ..OptimConfig::default() },
            eval: EvalConfig { num_problems: 4, max_completion_length: 8, ..EvalConfig::default() },
            log: LogConfig::default(),
            reward: RewardCommand::default(),
            cycles: 1,
            controller: None,
            stages: vec![Stage {
                exit: StageExit { max_steps: 6, ..StageExit::default() },
                sampling: StageSampling { max_completion_length: 24, ..StageSampling::default() },
                rewards: vec![Accuracy {}.into(), Format {}.into()],
                reward_weights: vec![1.0, 0.5],
                ..Stage::default()
            }],
        }
    }

    /// Return the settings of two supervised fine-tuning steps of `model/`.
    pub(crate) fn sft(&self, name: &str) -> SftConfig {
        SftConfig {
            output_dir: self.path("runs"),
            name: name.to_string(),
            device: device_name(),
            model: SftModel { path: self.path("model"), ..SftModel::default() },
            data: self.data(),
            prompt: training_prompt(),
            train: SftTrain { max_steps: 2, tokens_per_step: 256, ..SftTrain::default() },
            optim: OptimConfig { learning_rate: 1e-3, ..OptimConfig::default() },
            eval: EvalConfig { num_problems: 2, max_completion_length: 8, ..EvalConfig::default() },
            ..SftConfig::default()
        }
    }
}

/// Return the prompt settings that the small model was trained with: no suffix.
fn training_prompt() -> PromptConfig {
    PromptConfig { suffix: String::new(), ..PromptConfig::default() }
}

/// Return the files of the small model, which is trained once for all tests.
fn small_model_files() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let school = Workshop::with_sums();
        let (config, model) = tiny(0, &device());
        checkpoint::export(&school.path("model"), &config, &model, &tokenizer()).unwrap();
        let mut lessons = school.sft("school");
        lessons.train.max_steps = 60;
        lessons.optim.learning_rate = 1e-2;
        let taught = run_sft(&lessons).unwrap();
        let files = std::fs::read_dir(taught).unwrap().map(|entry| entry.unwrap());
        files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
    })
}

/// Point at which a run is asked to stop.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum StopAt {
    Never,
    /// After this step.
    Step(usize),
    /// During this evaluation, counted from 1 in the session.
    Evaluation(usize),
    /// During the first step of the session.
    FirstStep,
}

/// Observer that asks a run to stop and collects its notes.
struct Watcher<'a> {
    at: StopAt,
    stop: &'a AtomicBool,
    evaluations: usize,
    notes: Vec<String>,
}

impl Watcher<'_> {
    fn reach(&self, at: StopAt) {
        if self.at == at {
            self.stop.store(true, Ordering::SeqCst);
        }
    }
}

impl Observer for Watcher<'_> {
    fn begin(&mut self, phase: &str, _total: usize) {
        if phase == "evaluate" {
            self.evaluations += 1;
            self.reach(StopAt::Evaluation(self.evaluations));
        } else {
            self.reach(StopAt::FirstStep);
        }
    }
    fn advance(&mut self, done: usize, metrics: Option<&Metrics>) {
        if metrics.is_some() {
            self.reach(StopAt::Step(done));
        }
    }
    fn note(&mut self, line: &str) {
        self.notes.push(line.to_string());
    }
}

/// Call `run` with a session that starts at `start` and is stopped at `at`; return its result and notes.
pub(crate) fn in_session<T>(start: Start, at: StopAt, run: impl FnOnce(&mut Session) -> T) -> (T, String) {
    let stop = AtomicBool::new(false);
    let mut watcher = Watcher { at, stop: &stop, evaluations: 0, notes: Vec::new() };
    let ended = run(&mut Session { observer: &mut watcher, stop: &stop, start });
    (ended, watcher.notes.join("\n"))
}

/// Run SFT from `start` until it ends or is stopped; return its result and notes.
pub(crate) fn session_sft(config: &SftConfig, start: Start, at: StopAt) -> (Result<PathBuf>, String) {
    in_session(start, at, |session| sft::run(config, session))
}

/// Run RL from `start` until it ends or is stopped; return its result and notes.
pub(crate) fn session_rl(config: &RlConfig, start: Start, at: StopAt) -> (Result<Finished>, String) {
    in_session(start, at, |session| Trainer::new(config).run(session))
}

/// Run SFT to its end.
pub(crate) fn run_sft(config: &SftConfig) -> Result<PathBuf> {
    session_sft(config, Start::New, StopAt::Never).0
}

/// Run SFT and interrupt it after a step.
pub(crate) fn interrupt_sft(config: &SftConfig, after: usize) -> Result<PathBuf> {
    session_sft(config, Start::New, StopAt::Step(after)).0
}

/// Resume an interrupted SFT run and run it to its end.
pub(crate) fn resume_sft(config: &SftConfig) -> Result<PathBuf> {
    session_sft(config, Start::Resume, StopAt::Never).0
}

/// Run RL to its end.
pub(crate) fn run_rl(config: &RlConfig) -> Result<Finished> {
    session_rl(config, Start::New, StopAt::Never).0
}

/// Run RL and interrupt it after a step.
pub(crate) fn interrupt_rl(config: &RlConfig, after: usize) -> Result<Finished> {
    session_rl(config, Start::New, StopAt::Step(after)).0
}

/// Resume an interrupted RL run and run it to its end.
pub(crate) fn resume_rl(config: &RlConfig) -> Result<Finished> {
    session_rl(config, Start::Resume, StopAt::Never).0
}

/// Return the lines of a run's `metrics.jsonl` without timing metrics.
pub(crate) fn figures(run: &Path) -> Vec<Map<String, Value>> {
    let timed = |name: &str| name.starts_with("timing_s/") || name.starts_with("perf/");
    let mut rows = read_lines(&run.join("metrics.jsonl"));
    rows.iter_mut().for_each(|row| row.retain(|name, _| !timed(name)));
    rows
}

/// Return the objects of a JSONL file.
pub(crate) fn read_lines(path: &Path) -> Vec<Map<String, Value>> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Return the bytes of a run's final weights.
pub(crate) fn final_weights(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("final/model.safetensors")).unwrap()
}

/// Return the values of a metric, omitting steps without it.
pub(crate) fn column(figures: &[Map<String, Value>], name: &str) -> Vec<f64> {
    figures.iter().filter_map(|row| row.get(name)?.as_f64()).collect()
}

/// Assert that two columns agree to a relative 1e-5 (on the CPU).
#[track_caller]
pub(crate) fn assert_close(left: &[f64], right: &[f64]) {
    assert_eq!(left.len(), right.len());
    let tolerance = f64::from(within(1e-5));
    assert!(
        !left.is_empty() && left.iter().zip(right).all(|(l, r)| (l - r).abs() <= tolerance * l.abs()),
        "{left:?} {right:?}"
    );
}
