//! Metrics of a step's completions, and a diagnosis of steps without a learning signal.

use crate::metrics::{Metrics, deviation, mean};
use crate::reward::RewardKind;
use crate::rollout::{Batch, Group, Rollout};
use crate::stage::Stage;
use crate::stage::StepFigures;
use crate::verify::Verdict;

/// Number of first steps that are diagnosed.
const DIAGNOSED_STEPS: usize = 5;

/// Return why one of the first steps had no learning signal, if it had none: the usual silent failures.
pub(super) fn diagnose(groups: &[Group], step: usize, metrics: &Metrics, stage: &Stage) -> Option<String> {
    let rollouts: Vec<&Rollout> = groups.iter().flat_map(|group| &group.rollouts).collect();
    if step > DIAGNOSED_STEPS || rollouts.iter().any(|rollout| rollout.advantage.total() != 0.0) {
        return None;
    }
    let percent = |name: &str| 100.0 * metrics.get(name).unwrap_or(0.0);
    let count = |verdict: Verdict| rollouts.iter().filter(|rollout| rollout.answer.verdicts.strict == verdict).count();
    let advice = if percent("rewards/unscored") >= 100.0 {
        "no completion was scored: see the output of the reward program".to_string()
    } else if percent("completions/clipped_ratio") > 90.0 {
        format!(
            "nearly all completions are truncated: raise max_completion_length = {}",
            stage.sampling.max_completion_length
        )
    } else if count(Verdict::UnparseableGold) == rollouts.len() {
        "no row has a usable answer: check data.answer_field".to_string()
    } else if count(Verdict::NoAnswer) * 2 > rollouts.len() && percent("rewards/accuracy_lenient/mean") > 5.0 {
        "answers are correct but not stated in \\boxed{} or after ####: fine-tune the model on this format first"
            .to_string()
    } else {
        "all answers of each problem are wrong, or all are correct: use easier or harder problems".to_string()
    };
    Some(format!(
        "no learning signal in this step: the completions of every group have equal rewards; accuracy {:.1}% (lenient \
         {:.1}%), {} of {} without an answer, {:.1}% truncated at the length limit. {advice}",
        percent("rewards/accuracy/mean"),
        percent("rewards/accuracy_lenient/mean"),
        count(Verdict::NoAnswer),
        rollouts.len(),
        percent("completions/clipped_ratio"),
    ))
}

/// Write the metrics of the step's completions. Return the figures that exit rules read, over all sampled completions.
pub(super) fn describe(batch: &Batch, stage: &Stage, metrics: &mut Metrics) -> StepFigures {
    metrics.set_text("stage", &stage.name);
    metrics.set("max_completion_length", stage.sampling.max_completion_length as f64);
    let rollouts: Vec<&Rollout> = batch.groups.iter().flat_map(|group| &group.rollouts).collect();
    describe_rewards(&batch.groups, &rollouts, stage, metrics);
    describe_lengths(&rollouts, metrics);
    describe_entropies(&rollouts, metrics);
    let share = |is: &dyn Fn(&Rollout) -> bool| share(&rollouts, is);
    metrics.set("advantage/positive_share", share(&|r| r.advantage.total() > 0.0));
    metrics.set("advantage/negative_share", share(&|r| r.advantage.total() < 0.0));
    let against = |r: &Rollout| r.advantage.total() < 0.0 && r.answer.correct == Some(true);
    metrics.set("advantage/correct_but_negative_share", share(&against));
    let all_right = |group: &&Group| group.rollouts.iter().all(|r| r.answer.correct == Some(true));
    let spread =
        |group: &Group| deviation(&group.rollouts.iter().map(|r| f64::from(r.advantage.total())).collect::<Vec<_>>());
    metrics.set_mean("advantage/all_right_std", &batch.groups.iter().filter(all_right).map(spread).collect::<Vec<_>>());
    figures(&batch.all().flat_map(|group| &group.rollouts).collect::<Vec<_>>())
}

fn share(rollouts: &[&Rollout], is: &dyn Fn(&Rollout) -> bool) -> f64 {
    rollouts.iter().filter(|rollout| is(rollout)).count() as f64 / rollouts.len().max(1) as f64
}

fn lengths(rollouts: &[&Rollout], keep: &dyn Fn(&Rollout) -> bool) -> Vec<f64> {
    rollouts.iter().filter(|rollout| keep(rollout)).map(|rollout| rollout.length() as f64).collect()
}

/// Return the entropies of all tokens of the rollouts selected by `keep`, at temperature 1 or at the sampling
/// temperature.
fn entropies(rollouts: &[&Rollout], keep: &dyn Fn(&Rollout) -> bool, sampling: bool) -> Vec<f64> {
    let of = |rollout: &&Rollout| {
        let completion = &rollout.completion;
        if sampling { completion.sampling_entropies.clone() } else { completion.entropies.clone() }
    };
    rollouts.iter().filter(|rollout| keep(rollout)).flat_map(of).map(f64::from).collect()
}

fn figures(rollouts: &[&Rollout]) -> StepFigures {
    StepFigures {
        length: mean(&lengths(rollouts, &|_| true)),
        entropy: mean(&entropies(rollouts, &|_| true, false)),
        accuracy: share(rollouts, &|r| r.answer.correct == Some(true)),
        cancelled: None,
    }
}

/// Write the weighted sum of rewards, and each reward on its own.
fn describe_rewards(groups: &[Group], rollouts: &[&Rollout], stage: &Stage, metrics: &mut Metrics) {
    let weights = stage.weights();
    let total = |rollout: &Rollout| rollout.reward(&weights).map(f64::from);
    let share = |is: &dyn Fn(&Rollout) -> bool| share(rollouts, is);
    let totals: Vec<f64> = rollouts.iter().filter_map(|rollout| total(rollout)).collect();
    let groups: Vec<(bool, Vec<f64>)> =
        groups.iter().map(|group| (group.hard, group.rollouts.iter().filter_map(total).collect())).collect();
    metrics.set("reward", mean(&totals));
    metrics.set("reward_std", mean(&groups.iter().map(|(_, group)| deviation(group)).collect::<Vec<_>>()));
    let flat = groups.iter().filter(|(_, group)| deviation(group) == 0.0).count();
    metrics.set("frac_reward_zero_std", flat as f64 / groups.len().max(1) as f64);
    metrics.set("rewards/unscored", share(&|r| r.rewards.iter().all(Option::is_none)));
    // As for the rewards of these names: over the completions that can be judged.
    let judged: Vec<f64> =
        rollouts.iter().filter_map(|r| r.answer.correct).map(|right| f64::from(u8::from(right))).collect();
    metrics.set_mean("rewards/accuracy/mean", &judged);
    let lenient: Vec<f64> =
        rollouts.iter().filter_map(|r| r.answer.correct_lenient).map(|right| f64::from(u8::from(right))).collect();
    metrics.set_mean("rewards/accuracy_lenient/mean", &lenient);
    for (k, kind) in stage.rewards.iter().enumerate() {
        let values: Vec<f64> = rollouts.iter().filter_map(|r| Some(f64::from(r.rewards[k]?.total()))).collect();
        metrics.set_mean(&format!("rewards/{}/mean", kind.name()), &values);
        metrics.set(format!("rewards/{}/std", kind.name()), deviation(&values));
        metrics.set(format!("rewards/{}/unscored", kind.name()), share(&|r| r.rewards[k].is_none()));
    }
    if stage.rewards.iter().any(RewardKind::keeps_hardness) {
        let hard = groups.iter().filter(|(hard, _)| *hard).count();
        metrics.set("rewards/ceeh_length/hard_share", hard as f64 / groups.len().max(1) as f64);
    }
}

fn describe_lengths(rollouts: &[&Rollout], metrics: &mut Metrics) {
    let lengths = |keep: &dyn Fn(&Rollout) -> bool| lengths(rollouts, keep);
    let all = lengths(&|_| true);
    metrics.set("completions/mean_length", mean(&all));
    metrics.set("completions/min_length", all.iter().copied().fold(f64::INFINITY, f64::min));
    metrics.set("completions/max_length", all.iter().copied().fold(0.0, f64::max));
    let terminated = lengths(&|r| r.completion.finished());
    if !terminated.is_empty() {
        metrics.set("completions/mean_terminated_length", mean(&terminated));
        metrics.set("completions/min_terminated_length", terminated.iter().copied().fold(f64::INFINITY, f64::min));
        metrics.set("completions/max_terminated_length", terminated.iter().copied().fold(0.0, f64::max));
    }
    metrics.set_mean("completions/mean_length_correct", &lengths(&|r| r.answer.correct == Some(true)));
    metrics.set_mean("completions/mean_length_wrong", &lengths(&|r| r.answer.correct == Some(false)));
    metrics.set("completions/clipped_ratio", share(rollouts, &|r| !r.completion.finished()));
}

/// Write entropies: exact token means, at both temperatures, and split by the sign of the advantage.
fn describe_entropies(rollouts: &[&Rollout], metrics: &mut Metrics) {
    let entropies = |keep: &dyn Fn(&Rollout) -> bool, sampling: bool| entropies(rollouts, keep, sampling);
    metrics.set("entropy", mean(&entropies(&|_| true, false)));
    metrics.set("entropy/sampling", mean(&entropies(&|_| true, true)));
    metrics.set_mean("entropy/positive_advantage", &entropies(&|r| r.advantage.total() > 0.0, false));
    metrics.set_mean("entropy/negative_advantage", &entropies(&|r| r.advantage.total() < 0.0, false));
}
