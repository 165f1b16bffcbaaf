//! What a step's completions were like: its metrics, and why it taught nothing when it did not.

use super::schedule::StepFigures;
use super::score::Scored;
use super::stage::Stage;
use crate::metrics::{Metrics, deviation, mean};
use crate::reward::RewardKind;
use crate::verify::Verdict;

/// Steps at the start that are looked at for a run that cannot learn.
pub(super) const DIAGNOSED_STEPS: usize = 5;

/// Why a step taught nothing, when it did not: the usual silent failures, named.
pub(super) fn diagnose(scored: &[Scored], metrics: &Metrics, stage: &Stage) -> Option<String> {
    if scored.iter().any(|s| s.advantage.total() != 0.0) {
        return None;
    }
    let percent = |name: &str| 100.0 * metrics.get(name).unwrap_or(0.0);
    let count = |verdict: Verdict| scored.iter().filter(|s| s.verdict == verdict).count();
    let advice = if percent("completions/clipped_ratio") > 90.0 {
        format!("nearly all are cut: raise max_completion_length = {}", stage.sampling.max_completion_length)
    } else if count(Verdict::UnparseableGold) == scored.len() {
        "no row has a usable answer: see data.answer_field".to_string()
    } else if count(Verdict::NoAnswer) * 2 > scored.len() && percent("rewards/accuracy_lenient/mean") > 5.0 {
        "answers are right but not stated as \\boxed{} or after ####: fine-tune on the form first".to_string()
    } else {
        "all answers are wrong (or all right): the model needs easier (or harder) problems".to_string()
    };
    Some(format!(
        "step taught nothing: every group has rewards without spread; right {:.1}% (lenient {:.1}%), {} of {} without an \
         answer, {:.1}% cut at the length limit. {advice}",
        percent("rewards/accuracy/mean"),
        percent("rewards/accuracy_lenient/mean"),
        count(Verdict::NoAnswer),
        scored.len(),
        percent("completions/clipped_ratio"),
    ))
}

/// Writes down what the step's completions were like; returns what exit rules look at.
pub(super) fn describe(scored: &[Scored], stage: &Stage, group: usize, metrics: &mut Metrics) -> StepFigures {
    let lengths = |keep: &dyn Fn(&Scored) -> bool| -> Vec<f64> {
        scored.iter().filter(|s| keep(s)).map(|s| s.completion.tokens.len() as f64).collect()
    };
    let share =
        |is: &dyn Fn(&Scored) -> bool| scored.iter().filter(|s| is(s)).count() as f64 / scored.len().max(1) as f64;
    // Rewards: the weighted sum, and each on its own.
    let weights = stage.weights();
    let total = |s: &Scored| -> Option<f64> {
        let parts: Vec<f64> = s
            .rewards
            .iter()
            .zip(&weights)
            .filter_map(|(r, w)| Some(f64::from((*r)?.total()) * f64::from(*w)))
            .collect();
        (!parts.is_empty()).then(|| parts.iter().sum())
    };
    let totals: Vec<f64> = scored.iter().filter_map(&total).collect();
    let groups: Vec<Vec<f64>> = scored.chunks(group).map(|g| g.iter().filter_map(&total).collect()).collect();
    metrics.set("reward", mean(&totals));
    metrics.set("reward_std", mean(&groups.iter().map(|g| deviation(g)).collect::<Vec<_>>()));
    let flat = groups.iter().filter(|g| deviation(g) == 0.0).count();
    metrics.set("frac_reward_zero_std", flat as f64 / groups.len().max(1) as f64);
    metrics.set("rewards/unscored", share(&|s| s.rewards.iter().all(Option::is_none)));
    // As the reward of that name: over the completions that can be judged.
    let judged: Vec<f64> =
        scored.iter().filter_map(|s| s.outcome.correct).map(|right| f64::from(u8::from(right))).collect();
    metrics.set_mean("rewards/accuracy/mean", &judged);
    metrics.set("rewards/accuracy_lenient/mean", share(&|s| s.lenient));
    for (k, kind) in stage.rewards.iter().enumerate() {
        let values: Vec<f64> =
            scored.iter().filter_map(|s| s.rewards[k].map(|reward| f64::from(reward.total()))).collect();
        metrics.set_mean(&format!("rewards/{}/mean", kind.name()), &values);
        metrics.set(format!("rewards/{}/std", kind.name()), deviation(&values));
        metrics.set(format!("rewards/{}/unscored", kind.name()), share(&|s| s.rewards[k].is_none()));
    }
    if stage.rewards.iter().any(RewardKind::keeps_hardness) {
        metrics.set("rewards/ceeh_length/hard_share", share(&|s| s.hard));
    }
    // Lengths.
    let all = lengths(&|_| true);
    let length = mean(&all);
    metrics.set("completions/mean_length", length);
    metrics.set("completions/min_length", all.iter().copied().fold(f64::INFINITY, f64::min));
    metrics.set("completions/max_length", all.iter().copied().fold(0.0, f64::max));
    metrics.set_mean("completions/mean_terminated_length", &lengths(&|s| s.completion.finished()));
    metrics.set_mean("completions/mean_length_correct", &lengths(&|s| s.outcome.correct == Some(true)));
    metrics.set_mean("completions/mean_length_wrong", &lengths(&|s| s.outcome.correct == Some(false)));
    metrics.set("completions/clipped_ratio", share(&|s| !s.completion.finished()));
    // Entropy: exact, token mean, at both temperatures, and split by the sign of the advantage.
    let entropy = |keep: &dyn Fn(&Scored) -> bool, sampling: bool| -> Vec<f64> {
        let of = |s: &Scored| {
            if sampling { s.completion.sampling_entropies.clone() } else { s.completion.entropies.clone() }
        };
        scored.iter().filter(|s| keep(s)).flat_map(of).map(f64::from).collect()
    };
    let at_one = mean(&entropy(&|_| true, false));
    metrics.set("entropy", at_one);
    metrics.set("entropy/sampling", mean(&entropy(&|_| true, true)));
    metrics.set_mean("entropy/positive_advantage", &entropy(&|s| s.advantage.total() > 0.0, false));
    metrics.set_mean("entropy/negative_advantage", &entropy(&|s| s.advantage.total() < 0.0, false));
    metrics.set("advantage/positive_share", share(&|s| s.advantage.total() > 0.0));
    metrics.set("advantage/negative_share", share(&|s| s.advantage.total() < 0.0));
    metrics.set(
        "advantage/correct_but_negative_share",
        share(&|s| s.advantage.total() < 0.0 && s.outcome.correct == Some(true)),
    );
    StepFigures { length, entropy: at_one, accuracy: share(&|s| s.outcome.correct == Some(true)), cancelled: None }
}
