//! SFT and RL: options that must not change the result, learning, resumption and stages.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use safetensors::tensor::SafeTensors;
use serde_json::{Value, json};
use tempering::Error;
use tempering::config::Settings;
use tempering::data::{Fields, load_problems};
use tempering::model::{Precision, names};
use tempering::reward::{Accuracy, AnswerGroup, Command, Custom, Memory, Parts, Reward};
use tempering::rollout::settings::{OwnConfig, RolloutConfig};
use tempering::stage::{Controller, Plateau, PlateauMetric, StageExit};
use tempering::stage::{EntropyBonus, Kl, Stage, StageSampling};
use tempering::train::batch::Sequence;
use tempering::train::learner::ActivationCheckpointing;
use tempering::train::sft::SftModel;
use tempering::train::{RlConfig, Trainer};
use tempering::train::{Session, Start};

use crate::support::{
    Workshop, assert_close, column, device, figures, final_weights, interrupt_rl, interrupt_sft, likelihood,
    read_lines, repository, resume_rl, resume_sft, run_rl, run_sft, tiny, within,
};

#[test]
fn every_parameter_receives_a_gradient() {
    let (_, model) = tiny(1, &device().autodiff());
    let sequence = Sequence { tokens: (0..20).map(|i| 7 + i * 23).collect(), prompt: 4 };
    let (_, gradients) = likelihood(&model, &[sequence]);
    let expected = names(&model);
    assert!(gradients.names().eq(expected.keys().map(String::as_str)), "{:?}", gradients.names().collect::<Vec<_>>());
    assert!(gradients.norm() > 0.0);
}

#[test]
fn every_parameter_moves_in_fine_tuning() {
    let workshop = Workshop::new();
    let last = run_sft(&workshop.sft("sft")).unwrap();
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let (before, after) = (read(&workshop.path("model")), read(&last));
    let (before, after) = (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    for (name, tensor) in before.tensors() {
        assert_ne!(tensor.data(), after.tensor(&name).unwrap().data(), "{name}");
    }
}

#[test]
fn fine_tuning_does_not_depend_on_the_size_of_micro_batches() {
    let workshop = Workshop::new();
    let run = |name: &str, tokens: usize| {
        let mut config = workshop.sft(name);
        config.train.tokens_per_microbatch = tokens;
        config.train.max_steps = 1; // later steps would start from weights that differ by rounding
        run_sft(&config).unwrap();
        figures(&workshop.run(name))
    };
    let (whole, pieces) = (run("whole", 100_000), run("pieces", 64));
    for metric in ["loss", "entropy", "grad_norm"] {
        assert_close(&column(&whole, metric), &column(&pieces, metric));
    }
}

#[test]
fn three_steps_in_a_row_that_are_not_finite_end_the_run_and_leave_the_batch_behind() {
    let workshop = Workshop::new();
    let mut config = workshop.sft("sft");
    // The first step makes the weights so large that every later loss is NaN.
    (config.train.max_steps, config.optim.learning_rate) = (9, 1e38);
    let error = run_sft(&config).unwrap_err().to_string();
    assert!(error.contains("step 4 is the third in a row") && error.contains("bad_batch.jsonl"), "{error}");
    let run = workshop.run("sft");
    let rows = read_lines(&run.join("bad_batch.jsonl"));
    assert!(!rows.is_empty() && rows[0]["prompt"].as_str().unwrap().contains("Compute"), "{rows:?}");
    let skipped = column(&figures(&run), "skipped_sequences");
    assert_eq!(skipped.len(), 4, "the bad steps are in the log, too");
    assert!(skipped[0] == 0.0 && skipped[1..].iter().all(|&count| count > 0.0), "{skipped:?}");
}

/// Regression: such a run ended successfully and exported a model of NaNs.
#[test]
fn a_run_that_ends_without_finite_numbers_exports_nothing() {
    let workshop = Workshop::new();
    let mut config = workshop.sft("sft");
    for learning_rate in [1e30, 1e38] {
        config.optim.learning_rate = learning_rate;
        config.name = format!("sft{learning_rate:e}");
        let error = run_sft(&config).unwrap_err().to_string();
        assert!(error.contains("not finite") && error.contains("optim.learning_rate"), "{error}");
        assert!(!workshop.run(&config.name).join("final").exists());
    }
}

#[test]
fn recomputing_blocks_changes_no_bit_of_a_run() {
    let workshop = Workshop::new();
    let run = |name: &str, activation_checkpointing| {
        let mut config = workshop.rl(name);
        (config.train.activation_checkpointing, config.stages[0].exit.max_steps) = (activation_checkpointing, 2);
        run_rl(&config).unwrap();
        (figures(&workshop.run(name)), final_weights(&workshop.run(name)))
    };
    assert!(run("kept", ActivationCheckpointing::None) == run("again", ActivationCheckpointing::Block));
}

/// Four steps of two mini-batches each, with a reference model, an entropy bonus and masked tokens.
#[test]
fn reinforcement_does_not_depend_on_the_size_of_micro_batches() {
    let workshop = Workshop::new();
    let run = |name: &str, tokens: usize| {
        let mut config = workshop.rl(name);
        config.train.tokens_per_microbatch = tokens;
        // AdamW normalises gradients, so where a gradient is only rounding error, so is the step. An epsilon far above
        // all gradients makes steps proportional to gradients. Each update amplifies rounding differences: at a
        // learning rate of 0.1, gradient norms differed by a relative 9.4e-6.
        (config.optim.adam_epsilon, config.optim.learning_rate) = (1.0, 0.003);
        let stage = &mut config.stages[0];
        stage.exit.max_steps = 4;
        stage.loss.steps_per_generation = 2;
        stage.loss.kl = Some(Kl { beta: 0.1, ..Kl::default() });
        stage.tokens.top_entropy_quantile = 0.7;
        stage.tokens.entropy_bonus = Some(EntropyBonus::Fixed { entropy_coef: 0.01, entropy_hard_factor: 1.0 });
        run_rl(&config).unwrap();
        figures(&workshop.run(name))
    };
    let (whole, pieces) = (run("whole", 100_000), run("pieces", 64));
    for metric in ["loss", "policy_loss", "grad_norm", "kl", "reward", "entropy", "completions/mean_length"] {
        let (whole, pieces) = (column(&whole, metric), column(&pieces, metric));
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= f64::from(within(5e-6)) * a.abs().max(1.0);
        assert!(whole.len() == 4 && whole.iter().zip(&pieces).all(near), "{metric}: {whole:?} {pieces:?}");
    }
    let (norms, kl) = (column(&whole, "grad_norm"), column(&whole, "kl"));
    assert!(norms.iter().all(|&norm| norm > 1e-3) && kl[3] > 1e-6, "the test needs learning: {norms:?} {kl:?}");
}

#[test]
fn a_new_model_knows_nothing_and_learns_sixteen_sums_by_heart() {
    let workshop = Workshop::new();
    let mut config = workshop.sft("sft");
    config.model = SftModel {
        tokenizer: repository("assets/base"),
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        ..SftModel::default()
    };
    (config.train.max_steps, config.optim.learning_rate) = (120, 1e-2);
    run_sft(&config).unwrap();
    let loss = column(&figures(&workshop.run("sft")), "loss");
    // Before the first step all 512 tokens are equally likely.
    assert!((loss[0] - 512f64.ln()).abs() < 0.1, "{}", loss[0]);
    assert!(loss[119] < 0.3, "{}", loss[119]);
}

#[test]
fn where_all_rewards_are_equal_nothing_is_learned() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    // With one token per completion, every completion is truncated and wrong.
    (config.stages[0].exit.max_steps, config.stages[0].sampling.max_completion_length) = (2, 1);
    run_rl(&config).unwrap();
    let rows = figures(&workshop.run("run"));
    assert_eq!(column(&rows, "frac_reward_zero_std"), [1.0, 1.0]);
    assert_eq!(column(&rows, "completions/clipped_ratio"), [1.0, 1.0]);
    assert!(column(&rows, "grad_norm").iter().all(|norm| norm.to_bits() == 0), "{:?}", column(&rows, "grad_norm"));
    let before = std::fs::read(workshop.path("model/model.safetensors")).unwrap();
    assert!(final_weights(&workshop.run("run")) == before);
}

/// Reward of twice the number of tokens, all of it in the length part.
#[derive(Debug)]
struct Tokens;

impl Reward for Tokens {
    fn name(&self) -> &str {
        "tokens"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> tempering::Result<Vec<Option<Parts>>> {
        Ok(group.answers.iter().map(|answer| Some(Parts::length(2.0 * answer.length() as f32))).collect())
    }
}

#[test]
fn a_stage_learns_from_the_users_rust_type() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    let custom = |name: &str| vec![Custom { name: name.to_string() }.into()];
    (config.stages[0].rewards, config.stages[0].reward_weights) = (custom("tokns"), vec![]);
    (config.stages[0].exit.max_steps, config.stages[0].sampling.max_completion_length) = (1, 12);
    let run = |config: &RlConfig| {
        let stop = AtomicBool::new(false);
        let mut session = Session { observer: &mut (), stop: &stop, start: Start::New };
        Trainer::new(config).reward(Tokens).run(&mut session)
    };
    let error = run(&config).unwrap_err().to_string();
    assert!(error.contains(r#"name = "tokns", but the training program registers ["tokens"]"#), "{error}");
    config.stages[0].rewards = custom("tokens");
    run(&config).unwrap();
    let rows = figures(&workshop.run("run"));
    let lengths = column(&rows, "completions/mean_length");
    assert!(!lengths.is_empty() && column(&rows, "rewards/tokens/mean") == [2.0 * lengths[0]], "{lengths:?}");
    // The conflict metrics treat it as a length part.
    let pushes = ["conflict/push_task", "conflict/push_length"].map(|name| column(&rows, name).len());
    assert_eq!(pushes, [0, 1]);
}

/// Regression: a problem drawn twice in a step got the same completions twice.
#[test]
fn a_problem_that_is_drawn_twice_has_two_groups() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    config.data.train = workshop.write_lines("one.jsonl", [json!({ "prompt": "Compute 1+2.", "answer": "3" })]);
    (config.train.prompts_per_step, config.train.log_completions_steps) = (2, 1);
    (config.stages[0].exit.max_steps, config.stages[0].sampling.temperature) = (1, 1.5);
    run_rl(&config).unwrap();
    let rows = read_lines(&workshop.run("run/completions/step_00001.jsonl"));
    let texts: Vec<&Value> = rows.iter().map(|row| &row["completion"]).collect();
    assert!(texts.len() == 8 && texts[..4] != texts[4..], "{texts:?}");
}

/// Regression: an overlong row ended a run that draws single problems as replacements, and a row of 40 MB exceeded the
/// limits of the template engine.
#[test]
fn overlong_prompts_are_left_out_when_the_data_is_opened() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    let long = format!("Compute {}.", "1+".repeat(200) + "1");
    let rows = (0..6).map(|i| {
        let prompt = match i {
            1 => "word ".repeat(8 << 20),
            3 | 5 => long.clone(),
            _ => format!("Compute {i}+1."),
        };
        json!({ "prompt": prompt, "answer": (i + 1).to_string() })
    });
    config.data.train = workshop.write_lines("mixed.jsonl", rows);
    (config.data.max_prompt_length, config.stages[0].exit.max_steps) = (64, 2);
    config.stages[0].sampling.max_num_gen_batches = 3;
    let error = run_rl(&config).unwrap_err().to_string();
    assert!(error.contains("more than max_prompt_length = 64") && error.contains("filter_overlong_prompts"), "{error}");
    config.data.filter_overlong_prompts = true;
    run_rl(&config).unwrap();
}

#[test]
fn problems_from_memory_train_as_those_of_a_file() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("file");
    config.stages[0].exit.max_steps = 2;
    run_rl(&config).unwrap();
    let problems = load_problems(&workshop.path("sums.jsonl"), &Fields::default()).unwrap();
    let given = RlConfig { name: "memory".to_string(), ..config };
    let stop = AtomicBool::new(false);
    let mut session = Session { observer: &mut (), stop: &stop, start: Start::New };
    let first = problems[..given.eval.num_problems].to_vec();
    Trainer::new(&given).problems(problems).held_out(first).run(&mut session).unwrap();
    assert_eq!(figures(&workshop.run("memory")), figures(&workshop.run("file")));
}

/// The reward is a shell script that gives 1 to completions that look right and exits at every tenth.
#[cfg(unix)]
#[test]
fn a_stage_learns_from_the_users_program_and_leaves_out_what_it_does_not_score() {
    let workshop = Workshop::new();
    let script = r#"n=0; while [ $n -lt 9 ] && read -r line; do
        n=$((n+1)); id=${line#*:}; id=${id%%,*}; case $line in *boxed*) score=1;; *) score=0;; esac
        echo "{\"id\":$id,\"score\":$score}"; done; read -r line; exit 1"#;
    let mut config = workshop.rl("run");
    // Completions that the program does not score are still used because of the second reward.
    config.stages[0].rewards = vec![Command {}.into(), Accuracy {}.into()];
    config.stages[0].exit.max_steps = 2;
    assert!(config.validate()[0].contains("reward.command is empty"), "{:?}", config.validate());
    config.reward.command = ["sh", "-c", script].map(str::to_string).to_vec();
    assert!(config.validate().is_empty(), "{:?}", config.validate());
    run_rl(&config).unwrap();
    let rows = figures(&workshop.run("run"));
    // 16 completions per step: the 10th, 20th and 30th are not scored, and the program is restarted for the next.
    assert_eq!(column(&rows, "rewards/command/unscored"), [1.0 / 16.0, 2.0 / 16.0]);
    assert_eq!(column(&rows, "rewards/unscored"), [0.0, 0.0]);
    assert_eq!(column(&rows, "rewards/command/restarts"), [1.0, 2.0]);
    let means = column(&rows, "rewards/command/mean");
    assert!(means.len() == 2 && means.iter().all(|mean| (0.0..=1.0).contains(mean) && *mean > 0.0), "{means:?}");
}

/// Regression: a program that failed after several steps lost all of them.
#[cfg(unix)]
#[test]
fn the_steps_before_an_error_are_saved() {
    let workshop = Workshop::new();
    let script = r#"n=0; while read -r line; do n=$((n+1)); id=${line#*:}; id=${id%%,*};
        if [ $n -gt 40 ]; then echo nonsense; else echo "{\"id\":$id,\"score\":$((n%2))}"; fi; done"#;
    let mut config = workshop.rl("run");
    (config.stages[0].rewards, config.stages[0].reward_weights) = (vec![Command {}.into()], Vec::new());
    config.reward.command = ["sh", "-c", script].map(str::to_string).to_vec();
    let error = run_rl(&config).unwrap_err().to_string();
    assert!(error.contains("nonsense") && error.contains("checkpoint-2: continue with --resume"), "{error}");
    assert!(workshop.run("run/checkpoint-2/model.safetensors").is_file());
}

#[test]
fn an_interrupted_and_resumed_run_ends_as_one_that_was_not() {
    let workshop = Workshop::new();
    run_rl(&workshop.rl("whole")).unwrap();
    let halves = workshop.rl("halves");
    match interrupt_rl(&halves, 3).unwrap_err() {
        Error::Interrupted { checkpoint } => assert!(checkpoint.ends_with("checkpoint-3"), "{checkpoint:?}"),
        other => panic!("{other}"),
    }
    resume_rl(&halves).unwrap();
    let whole = figures(&workshop.run("whole"));
    assert_eq!(figures(&workshop.run("halves")), whole);
    let norms = column(&whole, "grad_norm");
    assert!(norms.iter().filter(|&&norm| norm > 0.0).count() > 3, "the test needs learning: {norms:?}");
    assert!(final_weights(&workshop.run("halves")) == final_weights(&workshop.run("whole")));
}

#[test]
fn interrupted_and_resumed_fine_tuning_ends_as_if_it_had_not_been() {
    let workshop = Workshop::new();
    let config = |name: &str| {
        let mut config = workshop.sft(name);
        config.train.max_steps = 4;
        config
    };
    run_sft(&config("whole")).unwrap();
    interrupt_sft(&config("halves"), 2).unwrap_err();
    resume_sft(&config("halves")).unwrap();
    assert_eq!(figures(&workshop.run("halves")), figures(&workshop.run("whole")));
    assert!(final_weights(&workshop.run("halves")) == final_weights(&workshop.run("whole")));
}

#[test]
fn an_interruption_between_two_stages_changes_nothing_either() {
    let workshop = Workshop::new();
    let config = |name: &str| {
        let mut config = workshop.rl(name);
        config.stages[0].exit.max_steps = 2;
        let mut second = Stage { name: "second".into(), ..config.stages[0].clone() };
        second.sampling.temperature = 1.2;
        config.stages.push(second);
        config
    };
    let whole = run_rl(&config("whole")).unwrap().summary;
    interrupt_rl(&config("halves"), 2).unwrap_err();
    let halves = resume_rl(&config("halves")).unwrap().summary;
    assert_eq!(figures(&workshop.run("halves")), figures(&workshop.run("whole")));
    for key in ["stages", "base", "final", "steps"] {
        assert_eq!(halves[key], whole[key], "{key}");
    }
}

#[test]
fn the_seed_decides_the_run() {
    let workshop = Workshop::new();
    let run = |name: &str, seed: u64| {
        let mut config = workshop.rl(name);
        (config.seed, config.stages[0].exit.max_steps) = (seed, 2);
        run_rl(&config).unwrap();
        (figures(&workshop.run(name)), final_weights(&workshop.run(name)))
    };
    let (first, again, other) = (run("first", 5), run("again", 5), run("other", 6));
    assert!(first == again);
    assert!(first.0 != other.0 && first.1 != other.1);
}

#[test]
fn stages_follow_each_other_and_the_summary_says_why_each_ended() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("stages");
    let stage = |name: &str, max_steps, max_completion_length, plateau| Stage {
        name: name.to_string(),
        sampling: StageSampling { max_completion_length, ..StageSampling::default() },
        exit: StageExit { max_steps, plateau, ..StageExit::default() },
        ..config.stages[0].clone()
    };
    // A mean cannot fall by more than 100%, so a tolerance of 1 finds the plateau at the first check.
    let at_once = Plateau { metric: PlateauMetric::Length, window: 1, tolerance: 1.0, min_steps: 2, patience: 1 };
    config.stages = vec![stage("long", 1, 12, None), stage("short", 50, 4, Some(at_once)), stage("last", 2, 6, None)];
    let summary = run_rl(&config).unwrap().summary;
    let expected = json!([
        { "name": "long", "first_step": 1, "last_step": 1, "exit": "steps" },
        { "name": "short", "first_step": 2, "last_step": 3, "exit": "plateau" },
        { "name": "last", "first_step": 4, "last_step": 5, "exit": "steps" },
    ]);
    assert_eq!(summary["stages"], expected);
    let file = std::fs::read_to_string(workshop.run("stages").join("summary.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&file).unwrap(), summary);
    let rows = figures(&workshop.run("stages"));
    let names: Vec<&str> = rows.iter().filter_map(|row| row.get("stage")?.as_str()).collect();
    assert_eq!(names, ["long", "short", "short", "last", "last"]);
    let longest = column(&rows, "completions/max_length");
    assert!(longest.iter().zip([12.0, 4.0, 4.0, 6.0, 6.0]).all(|(&length, limit)| length <= limit), "{longest:?}");
}

/// Return `[stage, first step, last step]` for each stage visit of a run.
fn stage_visits(summary: &Value) -> Vec<Value> {
    let of = |stage: &Value| json!([stage["name"], stage["first_step"], stage["last_step"]]);
    summary["stages"].as_array().unwrap().iter().map(of).collect()
}

/// Entropy is always below 100 nats, so compression ends after its minimum number of steps and never returns.
#[test]
fn the_controller_decides_by_what_it_measures_and_a_resumed_run_decides_alike() {
    let workshop = Workshop::new();
    let config = |name: &str| {
        let mut config = workshop.rl(name);
        let [mut compress, mut enhance] = [config.stages[0].clone(), config.stages[0].clone()];
        (compress.name, enhance.name) = ("compress".to_string(), "enhance".to_string());
        enhance.sampling.temperature = 1.2;
        config.stages = vec![compress, enhance];
        config.controller = Some(Controller {
            compress: "compress".to_string(),
            enhance: "enhance".to_string(),
            max_steps: 6,
            min_steps: 3,
            window: 2,
            accuracy_drop: 1.0,
            length_tolerance: None,
            entropy_low: 100.0,
            cancelled_high: 1.0,
        });
        config
    };
    let finished = run_rl(&config("whole")).unwrap();
    assert_eq!(stage_visits(&finished.summary), [json!(["compress", 1, 3]), json!(["enhance", 4, 6])]);
    assert!(finished.summary["stages"][0]["exit"].as_str().unwrap().contains("entropy"), "{}", finished.summary);
    for step in [2, 3] {
        let config = config(&format!("cut{step}"));
        interrupt_rl(&config, step).unwrap_err();
        resume_rl(&config).unwrap();
        assert_eq!(figures(&workshop.run(&config.name)), figures(&workshop.run("whole")));
        assert!(final_weights(&workshop.run(&config.name)) == final_weights(&workshop.run("whole")));
    }
}

#[test]
fn stages_can_be_gone_through_again() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("cycles");
    config.cycles = 2;
    config.stages[0].exit.max_steps = 2;
    let finished = run_rl(&config).unwrap();
    assert_eq!(stage_visits(&finished.summary), [json!(["grpo", 1, 2]), json!(["grpo", 3, 4])]);
}

#[test]
fn problems_without_spread_are_replaced_up_to_the_cap_which_is_reported() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("replaced");
    config.stages[0].rewards = vec![Accuracy {}.into()];
    config.stages[0].reward_weights = vec![];
    config.stages[0].sampling.max_num_gen_batches = 3;
    config.stages[0].exit.max_steps = 4;
    run_rl(&config).unwrap();
    let wanted = config.train.prompts_per_step as f64;
    let mut replaced = 0.0;
    for row in figures(&workshop.run("replaced")).iter().filter(|row| row.contains_key("loss")) {
        let value = |key: &str| row[key].as_f64().unwrap();
        let missing = value("sampling/missing_problems");
        replaced += value("sampling/replaced_problems");
        assert!(missing == 0.0 || value("sampling/num_gen_batches") == 3.0, "{row:?}");
        // A step contains problems without reward spread only if replacements were exhausted.
        assert!(value("frac_reward_zero_std") == 0.0 || missing == wanted, "{row:?}");
    }
    assert!(replaced > 0.0, "this model answers some sums always alike");
}

/// Sampling in bf16 while training in f32 halves the memory traffic per token.
#[test]
fn completions_sampled_in_bf16_are_learned_from_in_f32_with_the_difference_told() {
    if !device().supports_dtype(burn::tensor::FloatDType::BF16) {
        eprintln!("SKIPPED completions_sampled_in_bf16…: the device does not compute in bf16");
        return;
    }
    let workshop = Workshop::new();
    let divergence = |dtype: Option<Precision>| {
        let mut config = workshop.rl(&format!("{dtype:?}"));
        config.rollout = RolloutConfig::Own(OwnConfig { dtype, ..OwnConfig::default() });
        run_rl(&config).unwrap();
        column(&figures(&workshop.run(&config.name)), "sampling/kl")
    };
    let (own, short) = (divergence(None), divergence(Some(Precision::Bf16)));
    assert!(!own.is_empty() && own.len() == short.len());
    assert!(own.iter().all(|kl| *kl < 1e-9) && short.iter().all(|kl| (1e-9..1e-2).contains(kl)), "{own:?} {short:?}");
}
